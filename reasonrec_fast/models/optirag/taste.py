"""How much more often than usual a user likes items that have a given attribute value, as of a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np

from reasonrec_fast.data.timeline import Timeline

TARGET_VALUES = 3
"""How many values of an item's attribute its evidence and its prompt contain."""

_MOST_VALUES = 12
_PRIOR_EVENTS = 5.0


class Taste:
    """Counts of likes by attribute value over a timeline of users, for any range of each user's events.

    Args:
        timeline: of users.
        labels: 0 or 1 of every row of the table, int64.
        items: of every row, int64.
        values: of every item, from :func:`value_table`, or :class:`ItemValues`.

    >>> line = Timeline(np.array([0, 0, 0]), np.array([1, 2, 3]), 1)
    >>> taste = Taste(line, np.array([1, 0, 1]), np.array([0, 1, 0]), value_table([("Drama",), ("War",)], 2))
    >>> [part.tolist() for part in taste.counts(np.array([0, 1]), np.array([0]), np.array([3]))]
    [[2, 0], [2, 1]]
    """

    def __init__(
        self, timeline: Timeline, labels: np.ndarray, items: np.ndarray, values: np.ndarray | ItemValues
    ) -> None:
        self.timeline = timeline
        self.values = values if isinstance(values, ItemValues) else ItemValues(values, {})
        self._span = len(timeline.rows) + 1
        seen = self.values.of(items[timeline.rows])
        position, column = np.nonzero(seen >= 0)
        order = np.lexsort((position, seen[position, column]))
        position, value = position[order], seen[position, column][order]
        # Sorted by value, then by position in the timeline: the events of a value in a range of positions are adjacent
        # here, so that two binary searches and running sums count them.
        self._keys = value * self._span + position
        self._likes = _running(labels[timeline.rows][position])
        self._all_likes = _running(labels[timeline.rows])

    def with_values(self, values: ItemValues) -> Taste:
        """The same counts with other values of the items that :meth:`lift` is called with."""
        result = copy(self)
        result.values = values
        return result

    def counts(self, values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Likes and events that have ``values`` among the timeline's positions from ``starts`` to ``ends`` (all three
        are broadcast)."""
        first = np.searchsorted(self._keys, values * self._span + starts)
        last = np.searchsorted(self._keys, values * self._span + ends)
        return self._likes[last] - self._likes[first], last - first

    def lift(self, items: np.ndarray, users: np.ndarray, moments: np.ndarray, base_rate: np.ndarray) -> np.ndarray:
        """Like rate on each value of the items minus the rate on everything, both smoothed.

        Args:
            items, moments: of ``n`` requests.
            users: whose events before the moment count together, int64 ``[n, k]``; -1 for no user.
            base_rate: towards which the rates are drawn, ``[n]``.

        Returns:
            float32 ``[n, TARGET_VALUES]``; NaN where the users have no event with the value, or the
            item has no such value.
        """
        line, padding = self.timeline, users < 0
        starts = line.indptr[np.where(padding, 0, users)]
        ends = np.where(padding, starts, line.positions_before(np.where(padding, 0, users), moments[:, None]))
        target_values = self.values.of(items)[:, :TARGET_VALUES]
        likes, events = self.counts(target_values[:, None, :], starts[:, :, None], ends[:, :, None])
        likes, events = likes.sum(1), events.sum(1)
        total, liked = (ends - starts).sum(1), (self._all_likes[ends] - self._all_likes[starts]).sum(1)
        usual = ((liked + _PRIOR_EVENTS * base_rate) / (total + _PRIOR_EVENTS))[:, None]
        rate = (likes + _PRIOR_EVENTS * usual) / (events + _PRIOR_EVENTS)
        return np.where((events > 0) & (target_values >= 0), rate - usual, np.nan).astype(np.float32)


class ItemValues:
    """The values of every item's attribute as indices, with changes for items that a later table describes.

    Args:
        table: int64 ``[I, V]``, -1 where an item has fewer.
        index: value to index.

    >>> values = ItemValues.of_column([("War", "Drama"), ("Drama",)], 2)
    >>> values.with_changes({1: ("War",), 2: ("Spy",)}).of(np.array([0, 1, 2, 3])).tolist()
    [[0, 1, -1], [0, -1, -1], [2, -1, -1], [-1, -1, -1]]
    """

    def __init__(self, table: np.ndarray, index: dict[str, int]) -> None:
        self._table, self._index = table, index
        self._items = np.zeros(0, dtype=np.int64)
        self._rows = np.full((1, table.shape[1]), -1, dtype=np.int64)

    @classmethod
    def of_column(cls, column: Sequence[tuple[str, ...]] | None, num_items: int) -> ItemValues:
        """The values of a catalogue's attribute."""
        index: dict[str, int] = {}
        return cls(value_table(column, num_items, index), index)

    def with_changes(self, changes: Mapping[int, tuple[str, ...]]) -> ItemValues:
        """With the values of some items, in the table or new, replaced; the table is shared."""
        result = ItemValues(self._table, self._index)
        new: dict[str, int] = {}
        items = sorted(changes)
        rows = np.full((len(items) + 1, self._table.shape[1]), -1, dtype=np.int64)
        for row, item in enumerate(items):
            for column, value in enumerate(changes[item][: rows.shape[1]]):
                index = self._index.get(value)
                rows[row, column] = new.setdefault(value, len(self._index) + len(new)) if index is None else index
        result._items, result._rows = np.array(items, dtype=np.int64), rows
        return result

    def of(self, items: np.ndarray) -> np.ndarray:
        """Values of some items, int64 ``[N, V]``; -1 throughout for items without a description."""
        in_table = items < len(self._table)
        # The last of the rows of changes is all -1.
        result = self._table[np.where(in_table, items, 0)] if len(self._table) else self._rows[np.full(len(items), -1)]
        result = np.where(in_table[:, None], result, -1)
        if len(self._items):
            row = np.searchsorted(self._items, items)
            changed = self._items[np.minimum(row, len(self._items) - 1)] == items
            result[changed] = self._rows[row[changed]]
        return result


def value_table(
    column: Sequence[tuple[str, ...]] | None, num_items: int, index: dict[str, int] | None = None
) -> np.ndarray:
    """The values of every item's attribute as indices, int64 ``[I, V]`` with ``V`` at least ``TARGET_VALUES``; -1
    where an item has fewer (everywhere without a column). ``index`` receives the index of each value.

    >>> value_table([("War", "Drama"), ("Drama",)], 2).tolist()
    [[0, 1, -1], [1, -1, -1]]
    """
    lists = [values[:_MOST_VALUES] for values in column or ()]
    table = np.full((num_items, max([TARGET_VALUES, *map(len, lists)])), -1, dtype=np.int64)
    index = {} if index is None else index
    for item, values in enumerate(lists):
        for position, value in enumerate(values):
            table[item, position] = index.setdefault(value, len(index))
    return table


def _running(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(values)])
