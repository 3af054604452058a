"""Log-probabilities of given tokens, without the logits."""

from __future__ import annotations

from typing import NamedTuple

import torch

from reasonrec_fast.ops import library

_BLOCK = 4096
"""Classes per step in plain torch; bounds its extra memory to ``B * _BLOCK`` logits."""


class TokenStatistics(NamedTuple):
    """Statistics of ``B`` rows; float32 (float64 for float64 inputs).

    Attributes:
        logprobs: of the tokens, in their shape ``[B]`` or ``[B, M]``; 0 where they are ignored.
        logsumexp: of the scaled logits, ``[B]``.
        entropy: in nats, ``[B]``.
    """

    logprobs: torch.Tensor
    logsumexp: torch.Tensor
    entropy: torch.Tensor


@library.takes_arrays
def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    tokens: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    ignore_index: int = -100,
) -> TokenStatistics:
    r"""Log-probabilities under :math:`\mathrm{softmax}((hidden \cdot weight^\top + bias) / temperature)`.

    Neither pass materialises ``[B, V]`` logits: forward keeps running statistics, backward recomputes the logits one
    block of the vocabulary at a time (as in Cut Your Losses, arXiv 2411.09009). The same input gives the same bits for
    any number of threads.

    Args:
        hidden: ``[B, D]``.
        weight: ``[V, D]``, such as the rows of an LM head.
        tokens: int64 ``[B]`` or ``[B, M]``; ``ignore_index`` for no token.
        bias: ``[V]``.
        temperature: divides the logits; float or 0-d tensor, above 0.
        ignore_index: marks tokens to skip.

    Returns:
        :class:`TokenStatistics`; all three differentiable in ``hidden``, ``weight`` and ``bias``.

    Raises:
        ValueError: shapes or types that do not fit (argument, expected, got).
        RuntimeError: a token that is neither a class nor ``ignore_index``, on a CPU; on a GPU, where nothing is read
            back, its log-probability is NaN.

    >>> statistics = token_logprobs(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, -100]))
    >>> statistics.logprobs, statistics.entropy
    (tensor([-1.3863,  0.0000]), tensor([1.3863, 1.3863]))
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden, weight: expected [B, D] and [V, D]; got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if not hidden.is_floating_point() or (weight.dtype is not hidden.dtype and not weight.is_floating_point()):
        raise ValueError(f"hidden, weight: expected floating-point types; got {hidden.dtype} and {weight.dtype}")
    if tokens.dtype is not torch.int64:
        if not library.is_integer(tokens) and tokens.numel():
            raise ValueError(f"tokens: expected integers; got {tokens.dtype}")
        tokens = tokens.long()
    if weight.shape[0] == 0:
        raise ValueError("weight: expected at least one class; got none")
    if tokens.dim() not in (1, 2) or tokens.shape[0] != hidden.shape[0]:
        raise ValueError(f"tokens: expected [{hidden.shape[0]}] or [{hidden.shape[0]}, M]; got {list(tokens.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected {[weight.shape[0]]}; got {list(bias.shape)}")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    keep = library.may_keep(hidden.device)
    logprobs, logsumexp, entropy = library.call(
        torch.ops.reasonrec_fast.token_logprobs,
        keep,
        hidden,
        weight if weight.dtype is hidden.dtype else weight.to(hidden.dtype),
        library.nothing(hidden.dtype, hidden.device, keep) if bias is None else bias.to(hidden.dtype),
        tokens[:, None] if tokens.dim() == 1 else tokens,
        library.setting(temperature, hidden.device, keep),
        ignore_index,
    )
    return TokenStatistics(logprobs.reshape(tokens.shape), logsumexp, entropy)


def token_logprobs_reference(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    tokens: torch.Tensor,
    temperature: torch.Tensor,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator in plain torch with all logits; exact (and differentiable) in float64."""
    dtype = _wide(hidden)
    logits = hidden.to(dtype) @ weight.to(dtype).T
    if bias.numel():
        logits = logits + bias.to(dtype)
    logprobs = (logits / temperature.to(dtype)).log_softmax(-1)
    logsumexp = (logits / temperature.to(dtype)).logsumexp(-1)
    counted = tokens != ignore_index
    token_logprobs = torch.where(counted, logprobs.gather(1, torch.where(counted, tokens, 0)), 0.0)
    return token_logprobs, logsumexp, -(logprobs.exp() * logprobs).sum(-1)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _blocks(hidden, weight, bias, temperature):
    """Yield the first class and the scaled logits of each block of classes, in the dtype of the statistics."""
    for start in range(0, weight.shape[0], _BLOCK):
        logits = hidden.to(_wide(hidden)) @ weight[start : start + _BLOCK].to(_wide(hidden)).T
        if bias.numel():
            logits = logits + bias[start : start + _BLOCK].to(logits.dtype)
        yield start, logits / temperature.to(logits.dtype)


def _token_logprobs(hidden, weight, bias, tokens, temperature, ignore_index):
    """Plain torch over blocks of classes, with running statistics; for where there is no kernel."""
    best = hidden.new_full(hidden.shape[:1], -torch.inf, dtype=_wide(hidden))
    total, weighted = torch.zeros_like(best), torch.zeros_like(best)
    logits_of_tokens = torch.where((tokens >= 0) & (tokens < len(weight)), best.new_zeros(()), torch.nan)
    for start, logits in _blocks(hidden, weight, bias, temperature):
        top = torch.maximum(best, logits.amax(1))
        origin = torch.where(top.isinf(), 0.0, top)
        rescale = (torch.where(best.isinf(), origin, best) - origin).exp()
        part = (logits - origin[:, None]).exp()
        total = total * rescale + part.sum(1)
        weighted = weighted * rescale + torch.where(part > 0, part * logits, 0.0).sum(1)
        best = top
        in_block = (tokens >= start) & (tokens < start + logits.shape[1])
        logits_of_tokens += torch.where(in_block, logits.gather(1, torch.where(in_block, tokens - start, 0)), 0.0)
    logsumexp = torch.where(best.isinf(), best, best + total.log())
    logprobs = torch.where(tokens == ignore_index, 0.0, logits_of_tokens - logsumexp[:, None])
    return logprobs, logsumexp, logsumexp - weighted / total


def _token_logprobs_backward(
    hidden, weight, bias, tokens, temperature, ignore_index, logsumexp, entropy, grad_logprobs, grad_lse, grad_entropy
):
    """Plain torch over blocks of classes, for where there is no kernel.

    With probabilities ``p`` the gradient of the logits is ``p * (through_all - grad_entropy * (log p + H))``, plus
    ``grad_logprobs`` at the given tokens.
    """
    dtype = logsumexp.dtype
    grad_logprobs = torch.where((tokens >= 0) & (tokens < len(weight)), grad_logprobs, torch.nan)
    grad_logprobs = torch.where(tokens == ignore_index, 0.0, grad_logprobs)
    through_all = grad_lse - grad_logprobs.sum(1)
    grad_hidden = hidden.new_zeros(hidden.shape, dtype=dtype)
    grad_weight, grad_bias = torch.empty_like(weight), bias.new_empty(bias.shape, dtype=dtype)
    for start, logits in _blocks(hidden, weight, bias, temperature):
        logprobs = logits - logsumexp[:, None]
        gradient = logprobs.exp() * (through_all[:, None] - grad_entropy[:, None] * (logprobs + entropy[:, None]))
        in_block = (tokens >= start) & (tokens < start + logits.shape[1])
        gradient.scatter_add_(1, torch.where(in_block, tokens - start, 0), torch.where(in_block, grad_logprobs, 0.0))
        gradient /= temperature.to(dtype)
        stop = start + logits.shape[1]
        grad_hidden += gradient @ weight[start:stop].to(dtype)
        grad_weight[start:stop] = gradient.T @ hidden.to(dtype)
        if bias.numel():
            grad_bias[start:stop] = gradient.sum(0)
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _fake(hidden, weight, bias, tokens, temperature, ignore_index):
    row = hidden.new_empty(hidden.shape[:1], dtype=_wide(hidden))
    return hidden.new_empty(tokens.shape, dtype=row.dtype), row, torch.empty_like(row)


def _fake_backward(hidden, weight, bias, *_):
    return (
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        bias.new_empty(bias.shape, dtype=_wide(hidden)),
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.ignore_index = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx, grad_logprobs, grad_logsumexp, grad_entropy):
    hidden, weight, bias, tokens, temperature, logsumexp, entropy = ctx.saved_tensors
    grad_hidden, grad_weight, grad_bias = torch.ops.reasonrec_fast.token_logprobs_backward(
        hidden, weight, bias, tokens, temperature, ctx.ignore_index, logsumexp, entropy,
        grad_logprobs, grad_logsumexp, grad_entropy,
    )  # fmt: skip
    return grad_hidden, grad_weight, grad_bias.to(bias.dtype) if bias.numel() else None, None, None, None


library.implement_on_gpu("token_logprobs", _token_logprobs, reference_dtypes=(torch.float64,))
library.implement_on_gpu(
    "token_logprobs_backward", _token_logprobs_backward, reference_dtypes=(torch.float64,), module="token_logprobs"
)
torch.library.register_fake("reasonrec_fast::token_logprobs", _fake)
torch.library.register_fake("reasonrec_fast::token_logprobs_backward", _fake_backward)
torch.library.register_autograd("reasonrec_fast::token_logprobs", _backward, setup_context=_setup_context)
library.batch_rows("token_logprobs", rows=(0, 3))
