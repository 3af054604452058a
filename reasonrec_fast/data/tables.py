"""The user's own tables: interactions and items of files and DataFrames."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from reasonrec_fast.data.columns import as_column, identifiers, numbers, text_of, values_of
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
        places: row of ``interactions`` for each row of the table, int64 ``[R]``.
    """

    interactions: Interactions
    places: np.ndarray


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
    """As :func:`load_interactions`, with the place of each row; of a table that was read before, too."""
    names = _names(columns)
    if isinstance(path, Table):
        table = path
    else:
        table = read_table(path, wanted={names.get(name, name): kind for name, kind in _EVENTS.items()})
    table = table.renamed(names)
    where = table.source
    _require(table, ("user", "item", "timestamp"), columns)
    users, ids = (identifiers(table.columns[name], where, name) for name in ("user", "item"))
    labels, like = _labels(table, like, allow_unlabelled)
    times = moments(table.columns["timestamp"], where, unit=time_unit, form=time_format)
    known = _items(items, names) if items is not None else Items([], {}, {})
    item_ids = ids.dictionary.to_pylist()
    item_ids = list(dict.fromkeys([*item_ids, *known.ids]))
    order = _order(times.values)
    interactions = Interactions(
        _indices(users)[order],
        _indices(ids)[order],
        labels[order],
        times.values[order],
        users.dictionary.to_pylist(),
        Catalog(
            item_ids,
            [known.titles.get(item, item) for item in item_ids],
            {name: [values.get(item, ()) for item in item_ids] for name, values in known.attributes.items()},
        ),
        time_unit=times.unit,
        like=like,
    )
    kept, source = _first_of_twins(interactions)
    places = np.empty(len(order), dtype=np.int64)
    places[order] = source
    twins = len(order) - len(kept)
    if twins:
        _logger.info("%s: %d rows that were there before (user, item, timestamp, label) are left out",
                     where.path or "table", twins)  # fmt: skip
        interactions = interactions.take(kept)
    return Events(interactions, places)


def _order(times: np.ndarray) -> np.ndarray:
    if len(times) == 0 or (times[1:] >= times[:-1]).all():
        return np.arange(len(times))
    return np.argsort(times, kind="stable")


def _indices(column: pa.DictionaryArray) -> np.ndarray:
    return column.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _first_of_twins(data: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """Rows to keep, and for each row its place among them: a labelled one goes to the first that is equal."""
    same = np.diff(data.timestamps) == 0
    suspects = np.flatnonzero(np.append(same, False) | np.append(False, same))
    suspects = suspects[data.labels[suspects] != UNLABELLED]
    first = np.arange(len(data))
    if len(suspects):
        keys = np.stack([data.timestamps, data.users, data.items, data.labels], axis=1)[suspects]
        group = pd.DataFrame(keys).groupby([0, 1, 2, 3], sort=False).ngroup().to_numpy()
        _, begin = np.unique(group, return_index=True)
        first[suspects] = suspects[begin[group]]
    kept = np.flatnonzero(first == np.arange(len(data)))
    place = np.cumsum(first == np.arange(len(data))) - 1
    return kept, place[first]


def _labels(table: Table, like: float | None, allow_unlabelled: bool) -> tuple[np.ndarray, float | None]:
    """0, 1 or :data:`UNLABELLED` of each row, and from which rating on an event is a like (None: there are none)."""
    where, name = table.source, next((name for name in ("label", "rating") if name in table.columns), None)
    if like is not None and name != "rating":
        raise DataError(
            f"like: expected a table with a column 'rating'; {where.path or 'the table'} has "
            f"{'a label' if name else 'no ratings'}"
        )
    if name is None:
        if not allow_unlabelled:
            _logger.info("%s: no column 'label' or 'rating': every event is a like", where.path or "table")
        return np.full(len(table), UNLABELLED if allow_unlabelled else 1, dtype=np.int64), None
    values = numbers(table.columns[name], where, name)
    missing = np.isnan(values)
    if missing.any() and not allow_unlabelled:
        raise where.wrong(name, int(missing.argmax()), "a value", None)
    binary = np.isin(values, (0, 1)) | missing
    if name == "label":
        if not binary.all():
            row = int(binary.argmin())
            raise where.wrong(name, row, "0 or 1", list(as_column(table.columns[name]))[row])
        threshold = None
    else:
        threshold = like if like is not None else 1.0 if binary.all() and not missing.all() else LIKE
        values = np.where(missing, np.nan, values >= threshold)
        if not missing.all():
            _logger.info(
                "%s: rating: %g and more is a like%s: %.0f %% of %d ratings", where.path or "table", threshold,
                "" if like is not None else " (--like, like= says otherwise)", 100 * np.nanmean(values),
                int((~missing).sum()),
            )  # fmt: skip
    return np.where(missing, UNLABELLED, values).astype(np.int64), threshold


def load_items(path: TableLike, *, columns: Mapping[str, str] | None = None) -> Items:
    """What a table of items says; see :func:`load_interactions`."""
    return _items(path, _names(columns))


def _items(path: TableLike, names: Mapping[str, str]) -> Items:
    table = read_table(path)
    if "id" in table.columns and names.get("item", "item") not in table.columns:
        table = table.renamed({"item": "id"})
    table = table.renamed(names)
    where = table.source
    _require(table, ("item",), {})
    encoded = identifiers(table.columns["item"], where, "item")
    ids = [encoded.dictionary[index].as_py() for index in range(len(encoded.dictionary))]
    of_row = _indices(encoded).tolist()
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
    return dict(columns or {})


def _require(table: Table, needed: tuple[str, ...], columns: Mapping[str, str] | None) -> None:
    missing = [name for name in needed if name not in table.columns]
    if missing:
        asked = [
            f"{name} (columns says {columns[name]!r})" if columns and name in columns else name for name in missing
        ]
        raise DataError(
            f"{table.source.path or 'table'}: expected the columns {list(needed)}; {', '.join(asked)} missing, got "
            f"{', '.join(map(str, table.columns))}"
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
