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


class Excluded(NamedTuple):
    """Items that ``B`` users are not to get.

    Attributes:
        mask: bool ``[B, I]``.
        rows, items: of each, int64 ``[E]`` both, none of them twice.
    """

    mask: torch.Tensor
    rows: torch.Tensor
    items: torch.Tensor

    @classmethod
    def of(cls, exclude: Histories, num_items: int, device: torch.device | str) -> Excluded:
        """From the items of each user."""
        device = torch.device(device)
        mask = torch.zeros(exclude.num_users, num_items, dtype=torch.bool, device=device)
        rows = np.repeat(np.arange(exclude.num_users), exclude.lengths)
        keys = np.unique(rows * num_items + exclude.items)
        on_rows, on_items = on_device(keys // max(num_items, 1), device), on_device(keys % max(num_items, 1), device)
        mask[on_rows, on_items] = True
        return cls(mask, on_rows, on_items)

    def select(self, rows: torch.Tensor) -> Excluded:
        """Of some of the users."""
        mask = self.mask[rows]
        return Excluded(mask, *mask.nonzero(as_tuple=True))


def standardised(scores: torch.Tensor, excluded: Excluded, depth: int) -> View:
    """A view of scores ``[B, I]``.

    Args:
        scores: larger is likelier.
        excluded: items that count neither for mean and deviation nor for the best.
        depth: ranks are told apart up to here.

    >>> view = standardised(torch.tensor([[1.0, 3.0, 5.0]]), Excluded.of(Histories.from_lists([[2]]), 3, "cpu"), 2)
    >>> view.scores.round(decimals=3).tolist(), view.best.tolist()
    ([[-1.0, 1.0, 3.0]], [[1.0, -1.0]])
    """
    of_excluded = excluded.rows, excluded.items
    outside = torch.bincount(excluded.rows, minlength=len(scores))
    number = (scores.shape[1] - outside).clamp(min=1)

    def less_excluded(sums: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return sums.double().index_add(0, excluded.rows, -values.double()) / number

    mean = less_excluded(scores.sum(1), scores[of_excluded])
    result = scores - mean.float()[:, None]
    squares = torch.linalg.vector_norm(result, dim=1).double().square()
    deviation = less_excluded(squares, result[of_excluded].square()).clamp(min=0).sqrt()
    says_something = (deviation > 1e-5 * mean.abs()) & deviation.isfinite()
    result.mul_((1 / (deviation * _STEP)).float()[:, None]).round_().mul_(_STEP)
    if not says_something.all():
        result[~says_something] = torch.nan
    values = result[of_excluded]
    result[of_excluded] = -torch.inf
    best = _best(result, min(depth, result.shape[1]))
    result[of_excluded] = values
    best[~says_something] = -torch.inf
    return View(result, best)


def ranks(view: View, items: torch.Tensor) -> torch.Tensor:
    """Ranks of items ``[B, C]`` among those that are not excluded, from 1, float32; equal scores have the same rank.

    A rank beyond the depth is the depth plus one; that of an item without a score is NaN.

    >>> view = standardised(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), Excluded.of(Histories.from_lists([[]]), 4, "cpu"), 3)
    >>> ranks(view, torch.tensor([[0, 1, 2, 3]])).tolist()
    [[3.0, 1.0, 1.0, 4.0]]
    """
    scores = view.scores.gather(1, items)
    ascending = view.best.flip(1).contiguous()
    not_above = torch.searchsorted(ascending, scores.nan_to_num(0.0).contiguous(), right=True)
    return (1.0 + view.best.shape[1] - not_above).masked_fill(scores.isnan(), torch.nan)


def nominations(view: View, size: int) -> torch.Tensor:
    """The items with the ``size`` best scores, bool ``[B, I]``, at most that many a row that are not excluded; among
    those that are excluded, whichever score as much.

    Items that tie with the first that does not fit are left out with it, so that no choice depends on their order.

    >>> excluded = Excluded.of(Histories.from_lists([[]]), 4, "cpu")
    >>> nominations(standardised(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), excluded, 4), 2).tolist()
    [[False, True, False, False]]
    """
    open_to_all = view.best.shape[1] <= size  # the whole catalogue is not larger
    limit = view.best.new_full((len(view.best), 1), -torch.inf) if open_to_all else view.best[:, size : size + 1]
    return view.scores > limit


def _best(scores: torch.Tensor, depth: int) -> torch.Tensor:
    """The largest scores of each row, descending, ``[B, depth]``."""
    if scores.device.type != "cpu":
        return scores.topk(depth, dim=1).values
    # numpy selects four times as fast as torch's topk on a CPU.
    values = scores.numpy()
    chosen = np.partition(values, values.shape[1] - depth, axis=1)[:, values.shape[1] - depth :] if depth else values
    return torch.from_numpy(np.sort(chosen, axis=1)[:, ::-1].copy())


def padded(mask: torch.Tensor) -> np.ndarray:
    """The items of each row of a mask ``[B, I]``, int64 ``[B, C]``, -1 where a row has no more.

    >>> padded(torch.tensor([[False, True], [False, False]])).tolist()
    [[1], [-1]]
    """
    rows, items = (part.cpu().numpy() for part in mask.nonzero(as_tuple=True))
    counts = np.bincount(rows, minlength=len(mask))
    positions = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    result = np.full((len(mask), int(counts.max(initial=0))), -1, dtype=np.int64)
    result[rows, positions] = items
    return result
