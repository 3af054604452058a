"""What was known at a moment: each user's and each item's events in time order."""

from __future__ import annotations

import numpy as np

from reasonrec_fast.data.interactions import Interactions


class Timeline:
    """Events grouped by one key and sorted by time, with the number of a key's events before a moment.

    ``rows[indptr[k] : indptr[k + 1]]`` are the event rows of key ``k`` in time order.

    Args:
        keys: the grouping key of every row of the table, int64 ``[N]``.
        timestamps: int64 ``[N]``, ascending.
        num_keys: how many keys there are.
        rows: the rows to hold (all by default), ascending.

    >>> line = Timeline(np.array([0, 1, 0]), np.array([10, 20, 30]), 2)
    >>> line.before(0, 30).tolist(), line.before(0, 31).tolist()
    ([0], [0, 2])
    """

    def __init__(self, keys: np.ndarray, timestamps: np.ndarray, num_keys: int, rows: np.ndarray | None = None) -> None:
        rows = np.arange(len(keys)) if rows is None else rows
        order = np.argsort(keys[rows], kind="stable")
        self.rows = rows[order]
        counts = np.bincount(keys[rows], minlength=num_keys)
        self.indptr = np.concatenate([[0], np.cumsum(counts)])
        self.times = timestamps[self.rows]
        # One ascending number for key and time, so that many keys are looked up at once.
        ascending = timestamps[rows]
        begins = np.diff(ascending, prepend=ascending[:1] - 1) != 0
        self._moments = ascending[begins]
        self._order = keys[self.rows] * (len(self._moments) + 1) + (np.cumsum(begins) - 1)[order]

    @classmethod
    def of_users(cls, interactions: Interactions, rows: np.ndarray | None = None) -> Timeline:
        return cls(interactions.users, interactions.timestamps, interactions.num_users, rows)

    @classmethod
    def of_items(cls, interactions: Interactions, rows: np.ndarray | None = None) -> Timeline:
        return cls(interactions.items, interactions.timestamps, interactions.num_items, rows)

    def all(self, key: int) -> np.ndarray:
        """Rows of a key, oldest first."""
        return self.rows[self.indptr[key] : self.indptr[key + 1]]

    def count_before(self, key: int, moment: np.ndarray | int) -> np.ndarray:
        """How many of a key's events happened strictly before each moment."""
        start, end = self.indptr[key], self.indptr[key + 1]
        return np.searchsorted(self.times[start:end], moment, side="left")

    def places_before(self, keys: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Ends in ``rows`` of each key's events strictly before each moment (the two are broadcast)."""
        rank = np.searchsorted(self._moments, moments, side="left")
        return np.searchsorted(self._order, keys * (len(self._moments) + 1) + rank, side="left")

    def before(self, key: int, moment: int) -> np.ndarray:
        """Rows of a key strictly before a moment, oldest first."""
        start = self.indptr[key]
        return self.rows[start : start + int(self.count_before(key, moment))]
