"""Each user's items, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasonrec_fast.arrays import as_index, as_rows, same_length
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import UNLABELLED, Interactions
from reasonrec_fast.data.timeline import Timeline


@dataclass(frozen=True)
class Histories:
    """Items of ``U`` users in CSR form, oldest first.

    Attributes:
        indptr: int64 ``[U + 1]``; user ``u`` has the items ``items[indptr[u] : indptr[u + 1]]``.
        items: int64 ``[E]``.

    >>> events = Interactions.from_columns(["a", "b", "a"], ["x", "y", "y"], [1, 0, 1], [3, 4, 5])
    >>> Histories.of(events, np.arange(3)).of_user(0).tolist()
    [0, 1]
    """

    indptr: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, interactions: Interactions, rows: np.ndarray) -> Histories:
        """Histories of the positive events among ``rows``: the liked items.

        Raises:
            DataError: rows outside the table, or a duplicate row.
        """
        rows = as_rows(rows, "rows", len(interactions), error=DataError)
        return cls._of_rows(interactions, rows[interactions.labels[rows] == 1])

    @classmethod
    def seen(cls, interactions: Interactions, rows: np.ndarray) -> Histories:
        """Histories of all labelled events among ``rows``: the seen items, liked or not.

        >>> events = Interactions.from_columns(["a", "a"], ["x", "y"], [1, 0], [3, 4])
        >>> Histories.seen(events, [0, 1]).of_user(0).tolist(), Histories.of(events, [0, 1]).of_user(0).tolist()
        ([0, 1], [0])

        Raises:
            DataError: rows outside the table, or a duplicate row.
        """
        rows = as_rows(rows, "rows", len(interactions), error=DataError)
        return cls._of_rows(interactions, rows[interactions.labels[rows] != UNLABELLED])

    @classmethod
    def _of_rows(cls, interactions: Interactions, rows: np.ndarray) -> Histories:
        line = Timeline.of_users(interactions, rows)
        return cls(line.indptr, interactions.items[line.rows])

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Histories:
        """From one list of item indices per user, oldest first.

        Raises:
            DataError: an item that is not an integer or is below 0 (the message names its list).

        >>> Histories.from_lists([[3, 1], []]).lengths.tolist()
        [2, 0]
        """
        lists = [items.tolist() if hasattr(items, "tolist") else list(items) for items in lists]
        indptr = np.concatenate([[0], np.cumsum([len(items) for items in lists], dtype=np.int64)])
        joined = [item for items in lists for item in items]
        try:
            return cls(indptr, as_index(joined, "lists", error=DataError))
        except DataError:
            for number, items in enumerate(lists):
                as_index(items, f"lists, list {number}", error=DataError)
            raise

    @classmethod
    def from_pairs(cls, num_users: int, users: np.ndarray, items: np.ndarray) -> Histories:
        """From one (user, item) pair per event; the events of a user are oldest first.

        Raises:
            DataError: vectors of different lengths, or indices out of range (with the row).

        >>> Histories.from_pairs(3, np.array([2, 0, 2]), np.array([7, 8, 9])).of_user(2).tolist()
        [7, 9]
        """
        users, items = as_index(users, "users", num_users, error=DataError), as_index(items, "items", error=DataError)
        same_length(DataError, users=users, items=items)
        counts = np.bincount(users, minlength=num_users)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return cls(indptr, items[np.argsort(users, kind="stable")])

    @property
    def num_users(self) -> int:
        return len(self.indptr) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Items of each user, int64 ``[U]``."""
        return np.diff(self.indptr)

    def distinct_counts(self) -> np.ndarray:
        """Number of distinct items of each user, int64 ``[U]``.

        >>> Histories.from_lists([[3, 3, 1], []]).distinct_counts().tolist()
        [2, 0]
        """
        users = np.repeat(np.arange(self.num_users), self.lengths)
        pairs = np.unique(np.stack([users, self.items], axis=1), axis=0)
        return np.bincount(pairs[:, 0], minlength=self.num_users)

    def of_user(self, user: int) -> np.ndarray:
        """A user's items, oldest first.

        Raises:
            DataError: a user index out of range.
        """
        if not 0 <= user < self.num_users:
            raise DataError(f"user: expected an index in [0, {self.num_users}); got {user}")
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def select(self, users: np.ndarray) -> Histories:
        """The histories of some users, in the order given.

        Raises:
            DataError: a user index out of range (with the row).
        """
        users = self.known(users)
        return self.spans(self.indptr[users], self.indptr[users + 1])

    def known(self, users: np.ndarray) -> np.ndarray:
        """The user indices, validated, int64 ``[B]``.

        Raises:
            DataError: a user index out of range (with the row).

        >>> Histories.from_lists([[3, 1]]).known([1])
        Traceback (most recent call last):
        reasonrec_fast.data.errors.DataError: users: expected indices in [0, 1); got 1 in row 0
        """
        return as_index(users, "users", self.num_users, error=DataError)

    def distinct(self) -> Histories:
        """The distinct items of each user, ascending.

        >>> Histories.from_lists([[3, 1, 3], [5]]).distinct().of_user(0).tolist()
        [1, 3]
        """
        users = np.repeat(np.arange(self.num_users), self.lengths)
        order = np.lexsort((self.items, users))
        users, items = users[order], self.items[order]
        first = (np.diff(users, prepend=-1) != 0) | (np.diff(items, prepend=-1) != 0)
        return Histories.from_pairs(self.num_users, users[first], items[first])

    def without(self, others: Histories) -> Histories:
        """Each user's items except those in ``others``, in the same order.

        Raises:
            DataError: another number of users.

        >>> Histories.from_lists([[3, 1, 3], [5]]).without(Histories.from_lists([[3], [1]])).of_user(0).tolist()
        [1]
        """
        same_length(DataError, histories=self.lengths, others=others.lengths)
        items = np.unique(np.concatenate([self.items, others.items]), return_inverse=True)[1].reshape(-1)
        width = len(items) + 1
        users = [np.repeat(np.arange(histories.num_users), histories.lengths) * width for histories in (self, others)]
        keep = ~np.isin(users[0] + items[: len(self.items)], users[1] + items[len(self.items) :])
        return Histories.from_pairs(self.num_users, users[0][keep] // width, self.items[keep])

    def spans(self, begins: np.ndarray, ends: np.ndarray) -> Histories:
        """Histories whose row ``b`` is the span ``items[begins[b] : ends[b]]``.

        >>> Histories.from_lists([[3, 1, 2], [5]]).spans(np.array([1, 0]), np.array([3, 1])).of_user(0).tolist()
        [1, 2]
        """
        sizes = ends - begins
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        index = np.arange(indptr[-1]) + np.repeat(begins - indptr[:-1], sizes)
        return Histories(indptr, self.items[index])

    def latest(self, users: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The most recent items of some users, padded.

        Args:
            users: int64 ``[B]``.
            length: the most items per user.

        Returns:
            items ``[B, T]``, oldest first, right-padded with zeros, ``T`` the longest row; and the number of items of
            each row, int64 ``[B]``.

        >>> Histories.from_lists([[3, 1, 2], [5]]).latest(np.array([1, 0]), 2)[0].tolist()
        [[5, 0], [1, 2]]
        """
        users = self.known(users)
        sizes = np.minimum(self.lengths[users], length)
        positions = np.arange(int(sizes.max(initial=0)))
        inside = positions < sizes[:, None]
        index = np.where(inside, self.indptr[users + 1][:, None] - sizes[:, None] + positions, 0)
        rows = np.where(inside, self.items[index] if len(self.items) else 0, 0)
        return rows, sizes

    def replaced(self, users: np.ndarray, by: Histories, num_users: int) -> Histories:
        """Histories of ``num_users`` users: those of ``users`` from ``by``, others from ``self``; empty if in neither.

        >>> Histories.from_lists([[1], [2]]).replaced([1], Histories.from_lists([[], [7, 8], [9]]), 3).of_user(1)
        array([7, 8])
        """
        is_replaced = np.zeros(num_users, dtype=bool)
        is_replaced[users] = True
        own_row = np.minimum(np.arange(num_users), max(self.num_users - 1, 0))
        exists = np.arange(num_users) < self.num_users
        begins = np.where(exists & ~is_replaced, self.indptr[own_row], 0)
        ends = np.where(exists & ~is_replaced, self.indptr[np.minimum(own_row + 1, self.num_users)], 0)
        both = Histories(np.zeros(1, dtype=np.int64), np.concatenate([self.items, by.items]))
        begins = np.where(is_replaced, by.indptr[:-1] + len(self.items), begins)
        ends = np.where(is_replaced, by.indptr[1:] + len(self.items), ends)
        return both.spans(begins, ends)

    def checked(self, num_items: int | None = None) -> Histories:
        """The same histories, validated, as int64 arrays.

        Args:
            num_items: ``I``, if it is known.

        Raises:
            DataError: an item outside ``[0, num_items)`` (with its row), or an indptr that does not rise from 0 to the
                number of items.

        >>> Histories(np.array([0, 9]), np.array([5])).checked()
        Traceback (most recent call last):
        reasonrec_fast.data.errors.DataError: histories: expected an indptr that rises from 0 to 1; got another
        """
        indptr = as_index(self.indptr, "histories: indptr", error=DataError)
        items = as_index(self.items, "histories", least=-(2**63), error=DataError)
        low, high = items.min(initial=0), items.max(initial=-1 if num_items is None else num_items - 1)
        if low < 0 or (num_items is not None and high >= num_items):
            row = int(items.argmin() if low < 0 else items.argmax())
            bounds = "of at least 0" if num_items is None else f"in [0, {num_items})"
            raise DataError(f"histories: expected items {bounds}; got {items.min()} to {items.max()} (row {row})")
        if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(items) or (np.diff(indptr) < 0).any():
            raise DataError(f"histories: expected an indptr that rises from 0 to {len(items)}; got another")
        return self if indptr is self.indptr and items is self.items else Histories(indptr, items)
