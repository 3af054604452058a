"""Images with mean opinion scores: what a judge of quality learns from and is measured on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from reasonrec_fast.arrays import as_index, as_numbers
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import path_within, read_image


@dataclass(frozen=True)
class Opinions:
    """Images and what people thought of them.

    Attributes:
        images: paths within ``folder``, ``[N]``.
        scores: mean opinion scores on any scale, larger is better, float64 ``[N]``.
        folder: of the images.
        groups: where each image is from, for figures by group, ``[N]``; None where nothing is known. Judges do not read
            it.
        scales: whose scale each score is on, such as the name of the data set, ``[N]``; scores of different scales are
            never compared with each other. None: all scores are of one scale.
        deviations: standard error of each mean score on its own scale, float64 ``[N]``, NaN where it is not known; None
            where none is.

    Raises:
        DataError: scales or deviations of another length, a scale without a name, or a deviation below 0 or infinite.

    >>> Opinions(("a.png",), np.array([3.0]), Path(), scales=("mine",), deviations=np.array([-0.1]))
    Traceback (most recent call last):
    reasonrec_fast.data.errors.DataError: deviations: expected at least 0, or NaN where unknown; got -0.1 in row 0
    """

    images: tuple[str, ...]
    scores: np.ndarray
    folder: Path
    groups: tuple[str, ...] | None = field(default=None)
    scales: tuple[str, ...] | None = field(default=None)
    deviations: np.ndarray | None = field(default=None)

    def __post_init__(self) -> None:
        if self.scales is not None:
            _check_length(len(self.scales), len(self), "scales")
            for row, scale in enumerate(self.scales):
                if not isinstance(scale, str) or not scale.strip():
                    raise DataError(f"scales: expected names; got {scale!r} in row {row}")
        if self.deviations is not None:
            deviations = as_numbers(self.deviations, "deviations", nan=True, error=DataError)
            _check_length(len(deviations), len(self), "deviations")
            for row in np.flatnonzero(deviations < 0)[:1]:
                raise DataError(
                    f"deviations: expected at least 0, or NaN where unknown; got {deviations[row]} in row {row}"
                )
            object.__setattr__(self, "deviations", deviations)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Opinions:
        """Some of the rows.

        Raises:
            DataError: a row that is not there (a mask is no list of rows).
        """
        rows = as_index(rows, "rows", len(self), error=DataError)
        return Opinions(
            tuple(self.images[row] for row in rows),
            self.scores[rows],
            self.folder,
            None if self.groups is None else tuple(self.groups[row] for row in rows),
            None if self.scales is None else tuple(self.scales[row] for row in rows),
            None if self.deviations is None else self.deviations[rows],
        )

    def check_one_scale(self, name: str) -> None:
        """For work that compares all scores with each other.

        Args:
            name: of the argument, for the message.

        Raises:
            DataError: scores of several scales.
        """
        known = sorted(set(self.scales or ()))
        if len(known) > 1:
            raise DataError(f"{name}: expected scores of one scale; got {len(known)}: {', '.join(map(repr, known))}")

    def digest(self) -> str:
        """SHA-256 of the files' contents, the scores, the groups, the scales and the deviations, 32 hexadecimal
        digits."""
        sha256 = hashlib.sha256(np.ascontiguousarray(self.scores, dtype=np.float64).tobytes())
        for image in self.images:
            sha256.update(hashlib.sha256(path_within(image, self.folder).read_bytes()).digest())
        sha256.update("\0".join(self.groups or ()).encode())
        if self.scales is not None:  # without the two, digests are what they were before there were any
            sha256.update(b"\0scales\0" + json.dumps(self.scales).encode())
        if self.deviations is not None:
            canonical = np.where(np.isnan(self.deviations), np.nan, self.deviations + 0.0)  # one NaN, one zero
            sha256.update(b"\0deviations\0" + canonical.tobytes())
        return sha256.hexdigest()[:32]


def load_opinions(
    path: str | Path,
    *,
    image: str = "image",
    score: str = "score",
    group: str | None = None,
    scale: str | None = None,
    deviation: str | None = None,
) -> Opinions:
    """Read a CSV file of images and their mean opinion scores.

    Args:
        path: of the file; images are relative to its folder and may not lie outside.
        image, score, group, scale, deviation: names of its columns; no group, scale or deviation by default. A
            deviation that is not known is an empty field.

    Raises:
        DataError: no such file, a column that is not there, a score that is not a finite number, a deviation that is
            neither empty nor a finite number of at least 0, a scale without a name, an image twice, or one that is
            missing or cannot be opened (each with its row).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: expected a CSV file of images; there is none at {path}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8; {error}") from error
    for name in (image, score, *(name for name in (group, scale, deviation) if name is not None)):
        if name not in table:
            raise DataError(f"{path}: expected a column {name!r}; got {', '.join(map(repr, table.columns))}")
    if not len(table):
        raise DataError(f"{path}: expected at least one image; got none")
    images = tuple(table[image])
    first: dict[str, int] = {}
    for row, name in enumerate(images):
        if first.setdefault(name, row) != row:
            raise DataError(f"{path}: expected each image once; got {name!r} in rows {first[name]} and {row}")
        try:
            missing = not path_within(name, path.parent).is_file()
        except (DataError, ValueError, OSError) as error:
            raise DataError(f"{path}, row {row}: {error}") from error
        if missing:
            raise DataError(f"{path}, row {row}: expected an image; there is none at {name!r}")
    values = [_number(value, path, row) for row, value in enumerate(table[score])]
    errors = None if deviation is None else [_deviation(text, path, row) for row, text in enumerate(table[deviation])]
    scales = None if scale is None else tuple(table[scale])
    for row, name in enumerate(scales or ()):
        if not name.strip():
            raise DataError(f"{path}, row {row}: expected the name of a scale; got {name!r}")
    return Opinions(
        images,
        as_numbers(values, score),
        path.parent,
        None if group is None else tuple(table[group]),
        scales,
        None if errors is None else np.array(errors),
    )


def check_readable(opinions: Opinions) -> None:
    """Open every image, before work that takes long.

    Raises:
        DataError: one cannot be read (with its row).
    """
    for row, image in enumerate(opinions.images):
        try:
            read_image(image, folder=opinions.folder)
        except DataError as error:
            raise DataError(f"row {row}: {error}") from error


def _check_length(got: int, expected: int, name: str) -> None:
    if got != expected:
        raise DataError(f"{name}: expected one for each of the {expected} images; got {got}")


def _number(text: str, path: Path, row: int, expected: str = "a score, a finite number") -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{path}, row {row}: expected {expected}; got {text!r}")
    return value


def _deviation(text: str, path: Path, row: int) -> float:
    if not text:
        return float("nan")
    value = _number(text, path, row, "a deviation, a finite number of at least 0")
    if value < 0:
        raise DataError(f"{path}, row {row}: expected a deviation, a finite number of at least 0; got {text!r}")
    return value


@dataclass(frozen=True)
class OpinionSplit:
    """Images for training and test, and for validation where there are some."""

    train: Opinions
    validation: Opinions | None
    test: Opinions

    def digest(self) -> str:
        """SHA-256 of all parts, 32 hexadecimal digits."""
        parts = [part.digest() for part in (self.train, self.validation, self.test) if part is not None]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def load_opinion_split(
    train: str | Path, test: str | Path, validation: str | Path | None = None, **columns: str | None
) -> OpinionSplit:
    """Read one CSV file a part (:func:`load_opinions`).

    Raises:
        DataError: a file is not as expected, or an image of the test part is, byte for byte, in another part.
    """
    parts = [None if path is None else load_opinions(path, **columns) for path in (train, validation, test)]  # type: ignore[arg-type]
    known: dict[bytes, str] = {}
    for part in parts[:2]:
        known |= {} if part is None else dict(zip(_contents(part), part.images, strict=True))
    assert parts[0] is not None and parts[2] is not None
    for row, content in enumerate(_contents(parts[2])):
        if content in known:
            raise DataError(
                f"{test}, row {row}: expected images that are in no other part; got {parts[2].images[row]!r}, which is "
                f"{known[content]!r}"
            )
    return OpinionSplit(parts[0], parts[1], parts[2])


def _contents(part: Opinions) -> list[bytes]:
    return [hashlib.sha256(path_within(image, part.folder).read_bytes()).digest() for image in part.images]
