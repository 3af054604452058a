"""Early-exit statistics of a batch of hidden states, without the logits."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from reasonrec_fast.ops import library

Measure = Literal["max_prob", "margin", "entropy", "ratio"]
MEASURES = ("max_prob", "margin", "entropy", "ratio")
MAX_ENSEMBLE_CLASSES = 64


class ExitStatistics(NamedTuple):
    """Statistics of ``B`` rows and ``K`` ensemble members; float32 (float64 for float64 inputs).

    Attributes:
        prediction: most probable class, int64 ``[B]``.
        probability: of the prediction, ``[B]``.
        positive_probability: of the positive class, ``[B]``.
        confidence: larger is more certain, ``[B]``.
        entropy: in nats, ``[B]``.
        logsumexp: of the scaled logits, ``[B, K]``.
        target_logprob: ``[B, K]``; ``[B, 0]`` without targets.
        exit: bool ``[B]``; all False without a threshold.
    """

    prediction: torch.Tensor
    probability: torch.Tensor
    positive_probability: torch.Tensor
    confidence: torch.Tensor
    entropy: torch.Tensor
    logsumexp: torch.Tensor
    target_logprob: torch.Tensor
    exit: torch.Tensor


@library.takes_arrays
def exit_confidence(
    hidden: torch.Tensor,
    heads: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    measure: Measure = "max_prob",
    positive: int = 1,
    threshold: float | torch.Tensor | None = None,
    previous: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
) -> ExitStatistics:
    """Prediction-head statistics of each row, and whether the row may exit (OptiRAG-Rec, multi-head early exit).

    Args:
        hidden: ``[B, D]``.
        heads: ``[C, D]``, or ``[K, C, D]`` with ``C <= 64``: an ensemble whose probabilities are averaged.
        bias: ``[C]`` or ``[K, C]``.
        temperature: divides the logits; float or 0-d tensor, above 0.
        measure: ``"max_prob"``; ``"margin"``, the difference of the two largest probabilities; ``"entropy"``,
            ``1 - H / log C``; ``"ratio"`` (two classes), ``|log p(positive) - log p(other)|``: the paper's ratio of
            positive to negative, made symmetric.
        positive: the class of ``positive_probability``.
        threshold: exit where ``confidence >= threshold``; float, 0-d tensor, or one per row ``[B]``.
        previous: confidence at the previous exit, ``[B]``; a row then exits only if its confidence has not fallen.
        targets: classes, integers ``[B]``.

    Returns:
        :class:`ExitStatistics`. ``probability``, ``positive_probability``, ``entropy``, ``logsumexp`` and
        ``target_logprob`` have gradients in ``hidden``, ``heads`` and ``bias``. A row with NaN never exits. Neither
        pass materialises ``[B, C]`` logits of more than 64 classes. The same input gives the same bits for any number
        of threads (forward; gradients are torch's own products).

    Raises:
        ValueError: an argument does not fit (argument, expected, got); on a CPU, a target outside ``[0, C)`` (with its
            row).

    >>> statistics = exit_confidence(torch.tensor([[2.0, 0.0]]), torch.eye(2), threshold=0.8)
    >>> int(statistics.prediction), round(float(statistics.probability), 3), bool(statistics.exit)
    (0, 0.881, True)
    """
    if hidden.dim() != 2 or heads.dim() not in (2, 3) or hidden.shape[1] != heads.shape[-1]:
        raise ValueError(
            f"hidden, heads: expected [B, D] with [C, D] or [K, C, D]; got {list(hidden.shape)}, {list(heads.shape)}"
        )
    ensemble = heads if heads.dim() == 3 else heads.unsqueeze(0)
    ensemble_size, classes, _ = ensemble.shape
    if not hidden.is_floating_point() or (heads.dtype is not hidden.dtype and not heads.is_floating_point()):
        raise ValueError(f"hidden, heads: expected floating-point types; got {hidden.dtype} and {heads.dtype}")
    if ensemble_size == 0 or classes == 0:
        raise ValueError(f"heads: expected at least one class; got {list(heads.shape)}")
    if type(positive) is not int:
        library.check_count(positive, "positive")
    if ensemble_size > 1 and classes > MAX_ENSEMBLE_CLASSES:
        raise ValueError(f"heads: expected at most {MAX_ENSEMBLE_CLASSES} classes in an ensemble; got {classes}")
    if measure not in MEASURES:
        raise ValueError(f"measure: expected one of {MEASURES}; got {measure!r}")
    if measure == "ratio" and classes != 2:
        raise ValueError(f"measure: 'ratio' expects 2 classes; got {classes}")
    if not 0 <= positive < classes:
        # With a single class (C = 1) the default `positive=1` means that class.
        if not (positive == 1 and classes == 1):
            raise ValueError(f"positive: expected a class in [0, {classes}); got {positive}")
        positive = 0
    if bias is not None and bias.shape != (ensemble_size, classes) and (ensemble_size > 1 or bias.shape != (classes,)):
        raise ValueError(f"bias: expected {[ensemble_size, classes]} or {[classes]}; got {list(bias.shape)}")
    if isinstance(threshold, torch.Tensor):
        if threshold.numel() != 1 and threshold.shape != hidden.shape[:1]:
            raise ValueError(f"threshold: expected a number or {[hidden.shape[0]]}; got {list(threshold.shape)}")
        threshold = threshold.reshape(-1)
    if targets is not None and targets.dtype is not torch.int64:
        if not library.is_integer(targets):
            raise ValueError(f"targets: expected integers; got {targets.dtype}")
        targets = targets.long()
    for name, vector in (("previous", previous), ("targets", targets)):
        if vector is not None and vector.shape != hidden.shape[:1]:
            raise ValueError(f"{name}: expected {[hidden.shape[0]]}; got {list(vector.shape)}")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, ensemble, bias = hidden.to(dtype), ensemble.to(dtype), None if bias is None else bias.to(dtype)
    device, keep = hidden.device, library.may_keep(hidden.device)
    results = library.call(
        torch.ops.reasonrec_fast.exit_confidence,
        keep,
        hidden,
        ensemble if ensemble.dtype is hidden.dtype else ensemble.to(hidden.dtype),
        library.nothing(hidden.dtype, device, keep)
        if bias is None
        else bias.reshape(ensemble_size, classes).to(hidden.dtype),
        library.setting(temperature, device, keep),
        measure,
        positive,
        library.nothing(torch.int64, device, keep) if targets is None else targets,
    )
    probability, positive_probability, confidence, entropy, logsumexp, target_logprob, prediction = results
    if threshold is None:
        exits = torch.zeros_like(confidence, dtype=torch.bool)
    else:
        exits = confidence >= threshold
        if previous is not None:
            exits = exits & (confidence >= previous)
    return ExitStatistics(
        prediction, probability, positive_probability, confidence, entropy, logsumexp, target_logprob, exits
    )


def exit_confidence_reference(
    hidden: torch.Tensor,
    heads: torch.Tensor,
    bias: torch.Tensor,
    temperature: torch.Tensor,
    measure: str,
    positive: int,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The operator in plain torch with all logits; exact (and differentiable) in float64.

    Returns the fields of :class:`ExitStatistics` except ``exit``, with ``prediction`` last.
    """
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = torch.einsum("bd,kcd->bkc", hidden.to(dtype), heads.to(dtype))
    if bias.numel():
        logits = logits + bias.to(dtype)
    logits = logits / temperature.to(dtype)
    logsumexp = logits.logsumexp(-1)
    logprobs = logits.log_softmax(-1)
    mean = logprobs.exp().mean(1)
    probability, prediction = mean.max(-1)
    entropy = -torch.special.xlogy(mean, mean).sum(-1)
    classes = heads.shape[1]
    if measure == "max_prob":
        confidence = probability
    elif measure == "margin":
        second = mean.topk(2, -1).values[:, 1] if classes > 1 else torch.zeros_like(probability)
        confidence = probability - second
    elif measure == "entropy":
        confidence = 1 - entropy / math.log(classes) if classes > 1 else torch.ones_like(entropy)
    else:
        log_mean = logprobs.logsumexp(1)
        confidence = (log_mean[:, 0] - log_mean[:, 1]).abs()
    target_logprob = logprobs.new_empty(hidden.shape[0], 0)
    if targets.numel():
        target_logprob = logprobs.gather(2, targets[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)
    return probability, mean[:, positive], confidence.detach(), entropy, logsumexp, target_logprob, prediction


def _fake(hidden, heads, bias, temperature, measure, positive, targets):
    rows, ensemble_size = hidden.shape[0], heads.shape[0]
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    column = [hidden.new_empty(rows, dtype=dtype) for _ in range(4)]
    return (
        *column,
        hidden.new_empty((rows, ensemble_size), dtype=dtype),
        hidden.new_empty((rows, ensemble_size if targets.numel() else 0), dtype=dtype),
        hidden.new_empty(rows, dtype=torch.int64),
    )


def _setup_context(ctx, inputs, output):
    hidden, heads, bias, temperature, _, ctx.positive, targets = inputs
    probability, positive_probability, confidence, entropy, logsumexp, _, prediction = output
    ctx.mark_non_differentiable(prediction, confidence)
    ctx.save_for_backward(
        hidden, heads, bias, temperature, targets, prediction, probability, positive_probability, entropy, logsumexp
    )  # fmt: skip


def _backward(ctx, *gradients):
    heads = ctx.saved_tensors[1]
    if heads.shape[1] > MAX_ENSEMBLE_CLASSES:
        return (*_backward_many_classes(ctx, *gradients), None, None, None, None)
    return (*_backward_few_classes(ctx, *gradients), None, None, None, None)


def _backward_many_classes(
    ctx, grad_probability, grad_positive, _, grad_entropy, grad_logsumexp, grad_target, __
) -> tuple[torch.Tensor, ...]:
    """Gradients through ``token_logprobs``, which holds no logits: prediction, positive and target are its tokens."""
    hidden, heads, bias, temperature, targets, prediction, probability, positive_probability, entropy, logsumexp = (
        ctx.saved_tensors
    )
    tokens = [prediction, torch.full_like(prediction, ctx.positive)]
    grad_logprobs = [grad_probability * probability, grad_positive * positive_probability]
    if targets.numel():
        tokens.append(targets)
        grad_logprobs.append(grad_target[:, 0])
    grad_hidden, grad_heads, grad_bias = torch.ops.reasonrec_fast.token_logprobs_backward(
        hidden, heads[0], bias.reshape(-1), torch.stack(tokens, 1), temperature, -1, logsumexp[:, 0], entropy,
        torch.stack(grad_logprobs, 1), grad_logsumexp[:, 0], grad_entropy,
    )  # fmt: skip
    return grad_hidden, grad_heads[None], grad_bias.reshape(bias.shape).to(bias.dtype)


def _backward_few_classes(
    ctx, grad_probability, grad_positive, _, grad_entropy, grad_logsumexp, grad_target, __
) -> tuple[torch.Tensor | None, ...]:
    """Gradients through the softmax of recomputed logits, in the dtype of the statistics."""
    hidden, heads, bias, temperature, targets, prediction = ctx.saved_tensors[:6]
    dtype = grad_probability.dtype
    wide_hidden, wide_heads = hidden.to(dtype), heads.to(dtype)
    logits = torch.einsum("bd,kcd->bkc", wide_hidden, wide_heads)
    if bias.numel():
        logits = logits + bias.to(dtype)
    probabilities = (logits / temperature.to(dtype)).softmax(-1)
    mean = probabilities.mean(1)
    grad_mean = -grad_entropy[:, None] * (mean.clamp_min(torch.finfo(dtype).tiny).log() + 1)
    grad_mean = grad_mean.scatter_add(1, prediction[:, None], grad_probability[:, None])
    grad_mean[:, ctx.positive] += grad_positive
    grad_probabilities = grad_mean[:, None, :] / heads.shape[0]
    grad_logits = probabilities * (grad_probabilities - (probabilities * grad_probabilities).sum(-1, keepdim=True))
    grad_logits = grad_logits + grad_logsumexp[..., None] * probabilities
    if targets.numel():
        grad_logits = grad_logits - grad_target[..., None] * probabilities
        index = targets[:, None, None].expand(-1, heads.shape[0], 1)
        grad_logits = grad_logits.scatter_add(2, index, grad_target[..., None])
    grad_logits = grad_logits / temperature.to(dtype)
    grad_hidden = grad_heads = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_hidden = torch.einsum("bkc,kcd->bd", grad_logits, wide_heads).to(hidden.dtype)
    if ctx.needs_input_grad[1]:
        grad_heads = torch.einsum("bkc,bd->kcd", grad_logits, wide_hidden).to(heads.dtype)
    if ctx.needs_input_grad[2]:
        grad_bias = grad_logits.sum(0).to(bias.dtype)
    return grad_hidden, grad_heads, grad_bias


torch.library.register_fake("reasonrec_fast::exit_confidence", _fake)
torch.library.register_autograd("reasonrec_fast::exit_confidence", _backward, setup_context=_setup_context)
library.implement_on_gpu("exit_confidence", exit_confidence_reference, reference_dtypes=(torch.float64,))
library.batch_rows("exit_confidence", rows=(0, 6))
