"""Rankings in which items of equal scores are in no order."""

from __future__ import annotations

import numpy as np
import torch

from reasonrec_fast.data import Histories
from reasonrec_fast.evaluation import Ties
from reasonrec_fast.models.base import CatalogRecommender

_SCORES = 1 << 24  # of users and all items in memory at a time, for rows with ties


@torch.inference_mode()
def ranked_with_ties(
    model: CatalogRecommender, users: np.ndarray, relevant: Histories, seen: Histories, k: int, num_items: int
) -> tuple[np.ndarray, Ties]:
    """The top ``k`` items of users, int64 ``[B, k]``, and which of them have equal scores.

    Args:
        model: with the histories that it is measured by.
        users: indices, ``[B]``.
        relevant: the relevant items of each row, without those that the user has seen.
        seen: items of all users that are left out.
        k: at least 1.
        num_items: that the model ranks.
    """
    best = model.recommend(users, k + 1, exclude=seen)
    items, scores = best.items[:, :k].copy(), best.scores[:, :k].copy()
    outside, relevant_outside = (np.zeros(len(users), dtype=np.int64) for _ in range(2))
    # Rows whose list cuts a group of equal scores in two: these alone need the scores of all items.
    cut = np.flatnonzero((best.items[:, k] >= 0) & (best.scores[:, k] == best.scores[:, k - 1]))
    block = max(_SCORES // num_items, 1)
    for first in range(0, len(cut), block):
        rows = cut[first : first + block]
        every = model.scores(users[rows]).float().cpu().numpy().copy()
        had, wanted = seen.select(users[rows]), relevant.select(rows)
        every[np.repeat(np.arange(len(rows)), had.lengths), had.items] = -np.inf
        top = np.argpartition(-every, k - 1, axis=1)[:, :k]
        items[rows] = np.take_along_axis(top, np.argsort(-np.take_along_axis(every, top, 1), axis=1), 1)
        scores[rows] = np.take_along_axis(every, items[rows], 1)
        last = scores[rows, -1]
        outside[rows] = (every == last[:, None]).sum(1) - (scores[rows] == last[:, None]).sum(1)
        of_row = np.repeat(np.arange(len(rows)), wanted.lengths)
        is_tied = every[of_row, wanted.items] == last[of_row]
        in_list = (items[rows][of_row] == wanted.items[:, None]).any(1)
        relevant_outside[rows] = np.bincount(of_row, is_tied & ~in_list, minlength=len(rows))
    return items, Ties(scores, outside, relevant_outside)
