"""The training events of a fitted model, and the retriever trained on them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reasonrec_fast.arrays import as_tensor
from reasonrec_fast.data.interactions import UNLABELLED, Catalog, Interactions
from reasonrec_fast.data.overlay import Overlaid
from reasonrec_fast.data.times import Moments, common, detect_unit
from reasonrec_fast.files import read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.optirag.index import EventIndex
from reasonrec_fast.models.optirag.retriever import Retriever

_logger = logging.getLogger("reasonrec_fast")
_COLUMNS = ("users", "items", "labels", "timestamps")

KNOWLEDGE_FILES = ("events.safetensors", "graph.safetensors", "items.json")
"""What :meth:`Knowledge.save` writes."""


@dataclass(frozen=True)
class MatchedRequests:
    """A table's requests in a model's own indices.

    Attributes:
        table: the requests, and what their users did; users and items that are new have indices of their own.
        rows: of the requests in it, in the order of the request, int64 ``[R]``.
        ticks: units of time of ``table`` in one unit of the training events.
    """

    table: Interactions
    rows: np.ndarray
    ticks: int


class _Match(NamedTuple):
    """A table's users and items as indices of ours (new ones after ours); all identifiers, and our catalogue with
    the changes of the table's."""

    user_ids: Sequence[str]
    users: np.ndarray
    items: np.ndarray
    catalog: Catalog


@dataclass(frozen=True)
class Knowledge:
    """Training events with their users and items, and the retriever.

    Attributes:
        events: the training events alone.
        retriever: over the users and items of ``events``.
    """

    events: Interactions
    retriever: Retriever

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and other processes get the fields alone, and compute caches anew."""
        return Knowledge, (self.events, self.retriever)

    def index(self, attribute: str) -> EventIndex:
        """What all requests share; computed once for an attribute."""
        indices: dict[str, EventIndex] = self.__dict__.setdefault("_indices", {})
        if attribute not in indices:
            indices[attribute] = EventIndex(self.events, self.retriever, attribute)
        return indices[attribute]

    def match(self, other: Interactions, rows: np.ndarray) -> MatchedRequests:
        """The requests of another table, matched by identifiers, with all that their users did.

        Of the training events only those of these users are copied, so that the cost is that of the requests. New users
        and items get new indices; the retriever has no embeddings of them (a user is folded in from their history where
        it is needed). A title or an attribute in the other table replaces the training's. An event in both tables
        appears once, as a training event.

        Args:
            other: requests, and other events of their users.
            rows: which of its rows are requests.

        Raises:
            DataError: one table has clock times and the other a counter.
        """
        match = self._match(other)
        chosen = other.rows_of(other.users[rows])
        other_events = other.take(chosen)
        users = match.users[np.unique(other_events.users)]
        own_events = self.events.take(self.events.rows_of(users[users < self.events.num_users]))
        # The finer unit of the two tables, whether or not these users have training events: it must not depend on them.
        trained = Moments(self.events.timestamps[:1], self.events.time_unit)
        _, other_times, unit = common(trained, other_events.moments, "timestamps")
        own_times, _, _ = common(own_events.moments, Moments(np.zeros(1, dtype=np.int64), unit), "timestamps")
        columns = {
            "users": np.concatenate([own_events.users, match.users[other_events.users]]),
            "items": np.concatenate([own_events.items, match.items[other_events.items]]),
            "labels": np.concatenate([own_events.labels, other_events.labels]),
            "timestamps": np.concatenate([own_times, other_times]),
        }
        first = _first_of_equals(columns, len(own_events))
        kept = np.flatnonzero(first == np.arange(len(first)))
        order = kept[np.argsort(columns["timestamps"][kept], kind="stable")]
        position = np.empty(len(first), dtype=np.int64)
        position[order] = np.arange(len(order))
        rows_of = [columns[name][order] for name in _COLUMNS]
        table = Interactions(rows_of[0], rows_of[1], rows_of[2], rows_of[3], match.user_ids, match.catalog,
                             time_unit=unit)  # fmt: skip
        request_rows = position[first][len(own_events) + np.searchsorted(chosen, rows)]
        return MatchedRequests(table, request_rows, _ticks(self.events.time_unit, unit))

    def _match(self, other: Interactions) -> _Match:
        """Match a table's identifiers with ours; the result for the last table is kept."""
        last: tuple[weakref.ref[Interactions], _Match] | None = self.__dict__.get("_last")
        if last is not None and last[0]() is other:
            return last[1]
        user_ids, users = _matched(self._user_index, self.events.user_ids, other.user_ids)
        item_ids, items = _matched(self._item_index, self.events.catalog.ids, other.catalog.ids)
        catalog = _overlaid(self.events.catalog, other.catalog, item_ids, items)
        if len(users) and (users >= self.events.num_users).all() and (items >= self.events.num_items).all():
            _logger.warning("none of %d users and %d items was there in training, such as %r and %r",
                            len(users), len(items), other.user_ids[0], other.catalog.ids[0])  # fmt: skip
        likes = self.events.like, other.like
        if None not in likes and likes[0] != likes[1] and (other.labels != UNLABELLED).any():
            _logger.warning("in training ratings of %g and more were likes; in these requests' history of %g", *likes)
        result = _Match(user_ids, users, items, catalog)
        self.__dict__["_last"] = weakref.ref(other), result
        return result

    @cached_property
    def _user_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.events.user_ids)}

    @cached_property
    def _item_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.events.catalog.ids)}

    def save(self, folder: Path) -> None:
        """Write :data:`KNOWLEDGE_FILES` (each whole or not at all)."""
        events = self.events
        tensors = {
            **{name: as_tensor(getattr(events, name), name) for name in _COLUMNS},
            "item_embeddings": self.retriever.item_embeddings,
            "item_bias": self.retriever.item_bias,
        }
        write_tensors(folder / "events.safetensors", tensors)
        self.retriever.graph.save(folder / "graph.safetensors")
        catalog = events.catalog
        write_json(
            folder / "items.json",
            {
                "users": list(events.user_ids),
                "items": list(catalog.ids),
                "titles": list(catalog.titles),
                "attributes": {name: [list(v) for v in column] for name, column in catalog.attributes.items()},
                "time_unit": events.time_unit,
                "like": events.like,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Knowledge:
        """Read what :meth:`save` wrote."""
        tensors = read_tensors(folder / "events.safetensors")
        words = read_json(folder / "items.json")
        catalog = Catalog(
            words["items"],
            words["titles"],
            {name: [tuple(values) for values in column] for name, column in words["attributes"].items()},
        )
        users, items, labels, times = (tensors[name].numpy() for name in _COLUMNS)
        graph = InteractionGraph.load(folder / "graph.safetensors")
        retriever = Retriever.from_items(graph, tensors["item_embeddings"], tensors["item_bias"])
        events = Interactions(users, items, labels, times, words["users"], catalog)
        unit = words.get("time_unit", detect_unit(times))
        return cls(replace(events, time_unit=unit, like=words.get("like")), retriever)


def _ticks(coarse: str, fine: str) -> int:
    if coarse == fine:
        return 1
    return int(common(Moments(np.array([1]), coarse), Moments(np.array([1]), fine), "timestamps")[0][0])  # type: ignore[arg-type]


def _matched(index: Mapping[str, int], own: Sequence[str], other: Sequence[str]) -> tuple[Sequence[str], np.ndarray]:
    """The identifiers of both, and the indices of the other's among them."""
    new: dict[str, int] = {}
    indices = [index[name] if name in index else new.setdefault(name, len(own) + len(new)) for name in other]
    return Overlaid(own, {index: name for name, index in new.items()}), np.array(indices, dtype=np.int64)


def _first_of_equals(columns: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """For each row the first of the same user, item and moment, where that is among the first ``count``."""
    keys = [columns[name] for name in ("timestamps", "items", "users")]
    rows, order = np.arange(len(keys[0])), np.lexsort(keys)  # stable: of equal rows the first stays first
    new = np.append(np.ones(min(len(order), 1), bool), np.any([np.diff(key[order]) != 0 for key in keys], axis=0))
    first = np.empty_like(rows)
    first[order] = order[np.maximum.accumulate(np.where(new, rows, 0))]
    return np.where((first < count) & (rows >= count), first, rows)


def _overlaid(own: Catalog, other: Catalog, ids: Sequence[str], item_map: np.ndarray) -> Catalog:
    """Our catalogue with the titles and attributes of the other in place of ours, where it has any."""
    size = len(own)
    titles: dict[int, str] = {}
    for item, index in enumerate(item_map.tolist()):
        title = other.titles[item]
        if index >= size or (title != other.ids[item] and title != own.titles[index]):
            titles[index] = title
    attributes: dict[str, Sequence[tuple[str, ...]]] = {}
    for name in dict.fromkeys([*own.attributes, *other.attributes]):
        other_column = other.attributes.get(name, [()] * len(other))
        own_column = own.attributes.get(name)
        changes = {
            index: other_column[item]
            for item, index in enumerate(item_map.tolist())
            if index >= size or (other_column[item] and (own_column is None or other_column[item] != own_column[index]))
        }
        attributes[name] = Overlaid(own_column if own_column is not None else Nothing(size), changes)
    return Catalog(ids, Overlaid(own.titles, titles), attributes)


class Nothing(Sequence[tuple[str, ...]]):
    """An attribute that no item has a value of."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return ()
