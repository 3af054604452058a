"""Models whose scores are a user's items times a matrix of items by items: item-kNN and EASE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack, solve_triangular
from scipy.sparse import csr_array, csr_matrix

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.models.classical.sparse_items import SparseRecommender
from reasonrec_fast.settings import Count, NotNegative, Positive, check_settings

_ROWS = 1024  # items whose neighbours are computed at a time
_MOST_INFLATION = 1e9  # beyond it a float64 inverse is worth less than the float32 that is kept


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
            inversion unless there are twice as many items as users.
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
        users, items = liked.shape
        most = float(np.asarray(liked.sum(axis=0)).max(initial=0.0))
        # Few users: a smaller system, unless the regularisation is so small that 1 - diagonal would lose its digits.
        few = 2 * users < items and self.config.regularisation >= 1e-6 * most
        diagonal, rows_of = (self._inverse_by_users if few else self._inverse_by_items)(liked)
        if not few:
            # How far the other items foretell an item (its variance inflation): so many digits of float64 are lost.
            counts = np.asarray(liked.sum(axis=0), dtype=np.float64).ravel() + self.config.regularisation
            if not (counts * diagonal).max(initial=1.0) < _MOST_INFLATION:
                raise self._too_small()
        self.build({"users": users, "items": items})
        scale = -1 / diagonal
        for first in range(0, items, _ROWS):  # B = -P / diag(P); column j by the j-th
            rows = slice(first, min(first + _ROWS, items))
            self.weights[rows] = torch.from_numpy(rows_of(rows) * scale).float()
        self.weights.fill_diagonal_(0)

    def _inverse_by_items(self, liked: csr_matrix) -> tuple[np.ndarray, Callable[[slice], np.ndarray]]:
        """The diagonal of the inverse ``P`` of the Gram matrix of the items, and its rows; float64."""
        gram = self._regularised((liked.T @ liked).astype(np.float64).toarray(order="F"))
        # Symmetric and positive definite: inverted in place from its Cholesky factor, one triangle.
        inverse, failed = lapack.dpotri(self._factor(gram), lower=True, overwrite_c=True)
        if failed:
            raise self._too_small()

        def rows_of(rows: slice) -> np.ndarray:
            below = np.arange(len(inverse)) <= np.arange(rows.start, rows.stop)[:, None]
            return np.where(below, inverse[rows], inverse[:, rows].T)

        return np.diag(inverse), rows_of

    def _inverse_by_users(self, liked: csr_matrix) -> tuple[np.ndarray, Callable[[slice], np.ndarray]]:
        """The same times the regularisation, but for the diagonal of the rows, which nobody reads.

        By the identity of Woodbury ``regularisation * P = I - V' V``, where ``V = L^-1 X`` and ``L`` is the Cholesky
        factor of the users' Gram matrix ``X X' + regularisation * I``.
        """
        gram = self._regularised((liked @ liked.T).astype(np.float64).toarray(order="F"))
        half = solve_triangular(self._factor(gram), liked.astype(np.float64).toarray(), lower=True, check_finite=False)
        return 1 - np.einsum("ui,ui->i", half, half), lambda rows: -(half[:, rows].T @ half)

    def _regularised(self, gram: np.ndarray) -> np.ndarray:
        gram[np.diag_indices(len(gram))] += self.config.regularisation
        return gram

    def _factor(self, gram: np.ndarray) -> np.ndarray:
        factor, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True)
        if failed:
            raise self._too_small()
        return factor

    def _too_small(self) -> DataError:
        return DataError(
            "regularisation: expected a larger one, as these items are too much alike for the digits of a float64; "
            f"got {self.config.regularisation}"
        )

    def scores(self, users: np.ndarray) -> torch.Tensor:
        liked = self._matrix_of(users).tocoo()
        positions = torch.from_numpy(np.stack([liked.row, liked.col]).astype(np.int64))
        sparse = torch.sparse_coo_tensor(positions, torch.from_numpy(liked.data), liked.shape, check_invariants=True)
        return sparse.to(self.device) @ self.weights
