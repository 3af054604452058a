"""A low-pass filter over the graph of users and items: histories through truncated factors of the items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import svds

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.models.classical.vectors import VectorRecommender, decayed_mean
from reasonrec_fast.settings import Count, Share, check_settings


@dataclass(frozen=True)
class SVDConfig:
    """Hyper-parameters.

    Attributes:
        dim: number of singular vectors; fewer where there are fewer users or items.
        decay: weight of a history's item relative to that of the next later one.
    """

    dim: Count = 128
    decay: Share = 0.75

    def __post_init__(self) -> None:
        check_settings(self)


class SVD(ClosedFormRecommender, VectorRecommender):
    """The ideal low-pass filter of GF-CF (Shen et al. 2021, arXiv 2108.07567, section 4): a user's scores are
    ``h D^-1/2 V V' D^1/2``, where ``V`` are the first right singular vectors of ``U^-1/2 R D^-1/2``, ``U`` and ``D``
    the degrees of users and items in the matrix ``R`` of likes, and ``h`` the items of the history, weighted by
    ``decay ** age`` where the latest has the age 0, over the sum of the weights.

    Args:
        config: hyper-parameters.
        device: of the model; the decomposition is on the CPU.

    >>> data = Interactions.from_columns(["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"], [1] * 5, range(5))
    >>> SVD(SVDConfig(dim=1)).fit(data).recommend(["c"], 1).items.tolist()
    [['y']]
    """

    config_type = SVDConfig
    config: SVDConfig
    read: torch.Tensor
    scored: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        dim = min(self.config.dim, min(sizes["users"], sizes["items"]) - 1)
        for name in ("read", "scored"):  # of a history's items, and of those that are ranked
            self.register_buffer(name, torch.zeros(sizes["items"], dim))

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        if min(data.num_users, data.num_items) < 2:
            raise DataError(
                f"data: expected at least two users and two items; got {data.num_users} and {data.num_items}"
            )

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        self.build({"users": data.num_users, "items": data.num_items})
        liked = Histories.of(data, train).distinct()
        ones = np.ones(len(liked.items))
        matrix = csr_array((ones, liked.items, liked.indptr), shape=(data.num_users, data.num_items))
        users, items = (np.sqrt(np.maximum(matrix.sum(axis), 1)) for axis in (1, 0))
        normalised = diags_array(1 / users) @ matrix @ diags_array(1 / items)
        start = np.ones(min(matrix.shape))  # the same data give the same vectors
        vectors = svds(normalised, k=self.read.shape[1], v0=start, return_singular_vectors="vh")[2].T
        self.read.copy_(torch.from_numpy(vectors / items[:, None]))
        self.scored.copy_(torch.from_numpy(vectors * items[:, None]))

    def encoded(self) -> tuple[Callable[[np.ndarray], torch.Tensor], torch.Tensor]:
        return lambda users: decayed_mean(self.read, self.histories.select(users), self.config.decay), self.scored
