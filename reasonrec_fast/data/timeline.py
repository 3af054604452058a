"""Events before a moment: each user's or each item's events in time order, with fast look-ups by time."""

from __future__ import annotations

from typing import Any

import numpy as np

from reasonrec_fast.arrays import as_count, as_index, as_rows, same_length
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Interactions


class Timeline:
    """Events grouped by a key (user or item) and sorted by time, with look-ups of a key's events before a moment.

    ``rows[indptr[k] : indptr[k + 1]]`` are the event rows of key ``k`` in time order. "Before" is strict: an event at
    the moment itself is not included, so that nothing leaks from simultaneous events.

    Vectors may be numpy arrays, tensors, pandas objects (by position) or lists.

    Args:
        keys: the grouping key of every row of the table, integers ``[N]`` in ``[0, num_keys)``.
        timestamps: integers ``[N]``, ascending.
        num_keys: number of keys.
        rows: the rows to include (all by default).

    Raises:
        DataError: vectors of different lengths, a key out of range, timestamps that decrease, or rows outside the
            table (with the row).

    >>> line = Timeline(np.array([0, 1, 0]), np.array([10, 20, 30]), 2)
    >>> line.before(0, 30).tolist(), line.before(0, 31).tolist()
    ([0], [0, 2])
    """

    def __init__(self, keys: np.ndarray, timestamps: np.ndarray, num_keys: int, rows: np.ndarray | None = None) -> None:
        self._num_keys = num_keys = as_count(num_keys, "num_keys", error=DataError)
        keys = as_index(keys, "keys", num_keys, error=DataError)
        timestamps = as_index(timestamps, "timestamps", least=_EARLIEST, error=DataError)
        same_length(DataError, keys=keys, timestamps=timestamps)
        is_decreasing = timestamps[1:] < timestamps[:-1]
        if is_decreasing.any():
            row = int(is_decreasing.argmax()) + 1
            raise DataError(f"timestamps: expected ascending ones; got {timestamps[row]} in row {row}")
        rows = np.arange(len(keys)) if rows is None else as_rows(rows, "rows", len(keys), error=DataError)
        order = np.argsort(keys[rows], kind="stable")
        self.rows = rows[order]
        counts = np.bincount(keys[rows], minlength=num_keys)
        self.indptr = np.concatenate([[0], np.cumsum(counts)])
        self.times = timestamps[self.rows]
        # `positions_before` looks up many (key, moment) pairs with one binary search over all events. That needs one
        # ascending integer per event: key * (T + 1) + rank of its time among the T distinct times. Ranks, not the
        # times themselves, because key * time could overflow int64. The factor T + 1 leaves room for rank T, that of a
        # moment after all events.
        ascending = timestamps[rows]
        starts_moment = np.diff(ascending, prepend=ascending[:1] - 1) != 0
        self._distinct_times = ascending[starts_moment]
        self._combined_order = keys[self.rows] * (len(self._distinct_times) + 1) + (np.cumsum(starts_moment) - 1)[order]

    @classmethod
    def of_users(cls, interactions: Interactions, rows: np.ndarray | None = None) -> Timeline:
        return cls(interactions.users, interactions.timestamps, interactions.num_users, rows)

    @classmethod
    def of_items(cls, interactions: Interactions, rows: np.ndarray | None = None) -> Timeline:
        return cls(interactions.items, interactions.timestamps, interactions.num_items, rows)

    def all(self, key: int) -> np.ndarray:
        """Rows of a key, oldest first.

        Raises:
            DataError: a key out of range; so do all methods that take a key.
        """
        self._check_key(key)
        return self.rows[self.indptr[key] : self.indptr[key + 1]]

    def count_before(self, key: int, moment: np.ndarray | int) -> np.ndarray:
        """Number of a key's events strictly before each moment."""
        self._check_key(key)
        start, end = self.indptr[key], self.indptr[key + 1]
        return self.times[start:end].searchsorted(_moments(moment))

    def positions_before(self, keys: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Position in ``rows`` after the last event of each key strictly before each moment; the two are broadcast.

        The events before moment ``m`` of key ``k`` are ``rows[indptr[k] : positions_before(k, m)]``.
        """
        keys = as_index(keys, "keys", self._num_keys, dims=np.ndim(keys), error=DataError)
        rank = self._distinct_times.searchsorted(_moments(moments))
        return self._combined_order.searchsorted(keys * (len(self._distinct_times) + 1) + rank)

    def before(self, key: int, moment: int) -> np.ndarray:
        """Rows of a key strictly before a moment, oldest first."""
        self._check_key(key)
        start, end = self.indptr[key], self.indptr[key + 1]
        return self.rows[start : start + self.times[start:end].searchsorted(_moments(moment))]

    def _check_key(self, key: int) -> None:
        if not 0 <= key < self._num_keys:
            raise DataError(f"key: expected one in [0, {self._num_keys}); got {key}")


_EARLIEST = int(np.iinfo(np.int64).min)


def _moments(moments: Any) -> Any:
    if isinstance(moments, (int, np.integer)) or (type(moments) is np.ndarray and moments.dtype == np.int64):
        return moments
    return as_index(moments, "moments", least=_EARLIEST, dims=np.ndim(moments), error=DataError)
