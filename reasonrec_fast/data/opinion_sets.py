"""Published sets of images with people's opinions, read as their authors lay them out.

Columns and layouts were checked against the sets' own files, their authors' readers or programs that read them; what
could not be checked is not guessed: another layout is refused with what was expected and what came. Terms of the sets
differ (most allow research alone), and none of them is part of this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.opinion_layouts import (
    Parts,
    read_agiqa3k,
    read_ava,
    read_biq2021,
    read_cadb,
    read_kadid10k,
    read_koniq10k,
    read_livec,
    read_para,
    read_spaq,
    read_tad66k,
)
from reasonrec_fast.data.opinions import Opinions, OpinionSplit


@dataclass(frozen=True)
class OpinionSet:
    """A published set.

    Attributes:
        title: name and what was judged.
        load: reads a folder, given the column of scores and the number of ratings an image.
        score: the column of scores that is read by default.
        scores: other columns of scores that may be read.
        raters: ratings of each image as the set's authors state it, for sets whose files have deviations and no counts;
            NaN where they state an average alone, None for other sets.
    """

    title: str
    load: Callable[[Path, str, float], Parts]
    score: str
    scores: tuple[str, ...] = ()
    raters: float | None = None


def load_opinion_set(
    name: str,
    folder: str | Path,
    *,
    score: str | None = None,
    raters: float | None = None,
    skip_missing: bool = False,
) -> Opinions | OpinionSplit:
    """Read a published set.

    Every score has the set's name as its scale (followed by the column where another one than the usual is read).
    Deviations are standard errors of the mean scores: from the histogram of ratings, or the published deviation over
    the root of the number of ratings; None where a set has neither.

    Args:
        name: of :data:`OPINION_SETS`.
        folder: of the set as it is unpacked; images outside it are refused.
        score: another column of scores, for sets with several (:attr:`OpinionSet.scores`).
        raters: ratings of each image, for sets whose files have deviations and no counts; by default what the authors
            state (LIVE Challenge states an average of 175 alone, hence no deviations there unless you give a number).
        skip_missing: leave images out that are not there (AVA's are downloaded one by one), instead of an error.

    Returns:
        The parts of the published split, in which no image is in two parts; all images where there is none. Images
        that are alike in two parts are found by :func:`~reasonrec_fast.evaluation.near_duplicates`.

    Raises:
        DataError: an unknown name, a file or column that is not there, a value that does not fit, an image that is
            missing or in two parts (each with file and row).
        ImportError: an ``.xlsx`` file without the package openpyxl.

    >>> load_opinion_set("koniq", "data")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    reasonrec_fast.data.errors.DataError: name: expected one of agiqa3k, ava, ..., tad66k; got 'koniq'
    """
    if name not in OPINION_SETS:
        raise DataError(f"name: expected one of {', '.join(sorted(OPINION_SETS))}; got {name!r}")
    known, folder = OPINION_SETS[name], Path(folder)
    if not folder.is_dir():
        raise DataError(f"folder: expected the folder of {known.title}; there is none at {folder}")
    if score is not None and score not in (known.score, *known.scores):
        raise DataError(f"score: expected one of {', '.join((known.score, *known.scores))}; got {score!r}")
    if raters is not None and (known.raters is None or not np.isfinite(raters) or raters <= 1):
        expected = "none, as the set has counts or no deviations" if known.raters is None else "a number above 1"
        raise DataError(f"raters: expected {expected}; got {raters!r}")
    column = score or known.score
    ratings = raters if raters is not None else float("nan") if known.raters is None else known.raters
    scale = name if column == known.score else f"{name}:{column}"
    rows = known.load(folder, column, float(ratings))
    _check_apart(rows)
    parts = {part: its.opinions(folder, scale, skip_missing) for part, its in rows.items()}
    if set(parts) == {"all"}:
        return parts["all"]
    return OpinionSplit(parts["train"], parts.get("validation"), parts["test"])


def _check_apart(parts: Parts) -> None:
    of_image: dict[str, str] = {}
    for part, rows in parts.items():
        for row, image in enumerate(rows.images):
            if of_image.setdefault(image, part) != part:
                raise DataError(
                    f"{rows.path}, row {row}: expected images of one part alone; got {image!r} in "
                    f"{of_image[image]} and {part}"
                )


_PARA_SCORES = tuple(
    f"{name}_mean"
    for name in ("qualityScore", "compositionScore", "colorScore", "dofScore", "lightScore", "contentScore",
                 "contentPreference", "willingnessToShare")
)  # fmt: skip

OPINION_SETS: Mapping[str, OpinionSet] = {
    "agiqa3k": OpinionSet("AGIQA-3K, made images", read_agiqa3k, "mos_quality", ("mos_align",), 21.0),
    "ava": OpinionSet("AVA, aesthetics of photographs", read_ava, "rating"),
    "biq2021": OpinionSet("BIQ2021, quality of photographs", read_biq2021, "MOS"),
    "cadb": OpinionSet("CADB, composition of photographs", read_cadb, "scores"),
    "kadid10k": OpinionSet("KADID-10k, artificial distortions", read_kadid10k, "dmos", (), 30.0),
    "koniq10k": OpinionSet("KonIQ-10k, quality of photographs", read_koniq10k, "MOS"),
    "livec": OpinionSet("LIVE Challenge, quality of photographs", read_livec, "AllMOS_release", (), float("nan")),
    "para": OpinionSet("PARA, aesthetics of photographs", read_para, "aestheticScore_mean", _PARA_SCORES),
    "spaq": OpinionSet(
        "SPAQ, quality of photographs of telephones", read_spaq, "MOS",
        ("Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"),
    ),
    "tad66k": OpinionSet("TAD66K, aesthetics of photographs", read_tad66k, "score"),
}  # fmt: skip
"""Every set by its name; what its folder must hold is told in
:mod:`reasonrec_fast.data.opinion_layouts`."""


def split_by_group(opinions: Opinions, *, test: float = 0.2, validation: float = 0.0, seed: int = 0) -> OpinionSplit:
    """Parts that share no group, such as KADID-10k's references: no picture in two parts, however distorted.

    Groups go to parts in an order that is a digest of the seed and their names, so that it does not depend on the order
    of the rows.

    Args:
        opinions: with groups.
        test, validation: shares of the groups, rounded; at least one group where the share is not 0.
        seed: another one is another split.

    Raises:
        DataError: no groups, or fewer than the parts need.
        ValueError: shares outside (0, 1) (validation may be 0), or whose sum is 1 or more.

    >>> both = Opinions(("a1", "b1", "a2"), np.arange(3.0), Path(), groups=("a", "b", "a"))
    >>> split = split_by_group(both, test=0.5)
    >>> split.train.images, split.test.images
    (('a1', 'a2'), ('b1',))
    """
    if not (0 < test < 1 and 0 <= validation < 1 and test + validation < 1):
        raise ValueError(f"test, validation: expected shares with a sum below 1; got {test!r} and {validation!r}")
    if opinions.groups is None:
        raise DataError("opinions: expected groups; got none")
    names = sorted(set(opinions.groups), key=lambda name: hashlib.blake2b(f"{seed}\0{name}".encode()).digest())
    of_test, of_validation = (max(1, round(share * len(names))) if share else 0 for share in (test, validation))
    if len(names) <= of_test + of_validation:
        raise DataError(f"opinions: expected more than {of_test + of_validation} groups; got {len(names)}")
    part_of = dict.fromkeys(names, "train")
    part_of |= dict.fromkeys(names[:of_test], "test")
    part_of |= dict.fromkeys(names[of_test : of_test + of_validation], "validation")
    parts = np.array([part_of[group] for group in opinions.groups])
    train, held_out, tested = (opinions.take(np.flatnonzero(parts == part)) for part in ("train", "validation", "test"))
    return OpinionSplit(train, held_out if of_validation else None, tested)
