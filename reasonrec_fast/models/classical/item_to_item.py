"""Models whose scores are a user's items times a matrix of items by items: item-kNN and EASE."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from scipy.sparse import csr_array, csr_matrix

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.models.classical.sparse_items import SparseRecommender
from reasonrec_fast.settings import Count, NotNegative, Positive, check_settings

_ROWS = 1024  # items whose neighbours are computed at a time


class ItemToItem(ClosedFormRecommender):
    """Base of both; scores every user who has a history (see :meth:`set_histories`)."""

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        self.fit_interactions(self._matrix(Histories.of(data, train), data.num_items))

    @abstractmethod
    def fit_interactions(self, liked: csr_matrix) -> None:
        """Build the model and fill it from the matrix of liked items, ones, float32 ``[U, I]``."""

    def _matrix_of(self, users: np.ndarray) -> csr_matrix:
        return self._matrix(self.histories.select(self.user_indices(users)), self.sizes["items"])

    @staticmethod
    def _matrix(histories: Histories, num_items: int) -> csr_matrix:
        ones = np.ones(len(histories.items), dtype=np.float32)
        matrix = csr_matrix((ones, histories.items, histories.indptr), shape=(histories.num_users, num_items))
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix


@dataclass(frozen=True)
class ItemKNNConfig:
    """Hyper-parameters.

    Attributes:
        neighbours: of each item, and those that are as similar as the last of them.
        shrinkage: added to the product of norms, so that similarity over few common users counts less.
    """

    neighbours: Count = 100
    shrinkage: NotNegative = 10.0

    def __post_init__(self) -> None:
        check_settings(self)


class ItemKNN(ItemToItem, SparseRecommender):
    """Scores an item by its summed similarity to the items of the user that it is a nearest neighbour of (Sarwar et al.
    2001; shrunk cosine).

    Args:
        config: hyper-parameters.
        device: of the model and its scores; the sparse products are on the CPU.

    >>> data = Interactions.from_columns(["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"], [1] * 5, range(5))
    >>> ItemKNN().fit(data, np.arange(5)).recommend(np.array([2]), 1).items.tolist()
    [[1]]
    """

    config_type = ItemKNNConfig
    config: ItemKNNConfig

    def fit_interactions(self, liked: csr_matrix) -> None:
        columns = liked.T.tocsr()
        norms = np.sqrt(np.asarray(liked.sum(axis=0), dtype=np.float64).ravel())
        indices, values, counts = [], [], []
        for first in range(0, columns.shape[0], _ROWS):
            common_users = (columns[first : first + _ROWS] @ liked).tocsr()
            for offset in range(common_users.shape[0]):
                item = first + offset
                row = slice(common_users.indptr[offset], common_users.indptr[offset + 1])
                others, common = common_users.indices[row], common_users.data[row]
                others, common = others[others != item], common[others != item]
                similarity = common / (norms[item] * norms[others] + self.config.shrinkage)
                if len(others) > self.config.neighbours:
                    last = np.partition(similarity, -self.config.neighbours)[-self.config.neighbours]
                    others, similarity = others[similarity >= last], similarity[similarity >= last]
                indices.append(others)
                values.append(similarity)
                counts.append(len(others))
        parts = np.concatenate(values), np.concatenate(indices), np.concatenate([[0], np.cumsum(counts)])
        self.keep(csr_array(parts, shape=(columns.shape[0], columns.shape[0])), liked.shape[0])

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return self.dense(self._matrix_of(users) @ self.matrix)


@dataclass(frozen=True)
class EASEConfig:
    """Hyper-parameters.

    Attributes:
        regularisation: added to the diagonal of the Gram matrix.
        max_items: larger catalogues are refused: the matrix is dense, 4 bytes a pair of items, and 8 more during the
            inversion.
    """

    regularisation: Positive = 250.0
    max_items: Count = 40_000

    def __post_init__(self) -> None:
        check_settings(self)


class EASE(ItemToItem):
    """The linear model in closed form of Steck 2019 (arXiv 1905.03375, equation 8), whose diagonal is zero.

    Args:
        config: hyper-parameters.
        device: of the weights and of products; the inverse is computed on the CPU.

    >>> data = Interactions.from_columns(["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"], [1] * 5, range(5))
    >>> EASE().fit(data, np.arange(5)).recommend(np.array([2]), 1).items.tolist()
    [[1]]
    """

    config_type = EASEConfig
    config: EASEConfig
    weights: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        self.register_buffer("weights", torch.zeros(sizes["items"], sizes["items"]))

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        if data.num_items > self.config.max_items:
            raise DataError(f"data: expected at most max_items = {self.config.max_items} items; got {data.num_items}")

    def fit_interactions(self, liked: csr_matrix) -> None:
        items = liked.shape[1]
        gram = (liked.T @ liked).astype(np.float64).toarray(order="F")
        gram[np.diag_indices(items)] += self.config.regularisation
        # Symmetric and positive definite: inverted in place from its Cholesky factor, one triangle.
        factor, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True)
        inverse, failed = lapack.dpotri(factor, lower=True, overwrite_c=True) if not failed else (factor, failed)
        if failed:
            raise DataError(f"regularisation: expected a positive number; got {self.config.regularisation}")
        self.build({"users": liked.shape[0], "items": items})
        scale = -1 / np.diag(inverse)
        for first in range(0, items, _ROWS):  # B = -P / diag(P); column j by the j-th
            rows = slice(first, min(first + _ROWS, items))
            below = np.arange(items) <= np.arange(rows.start, rows.stop)[:, None]
            whole = np.where(below, inverse[rows], inverse[:, rows].T)
            self.weights[rows] = torch.from_numpy(whole * scale).float()
        self.weights.fill_diagonal_(0)

    def scores(self, users: np.ndarray) -> torch.Tensor:
        liked = self._matrix_of(users).tocoo()
        positions = torch.from_numpy(np.stack([liked.row, liked.col]).astype(np.int64))
        sparse = torch.sparse_coo_tensor(positions, torch.from_numpy(liked.data), liked.shape, check_invariants=True)
        return sparse.to(self.device) @ self.weights
