"""Items that a user has not had, drawn at random (numba)."""

from __future__ import annotations

import numba
import numpy as np

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.histories import Histories


class NegativeSampler:
    """Draws items uniformly from those that a user has not had; one who has had everything is given any item.

    Args:
        histories: what users have had.
        num_items: ``I``; negatives are in ``[0, I)``.

    >>> sampler = NegativeSampler(Histories.from_lists([[0, 1], [2]]), 3)
    >>> sampler.draw(np.array([0, 0]), 2, np.random.default_rng(0)).tolist()
    [[2, 2], [2, 2]]
    """

    def __init__(self, histories: Histories, num_items: int) -> None:
        histories.checked(num_items)
        self.num_items = num_items
        keys = np.repeat(np.arange(histories.num_users), histories.lengths) * num_items + histories.items
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) != 0]
        self._items = keys % num_items
        self._indptr = np.concatenate([[0], np.cumsum(np.bincount(keys // num_items, minlength=histories.num_users))])

    def draw(
        self, users: np.ndarray, count: int, generator: np.random.Generator, *, distinct: bool = False
    ) -> np.ndarray:
        """Negatives of each user, int64 ``[B, count]``.

        Args:
            users: int64 ``[B]``.
            count: how many each.
            generator: of the random numbers.
            distinct: no item twice in a row.

        Raises:
            DataError: distinct items are asked for and a user has not so many left.
        """
        left = self.num_items - int(np.diff(self._indptr)[users].max(initial=0))
        if distinct and left < count:
            raise DataError(f"count: expected at most {left}, the items that a user has not had; got {count}")
        seeds = generator.integers(np.iinfo(np.int64).max, size=len(users))
        return _draw(users, count, self.num_items, self._indptr, self._items, seeds, distinct)


@numba.njit(cache=True, parallel=True)
def _draw(users, count, num_items, indptr, items, seeds, distinct):  # type: ignore[no-untyped-def]
    out = np.empty((len(users), count), dtype=np.int64)
    for place in numba.prange(len(users)):
        row = items[indptr[users[place]] : indptr[users[place] + 1]]
        if len(row) == num_items:
            row = row[:0]
        state = np.uint64(seeds[place])
        for column in range(count):
            repeated = True
            while repeated:
                state += np.uint64(0x9E3779B97F4A7C15)
                drawn = np.int64(_mixed(state) >> np.uint64(1))
                out[place, column] = _absent(row, drawn % (num_items - len(row)))
                repeated = False
                if distinct:
                    for before in range(column):
                        repeated = repeated or out[place, before] == out[place, column]
    return out


@numba.njit(cache=True)
def _mixed(state):  # type: ignore[no-untyped-def]
    """SplitMix64's output for a counter (Steele, Lea and Flood 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True)
def _absent(row, rank):  # type: ignore[no-untyped-def]
    """The number that has ``rank`` others below it among those that are not in an ascending row."""
    low, high = 0, len(row)
    while low < high:
        middle = (low + high) // 2
        if row[middle] - middle <= rank:
            low = middle + 1
        else:
            high = middle
    return rank + low
