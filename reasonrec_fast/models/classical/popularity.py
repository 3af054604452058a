"""Item popularity: the simplest baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reasonrec_fast.data import Interactions
from reasonrec_fast.devices import on_device
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender


@dataclass(frozen=True)
class PopularityConfig:
    """No settings."""


class Popularity(ClosedFormRecommender):
    """Scores an item by its number of training events, the same for every user.

    >>> events = Interactions.from_columns(["a", "b"], ["x", "x"], [1, 0], [1, 2])
    >>> Popularity().fit(events, np.array([0, 1])).score(np.array([0]), np.array([0])).tolist()
    [2.0]
    """

    config_type = PopularityConfig
    counts: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        self.register_buffer("counts", torch.zeros(sizes["items"]))

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        self.build({"users": data.num_users, "items": data.num_items})
        counts = np.bincount(data.items[train], minlength=data.num_items)
        self.counts.copy_(torch.from_numpy(counts))

    def check_served(self, users: np.ndarray) -> None:
        """Every user is served alike."""

    def scores(self, users: np.ndarray) -> torch.Tensor:
        users = self.user_indices(users)
        return self.counts.expand(len(users), -1).clone()

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        _, items = self.pairs(users, items)
        return self.counts[on_device(items, self.device)].cpu().numpy()
