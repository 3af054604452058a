"""Models whose scores are a user's items times a matrix of items by items: item-kNN and EASE."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from scipy.sparse import csr_matrix

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.settings import Count, NotNegative, Positive, check_settings

_ROWS = 1024  # items whose neighbours are found at a time


class ItemToItem(ClosedFormRecommender):
    """What both share; whoever has a history is served (see :meth:`set_histories`)."""

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        self.learn_from(self._matrix(Histories.of(data, train), data.num_items))

    @abstractmethod
    def learn_from(self, seen: csr_matrix) -> None:
        """Build the model and fill it from who had what, ``[U, I]`` of ones."""

    def _of(self, users: np.ndarray) -> csr_matrix:
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
        neighbours: of each item.
        shrinkage: added to the product of norms, so that likeness of few common users counts less.
    """

    neighbours: Count = 100
    shrinkage: NotNegative = 10.0

    def __post_init__(self) -> None:
        check_settings(self)


class ItemKNN(ItemToItem):
    """Sums over a user's items the likeness to their nearest neighbours (Sarwar et al. 2001; cosine, shrunk).

    Args:
        config: hyper-parameters.
        device: where the model lives and gives its scores; the sparse products are on the CPU.

    >>> data = Interactions.from_columns(["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"], [1] * 5, range(5))
    >>> ItemKNN().fit(data, np.arange(5)).recommend(np.array([2]), 1).items.tolist()
    [[1]]
    """

    config_type = ItemKNNConfig
    config: ItemKNNConfig
    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        self.register_buffer("indptr", torch.zeros(sizes["items"] + 1, dtype=torch.int64))
        self.register_buffer("indices", torch.zeros(sizes["entries"], dtype=torch.int64))
        self.register_buffer("values", torch.zeros(sizes["entries"]))

    def learn_from(self, seen: csr_matrix) -> None:
        columns = seen.T.tocsr()
        norms = np.sqrt(np.asarray(seen.sum(axis=0), dtype=np.float64).ravel())
        indices, values, counts = [], [], []
        for first in range(0, columns.shape[0], _ROWS):
            together = (columns[first : first + _ROWS] @ seen).tocsr()
            for place in range(together.shape[0]):
                item = first + place
                row = slice(together.indptr[place], together.indptr[place + 1])
                others, common = together.indices[row], together.data[row]
                others, common = others[others != item], common[others != item]
                like = common / (norms[item] * norms[others] + self.config.shrinkage)
                # Ties: the lower index first, so that the same data give the same model.
                kept = np.lexsort((others, -like))[: self.config.neighbours]
                indices.append(others[kept])
                values.append(like[kept])
                counts.append(len(kept))
        self.build({"users": seen.shape[0], "items": columns.shape[0], "entries": int(sum(counts))})
        self.indptr[1:] = torch.from_numpy(np.cumsum(counts))
        self.indices.copy_(torch.from_numpy(np.concatenate(indices)))
        self.values.copy_(torch.from_numpy(np.concatenate(values)))

    def scores(self, users: np.ndarray) -> torch.Tensor:
        items = self.sizes["items"]
        parts = (part.cpu().numpy() for part in (self.values, self.indices, self.indptr))
        found = self._of(users) @ csr_matrix(tuple(parts), shape=(items, items))
        return torch.from_numpy(found.toarray().astype(np.float32)).to(self.device)


@dataclass(frozen=True)
class EASEConfig:
    """Hyper-parameters.

    Attributes:
        regularisation: added to the diagonal of the Gram matrix.
        max_items: refuse catalogues that are larger: the matrix is dense, 4 bytes a pair of items to keep and 8 more
            while it is inverted.
    """

    regularisation: Positive = 250.0
    max_items: Count = 40_000

    def __post_init__(self) -> None:
        check_settings(self)


class EASE(ItemToItem):
    """The linear model in closed form of Steck 2019 (arXiv 1905.03375, equation 8): no item speaks for itself.

    Args:
        config: hyper-parameters.
        device: where the model lives and multiplies; the inverse is found on the CPU.

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

    def learn_from(self, seen: csr_matrix) -> None:
        items = seen.shape[1]
        gram = (seen.T @ seen).astype(np.float64).toarray(order="F")
        gram[np.diag_indices(items)] += self.config.regularisation
        # Symmetric and positive: its inverse from a Cholesky factor, in place, one triangle.
        factor, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True)
        inverse, failed = lapack.dpotri(factor, lower=True, overwrite_c=True) if not failed else (factor, failed)
        if failed:
            raise DataError(f"regularisation: expected a positive number; got {self.config.regularisation}")
        self.build({"users": seen.shape[0], "items": items})
        scale = -1 / np.diag(inverse)
        for first in range(0, items, _ROWS):  # B = -P / diag(P); column j by the j-th
            rows = slice(first, min(first + _ROWS, items))
            below = np.arange(items) <= np.arange(rows.start, rows.stop)[:, None]
            whole = np.where(below, inverse[rows], inverse[:, rows].T)
            self.weights[rows] = torch.from_numpy(whole * scale).float()
        self.weights.fill_diagonal_(0)

    def scores(self, users: np.ndarray) -> torch.Tensor:
        seen = self._of(users).tocoo()
        places = torch.from_numpy(np.stack([seen.row, seen.col]).astype(np.int64))
        sparse = torch.sparse_coo_tensor(places, torch.from_numpy(seen.data), seen.shape, check_invariants=True)
        return sparse.to(self.device) @ self.weights
