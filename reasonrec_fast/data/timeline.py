"""What was known at a moment: each user's and each item's events in time order."""

from __future__ import annotations

from typing import Any

import numpy as np

from reasonrec_fast.arrays import as_count, as_index, as_rows, same_length
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Interactions


class Timeline:
    """Events grouped by one key and sorted by time, with the number of a key's events before a moment.

    ``rows[indptr[k] : indptr[k + 1]]`` are the event rows of key ``k`` in time order.

    Vectors come in any form (numpy, torch, pandas by position, lists).

    Args:
        keys: the grouping key of every row of the table, whole numbers ``[N]`` in ``[0, num_keys)``.
        timestamps: whole numbers ``[N]``, ascending.
        num_keys: how many keys there are.
        rows: the rows to hold (all by default).

    Raises:
        DataError: vectors of different lengths, a key out of range, timestamps that fall, or rows that the table does
            not have (with the row).

    >>> line = Timeline(np.array([0, 1, 0]), np.array([10, 20, 30]), 2)
    >>> line.before(0, 30).tolist(), line.before(0, 31).tolist()
    ([0], [0, 2])
    """

    def __init__(self, keys: np.ndarray, timestamps: np.ndarray, num_keys: int, rows: np.ndarray | None = None) -> None:
        self._num_keys = num_keys = as_count(num_keys, "num_keys", error=DataError)
        keys = as_index(keys, "keys", num_keys, error=DataError)
        timestamps = as_index(timestamps, "timestamps", least=_EARLIEST, error=DataError)
        same_length(DataError, keys=keys, timestamps=timestamps)
        falls = timestamps[1:] < timestamps[:-1]
        if falls.any():
            row = int(falls.argmax()) + 1
            raise DataError(f"timestamps: expected ascending ones; got {timestamps[row]} in row {row}")
        rows = np.arange(len(keys)) if rows is None else as_rows(rows, "rows", len(keys), error=DataError)
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
        """Rows of a key, oldest first.

        Raises:
            DataError: a key that there is not; so for all that ask for one.
        """
        self._check_key(key)
        return self.rows[self.indptr[key] : self.indptr[key + 1]]

    def count_before(self, key: int, moment: np.ndarray | int) -> np.ndarray:
        """How many of a key's events happened strictly before each moment."""
        self._check_key(key)
        start, end = self.indptr[key], self.indptr[key + 1]
        return self.times[start:end].searchsorted(_moments(moment))

    def places_before(self, keys: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Ends in ``rows`` of each key's events strictly before each moment (the two are broadcast)."""
        keys = as_index(keys, "keys", self._num_keys, dims=np.ndim(keys), error=DataError)
        rank = self._moments.searchsorted(_moments(moments))
        return self._order.searchsorted(keys * (len(self._moments) + 1) + rank)

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
