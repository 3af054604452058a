"""Item-kNN over ordered pairs: what users had after an item, the sooner the more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical.sparse_items import SparseRecommender, decayed_weights
from reasonrec_fast.settings import Count, NotNegative, Share, check_settings


@dataclass(frozen=True)
class DirectedItemKNNConfig:
    """Hyper-parameters.

    Attributes:
        window: how many events apart two items of a user may be; bounds the pairs of a long history.
        shrinkage: added to the product of norms, so that similarity over few pairs counts less.
        decay: weight of a history's item relative to that of the next later one.
    """

    window: Count = 50
    shrinkage: NotNegative = 10.0
    decay: Share = 0.75

    def __post_init__(self) -> None:
        check_settings(self)


class DirectedItemKNN(SparseRecommender):
    """Scores an item by how often, and how soon, users had it after the items of the user's history.

    ``similarity(i, j) = sum of 1 / gap over pairs (i, j) / (sqrt(n_i * n_j) + shrinkage)``: a pair is two items of
    one user, its gap how many events later the second came, and ``n`` counts the events of an item. A user's score of
    ``j`` is the sum of the similarities from their items to it, weighted by ``decay ** age``, where the latest item has
    the age 0. The pairs and their weights are those of the sequential rules of Ludewig and Jannach 2018 (arXiv
    1803.09587), the norm is item-kNN's.

    Args:
        config: hyper-parameters.
        device: of the model and its scores; the sparse products are on the CPU.

    >>> data = Interactions.from_columns(["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"], [1] * 5, range(5))
    >>> model = DirectedItemKNN(DirectedItemKNNConfig(shrinkage=0)).fit(data, np.arange(5))
    >>> score = model.score(np.array([2]), np.array([1]))[0]  # y after x: 2 / sqrt(3 * 2)
    >>> round(float(score), 4)
    0.8165
    """

    config_type = DirectedItemKNNConfig
    config: DirectedItemKNNConfig

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        if not (Histories.of(data, train).lengths >= 2).any():
            raise DataError("train: expected a user with at least two positive events, a pair in order; got none")

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        liked = Histories.of(data, train)
        first, then, summed = _weighted_pairs(liked, data.num_items, self.config.window)
        counts = np.bincount(liked.items, minlength=data.num_items).astype(np.float64)
        similarity = summed / (np.sqrt(counts[first] * counts[then]) + self.config.shrinkage)
        self.keep(csr_array((similarity, (first, then)), shape=(data.num_items, data.num_items)), data.num_users)

    def scores(self, users: np.ndarray) -> torch.Tensor:
        histories = self.histories.select(self.user_indices(users))
        return self.dense(decayed_weights(histories, self.sizes["items"], self.config.decay) @ self.matrix)


def _weighted_pairs(liked: Histories, num_items: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct ordered pairs of different items, sorted, and the sum of 1 / gap of each: ``[P]`` all."""
    users = np.repeat(np.arange(liked.num_users), liked.lengths)
    pairs, weights = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for gap in range(1, min(window, int(liked.lengths.max(initial=0)) - 1) + 1):
        first, then = liked.items[:-gap], liked.items[gap:]
        rows = np.flatnonzero((users[:-gap] == users[gap:]) & (first != then))
        pairs.append(first[rows] * num_items + then[rows])
        weights.append(np.full(len(rows), 1 / gap))
    keys, positions = np.unique(np.concatenate(pairs), return_inverse=True)
    return keys // num_items, keys % num_items, np.bincount(positions, np.concatenate(weights), minlength=len(keys))
