"""Items that a user has not had, drawn at random (numba)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reasonrec_fast.arrays import as_count
from reasonrec_fast.data.compiled import compiled, in_shares
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.histories import Histories
from reasonrec_fast.data.interactions import UNLABELLED, Interactions


class NegativeSampler:
    """Draws items uniformly from those that a user has not had; one who has had everything is given any item.

    Several threads may draw at once, and so may forked processes.

    Args:
        histories: what is not to be drawn for each user, whatever it means: :meth:`Histories.had` leaves out what a
            user has had and did not like too (so do sampled candidates and recommendations), :meth:`Histories.of`
            leaves out likes alone (so does the training of BPR and LightGCN: a dislike may be a negative).
        num_items: ``I``, at least 1; negatives are in ``[0, I)``.

    Raises:
        DataError: no items, or histories with others.

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
            count: how many each, at least 0.
            generator: of the random numbers.
            distinct: no item twice in a row.

        Raises:
            DataError: a user without a history (with the row), or distinct items are asked for and a user has not so
                many left (with the row).
        """
        users = Histories(self.indptr, self._items).known(users)
        count = as_count(count, "count", error=DataError)
        if distinct and len(users):
            had = np.diff(self.indptr)[users]
            left = self.num_items - int(had.max())
            if left < count:
                raise DataError(
                    f"count: expected at most {left}, the items that user {users[had.argmax()]} in row {had.argmax()} "
                    f"has not had; got {count}"
                )
        seeds = generator.integers(np.iinfo(np.int64).max, size=len(users))
        out = np.empty((len(users), count), dtype=np.int64)
        given = (users, self.num_items, self.indptr, self._items, seeds, distinct, out)
        in_shares(len(users), lambda begin, end: _draw(begin, end, *given))
        return out


def draw_negatives(data: Interactions, rows: np.ndarray, known: np.ndarray, seed: int) -> Interactions:
    """For each of some events one of an item that its user has not had, at the same moment, without a label.

    Users who have every item are left out.

    Args:
        data: the events.
        rows: of the events that negatives are drawn for.
        known: rows of the events that tell what users have had. To train on, these are the training events alone:
            what is never drawn would tell a model what its users come to like later.
        seed: of what is drawn.

    >>> data = Interactions.from_columns(["a", "b"], ["x", "y"], [1, 1], [5, 6])
    >>> draw_negatives(data, np.array([0]), np.arange(2), 0).items.tolist()
    [1]
    """
    sampler = NegativeSampler(Histories.had(data, known), data.num_items)
    rows = rows[np.diff(sampler.indptr)[data.users[rows]] < data.num_items]
    items = sampler.draw(data.users[rows], 1, np.random.default_rng(seed))[:, 0]
    return replace(data.take(rows), items=items, labels=np.full(len(rows), UNLABELLED, dtype=np.int64))


@compiled
def _draw(begin, end, users, num_items, indptr, items, seeds, distinct, out):  # type: ignore[no-untyped-def]
    count = out.shape[1]
    for place in range(begin, end):
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


@compiled
def _mixed(state):  # type: ignore[no-untyped-def]
    """SplitMix64's output for a counter (Steele, Lea and Flood 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
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
