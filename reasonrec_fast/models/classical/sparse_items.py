"""Models in closed form that keep one sparse matrix with a row for each item, and histories as weights of items."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array

from reasonrec_fast.data import Histories
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender


class SparseRecommender(ClosedFormRecommender):
    """Keeps a matrix ``[I, C]`` as tensors; products are computed on the CPU, in float64.

    So the sums of scores that are equal by definition are equal, however items are numbered, once they are rounded to
    float32.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        self.register_buffer("indptr", torch.zeros(sizes["items"] + 1, dtype=torch.int64))
        self.register_buffer("indices", torch.zeros(sizes["entries"], dtype=torch.int64))
        self.register_buffer("values", torch.zeros(sizes["entries"]))

    def keep(self, matrix: csr_array, num_users: int) -> None:
        """Build the model with a matrix ``[I, C]``."""
        sizes = {"users": num_users, "items": matrix.shape[0], "columns": matrix.shape[1], "entries": matrix.nnz}
        self.build(sizes)
        for tensor, part in (
            (self.indptr, matrix.indptr),
            (self.indices, matrix.indices),
            (self.values, matrix.data),
        ):
            tensor.copy_(torch.from_numpy(part))

    @property
    def matrix(self) -> csr_array:
        """The matrix, float64."""
        values, indices, indptr = (part.cpu().numpy() for part in (self.values, self.indices, self.indptr))
        shape = self.sizes["items"], self.sizes.get("columns", self.sizes["items"])
        return csr_array((values.astype(np.float64), indices, indptr), shape=shape)

    def dense(self, scores: csr_array) -> torch.Tensor:
        """Scores as :meth:`scores` returns them, float32 on the model's device."""
        return torch.from_numpy(scores.toarray().astype(np.float32)).to(self.device)


def decayed_weights(histories: Histories, num_items: int, decay: float) -> csr_array:
    """Weights of each user's items, ``decay ** age`` where the latest item has the age 0, float64 ``[U, I]``.

    A repeated item has an entry for each time.

    >>> decayed_weights(Histories.from_lists([[2, 0], [1]]), 3, 0.5).toarray().tolist()
    [[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]
    """
    ages = np.repeat(histories.indptr[1:], histories.lengths) - 1 - np.arange(len(histories.items))
    weights = decay ** ages.astype(np.float64)
    return csr_array((weights, histories.items, histories.indptr), shape=(histories.num_users, num_items))
