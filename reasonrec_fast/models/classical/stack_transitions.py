"""What users had after what: how many, rather than how much more than other items, as the scores of tools say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from reasonrec_fast.data import Histories

WINDOW = 50
"""How many events apart two items of a user may be; bounds the pairs of a long history."""

NAMES = ("next to last", "after last", "before last", "share after last", "after any", "linked", "successors of last")
"""Of the columns of :meth:`Transitions.features`."""


@dataclass(frozen=True)
class Transitions:
    """Ordered pairs of different items in histories.

    Attributes:
        following: how often users had an item right after another, float64 ``[I, I]``.
        later: how often at any time after it, at most :data:`WINDOW` events later, float64 ``[I, I]``.
    """

    following: csr_array
    later: csr_array

    @classmethod
    def of(cls, histories: Histories, num_items: int) -> Transitions:
        """Count the pairs of histories.

        >>> Transitions.of(Histories.from_lists([[0, 1, 2], [0, 2]]), 3).later.toarray().tolist()
        [[0.0, 1.0, 2.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
        """
        users = np.repeat(np.arange(histories.num_users), histories.lengths)
        following = later = csr_array((num_items, num_items))
        for gap in range(1, min(WINDOW, int(histories.lengths.max(initial=0)) - 1) + 1):
            first, then = histories.items[:-gap], histories.items[gap:]
            rows = np.flatnonzero((users[:-gap] == users[gap:]) & (first != then))
            pairs = csr_array((np.ones(len(rows)), (first[rows], then[rows])), shape=(num_items, num_items))
            following = pairs if gap == 1 else following
            later = later + pairs
        return cls(following, later)

    def features(self, index: np.ndarray, histories: Histories) -> list[np.ndarray]:
        """Columns of candidates ``[B, C]`` of ``B`` users, named :data:`NAMES`: logarithms of counts, but for the
        share. Counts are exact, so that they do not depend on the order of items."""
        users, shape = np.arange(histories.num_users), (histories.num_users, self.later.shape[0])
        some = np.flatnonzero(histories.lengths > 0)
        last = csr_array((np.ones(len(some)), (some, histories.items[histories.indptr[1:][some] - 1])), shape=shape)
        parts = np.ones(len(histories.items)), histories.items, histories.indptr
        each = csr_array(parts, shape=shape, copy=True)  # duplicates are merged in place
        each.sum_duplicates()
        each.data[:] = 1

        def of_candidates(counts: csr_array) -> np.ndarray:
            return counts.toarray()[users[:, None], index]

        after_last, after_any = last @ self.later, each @ self.later
        after = of_candidates(after_last)
        successors = after_last.sum(1)[:, None]
        linked = of_candidates(each @ self._linked)
        return [
            np.log1p(of_candidates(last @ self.following)), np.log1p(after),
            np.log1p(of_candidates(last @ self._earlier)), after / np.maximum(successors, 1),
            np.log1p(of_candidates(after_any)), linked, np.log1p(successors),
        ]  # fmt: skip

    @cached_property
    def _earlier(self) -> csr_array:
        return self.later.T.tocsr()

    @cached_property
    def _linked(self) -> csr_array:
        both = (self.later + self._earlier).tocsr()
        both.data = np.ones_like(both.data)
        return both
