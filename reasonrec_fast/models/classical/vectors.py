"""Base of the models whose score is the inner product of a user's and an item's vector, learned or not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from reasonrec_fast import ops
from reasonrec_fast.data import Histories
from reasonrec_fast.devices import on_device
from reasonrec_fast.models.classical.base import USERS_PER_BLOCK, ClassicalRecommender
from reasonrec_fast.models.classical.retrieval import Retriever

_PAIRS = 1 << 18  # scored at a time


def decayed_mean(vectors: torch.Tensor, histories: Histories, decay: float) -> torch.Tensor:
    """Mean vector of each user's items, weighted by ``decay ** age`` where the latest item has the age 0, ``[B, D]``;
    zero without a history.

    Args:
        vectors: of all items, ``[I, D]``.
        histories: of ``B`` users.
        decay: in [0, 1].

    >>> decayed_mean(torch.eye(2), Histories.from_lists([[0, 1], []]), 0.25).tolist()
    [[0.20000000298023224, 0.800000011920929], [0.0, 0.0]]
    """
    users = np.repeat(np.arange(histories.num_users), histories.lengths)
    ages = histories.indptr[1:][users] - 1 - np.arange(len(users))
    weights = decay ** ages.astype(np.float64)
    weights /= np.bincount(users, weights, minlength=histories.num_users)[users]
    device = vectors.device
    return functional.embedding_bag(
        on_device(histories.items, device), vectors, on_device(histories.indptr, device), mode="sum",
        per_sample_weights=on_device(weights.astype(np.float32), device), include_last_offset=True,
    )  # fmt: skip


class VectorRecommender(ClassicalRecommender):
    """A model of vectors; ``ops.topk`` retrieves, without the scores of all items in memory."""

    @abstractmethod
    def encoded(self) -> tuple[Callable[[np.ndarray], torch.Tensor], torch.Tensor]:
        """A function from user indices ``[B]`` to their vectors ``[B, D]``, and the vectors of all items ``[I, D]``.

        What all users share is computed by this call, once.
        """

    @property
    def _users_per_block(self) -> int:
        return USERS_PER_BLOCK

    def scores(self, users: np.ndarray) -> torch.Tensor:
        of_users, items = self.encoded()
        return of_users(self.user_indices(users)) @ items.T

    @torch.inference_mode()
    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        users, items = self.pairs(users, items)
        of_users, item_vectors = self.encoded()
        scores = torch.empty(len(users), device=self.device)
        user_indices, positions = np.unique(users, return_inverse=True)
        starts = range(0, max(len(user_indices), 1), USERS_PER_BLOCK)
        user_vectors = torch.cat([of_users(user_indices[first : first + USERS_PER_BLOCK]) for first in starts])
        for first in range(0, len(users), _PAIRS):
            rows = slice(first, first + _PAIRS)
            of_pairs = on_device(positions[rows], self.device), on_device(items[rows], self.device)
            scores[rows] = (user_vectors[of_pairs[0]] * item_vectors[of_pairs[1]]).sum(-1).float()
        return scores.cpu().numpy()

    def _retriever(self) -> Retriever:
        of_users, items = self.encoded()

        def retrieve(users: np.ndarray, k: int, exclude: Histories) -> tuple[torch.Tensor, torch.Tensor]:
            csr = on_device(exclude.indptr, self.device), on_device(exclude.items, self.device)
            result = ops.topk(of_users(users), items, k, exclude=csr)
            return result.values, result.indices

        return retrieve
