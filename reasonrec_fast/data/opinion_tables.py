"""What the loaders of published image-quality sets share: tables whose columns are checked, and rows made opinions."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import path_within
from reasonrec_fast.data.opinions import Opinions


@dataclass
class Rows:
    """Rows of a set as its files have them.

    Attributes:
        path: of the file that they are from, for messages.
        images: paths within the set's folder, ``[N]``.
        scores: float64 ``[N]``.
        errors: standard errors of the scores, float64 ``[N]``, NaN where not known; None where none is.
        groups: ``[N]``, or None.
    """

    path: Path
    images: Sequence[str]
    scores: np.ndarray
    errors: np.ndarray | None = None
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def where(self, keep: np.ndarray) -> Rows:
        """The rows of a mask."""
        rows = np.flatnonzero(keep).tolist()
        return Rows(
            self.path,
            [self.images[row] for row in rows],
            self.scores[rows],
            None if self.errors is None else self.errors[rows],
            None if self.groups is None else [self.groups[row] for row in rows],
        )

    def opinions(self, folder: Path, scale: str, skip_missing: bool) -> Opinions:
        """Checked, as opinions on one scale.

        Raises:
            DataError: no rows, an image twice, or one that is missing or outside the folder (with its row).
        """
        first: dict[str, int] = {}
        present = np.ones(len(self), dtype=bool)
        for row, image in enumerate(self.images):
            if first.setdefault(image, row) != row:
                raise DataError(
                    f"{self.path}: expected each image once; got {image!r} in rows {first[image]} and {row}"
                )
            try:
                present[row] = path_within(image, folder).is_file()
            except (DataError, ValueError, OSError) as error:
                raise DataError(f"{self.path}, row {row}: {error}") from error
            if not present[row] and not skip_missing:
                raise DataError(f"{self.path}, row {row}: expected an image; there is none at {image!r}")
        kept = self if present.all() else self.where(present)
        if not len(kept):
            raise DataError(f"{self.path}: expected at least one image; got none")
        groups = None if kept.groups is None else tuple(kept.groups)
        return Opinions(tuple(kept.images), kept.scores, folder, groups, (scale,) * len(kept), kept.errors)


def one_of(folder: Path, names: Sequence[str]) -> Path:
    """The first file of these names that there is.

    Raises:
        DataError: there is none, or it lies outside the folder.
    """
    for name in names:
        if path_within(name, folder).is_file():
            return folder / name
    raise DataError(f"{folder}: expected {' or '.join(map(repr, names))}; got none")


def image_folder(folder: Path, names: Sequence[str]) -> str:
    """The first folder of these names that there is, as the beginning of images' paths; ``"."`` stands for the set's
    own.

    Raises:
        DataError: there is none.
    """
    for name in names:
        if path_within(name, folder).is_dir():
            return "" if name == "." else f"{name}/"
    raise DataError(f"{folder}: expected a folder of images, {' or '.join(map(repr, names))}; got none")


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV file or the first sheet of an ``.xlsx`` file, as text.

    Raises:
        DataError: not such a file, no rows, or a column that is not there (with those that are).
        ImportError: an ``.xlsx`` file without the package openpyxl.
    """
    if path.suffix == ".xlsx" and importlib.util.find_spec("openpyxl") is None:
        raise ImportError(f"{path}: expected the package openpyxl (extra 'opinions'), or the table as a CSV file")
    try:
        if path.suffix == ".xlsx":
            table = pd.read_excel(path, dtype=str, keep_default_na=False, engine="openpyxl")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
                table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except Exception as error:  # of a broken workbook whatever its readers trip over
        raise DataError(f"{path}: expected a table; {type(error).__name__}: {error}") from error
    for name in columns:
        if name not in table:
            raise DataError(f"{path}: expected a column {name!r}; got {', '.join(map(repr, table.columns))}")
    if not len(table):
        raise DataError(f"{path}: expected rows below the header; got none")
    return table


def read_mat(path: Path, name: str) -> np.ndarray:
    """A variable of a MATLAB file (before version 7.3), flattened; a cell of text is a text.

    Raises:
        DataError: not such a file, or no such variable.
    """
    from scipy.io import loadmat

    try:
        variables = loadmat(path, variable_names=[name])
    except Exception as error:  # of a broken file whatever the reader trips over
        raise DataError(f"{path}: expected a MATLAB file; {type(error).__name__}: {error}") from error
    if name not in variables:
        raise DataError(f"{path}: expected a variable {name!r}; got none of that name")
    values = np.asarray(variables[name]).ravel()
    if values.dtype == object:
        cells = [np.asarray(cell).ravel() for cell in values]
        for row, cell in enumerate(cells):
            if cell.size != 1 or cell.dtype.kind != "U":
                raise DataError(f"{path}, row {row}: expected a text; got {cell.dtype} {list(cell.shape)}")
        values = np.array([str(cell[0]) for cell in cells])
    return values


def read_json_object(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        DataError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON; {error}") from error
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: expected a JSON object with entries; got {type(value).__name__}")
    return value


def numbers(values: Sequence[Any], path: Path, name: str, least: float = -np.inf, most: float = np.inf) -> np.ndarray:
    """A column of finite numbers within bounds, float64 ``[N]``.

    Raises:
        DataError: a value that is not one (with its row).
    """
    result = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(result) & (result >= least) & (result <= most))
    for row in np.flatnonzero(wrong)[:1]:
        bounds = (
            "" if np.isinf(least) else f" of at least {least:g}" if np.isinf(most) else f" in [{least:g}, {most:g}]"
        )
        raise DataError(f"{path}, row {row}: expected a number{bounds} in {name!r}; got {values[row]!r}")
    return result


def lookup(names: Sequence[str], path: Path, wanted: Sequence[str], wanted_path: Path) -> list[int]:
    """The row of each wanted name among ``names``, the images of the file at ``path``.

    Raises:
        DataError: a name twice in ``path``, or one of ``wanted_path`` that it does not have (each with its row).
    """
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
        if row_of.setdefault(name, row) != row:
            raise DataError(f"{path}: expected each image once; got {name!r} in rows {row_of[name]} and {row}")
    for row, name in enumerate(wanted):
        if name not in row_of:
            raise DataError(f"{wanted_path}, row {row}: expected an image of {path.name}; got {name!r}")
    return [row_of[name] for name in wanted]


def of_histograms(counts: np.ndarray, values: Sequence[float], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of each row's ratings, float64 ``[N]`` each.

    The error is the sample deviation (divisor n - 1) over the root of n; NaN with a single rating.

    Args:
        counts: of ratings, ``[N, K]``.
        values: what each column rates, ``[K]``.
        path: for messages.

    Raises:
        DataError: a row without ratings.

    >>> means, errors = of_histograms(np.array([[0, 1, 1]]), (1, 2, 3), Path("ratings"))
    >>> print(means[0], errors[0])
    2.5 0.5
    """
    counts, rated = np.asarray(counts, dtype=np.float64), np.asarray(values, dtype=np.float64)
    total = counts.sum(1)
    for row in np.flatnonzero(total <= 0)[:1]:
        raise DataError(f"{path}, row {row}: expected ratings; got none")
    means = counts @ rated / total
    squares = (counts * (rated - means[:, None]) ** 2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(total > 1, np.sqrt(squares / (total - 1) / total), np.nan)
    return means, errors
