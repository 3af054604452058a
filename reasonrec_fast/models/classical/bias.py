"""User and item biases: log-odds of a like as a sum of the two."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from reasonrec_fast.data.interactions import Interactions


class Bias:
    """A logistic regression on one-hot users and items (L2).

    Args:
        strength: inverse of the L2 weight.

    >>> events = Interactions.from_columns(["a", "a", "b"], ["x", "y", "x"], [1, 0, 1], [1, 2, 3])
    >>> scores = Bias().fit(events, np.arange(3)).score(np.array([0, 0]), np.array([0, 1]))
    >>> bool(scores[0] > scores[1])
    True
    """

    def __init__(self, strength: float = 0.5) -> None:
        self.strength = strength

    def fit(self, interactions: Interactions, rows: np.ndarray) -> Bias:
        self.num_users, self.num_items = interactions.num_users, interactions.num_items
        self.model = LogisticRegression(C=self.strength, max_iter=500)
        self.model.fit(self._features(interactions.users[rows], interactions.items[rows]), interactions.labels[rows])
        return self

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Log-odds, float64 ``[N]``."""
        return self.model.decision_function(self._features(users, items))

    def item_bias(self) -> np.ndarray:
        """What each item adds to the log-odds, float64 ``[I]``."""
        return self.model.coef_[0][self.num_users :]

    def _features(self, users: np.ndarray, items: np.ndarray) -> csr_matrix:
        return hstack([_one_hot(users, self.num_users), _one_hot(items, self.num_items)], format="csr")


def _one_hot(index: np.ndarray, width: int) -> csr_matrix:
    return csr_matrix((np.ones(len(index)), index, np.arange(len(index) + 1)), shape=(len(index), width))
