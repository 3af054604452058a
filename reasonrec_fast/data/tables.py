"""The user's own tables: interactions and items of files and DataFrames."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
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
"""A rating from here on is a positive CTR label, where nobody says otherwise."""

TableLike: TypeAlias = "str | Path | pd.DataFrame | pa.Table"

_EVENTS = {"user": "encoded", "item": "encoded", "timestamp": "integer", "label": "encoded", "rating": "encoded"}


@dataclass(frozen=True)
class Events:
    """Interactions, and where each row of their table is among them.

    Attributes:
        interactions: in time order; a labelled row that was there before is left out.
        order: rows of the table in time order, int64 ``[R]``; None where that is their order.
        kept: place in ``interactions`` of each of these, int64 ``[R]``; None where none was left out.
    """

    interactions: Interactions
    order: np.ndarray | None
    kept: np.ndarray | None

    @property
    def places(self) -> np.ndarray:
        """Row of ``interactions`` for each row of the table, int64 ``[R]``."""
        size = len(self.interactions if self.kept is None else self.kept)
        found = np.arange(size) if self.kept is None else self.kept
        if self.order is None:
            return found
        places = np.empty(size, dtype=np.int64)
        places[self.order] = found
        return places


@dataclass(frozen=True)
class Items:
    """What a table of items says, by item identifier."""

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
    """Read interactions, and optionally what is known of the items.

    Users, items, titles and attributes are text, exactly as it stands; a field is missing only where it is empty. Whole
    numbers of typed tables are the text of the number. What the reader decides (the unit of times, from which rating on
    an event is a like, repeated rows) it tells in the log ``reasonrec_fast``.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file (text also as ``.gz``), a DataFrame or an Arrow
            table, with the columns ``user``, ``item``, ``timestamp`` (see :func:`~reasonrec_fast.data.times.moments`)
            and ``label`` (0 or 1) or ``rating``; with neither every event is a like.
        items: the same kinds, with ``item`` or ``id``, ``title`` where there is one, and any attributes; several values
            of an attribute are separated by ``|`` (or are lists, where the format has lists).
        allow_unlabelled: accept rows without a label (or a table without labels): requests to be scored.
        like: a rating from here on is a positive label. By default 4; ratings that are all 0 or 1 are labels.
        columns: our names (``user``, ``item``, ``timestamp``, ``label``, ``rating``, ``title``) to the table's.
        time_unit: of numbers, where their size is not to decide: s, ms, us, ns or count.
        time_format: of dates as text, where they are not ISO 8601; see ``datetime.strptime``.

    Raises:
        DataError: the file, a column or a value is not as expected; a row is named by its number, from 1, without
            the header.

    >>> events = pd.DataFrame({"user": ["007"], "item": [1.0], "timestamp": ["2020-09-13"], "rating": [5]})
    >>> load_interactions(events).catalog.ids
    ['1']
    """
    return read_events(
        path, items, allow_unlabelled=allow_unlabelled, like=like, columns=columns, time_unit=time_unit,
        time_format=time_format,
    ).interactions  # fmt: skip


def as_interactions(data: Interactions | TableLike) -> Interactions:
    """Interactions as they are, or those of a table (:func:`load_interactions`)."""
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
    """As :func:`load_interactions`, with the place of each row; of a table that was read before, too.

    Where unlabelled rows are allowed, ``like`` may be given for a table without ratings: a model's own.
    """
    names = _names(columns)
    if isinstance(path, Table):
        table = path
    else:
        # 05032025 has a form, 5032025 none.
        kinds = _EVENTS if time_format is None else {**_EVENTS, "timestamp": "text"}
        table = read_table(path, wanted={names.get(name, name): kind for name, kind in kinds.items()})
    table = table.renamed(names)
    where = table.source
    if like is not None:
        if isinstance(like, bool) or not isinstance(like, numbers.Real) or not np.isfinite(float(like)):
            raise DataError(f"like: expected a finite number; got {like!r}")
        like = float(like)
    _require(table, ("user", "item", "timestamp"), columns)
    left = dict(table.columns)
    del table  # each column goes as soon as it is read: ten million rows are some hundred megabytes
    label = label_of(left, names)
    labels, like = (
        _labels(left.pop(label), where, label, like, allow_unlabelled)
        if label
        else _no_labels(len(left["user"]), where, _absent(names, _asked(names)), like, allow_unlabelled)
    )
    times = moments(left.pop("timestamp"), where, unit=time_unit, form=time_format)
    user_ids, users = _encoded(left.pop("user"), where, "user")
    item_ids, ids = _encoded(left.pop("item"), where, "item")
    pa.default_memory_pool().release_unused()
    known = _items(items, names) if items is not None else Items([], {}, {})
    strange = set(item_ids).difference(known.ids) if items is not None else set()
    if strange:
        # Where none is known the identifiers are written in two ways, such as 007 and 7.
        _logger.log(logging.WARNING if len(strange) == len(item_ids) else logging.INFO,
                    "%s: the table of items does not have %d of %d items, such as %r",
                    where.path or "table", len(strange), len(item_ids), min(strange))  # fmt: skip
    item_ids = list(dict.fromkeys([*item_ids, *known.ids]))
    catalog = Catalog(
        item_ids,
        [known.titles.get(item, item) for item in item_ids],
        {name: [values.get(item, ()) for item in item_ids] for name, values in known.attributes.items()},
    )
    rows = {"users": users, "items": ids, "labels": labels, "timestamps": times.values}
    unit, order = times.unit, _order(times.values)
    del users, ids, labels, times
    for name in rows if order is not None else ():
        rows[name] = rows[name][order]
    kept, stays = _first_of_twins(**rows)
    if stays is not None:
        _logger.info("%s: %d rows that were there before (user, item, timestamp, label) are left out",
                     where.path or "table", len(stays) - stays.sum())  # fmt: skip
        for name in rows:
            rows[name] = rows[name][stays]
    interactions = Interactions(**rows, user_ids=user_ids, catalog=catalog, time_unit=unit, like=like)
    return Events(interactions, order, kept)


def label_of(columns: Container[str], names: Mapping[str, str] | None) -> str | None:
    """Which column tells the labels: ``"label"`` or ``"rating"``, the one that ``names`` speaks of before the other.

    >>> label_of({"label", "rating"}, {"rating": "stars"})
    'rating'
    """
    return next((name for name in (*_asked(names or {}), "label", "rating") if name in columns), None)


def _asked(names: Mapping[str, str]) -> list[str]:
    return [name for name in ("label", "rating") if name in names]


def _encoded(values: Any, where: Source, name: str) -> tuple[list[str], np.ndarray]:
    found = identifiers(values, where, name)
    return found.dictionary.to_pylist(), found.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _order(times: np.ndarray) -> np.ndarray | None:
    """None where they are in order."""
    return None if (times[1:] >= times[:-1]).all() else np.argsort(times, kind="stable")


def _first_of_twins(
    users: np.ndarray, items: np.ndarray, labels: np.ndarray, timestamps: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """For each row its place among those that stay, and whether it stays: of equal labelled ones the first."""
    same = timestamps[1:] == timestamps[:-1]
    suspects = np.flatnonzero((np.append(same, False) | np.append(False, same)) & (labels != UNLABELLED))
    if len(suspects) == 0:
        return None, None
    columns = [column[suspects] for column in (labels, items, users, timestamps)]
    order = np.lexsort(columns)  # stable: of equal rows the first stays first
    new = np.append(True, np.any([np.diff(column[order]) != 0 for column in columns], axis=0))
    if new.all():
        return None, None
    first = np.arange(len(users))
    first[suspects[order]] = suspects[order][np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    stays = first == np.arange(len(users))
    return (np.cumsum(stays) - 1)[first], stays


def _labels(
    values: Any, where: Source, name: str, like: float | None, allow_unlabelled: bool
) -> tuple[np.ndarray, float | None]:
    """0, 1 or :data:`UNLABELLED` of each row, and from which rating on an event is a like (None: they are labels)."""
    if like is not None and name == "label":
        raise DataError(f"like: expected a table with a column 'rating'; {where.path or 'the table'} has a label")
    codes, distinct = distinct_numbers(values, where, name)
    missing = np.isnan(distinct)
    counts = np.bincount(codes, minlength=len(distinct))
    if counts[missing].any() and not allow_unlabelled:
        raise where.wrong(name, int(missing[codes].argmax()), "a value", None)
    known = ~missing & (counts > 0)
    binary = bool(np.isin(distinct[known], (0, 1)).all())
    if name == "label":
        if not binary:
            row = int((known & (distinct != 0) & (distinct != 1))[codes].argmax())
            raise where.wrong(name, row, "0 or 1", distinct[codes[row]])
        return np.where(missing, UNLABELLED, distinct == 1)[codes].astype(np.int64), None
    told = "" if like is not None else " (--like, like= says otherwise)"
    like = like if like is not None else 1.0 if binary and known.any() else LIKE
    labels = np.where(missing, UNLABELLED, distinct >= like).astype(np.int64)
    if known.any():
        _logger.info("%s: rating: %g and more is a like%s: %.0f %% of %d ratings", where.path or "table", like, told,
                     100 * counts[labels == 1].sum() / counts[known].sum(), counts[known].sum())  # fmt: skip
    return labels[codes], like


def _no_labels(
    count: int, where: Source, absent: str, like: float | None, allow_unlabelled: bool
) -> tuple[np.ndarray, float | None]:
    if like is not None and not allow_unlabelled:
        named = absent or "'rating'"
        raise DataError(f"like: expected a table with a column {named}; {where.path or 'the table'} has none")
    _logger.info("%s: no column %s: every %s", where.path or "table", absent or "'label' or 'rating'",
                 "row is a request" if allow_unlabelled else "event is a like")  # fmt: skip
    return np.full(count, UNLABELLED if allow_unlabelled else 1, dtype=np.int64), like


def _absent(names: Mapping[str, str], asked: Iterable[str]) -> str:
    """Columns that the user named and a table has not, in words."""
    return " or ".join(f"{names[ours]!r} ({ours})" for ours in asked)


def load_items(path: TableLike, *, columns: Mapping[str, str] | None = None) -> Items:
    """What a table of items says; see :func:`load_interactions`."""
    return _items(path, _names(columns))


def _items(path: TableLike, names: Mapping[str, str]) -> Items:
    table = read_table(path)
    names = {ours: table.plain.get(theirs, theirs) for ours, theirs in names.items()}
    table = table.renamed({})
    if "id" in table.columns and not {"item", names.get("item", "item")} & set(table.columns):
        table = table.renamed({"item": "id"})
    table = table.renamed({ours: names[ours] for ours in ("item", "title") if ours in names})
    where = table.source
    _require(table, ("item",), {})
    if "title" in names and "title" not in table.columns:
        _logger.info("%s: no column %s: items are called by their identifiers", where.path or "items",
                     _absent(names, ["title"]))  # fmt: skip
    ids, encoded = _encoded(table.columns["item"], where, "item")
    of_row = encoded.tolist()
    titles: dict[str, str] = {}
    attributes: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, values in table.columns.items():
        if name == "item":
            continue
        column = as_column(values, name)
        found = attributes.setdefault(name, {}) if name != "title" else {}
        separate = name in table.sequences
        for row, value in enumerate(column if isinstance(column, list) else column.to_pylist()):
            try:
                if name == "title":
                    title = text_of(value)
                    if title is not None:
                        titles.setdefault(ids[of_row[row]], title)
                    continue
                several = values_of(value.split(" ") if separate and isinstance(value, str) else value)
            except ValueError as error:
                raise where.wrong(name, row, str(error), value) from None
            if several:
                found.setdefault(ids[of_row[row]], several)
    if len(of_row) > len(ids):
        _logger.info("%s: %d rows of items that were there before: of each field the first that is known is kept",
                     where.path or "items", len(of_row) - len(ids))  # fmt: skip
    return Items(ids, titles, attributes)


def _names(columns: Mapping[str, str] | None) -> dict[str, str]:
    known = (*_EVENTS, "title")
    for name in columns or {}:
        if name not in known:
            raise DataError(f"columns: expected names among {', '.join(known)}; got {name!r}")
    by_theirs: dict[str, str] = {}
    for ours, theirs in (columns or {}).items():
        if by_theirs.setdefault(theirs, ours) != ours:
            raise DataError(
                f"columns: expected another column for each; got {theirs!r} for {by_theirs[theirs]} and {ours}"
            )
    return dict(columns or {})


def _require(table: Table, needed: tuple[str, ...], columns: Mapping[str, str] | None) -> None:
    missing = [name for name in needed if name not in table.columns]
    if missing:
        asked = [
            f"{name} (columns says {columns[name]!r})" if columns and name in columns else name for name in missing
        ]
        raise DataError(
            f"{table.source.path or 'table'}: expected the columns {list(needed)}; {', '.join(asked)} missing, got "
            f"{', '.join(table.source.names)}"
        )


def with_items(data: Interactions, items: Items) -> Interactions:
    """Events with titles and attributes from elsewhere, and the items that it names besides; what the events' catalogue
    knows stays where ``items`` says nothing."""
    ids = list(dict.fromkeys([*data.catalog.ids, *items.ids]))
    old = data.catalog
    more = len(ids) - len(old)
    titles = [items.titles.get(item, title) for item, title in zip(ids, [*old.titles, *ids[len(old) :]], strict=True)]
    attributes: dict[str, list[Any]] = {}
    for name in dict.fromkeys([*old.attributes, *items.attributes]):
        before = [*old.attributes.get(name, [()] * len(old)), *([()] * more)]
        new = items.attributes.get(name, {})
        attributes[name] = [new.get(item, values) for item, values in zip(ids, before, strict=True)]
    return replace(data, catalog=Catalog(ids, titles, attributes))
