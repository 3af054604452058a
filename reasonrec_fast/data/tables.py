"""The user's own files: interactions and items as CSV, Parquet or JSON lines."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Interactions

LIKE = 4.0
"""A rating from here on is a positive CTR label."""


def load_interactions(
    path: str | Path, items: str | Path | None = None, *, allow_unlabelled: bool = False, like: float = LIKE
) -> Interactions:
    """Read interactions, and optionally what is known of the items.

    Args:
        path: ``.csv``, ``.parquet`` or ``.jsonl`` with the columns ``user``, ``item``, ``timestamp`` (a number, or a
            date that pandas understands) and ``label`` (0 or 1) or ``rating``.
        items: the same kinds, with ``item`` or ``id``, ``title`` and any attributes; several values of an attribute
            are separated by ``|`` (or are lists, where the format has lists).
        allow_unlabelled: accept rows without a label (or a file without labels): requests to be scored.
        like: a rating from here on is a positive label.

    Raises:
        DataError: the file, a column or a value is not as expected; a row is named by its number, from 1, without
            the header.
    """
    table = read_table(path)
    _require(table, path, ("user", "item", "timestamp"))
    for column in ("user", "item"):
        _reject(table[column].isna(), path, column, "a value", table[column])
    labels = _labels(table, path, like, allow_unlabelled)
    titles: dict[str, str] = {}
    attributes: dict[str, dict[str, tuple[str, ...]]] = {}
    known: list[str] = []
    if items is not None:
        known, titles, attributes = _items(items)
    return Interactions.from_columns(
        [_identifier(value) for value in table["user"]],
        [_identifier(value) for value in table["item"]],
        labels,
        _timestamps(table, path),
        titles=titles,
        attributes=attributes,
        extra_items=known,
    )


def read_table(path: str | Path) -> pd.DataFrame:
    """A table from a ``.csv``, ``.parquet`` or ``.jsonl`` file.

    Raises:
        DataError: no such file, another kind, or contents that cannot be read.
    """
    path = Path(path)
    readers = {
        ".csv": lambda: pd.read_csv(path),
        ".parquet": lambda: pd.read_parquet(path),
        ".jsonl": lambda: pd.read_json(path, lines=True, dtype=False),
    }
    if path.suffix not in readers:
        raise DataError(f"path: expected a .csv, .parquet or .jsonl file; got {path}")
    if not path.is_file():
        raise DataError(f"path: there is no file {path}")
    try:
        return readers[path.suffix]()
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from error


def _labels(table: pd.DataFrame, path: str | Path, like: float, allow_unlabelled: bool) -> list[int | None]:
    column = next((name for name in ("label", "rating") if name in table), None)
    if column is None:
        if allow_unlabelled:
            return [None] * len(table)
        raise DataError(f"{path}: expected a column 'label' or 'rating'; got {sorted(map(str, table.columns))}")
    values = pd.to_numeric(table[column], errors="coerce")
    missing = table[column].isna()
    _reject(values.isna() & ~missing, path, column, "a number", table[column])
    if not allow_unlabelled:
        _reject(missing, path, column, "a value", table[column])
    if column == "label":
        _reject(~missing & ~values.isin((0, 1)), path, column, "0 or 1", table[column])
    else:
        values = (values >= like).astype(float)
    return [None if absent else int(value) for value, absent in zip(values, missing, strict=True)]


def _timestamps(table: pd.DataFrame, path: str | Path) -> list[int]:
    column = table["timestamp"]
    values = pd.to_numeric(column, errors="coerce")
    dated = values.isna() & column.notna()
    if dated.any():
        dates = pd.to_datetime(column[dated], errors="coerce", utc=True, format="mixed")
        _reject(dates.isna().reindex(column.index, fill_value=False), path, "timestamp", "a number or a date", column)
        values[dated] = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    _reject(values.isna(), path, "timestamp", "a number or a date", column)
    return values.astype("int64").tolist()


def _items(path: str | Path) -> tuple[list[str], dict[str, str], dict[str, dict[str, tuple[str, ...]]]]:
    table = read_table(path).rename(columns={"id": "item"})
    _require(table, path, ("item", "title"))
    _reject(table["item"].isna(), path, "item", "a value", table["item"])
    ids = [_identifier(value) for value in table["item"]]
    titles = {i: str(title) for i, title in zip(ids, table["title"], strict=True) if pd.notna(title)}
    attributes = {
        str(name): {i: _values(value) for i, value in zip(ids, table[name], strict=True)}
        for name in table.columns
        if name not in ("item", "title")
    }
    return ids, titles, attributes


def _values(value: object) -> tuple[str, ...]:
    if hasattr(value, "__iter__") and not isinstance(value, str):
        return tuple(str(entry) for entry in value)
    if pd.isna(value):
        return ()
    return tuple(part for part in _identifier(value).split("|") if part)


def _identifier(value: object) -> str:
    """Whole floats lose their ``.0``: a column with a gap makes pandas read integers as floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _require(table: pd.DataFrame, path: str | Path, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path}: expected the columns {list(columns)}; {', '.join(missing)} missing")


def _reject(wrong: pd.Series, path: str | Path, column: str, expected: str, values: pd.Series) -> None:
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(f"{path}, row {row + 1}: {column}: expected {expected}; got {values.iloc[row]!r}")
