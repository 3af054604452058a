"""Each user's items, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.data.timeline import Timeline


@dataclass(frozen=True)
class Histories:
    """Items of ``U`` users in compressed rows, oldest first.

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
        """The positive events among ``rows`` (ascending)."""
        line = Timeline.of_users(interactions, rows[interactions.labels[rows] == 1])
        return cls(line.indptr, interactions.items[line.rows])

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Histories:
        """One list of item indices a user, oldest first.

        >>> Histories.from_lists([[3, 1], []]).lengths.tolist()
        [2, 0]
        """
        indptr = np.concatenate([[0], np.cumsum([len(items) for items in lists], dtype=np.int64)])
        return cls(indptr, np.array([item for items in lists for item in items], dtype=np.int64))

    @classmethod
    def from_pairs(cls, num_users: int, users: np.ndarray, items: np.ndarray) -> Histories:
        """One entry an event, a user's oldest first.

        >>> Histories.from_pairs(3, np.array([2, 0, 2]), np.array([7, 8, 9])).of_user(2).tolist()
        [7, 9]
        """
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

    def of_user(self, user: int) -> np.ndarray:
        """A user's items, oldest first."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def select(self, users: np.ndarray) -> Histories:
        """The histories of some users, in the order given."""
        return self.spans(self.indptr[users], self.indptr[users + 1])

    def spans(self, begins: np.ndarray, ends: np.ndarray) -> Histories:
        """One row a span ``items[begins[b] : ends[b]]``.

        >>> Histories.from_lists([[3, 1, 2], [5]]).spans(np.array([1, 0]), np.array([3, 1])).of_user(0).tolist()
        [1, 2]
        """
        sizes = ends - begins
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(indptr[-1]) + np.repeat(begins - indptr[:-1], sizes)
        return Histories(indptr, self.items[places])

    def latest(self, users: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The last items of some users, as rows.

        Args:
            users: int64 ``[B]``.
            length: at most so many items each.

        Returns:
            items ``[B, T]``, each row from the left, zeros behind it, ``T`` the longest row; and how many a row has,
            int64 ``[B]``.

        >>> Histories.from_lists([[3, 1, 2], [5]]).latest(np.array([1, 0]), 2)[0].tolist()
        [[5, 0], [1, 2]]
        """
        sizes = np.minimum(self.lengths[users], length)
        places = np.arange(int(sizes.max(initial=0)))
        inside = places < sizes[:, None]
        index = np.where(inside, self.indptr[users + 1][:, None] - sizes[:, None] + places, 0)
        rows = np.where(inside, self.items[index] if len(self.items) else 0, 0)
        return rows, sizes

    def checked(self, num_items: int) -> Histories:
        """Itself.

        Raises:
            DataError: an item outside ``[0, num_items)``.
        """
        if len(self.items) and not 0 <= self.items.min() <= self.items.max() < num_items:
            raise DataError(
                f"histories: expected items in [0, {num_items}); got {self.items.min()} to {self.items.max()}"
            )
        return self
