"""Images with mean opinion scores: what a judge of quality learns from and is measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from reasonrec_fast.arrays import as_numbers
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
    """

    images: tuple[str, ...]
    scores: np.ndarray
    folder: Path
    groups: tuple[str, ...] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Opinions:
        """Some of the rows."""
        groups = None if self.groups is None else tuple(self.groups[row] for row in rows)
        return Opinions(tuple(self.images[row] for row in rows), self.scores[rows], self.folder, groups)

    def digest(self) -> str:
        """SHA-256 of the files' contents, the scores and the groups, 32 hexadecimal digits."""
        sha256 = hashlib.sha256(np.ascontiguousarray(self.scores, dtype=np.float64).tobytes())
        for image in self.images:
            sha256.update(hashlib.sha256(path_within(image, self.folder).read_bytes()).digest())
        sha256.update("\0".join(self.groups or ()).encode())
        return sha256.hexdigest()[:32]


def load_opinions(
    path: str | Path, *, image: str = "image", score: str = "score", group: str | None = None
) -> Opinions:
    """Read a CSV file of images and their mean opinion scores.

    Args:
        path: of the file; images are relative to its folder and may not lie outside.
        image, score, group: names of its columns; no group by default.

    Raises:
        DataError: no such file, a column that is not there, a score that is not a finite number, an image twice, or one
            that is missing or cannot be opened (each with its row).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: expected a CSV file of images; there is none at {path}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8; {error}") from error
    for name in (image, score, *([] if group is None else [group])):
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
    return Opinions(images, as_numbers(values, score), path.parent, None if group is None else tuple(table[group]))


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


def _number(text: str, path: Path, row: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{path}, row {row}: expected a score, a finite number; got {text!r}")
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
