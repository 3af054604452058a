"""Scores of a stack's tools made comparable: standardised for each user, ranked, and the items that each nominates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from reasonrec_fast.data import Histories
from reasonrec_fast.devices import on_device

_STEP = 1e-3  # of standardised scores: what rounding in sums of another order changes is less, so that ties stay ties


class View(NamedTuple):
    """A column of scores of ``B`` users.

    Attributes:
        scores: less their mean and divided by their deviation over the items that are not excluded, float32 ``[B, I]``;
            a row of NaN where there are none, or all are equal and so say nothing.
        best: the best of those that are not excluded, descending, ``[B, D]``; ``-inf`` where there are no more.
    """

    scores: torch.Tensor
    best: torch.Tensor


def excluded_items(exclude: Histories, num_items: int, device: torch.device) -> torch.Tensor:
    """Which items each row leaves out, bool ``[B, I]``."""
    mask = torch.zeros(exclude.num_users, num_items, dtype=torch.bool, device=device)
    rows = np.repeat(np.arange(exclude.num_users), exclude.lengths)
    mask[on_device(rows, device), on_device(exclude.items, device)] = True
    return mask


def standardised(scores: torch.Tensor, excluded: torch.Tensor, depth: int) -> View:
    """A view of scores ``[B, I]``.

    Args:
        scores: larger is likelier.
        excluded: bool ``[B, I]``.
        depth: ranks are told apart up to here.

    >>> view = standardised(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[False, False, True]]), 2)
    >>> view.scores.tolist(), view.best.tolist()
    ([[-1.0, 1.0, 3.0]], [[1.0, -1.0]])
    """
    scores = scores.double()
    kept = (~excluded).double()
    number = kept.sum(1, keepdim=True).clamp(min=1)
    mean = (scores * kept).sum(1, keepdim=True) / number
    centred = scores - mean
    deviation = (centred.square() * kept).sum(1, keepdim=True).div(number).sqrt()
    size = torch.maximum(mean.abs(), deviation)
    says_something = (deviation > 1e-6 * size) & deviation.isfinite()
    result = (centred / deviation / _STEP).round().mul(_STEP).float().masked_fill(~says_something, torch.nan)
    best = result.masked_fill(excluded | ~says_something, -torch.inf).topk(min(depth, result.shape[1]), dim=1).values
    return View(result, best)


def ranks(view: View, items: torch.Tensor) -> torch.Tensor:
    """Ranks of items ``[B, C]`` among those that are not excluded, from 1, float32; equal scores have the same rank.

    A rank beyond the depth is the depth plus one; that of an item without a score is NaN.

    >>> view = standardised(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), torch.zeros(1, 4, dtype=torch.bool), 3)
    >>> ranks(view, torch.tensor([[0, 1, 2, 3]])).tolist()
    [[3.0, 1.0, 1.0, 4.0]]
    """
    scores = view.scores.gather(1, items)
    ascending = view.best.flip(1).contiguous()
    not_above = torch.searchsorted(ascending, scores.nan_to_num(0.0).contiguous(), right=True)
    return (1.0 + view.best.shape[1] - not_above).masked_fill(scores.isnan(), torch.nan)


def nominations(view: View, excluded: torch.Tensor, size: int) -> torch.Tensor:
    """The items of the ``size`` best scores, bool ``[B, I]``, at most that many a row.

    Items that tie with the first that has no place are left out with it, so that no choice depends on their order.

    >>> view = standardised(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), torch.zeros(1, 4, dtype=torch.bool), 4)
    >>> nominations(view, torch.zeros(1, 4, dtype=torch.bool), 2).tolist()
    [[False, True, False, False]]
    """
    open_to_all = view.best.shape[1] <= size  # the whole catalogue is not larger
    limit = view.best.new_full((len(view.best), 1), -torch.inf) if open_to_all else view.best[:, size : size + 1]
    return (view.scores > limit) & ~excluded


def padded(mask: torch.Tensor) -> np.ndarray:
    """The items of each row of a mask ``[B, I]``, int64 ``[B, C]``, -1 where a row has no more.

    >>> padded(torch.tensor([[False, True], [False, False]])).tolist()
    [[1], [-1]]
    """
    rows, items = (part.cpu().numpy() for part in mask.nonzero(as_tuple=True))
    counts = np.bincount(rows, minlength=len(mask))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    result = np.full((len(mask), int(counts.max(initial=0))), -1, dtype=np.int64)
    result[rows, places] = items
    return result
