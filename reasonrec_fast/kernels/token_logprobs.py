"""Triton kernels of ``token_logprobs``.

``partial_kernel`` computes softmax statistics of one stretch of the vocabulary for a block of rows. Stretches run in
parallel, so that a small batch fills the device, and their statistics are added in order afterwards (no atomics).
``logit_kernel`` computes the logit of each given token, one warp each, reading only that row of the weight.
``gradient_kernel`` recomputes the logits of one block of the vocabulary and writes their gradient, from which torch's
matrix products give the gradients of hidden and weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reasonrec_fast.kernels.logits import BLOCK_D, LEAST, Tile, logits_tile, stretch_of, tile_of

TILES = (Tile(32, 64), Tile(128, 128, num_warps=8))
"""For at most 32 rows, and for more."""
_GRADIENT_ELEMENTS = 2**25
"""Entries of the gradient of the logits in memory at a time."""
_MOST_BLOCKS = 65_535
"""CUDA's limit of programs in the second dimension of a grid."""


@triton.jit(do_not_specialize=["batch", "classes", "stretch"])
def partial_kernel(
    hidden, weight, bias, temperature, best, total, weighted,
    batch, classes, width, stretch,
    HAS_BIAS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Largest logit, sum of ``e^(l - best)`` and of that times ``l - best``, over one stretch of the classes."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = rows < batch
    inverse_temperature = 1.0 / tl.load(temperature).to(tl.float32)
    maximum = tl.full((BLOCK_B,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK_B,), tl.float32)
    moments = tl.zeros((BLOCK_B,), tl.float32)
    begin = tl.program_id(1) * stretch
    end = tl.minimum(begin + stretch, classes)
    for first in range(begin, end, BLOCK_C):
        tile = logits_tile(
            hidden, weight, bias, rows, first, batch, end, width, inverse_temperature,
            HAS_BIAS, BLOCK_B, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        new_maximum = tl.maximum(maximum, tl.max(tile, 1))
        origin = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        log_rescale = tl.where(maximum == float("-inf"), 0.0, tl.maximum(maximum - origin, LEAST))
        rescale = tl.exp(log_rescale)
        moments = rescale * (moments + sums * log_rescale)
        sums = rescale * sums
        distance = tile - origin[:, None]
        share = tl.exp(distance)
        sums += tl.sum(share, 1)
        moments += tl.sum(share * tl.where(share == 0, 0.0, distance), 1)
        maximum = new_maximum
    offset = tl.program_id(1).to(tl.int64) * batch + rows
    tl.store(best + offset, maximum, mask=present)
    tl.store(total + offset, sums, mask=present)
    tl.store(weighted + offset, moments, mask=present)


@triton.jit(do_not_specialize=["classes", "count", "ignore_index"])
def logit_kernel(
    hidden, weight, bias, tokens, logits, classes, width, count, ignore_index,
    HAS_BIAS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logit of one token: 0 for ``ignore_index``, NaN for a token that is not a class."""
    index = tl.program_id(0).to(tl.int64)
    row = index // count
    token = tl.load(tokens + index)
    is_class = (token >= 0) & (token < classes)
    weight_row = tl.where(is_class, token, 0)
    columns = tl.arange(0, BLOCK_D)
    products = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, width, BLOCK_D):
        inside = start + columns < width
        a = tl.load(hidden + row * width + start + columns, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(weight + weight_row * width + start + columns, mask=inside, other=0.0).to(tl.float32)
        products += a * b
    logit = tl.sum(products, 0)
    if HAS_BIAS:
        logit += tl.load(bias + weight_row).to(tl.float32)
    absent = tl.where(token == ignore_index, 0.0, float("nan"))
    tl.store(logits + index, tl.where(is_class & (token != ignore_index), logit, absent))


@triton.jit(do_not_specialize=["batch", "classes", "first_class", "count"])
def gradient_kernel(
    hidden, weight, bias, temperature, tokens, logsumexp, entropy, grad_logprobs, through_all, through_entropy,
    gradient, batch, classes, width, first_class, block_classes, count,
    HAS_BIAS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient ``[batch, block_classes]`` of the logits of the classes from ``first_class``.

    With probabilities ``p`` it is ``p * (through_all - through_entropy * (log p + H))``, the gradients of logsumexp and
    entropy, plus ``grad_logprobs`` at the given tokens, all divided by the temperature.
    """
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = rows < batch
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inverse_temperature = 1.0 / tl.load(temperature).to(tl.float32)
    tile = logits_tile(
        hidden, weight, bias, rows, first_class + tl.program_id(1) * BLOCK_C, batch, classes, width,
        inverse_temperature, HAS_BIAS, BLOCK_B, BLOCK_C, BLOCK_D,
    )  # fmt: skip
    logprob = tile - tl.load(logsumexp + rows, mask=present, other=0.0)[:, None]
    surprise = logprob + tl.load(entropy + rows, mask=present, other=0.0)[:, None]
    all_ = tl.load(through_all + rows, mask=present, other=0.0)[:, None]
    spread = tl.load(through_entropy + rows, mask=present, other=0.0)[:, None]
    share = tl.exp(logprob)
    grad_logits = share * (all_ - spread * tl.where(share == 0, 0.0, surprise))
    for m in range(0, count):
        offset = rows.to(tl.int64) * count + m
        token = tl.load(tokens + offset, mask=present, other=-1)
        grad_logprob = tl.load(grad_logprobs + offset, mask=present, other=0.0)
        grad_logits += tl.where((first_class + column)[None, :] == token[:, None], grad_logprob[:, None], 0.0)
    pointer = gradient + rows[:, None].to(tl.int64) * block_classes + column[None, :]
    mask = present[:, None] & (column < block_classes)[None, :]
    tl.store(pointer, (grad_logits * inverse_temperature).to(gradient.dtype.element_ty), mask=mask)


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    tokens: torch.Tensor,
    temperature: torch.Tensor,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator on the device of ``hidden``, for float32, bfloat16 and float16."""
    hidden, weight, bias, tokens = (x.contiguous() for x in (hidden, weight, bias, tokens))
    (batch, width), classes = hidden.shape, weight.shape[0]
    tile = tile_of(TILES, hidden.dtype, batch)
    stretch = stretch_of(classes, max(triton.cdiv(batch, tile.rows), 1), tile.classes)
    stretches = triton.cdiv(classes, stretch)
    best, total, weighted = (hidden.new_empty((stretches, batch), dtype=torch.float32) for _ in range(3))
    logits = hidden.new_empty(tokens.shape, dtype=torch.float32)
    if batch:
        partial_kernel[(triton.cdiv(batch, tile.rows), stretches)](
            hidden, weight, bias, temperature, best, total, weighted, batch, classes, width, stretch,
            HAS_BIAS=bias.numel() > 0, BLOCK_B=tile.rows, BLOCK_C=tile.classes, BLOCK_D=BLOCK_D, **tile.launch,
        )  # fmt: skip
    if logits.numel():
        logit_kernel[(logits.numel(),)](
            hidden, weight, bias, tokens, logits, classes, width, tokens.shape[1], ignore_index,
            HAS_BIAS=bias.numel() > 0, BLOCK_D=256, num_warps=1,
        )  # fmt: skip
    top = best.amax(0)
    origin = torch.where(top.isinf(), 0.0, top)
    log_rescale = torch.where(best.isinf(), 0.0, (best - origin).clamp_min(LEAST.value))
    rescale = log_rescale.exp()
    sums = (total * rescale).sum(0)
    logsumexp = torch.where(top.isinf() & ~sums.isnan(), top, top + sums.log())
    entropy = sums.log() - ((weighted + total * log_rescale) * rescale).sum(0) / sums
    logprobs = torch.where(tokens == ignore_index, 0.0, logits / temperature.float() - logsumexp[:, None])
    return logprobs, logsumexp, entropy


def token_logprobs_backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    tokens: torch.Tensor,
    temperature: torch.Tensor,
    ignore_index: int,
    logsumexp: torch.Tensor,
    entropy: torch.Tensor,
    grad_logprobs: torch.Tensor,
    grad_logsumexp: torch.Tensor,
    grad_entropy: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of hidden, weight and bias, one block of the vocabulary at a time."""
    hidden, weight, bias, tokens = (x.contiguous() for x in (hidden, weight, bias, tokens))
    logsumexp, entropy = logsumexp.contiguous(), entropy.contiguous()
    (batch, width), classes, count = hidden.shape, weight.shape[0], tokens.shape[1]
    grad_tokens = torch.where((tokens >= 0) & (tokens < classes), grad_logprobs, torch.nan)
    grad_tokens = torch.where(tokens == ignore_index, 0.0, grad_tokens)
    through_all = (grad_logsumexp - grad_tokens.sum(1)).contiguous()
    grad_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32)
    grad_weight, grad_bias = torch.empty_like(weight), bias.new_empty(bias.shape, dtype=torch.float32)
    tile = tile_of(TILES, hidden.dtype, batch)
    blocks = min(max(_GRADIENT_ELEMENTS // max(batch, 1) // tile.classes, 1), _MOST_BLOCKS)
    height = blocks * tile.classes
    for first in range(0, classes, height):
        stop = min(first + height, classes)
        gradient = hidden.new_empty((batch, stop - first))
        if batch:
            grid = (triton.cdiv(batch, tile.rows), triton.cdiv(stop - first, tile.classes))
            gradient_kernel[grid](
                hidden, weight, bias, temperature, tokens, logsumexp, entropy, grad_tokens.contiguous(),
                through_all, grad_entropy.contiguous(), gradient, batch, classes, width, first, stop - first, count,
                HAS_BIAS=bias.numel() > 0, BLOCK_B=tile.rows, BLOCK_C=tile.classes, BLOCK_D=BLOCK_D, **tile.launch,
            )  # fmt: skip
        grad_hidden += (gradient @ weight[first:stop]).float()
        grad_weight[first:stop] = gradient.T @ hidden
        if bias.numel():
            grad_bias[first:stop] = gradient.float().sum(0)
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias
