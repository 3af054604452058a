"""Cross-entropy over part of the catalogue."""

from __future__ import annotations

import torch
from torch.nn import functional

from reasonrec_fast import ops


def cosine_cross_entropy(
    states: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float,
    negatives: int = 0,
    shares: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Mean cross-entropy of targets under a softmax over cosines, through :func:`~reasonrec_fast.ops.token_logprobs`.

    Args:
        states: ``[B, D]``.
        items: ``[I, D]``.
        targets: int64 ``[B]``.
        temperature: divides the cosines.
        negatives: items drawn at random; with the batch's targets they are the classes of the softmax. 0 for all items.
        shares: share of every item among all targets, ``[I]``; with ``negatives`` it corrects a logit for the
            probability that the item was drawn (logQ, Yi et al. 2019).
        dtype: of the product.

    >>> loss = cosine_cross_entropy(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0)
    >>> round(float(loss), 4)  # log(1 + exp(-1))
    0.3133
    """
    bias = None
    if negatives:
        drawn = torch.randint(len(items), (negatives,), device=items.device)
        classes = torch.unique(torch.cat([targets, drawn]))
        if shares is not None:
            absent = negatives * torch.log1p(torch.tensor(-1 / len(items)))
            absent = absent + len(targets) * torch.log1p(-shares[classes].clamp(max=0.5))
            bias = -temperature * torch.log(-torch.expm1(absent))
        targets, items = torch.searchsorted(classes, targets), items[classes]
    unit_states, unit_items = (functional.normalize(x.float(), dim=-1).to(dtype) for x in (states, items))
    return -ops.token_logprobs(unit_states, unit_items, targets, bias=bias, temperature=temperature).logprobs.mean()
