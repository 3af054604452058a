"""Losses over the catalogue, or a part of it: cross-entropy, and binary cross-entropy with drawn negatives."""

from __future__ import annotations

import torch
from torch.nn import functional

from reasonrec_fast import ops


def item_cross_entropy(
    states: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    cosine: bool = True,
    bias: torch.Tensor | None = None,
    negatives: int = 0,
    shares: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Mean cross-entropy of targets under a softmax over ``(score + bias) / temperature``, where scores are cosines or
    inner products, through :func:`~reasonrec_fast.ops.token_logprobs`.

    Args:
        states: ``[B, D]``.
        items: ``[I, D]``.
        targets: int64 ``[B]``.
        temperature: divides the scores.
        cosine: whether vectors are scaled to unit length.
        bias: of every item, ``[I]``.
        negatives: items drawn at random; with the batch's targets they are the classes of the softmax. 0 for all items.
        shares: share of every item among all targets, ``[I]``; with ``negatives`` it corrects a logit for the
            probability that the item was drawn (logQ, Yi et al. 2019).
        dtype: of the product.

    >>> loss = item_cross_entropy(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
    >>> round(float(loss), 4)  # log(1 + exp(-1))
    0.3133
    """
    if negatives:
        drawn = torch.randint(len(items), (negatives,), device=items.device)
        classes = torch.unique(torch.cat([targets, drawn]))
        targets, items = torch.searchsorted(classes, targets), items[classes]
        bias = None if bias is None else bias[classes]
        if shares is not None:
            absent = negatives * torch.log1p(torch.tensor(-1 / len(shares)))
            absent = absent + len(targets) * torch.log1p(-shares[classes].clamp(max=0.5))
            correction = -temperature * torch.log(-torch.expm1(absent))
            bias = correction if bias is None else bias + correction
    if cosine:
        states, items = (functional.normalize(x.float(), dim=-1) for x in (states, items))
    states, items = states.to(dtype), items.to(dtype)
    return -ops.token_logprobs(states, items, targets, bias=bias, temperature=temperature).logprobs.mean()


def binary_cross_entropy(
    states: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    negatives: int = 1,
) -> torch.Tensor:
    """Mean over targets of the binary cross-entropy of a target as a positive, plus the mean of that of ``negatives``
    drawn items as negatives; logits are inner products (SASRec, section 3.6). An item that is drawn as its own
    target's negative does not count.

    Args:
        states: ``[B, D]``.
        items: ``[I, D]``.
        targets: int64 ``[B]``.
        bias: of every item, ``[I]``.
        negatives: drawn for each target, at least 1.

    >>> loss = binary_cross_entropy(torch.zeros(3, 2), torch.eye(2), torch.tensor([0, 1, 0]), negatives=50)
    >>> round(float(loss), 4)  # 2 log 2
    1.3863
    """
    drawn = torch.randint(len(items), (len(targets), negatives), device=items.device)
    classes = torch.cat([targets[:, None], drawn], dim=1)
    logits = (items[classes] * states[:, None]).sum(-1).float()
    logits = logits if bias is None else logits + bias[classes]
    counts = (drawn != targets[:, None]).float()
    against = (functional.softplus(logits[:, 1:]) * counts).sum(1) / counts.sum(1).clamp(min=1)
    return (functional.softplus(-logits[:, 0]) + against).mean()
