"""Loads interactions and items from the user's files, DataFrames and Arrow tables."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from reasonrec_fast.data.columns import Source, as_column, distinct_numbers, identifiers, text_of, values_of
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import UNLABELLED, Catalog, Interactions
from reasonrec_fast.data.reading import Table, read_table
from reasonrec_fast.data.times import moments

_logger = logging.getLogger("reasonrec_fast")

LIKE = 4.0
"""Default of the smallest rating that is a positive label."""

TableLike: TypeAlias = "str | Path | pd.DataFrame | pa.Table"

_EVENTS = {"user": "encoded", "item": "encoded", "timestamp": "integer", "label": "encoded", "rating": "encoded"}


@dataclass(frozen=True)
class Events:
    """Interactions, and the mapping from the rows of their table.

    Attributes:
        interactions: in time order, without duplicates of labelled rows.
        order: rows of the table in time order, int64 ``[R]``; None if the table is in that order.
        kept: row of ``interactions`` for each entry of ``order``, int64 ``[R]``; None if there were no duplicates.
    """

    interactions: Interactions
    order: np.ndarray | None
    kept: np.ndarray | None

    @property
    def interaction_rows(self) -> np.ndarray:
        """Row of ``interactions`` for each row of the table, int64 ``[R]``."""
        size = len(self.interactions if self.kept is None else self.kept)
        indices = np.arange(size) if self.kept is None else self.kept
        if self.order is None:
            return indices
        ordered = np.empty(size, dtype=np.int64)
        ordered[self.order] = indices
        return ordered


@dataclass(frozen=True)
class Items:
    """The contents of a table of items, by item identifier."""

    ids: list[str]
    titles: dict[str, str]
    attributes: dict[str, dict[str, tuple[str, ...]]]


def load_interactions(
    path: TableLike,
    items: TableLike | None = None,
    *,
    allow_unlabelled: bool = False,
    like: float | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: str | None = None,
    time_format: str | None = None,
) -> Interactions:
    """Read interactions, and optionally metadata of the items.

    Users, items, titles and attributes are text and kept unchanged; only an empty field is missing. Whole numbers of
    typed tables become their text. Decisions of the reader (the unit of times, the rating threshold, dropped
    duplicates) are logged by the logger ``reasonrec_fast``.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file (text also as ``.gz``), a DataFrame or an Arrow
            table, with the columns ``user``, ``item``, ``timestamp`` (see :func:`~reasonrec_fast.data.times.moments`)
            and ``label`` (0 or 1) or ``rating``; with neither every event is a like.
        items: the same formats, with ``item`` or ``id``, optionally ``title``, and any attributes; several values of an
            attribute are separated by ``|`` (or are lists, if the format has lists).
        allow_unlabelled: accept rows without a label (or a table without labels): requests to be scored.
        like: the smallest rating that is a positive label. By default 4; ratings that are all 0 or 1 are labels.
        columns: our names (``user``, ``item``, ``timestamp``, ``label``, ``rating``, ``title``) to the table's.
        time_unit: of numbers, instead of the one detected from their magnitude: s, ms, us, ns or count.
        time_format: of text dates that are not ISO 8601; see ``datetime.strptime``.

    Raises:
        DataError: an invalid file, column or value; rows are counted from 1, without the header.

    >>> events = pd.DataFrame({"user": ["007"], "item": [1.0], "timestamp": ["2020-09-13"], "rating": [5]})
    >>> load_interactions(events).catalog.ids
    ['1']
    """
    return read_events(
        path, items, allow_unlabelled=allow_unlabelled, like=like, columns=columns, time_unit=time_unit,
        time_format=time_format,
    ).interactions  # fmt: skip


def as_interactions(data: Interactions | TableLike) -> Interactions:
    """Interactions unchanged, or loaded from a table (:func:`load_interactions`)."""
    return data if isinstance(data, Interactions) else load_interactions(data)


def read_events(
    path: TableLike | Table,
    items: TableLike | None = None,
    *,
    allow_unlabelled: bool = False,
    like: float | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: str | None = None,
    time_format: str | None = None,
) -> Events:
    """As :func:`load_interactions`, with the mapping of rows; also accepts a :class:`Table` that was read before.

    With ``allow_unlabelled``, ``like`` is accepted for a table without ratings: it is then that of a fitted model.
    """
    names = _names(columns)
    if isinstance(path, Table):
        table = path
    else:
        # Read as text, since leading zeros matter to a format: 05032025 is not 5032025.
        kinds = _EVENTS if time_format is None else {**_EVENTS, "timestamp": "text"}
        table = read_table(path, column_kinds={names.get(name, name): kind for name, kind in kinds.items()})
    table = table.renamed(names)
    source = table.source
    if like is not None:
        if isinstance(like, bool) or not isinstance(like, numbers.Real) or not np.isfinite(float(like)):
            raise DataError(f"like: expected a finite number; got {like!r}")
        like = float(like)
    _require(table, ("user", "item", "timestamp"), columns)
    remaining = dict(table.columns)
    del table  # so that each column is freed once it is parsed: those of ten million rows take some hundred megabytes
    label = label_of(remaining, names)
    labels, like = (
        _labels(remaining.pop(label), source, label, like, allow_unlabelled)
        if label
        else _no_labels(
            len(remaining["user"]),
            source,
            _describe_columns(names, _chosen_label_columns(names)),
            like,
            allow_unlabelled,
        )
    )
    times = moments(remaining.pop("timestamp"), source, unit=time_unit, form=time_format)
    user_ids, user_index = _encoded(remaining.pop("user"), source, "user")
    item_ids, item_index = _encoded(remaining.pop("item"), source, "item")
    pa.default_memory_pool().release_unused()
    item_table = _items(items, names) if items is not None else Items([], {}, {})
    unknown_items = set(item_ids).difference(item_table.ids) if items is not None else set()
    if unknown_items:
        # A warning if no item is known: the identifiers are probably formatted differently, such as 007 and 7.
        _logger.log(logging.WARNING if len(unknown_items) == len(item_ids) else logging.INFO,
                    "%s: the table of items does not have %d of %d items, such as %r",
                    source.path or "table", len(unknown_items), len(item_ids), min(unknown_items))  # fmt: skip
    item_ids = list(dict.fromkeys([*item_ids, *item_table.ids]))
    catalog = Catalog(
        item_ids,
        [item_table.titles.get(item, item) for item in item_ids],
        {name: [values.get(item, ()) for item in item_ids] for name, values in item_table.attributes.items()},
    )
    rows = {"users": user_index, "items": item_index, "labels": labels, "timestamps": times.values}
    unit, order = times.unit, _time_order(times.values)
    del user_index, item_index, labels, times
    for name in rows if order is not None else ():
        rows[name] = rows[name][order]
    kept, is_kept = _drop_duplicates(**rows)
    if is_kept is not None:
        _logger.info("%s: %d rows that were there before (user, item, timestamp, label) are left out",
                     source.path or "table", len(is_kept) - is_kept.sum())  # fmt: skip
        for name in rows:
            rows[name] = rows[name][is_kept]
    interactions = Interactions(**rows, user_ids=user_ids, catalog=catalog, time_unit=unit, like=like)
    return Events(interactions, order, kept)


def label_of(columns: Container[str], names: Mapping[str, str] | None) -> str | None:
    """The column with the labels, ``"label"`` or ``"rating"``; one that ``names`` maps is preferred.

    >>> label_of({"label", "rating"}, {"rating": "stars"})
    'rating'
    """
    return next((name for name in (*_chosen_label_columns(names or {}), "label", "rating") if name in columns), None)


def _chosen_label_columns(names: Mapping[str, str]) -> list[str]:
    return [name for name in ("label", "rating") if name in names]


def _encoded(values: Any, source: Source, name: str) -> tuple[list[str], np.ndarray]:
    encoded = identifiers(values, source, name)
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _time_order(times: np.ndarray) -> np.ndarray | None:
    """Stable order by time; None if the times are ascending already."""
    return None if (times[1:] >= times[:-1]).all() else np.argsort(times, kind="stable")


def _drop_duplicates(
    users: np.ndarray, items: np.ndarray, labels: np.ndarray, timestamps: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """For each row its index after duplicates of labelled rows are dropped (that of its first occurrence), and whether
    it is kept; None for both without duplicates. Only rows at equal timestamps are compared."""
    same = timestamps[1:] == timestamps[:-1]
    candidates = np.flatnonzero((np.append(same, False) | np.append(False, same)) & (labels != UNLABELLED))
    if len(candidates) == 0:
        return None, None
    columns = [column[candidates] for column in (labels, items, users, timestamps)]
    order = np.lexsort(columns)  # stable: of equal rows the first stays first
    new = np.append(True, np.any([np.diff(column[order]) != 0 for column in columns], axis=0))
    if new.all():
        return None, None
    first = np.arange(len(users))
    first[candidates[order]] = candidates[order][np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    is_first = first == np.arange(len(users))
    return (np.cumsum(is_first) - 1)[first], is_first


def _labels(
    values: Any, source: Source, name: str, like: float | None, allow_unlabelled: bool
) -> tuple[np.ndarray, float | None]:
    """Label of each row (0, 1 or :data:`UNLABELLED`), and the rating threshold (None if the column has labels)."""
    if like is not None and name == "label":
        raise DataError(f"like: expected a table with a column 'rating'; {source.path or 'the table'} has a label")
    codes, distinct = distinct_numbers(values, source, name)
    missing = np.isnan(distinct)
    counts = np.bincount(codes, minlength=len(distinct))
    if counts[missing].any() and not allow_unlabelled:
        raise source.wrong(name, int(missing[codes].argmax()), "a value", None)
    known = ~missing & (counts > 0)
    binary = bool(np.isin(distinct[known], (0, 1)).all())
    if name == "label":
        if not binary:
            row = int((known & (distinct != 0) & (distinct != 1))[codes].argmax())
            raise source.wrong(name, row, "0 or 1", distinct[codes[row]])
        return np.where(missing, UNLABELLED, distinct == 1)[codes].astype(np.int64), None
    hint = "" if like is not None else " (--like, like= sets another)"
    like = like if like is not None else 1.0 if binary and known.any() else LIKE
    labels = np.where(missing, UNLABELLED, distinct >= like).astype(np.int64)
    if known.any():
        _logger.info("%s: rating: %g and more is a like%s: %.0f %% of %d ratings", source.path or "table", like, hint,
                     100 * counts[labels == 1].sum() / counts[known].sum(), counts[known].sum())  # fmt: skip
    return labels[codes], like


def _no_labels(
    count: int, source: Source, missing_names: str, like: float | None, allow_unlabelled: bool
) -> tuple[np.ndarray, float | None]:
    if like is not None and not allow_unlabelled:
        column = missing_names or "'rating'"
        raise DataError(f"like: expected a table with a column {column}; {source.path or 'the table'} has none")
    _logger.info("%s: no column %s: every %s", source.path or "table", missing_names or "'label' or 'rating'",
                 "row is a request" if allow_unlabelled else "event is a like")  # fmt: skip
    return np.full(count, UNLABELLED if allow_unlabelled else 1, dtype=np.int64), like


def _describe_columns(names: Mapping[str, str], missing: Iterable[str]) -> str:
    """A description of columns that the user named and a table lacks, for messages."""
    return " or ".join(f"{names[name]!r} ({name})" for name in missing)


def load_items(path: TableLike, *, columns: Mapping[str, str] | None = None) -> Items:
    """Read a table of items; see :func:`load_interactions`."""
    return _items(path, _names(columns))


def _items(path: TableLike, names: Mapping[str, str]) -> Items:
    table = read_table(path)
    names = {standard_name: table.plain.get(column_name, column_name) for standard_name, column_name in names.items()}
    table = table.renamed({})
    if "id" in table.columns and not {"item", names.get("item", "item")} & set(table.columns):
        table = table.renamed({"item": "id"})
    table = table.renamed(
        {standard_name: names[standard_name] for standard_name in ("item", "title") if standard_name in names}
    )
    source = table.source
    _require(table, ("item",), {})
    if "title" in names and "title" not in table.columns:
        _logger.info("%s: no column %s: items are called by their identifiers", source.path or "items",
                     _describe_columns(names, ["title"]))  # fmt: skip
    ids, encoded = _encoded(table.columns["item"], source, "item")
    of_row = encoded.tolist()
    titles: dict[str, str] = {}
    attributes: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, values in table.columns.items():
        if name == "item":
            continue
        column = as_column(values, name)
        values_of_item = attributes.setdefault(name, {}) if name != "title" else {}
        separate = name in table.sequences
        for row, value in enumerate(column if isinstance(column, list) else column.to_pylist()):
            try:
                if name == "title":
                    title = text_of(value)
                    if title is not None:
                        titles.setdefault(ids[of_row[row]], title)
                    continue
                parts = values_of(value.split(" ") if separate and isinstance(value, str) else value)
            except ValueError as error:
                raise source.wrong(name, row, str(error), value) from None
            if parts:
                values_of_item.setdefault(ids[of_row[row]], parts)
    if len(of_row) > len(ids):
        _logger.info("%s: %d rows of items that were there before: of each field the first that is known is kept",
                     source.path or "items", len(of_row) - len(ids))  # fmt: skip
    return Items(ids, titles, attributes)


def _names(columns: Mapping[str, str] | None) -> dict[str, str]:
    known = (*_EVENTS, "title")
    for name in columns or {}:
        if name not in known:
            raise DataError(f"columns: expected names among {', '.join(known)}; got {name!r}")
    name_of_column: dict[str, str] = {}
    for standard, column in (columns or {}).items():
        if name_of_column.setdefault(column, standard) != standard:
            raise DataError(
                f"columns: expected another column for each; got {column!r} for {name_of_column[column]} and {standard}"
            )
    return dict(columns or {})


def _require(table: Table, needed: tuple[str, ...], columns: Mapping[str, str] | None) -> None:
    missing = [name for name in needed if name not in table.columns]
    if missing:
        described = [
            f"{name} (columns says {columns[name]!r})" if columns and name in columns else name for name in missing
        ]
        raise DataError(
            f"{table.source.path or 'table'}: expected the columns {list(needed)}; {', '.join(described)} missing, got "
            f"{', '.join(table.source.names)}"
        )
