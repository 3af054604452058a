"""Random sampling of items that a user has not seen (numba)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reasonrec_fast.arrays import as_count
from reasonrec_fast.data.compiled import compiled, in_shares
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.histories import Histories
from reasonrec_fast.data.interactions import UNLABELLED, Interactions


class NegativeSampler:
    """Draws items uniformly from those outside a user's history; for a user whose history has all items, from all.

    Safe to use from several threads and in forked processes.

    Args:
        histories: the items that are not drawn for each user. :meth:`Histories.seen` excludes all seen items, liked or
            not (for sampled candidates and recommendations); :meth:`Histories.of` excludes only liked items (for the
            training of BPR and LightGCN, where a disliked item may be a negative).
        num_items: ``I``, at least 1; negatives are in ``[0, I)``.

    Raises:
        DataError: no items, or histories with items out of range.

    >>> sampler = NegativeSampler(Histories.from_lists([[0, 1], [2]]), 3)
    >>> sampler.draw(np.array([0, 0]), 2, np.random.default_rng(0)).tolist()
    [[2, 2], [2, 2]]
    """

    def __init__(self, histories: Histories, num_items: int) -> None:
        self.num_items = num_items = as_count(num_items, "num_items", 1, error=DataError)
        histories = histories.checked(num_items)
        if histories.num_users * num_items >= 2**63:
            raise DataError(f"num_items: expected fewer than 2**63 pairs of users and items; got {num_items} items")
        keys = np.repeat(np.arange(histories.num_users), histories.lengths) * num_items + histories.items
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) != 0]
        self._items = keys % num_items
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(keys // num_items, minlength=histories.num_users))])

    def draw(
        self, users: np.ndarray, count: int, generator: np.random.Generator, *, distinct: bool = False
    ) -> np.ndarray:
        """Negatives of each user, int64 ``[B, count]``.

        Args:
            users: int64 ``[B]``, with histories.
            count: negatives per user, at least 0.
            generator: of the random numbers.
            distinct: draw without replacement within a row.

        Raises:
            DataError: a user index out of range, or with ``distinct`` a user with fewer than ``count`` unseen items
                (with the row).
        """
        users = Histories(self.indptr, self._items).known(users)
        count = as_count(count, "count", error=DataError)
        if distinct and len(users):
            seen_counts = np.diff(self.indptr)[users]
            available = self.num_items - int(seen_counts.max())
            if available < count:
                row = seen_counts.argmax()
                raise DataError(
                    f"count: expected at most {available}, the items that user {users[row]} in row {row} has not had; "
                    f"got {count}"
                )
        seeds = generator.integers(np.iinfo(np.int64).max, size=len(users))
        out = np.empty((len(users), count), dtype=np.int64)
        arguments = (users, self.num_items, self.indptr, self._items, seeds, distinct, out)
        in_shares(len(users), lambda begin, end: _draw(begin, end, *arguments))
        return out


def draw_negatives(data: Interactions, rows: np.ndarray, known: np.ndarray, seed: int) -> Interactions:
    """For each of some events, an unlabelled event of the same user and moment with an item that the user has not seen.

    Events of users who have seen all items are skipped.

    Args:
        data: the events.
        rows: of the events that negatives are drawn for.
        known: rows of the events that define the seen items. For training use only training events: excluding later
            items would leak what a user likes in the future.
        seed: of the random numbers.

    >>> data = Interactions.from_columns(["a", "b"], ["x", "y"], [1, 1], [5, 6])
    >>> draw_negatives(data, np.array([0]), np.arange(2), 0).items.tolist()
    [1]
    """
    sampler = NegativeSampler(Histories.seen(data, known), data.num_items)
    rows = rows[np.diff(sampler.indptr)[data.users[rows]] < data.num_items]
    items = sampler.draw(data.users[rows], 1, np.random.default_rng(seed))[:, 0]
    return replace(data.take(rows), items=items, labels=np.full(len(rows), UNLABELLED, dtype=np.int64))


@compiled
def _draw(begin, end, users, num_items, indptr, items, seeds, distinct, out):  # type: ignore[no-untyped-def]
    count = out.shape[1]
    for index in range(begin, end):
        row = items[indptr[users[index]] : indptr[users[index] + 1]]
        if len(row) == num_items:
            row = row[:0]
        state = np.uint64(seeds[index])
        for column in range(count):
            repeated = True
            while repeated:
                state += np.uint64(0x9E3779B97F4A7C15)
                drawn = np.int64(_mix_bits(state) >> np.uint64(1))
                out[index, column] = _nth_absent(row, drawn % (num_items - len(row)))
                repeated = False
                if distinct:
                    for earlier in range(column):
                        repeated = repeated or out[index, earlier] == out[index, column]


@compiled
def _mix_bits(state):  # type: ignore[no-untyped-def]
    """SplitMix64's output for a counter (Steele, Lea and Flood 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def _nth_absent(row, rank):  # type: ignore[no-untyped-def]
    """The integer of rank ``rank``, from 0, among those that are not in an ascending row.

    ``row[i] - i`` absent integers are below ``row[i]``, so a binary search finds how many of the row's are below the
    result. Unlike rejection sampling, it takes the same time for a user who has seen almost all items.
    """
    low, high = 0, len(row)
    while low < high:
        middle = (low + high) // 2
        if row[middle] - middle <= rank:
            low = middle + 1
        else:
            high = middle
    return rank + low
