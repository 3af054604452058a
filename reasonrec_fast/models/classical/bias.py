"""User and item biases: log-odds of a like as a sum of the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from reasonrec_fast.data import Interactions
from reasonrec_fast.devices import on_device
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.settings import Positive, check_settings


@dataclass(frozen=True)
class BiasConfig:
    """Hyper-parameters.

    Attributes:
        strength: inverse of the L2 weight.
    """

    strength: Positive = 0.5

    def __post_init__(self) -> None:
        check_settings(self)


class Bias(ClosedFormRecommender):
    """A logistic regression on one-hot users and items (L2). A user who was not in training has a bias of 0.

    Args:
        config: hyper-parameters.
        device: of the model; the regression is fitted on the CPU.

    >>> events = Interactions.from_columns(["a", "a", "b"], ["x", "y", "x"], [1, 0, 1], [1, 2, 3])
    >>> scores = Bias().fit(events, np.arange(3)).score(np.array([0, 0]), np.array([0, 1]))
    >>> bool(scores[0] > scores[1])
    True
    """

    config_type = BiasConfig
    learns_labels = True
    config: BiasConfig
    of_users: torch.Tensor
    of_items: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        self.register_buffer(
            "of_users", torch.zeros(sizes["users"] + 1)
        )  # the last one: of users who were not in training
        self.register_buffer("of_items", torch.zeros(sizes["items"]))

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        self.build({"users": data.num_users, "items": data.num_items})
        ones = [_one_hot(data.users[train], data.num_users), _one_hot(data.items[train], data.num_items)]
        regression = LogisticRegression(C=self.config.strength, max_iter=500)
        regression.fit(hstack(ones, format="csr"), data.labels[train])
        users, items = np.split(regression.coef_[0], [data.num_users])
        self.of_users.copy_(torch.from_numpy(np.append(users, 0) + regression.intercept_))
        self.of_items.copy_(torch.from_numpy(items))

    def check_served(self, users: np.ndarray) -> None:
        """Every user is served: new ones have a bias of 0."""

    def item_bias(self) -> np.ndarray:
        """Contribution of each item to the log-odds, float32 ``[I]``."""
        return self.of_items.cpu().numpy()

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return self._of_users(self.user_indices(users))[:, None] + self.of_items

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Log-odds, float32 ``[N]``."""
        users, items = self.pairs(users, items)
        return (self._of_users(users) + self.of_items[on_device(items, self.device)]).cpu().numpy()

    def _of_users(self, users: np.ndarray) -> torch.Tensor:
        return self.of_users[on_device(np.minimum(users, self.sizes["users"]), self.device)]


def _one_hot(index: np.ndarray, width: int) -> csr_matrix:
    return csr_matrix((np.ones(len(index)), index, np.arange(len(index) + 1)), shape=(len(index), width))
