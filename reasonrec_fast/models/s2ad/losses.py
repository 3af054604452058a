"""Losses of both stages: Kullback-Leibler divergence of levels or slots, and fidelity of comparisons."""

from __future__ import annotations

import numpy as np
import torch


def divergence(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL(target || softmax(logits)) of each row in nats, ``[...]``; differentiable in the logits.

    Args:
        logits: ``[..., C]``; -inf where the target is 0 for good.
        targets: probabilities ``[..., C]``.

    Raises:
        ValueError: targets of another shape.

    >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).exp().item()
    2.0
    """
    if logits.shape != targets.shape:
        raise ValueError(f"targets: expected {list(logits.shape)}, as logits; got {list(targets.shape)}")
    targets = targets.to(logits)
    held = targets > 0
    logprobs = torch.where(held, logits.log_softmax(-1), 0.0)
    return (torch.xlogy(targets, targets) - targets * logprobs).sum(-1)


def fidelity(log_better: torch.Tensor, log_worse: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - sqrt(p p*) - sqrt((1 - p)(1 - p*)), the loss of comparisons (Tsai et al. 2007, FRank); like ``targets``.

    It takes logarithms, with which its gradient is finite at probabilities of 0 and 1 too.

    >>> fidelity(torch.tensor(0.5).log(), torch.tensor(0.5).log(), torch.tensor(0.5)).item() < 1e-6
    True
    """
    targets = targets.to(log_better)
    return 1 - targets.sqrt() * (log_better / 2).exp() - (1 - targets).clamp_min(0).sqrt() * (log_worse / 2).exp()


def position_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    references: torch.Tensor,
    *,
    same_scale: torch.Tensor | None = None,
    fidelity_weight: float = 1.0,
) -> torch.Tensor:
    """The loss of stage 1 of each row, ``[B]``: KL on the slots, and the mean fidelity of "better than reference j".

    Scores of different scales are never compared: a row whose references are not all of its scale has no KL, and its
    fidelity is that of the references which are; it is 0 where there are none.

    Args:
        logits: of slots ``[B, K + 1]`` in the references' order
            (:func:`~reasonrec_fast.models.s2ad.positions.restored`).
        targets: of :func:`~reasonrec_fast.models.s2ad.positions.soft_positions`, ``[B, K + 1]``.
        references: ``[B, K]``, +inf where absent; the logits of slots that are absent with them do not count.
        same_scale: bool ``[B, K]``, whether a reference is of its query's scale; by default all are.
        fidelity_weight: of the fidelity, at least 0.

    Raises:
        ValueError: shapes that do not fit, or a negative weight.

    >>> logits = torch.zeros(1, 3)
    >>> round(position_loss(logits, torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.3, 0.6]])).item(), 4)
    1.2821
    """
    if logits.shape != (references.shape[0], references.shape[1] + 1):
        raise ValueError(f"logits: expected one a slot of {list(references.shape)}; got {list(logits.shape)}")
    if not fidelity_weight >= 0:
        raise ValueError(f"fidelity_weight: expected at least 0; got {fidelity_weight}")
    present = references.isfinite()
    counted = present if same_scale is None else present & same_scale
    slots = torch.cat([torch.ones_like(present[:, :1]), present], -1)
    masked = logits.masked_fill(~slots, -torch.inf)
    whole = (counted == present).all(-1)
    loss = torch.where(whole, divergence(masked, targets), 0.0)
    places = torch.arange(logits.shape[1], device=logits.device)
    above = places > torch.arange(references.shape[1], device=logits.device)[:, None]  # [K, K + 1]
    logprobs = masked.log_softmax(-1)[:, None, :]
    better = _log_sum(logprobs, above & slots[:, None, :], counted)
    worse = _log_sum(logprobs, ~above & slots[:, None, :], counted)
    wanted = (targets[:, None, :] * above).sum(-1).clamp(0, 1)
    compared = torch.where(counted, fidelity(better, worse, wanted), 0.0).sum(-1)
    return loss + fidelity_weight * compared / counted.sum(-1).clamp_min(1)


def _log_sum(logprobs: torch.Tensor, mask: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Log of the mass of slots under ``mask [B, K, K + 1]``; 0 for references that do not count, whose mass may be
    none and has no gradient."""
    used = mask & counted[:, :, None]
    first = torch.zeros_like(mask)
    first[..., 0] = ~counted  # one finite value, so that no gradient is NaN
    summed = torch.where(used, logprobs, torch.where(first, 0.0, -torch.inf)).logsumexp(-1)
    return torch.where(counted, summed, 0.0)


def position_loss_reference(
    logits: np.ndarray,
    targets: np.ndarray,
    references: np.ndarray,
    same_scale: np.ndarray,
    fidelity_weight: float = 1.0,
) -> np.ndarray:
    """:func:`position_loss` as it is defined, row by row in float64."""
    result = np.zeros(len(logits))
    for row, (row_logits, target) in enumerate(zip(logits, targets, strict=True)):
        count = int(np.isfinite(references[row]).sum())
        weights = np.exp(row_logits[: count + 1] - row_logits[: count + 1].max())
        p, target = weights / weights.sum(), target[: count + 1]
        if same_scale[row, :count].all():
            result[row] = sum(t * np.log(t / q) for t, q in zip(target, p, strict=True) if t > 0)
        losses = [
            1 - np.sqrt(p[j + 1 :].sum() * target[j + 1 :].sum()) - np.sqrt(p[: j + 1].sum() * target[: j + 1].sum())
            for j in range(count)
            if same_scale[row, j]
        ]
        result[row] += fidelity_weight * (sum(losses) / len(losses) if losses else 0.0)
    return result
