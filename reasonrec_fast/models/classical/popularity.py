"""Item popularity: the floor of every comparison."""

from __future__ import annotations

import numpy as np

from reasonrec_fast.data.interactions import Interactions


class Popularity:
    """Scores an item by its number of training events.

    >>> events = Interactions.from_columns(["a", "b"], ["x", "x"], [1, 0], [1, 2])
    >>> Popularity().fit(events, np.array([0, 1])).score(np.array([0]), np.array([0])).tolist()
    [2.0]
    """

    def fit(self, interactions: Interactions, rows: np.ndarray) -> Popularity:
        self.counts = np.bincount(interactions.items[rows], minlength=interactions.num_items).astype(np.float64)
        return self

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float64 ``[N]``."""
        return self.counts[items]
