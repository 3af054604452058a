"""Retrieves the top-k items for each user, excluding given items."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from reasonrec_fast.data import DataError, Histories
from reasonrec_fast.devices import on_device


class Recommendations(NamedTuple):
    """The top ``k`` items of ``B`` users, best first; ``-inf`` and ``-1`` where there are no more.

    Attributes:
        scores: float32 ``[B, k]``.
        items: int64 ``[B, k]``; where users were given by identifiers, objects: identifiers, and None for no more.
    """

    scores: np.ndarray
    items: np.ndarray


Retriever: TypeAlias = Callable[[np.ndarray, int, Histories], tuple[torch.Tensor, torch.Tensor]]
"""From user indices ``[B]``, ``k`` and the items that each user is not to get: scores and items, ``[B, k]`` both."""


def top_k(scores: torch.Tensor, k: int, exclude: Histories) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and items of the top ``k`` of a score matrix; of equal scores the lower index first, as in ``ops.topk``.

    Args:
        scores: of all items, float32 ``[B, I]``; overwritten.
        k: at most ``I``.
        exclude: items of each row that are left out.

    Returns:
        ``[B, k]`` both, ``-inf`` and ``-1`` where there are no more.

    >>> values, items = top_k(torch.tensor([[1.0, 3.0, 3.0]]), 2, Histories.from_lists([[1]]))
    >>> values.tolist(), items.tolist()
    ([[3.0, 1.0]], [[2, 0]])
    """
    rows = np.repeat(np.arange(len(scores)), exclude.lengths)
    scores[on_device(rows, scores.device), on_device(exclude.items, scores.device)] = -torch.inf
    values, items = (part[:, :k] for part in scores.sort(dim=1, descending=True, stable=True))
    return values, items.masked_fill(values == -torch.inf, -1)


def retrieve(
    retriever: Retriever, users: np.ndarray, k: int, exclude: Histories, *, num_items: int, block: int
) -> Recommendations:
    """The top ``k`` of each user, ``block`` users at a time.

    Args:
        retriever: of a block.
        users: indices, int64 ``[B]``.
        k: at least 0; may exceed ``num_items``.
        exclude: items of every user of the model.
        num_items: how many the model scores.
        block: users whose scores are in memory at a time.

    Raises:
        DataError: scores that are NaN.
    """
    scores = np.full((len(users), k), -np.inf, dtype=np.float32)
    items = np.full((len(users), k), -1, dtype=np.int64)
    for first in range(0, len(users), block):
        rows = slice(first, min(first + block, len(users)))
        values, indices = retriever(users[rows], min(k, num_items), exclude.select(users[rows]))
        scores[rows, : values.shape[1]], items[rows, : indices.shape[1]] = values.cpu(), indices.cpu()
    broken = np.isnan(scores) | (np.isneginf(scores) & (items >= 0))
    if broken.any():
        row, rank = np.argwhere(broken)[0]
        raise DataError(
            f"users: expected scores that are numbers; got NaN for user {users[row]} in row {row} and item "
            f"{items[row, rank]}: the model's weights are broken"
        )
    return Recommendations(scores, items)
