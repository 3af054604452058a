"""Triton kernels of ``exit_confidence``: softmax statistics of ``hidden @ heads.T`` without the logits in memory.

``stream_kernel`` loops over any number of classes, one tile of logits in registers at a time. Stretches of classes run
in parallel, so that a small batch fills the device, and ``join_kernel`` merges their statistics: it loads those of all
stretches at once and reduces them as a tree, in the same order on every run.
``ensemble_kernel`` holds at most 64 classes at once and averages the probabilities of the ensemble's members. Both read
the heads once for each block of rows.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from reasonrec_fast.kernels.logits import BLOCK_D, LEAST, Tile, logits_tile, stretch_of, tile_of

TILES = (Tile(16, 64, num_stages=4), Tile(64, 64, num_warps=8))
"""Tiles of ``stream_kernel``, by rows. The small one prefetches more: it is limited by reading the heads."""
ENSEMBLE = Tile(16, 64)
JOINED = ((16, 32), (512, 2))
"""Stretches and rows of a program of ``join_kernel``: only two shapes, since each is compiled separately."""
MEASURES = {"max_prob": 0, "margin": 1, "entropy": 2, "ratio": 3}


@triton.jit
def _confidence(probability, second, entropy, log_ratio, log_classes, MEASURE: tl.constexpr):
    if MEASURE == 0:
        return probability
    elif MEASURE == 1:
        return probability - second
    elif MEASURE == 2:
        return 1.0 - entropy / log_classes
    else:
        return tl.abs(log_ratio)


@triton.jit(do_not_specialize=["batch", "classes", "positive", "stretch"])
def stream_kernel(
    hidden, heads, bias, temperature, targets, parts, argmaxes,
    batch, classes, width, positive, stretch,
    HAS_BIAS: tl.constexpr, HAS_TARGETS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Statistics of one stretch of the classes: ``parts [stretches, 6, batch]`` (largest and second logit, sum of
    ``e^(l - largest)`` and of that times ``l - largest``, logits of positive and target if they are in it, else 0) and
    ``argmaxes [stretches, batch]``."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = rows < batch
    inverse_temperature = 1.0 / tl.load(temperature).to(tl.float32)
    maximum = tl.full((BLOCK_B,), float("-inf"), tl.float32)
    second = tl.full((BLOCK_B,), float("-inf"), tl.float32)
    argmax = tl.zeros((BLOCK_B,), tl.int32)
    total = tl.zeros((BLOCK_B,), tl.float32)
    weighted = tl.zeros((BLOCK_B,), tl.float32)
    positive_logit = tl.zeros((BLOCK_B,), tl.float32)
    target_logit = tl.zeros((BLOCK_B,), tl.float32)
    target = tl.full((BLOCK_B,), -1, tl.int64)
    if HAS_TARGETS:
        target = tl.load(targets + rows, mask=present, other=-1)
    begin = tl.program_id(1) * stretch
    end = tl.minimum(begin + stretch, classes)
    for first in range(begin, end, BLOCK_C):
        tile = logits_tile(
            hidden, heads, bias, rows, first, batch, end, width, inverse_temperature,
            HAS_BIAS, BLOCK_B, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        columns = first + tl.arange(0, BLOCK_C)
        without_nan = tl.where(tile == tile, tile, float("-inf"))  # NaN must reach the sums but not the argmax
        tile_max = tl.max(without_nan, 1)
        tile_arg = first + tl.argmax(without_nan, 1)
        tile_second = tl.max(tl.where(columns[None, :] == tile_arg[:, None], float("-inf"), without_nan), 1)
        second = tl.maximum(tl.maximum(tl.minimum(maximum, tile_max), second), tile_second)
        argmax = tl.where(tile_max > maximum, tile_arg, argmax)
        new_maximum = tl.maximum(maximum, tile_max)
        origin = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        log_rescale = tl.where(maximum == float("-inf"), 0.0, tl.maximum(maximum - origin, LEAST))
        rescale = tl.exp(log_rescale)
        distance = tile - origin[:, None]
        weight = tl.exp(distance)
        weighted = rescale * (weighted + total * log_rescale) + tl.sum(weight * tl.where(weight == 0, 0.0, distance), 1)
        total = rescale * total + tl.sum(weight, 1)
        maximum = new_maximum
        positive_logit += tl.sum(tl.where(columns[None, :] == positive, tile, 0.0), 1)
        if HAS_TARGETS:
            target_logit += tl.sum(tl.where(columns[None, :] == target[:, None], tile, 0.0), 1)
    part = tl.program_id(1).to(tl.int64)
    pointer = parts + part * 6 * batch + rows
    tl.store(pointer, maximum, mask=present)
    tl.store(pointer + batch, second, mask=present)
    tl.store(pointer + 2 * batch, total, mask=present)
    tl.store(pointer + 3 * batch, weighted, mask=present)
    tl.store(pointer + 4 * batch, positive_logit, mask=present)
    tl.store(pointer + 5 * batch, target_logit, mask=present)
    tl.store(argmaxes + part * batch + rows, argmax, mask=present)


@triton.jit(do_not_specialize=["batch", "stretches"])
def join_kernel(
    parts, argmaxes,
    probability, positive_probability, confidence, entropy, logsumexp, target_logprob, prediction,
    batch, stretches, log_classes,
    HAS_TARGETS: tl.constexpr, MEASURE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Statistics of all classes, from those of all stretches ``[BLOCK_S, BLOCK_B]``."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    part = tl.arange(0, BLOCK_S)
    present = rows < batch
    live = (part < stretches)[:, None] & present[None, :]
    pointer = parts + part.to(tl.int64)[:, None] * 6 * batch + rows[None, :]
    largest = tl.load(pointer, mask=live, other=float("-inf"))
    seconds = tl.load(pointer + batch, mask=live, other=float("-inf"))
    totals = tl.load(pointer + 2 * batch, mask=live, other=0.0)
    weights = tl.load(pointer + 3 * batch, mask=live, other=0.0)
    maximum = tl.max(largest, 0)
    # The first stretch with the largest logit has the lowest such class. The second largest logit is the maximum of
    # that stretch's second and of the largest of every other stretch.
    first = tl.min(tl.where(largest == maximum[None, :], part[:, None], BLOCK_S - 1), 0)
    chosen = part[:, None] == first[None, :]
    second = tl.max(tl.where(chosen, seconds, largest), 0)
    argmax = tl.load(argmaxes + first.to(tl.int64) * batch + rows, mask=present, other=0)
    origin = tl.where(maximum == float("-inf"), 0.0, maximum)[None, :]
    log_rescale = tl.where(largest == float("-inf"), 0.0, tl.maximum(largest - origin, LEAST))
    rescale = tl.exp(log_rescale)
    total = tl.sum(totals * rescale, 0)
    weighted = tl.sum((weights + totals * log_rescale) * rescale, 0)
    positive_logit = tl.sum(tl.load(pointer + 4 * batch, mask=live, other=0.0), 0)
    target_logit = tl.sum(tl.load(pointer + 5 * batch, mask=live, other=0.0), 0)
    lse = maximum + tl.log(total)
    best = tl.exp(maximum - lse)
    entropy_value = tl.log(total) - weighted / total
    tl.store(prediction + rows, argmax.to(tl.int64), mask=present)
    tl.store(probability + rows, best, mask=present)
    tl.store(positive_probability + rows, tl.exp(positive_logit - lse), mask=present)
    confidence_value = _confidence(best, tl.exp(second - lse), entropy_value, maximum - second, log_classes, MEASURE)
    tl.store(confidence + rows, confidence_value, mask=present)
    tl.store(entropy + rows, entropy_value, mask=present)
    tl.store(logsumexp + rows, lse, mask=present)
    if HAS_TARGETS:
        tl.store(target_logprob + rows, target_logit - lse, mask=present)


@triton.jit(do_not_specialize=["batch", "classes", "positive"])
def ensemble_kernel(
    hidden, heads, bias, temperature, targets,
    probability, positive_probability, confidence, entropy, logsumexp, target_logprob, prediction,
    batch, classes, width, positive, log_classes,
    HAS_BIAS: tl.constexpr, HAS_TARGETS: tl.constexpr, MEASURE: tl.constexpr, MEMBERS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = rows < batch
    columns = tl.arange(0, BLOCK_C)
    inverse_temperature = 1.0 / tl.load(temperature).to(tl.float32)
    mean = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for member in range(MEMBERS):
        class_offset = member * classes
        tile = logits_tile(
            hidden, heads + class_offset.to(tl.int64) * width, bias + class_offset, rows, 0, batch, classes, width,
            inverse_temperature, HAS_BIAS, BLOCK_B, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        maximum = tl.max(tile, 1)
        weight = tl.exp(tile - maximum[:, None])
        total = tl.sum(weight, 1)
        mean += weight / (total * MEMBERS)[:, None]
        lse = maximum + tl.log(total)
        tl.store(logsumexp + rows * MEMBERS + member, lse, mask=present)
        if HAS_TARGETS:
            target = tl.load(targets + rows, mask=present, other=-1)
            logit = tl.sum(tl.where(columns[None, :] == target[:, None], tile, 0.0), 1)
            tl.store(target_logprob + rows * MEMBERS + member, logit - lse, mask=present)
    # A NaN logit makes every statistic NaN, so that the row never exits; its prediction is then the first class.
    nan_marks = tl.where(mean == mean, 0.0, float("nan"))
    nan_if_any = tl.sum(tl.where((columns < classes)[None, :], nan_marks, 0.0), 1)
    mean = tl.where((columns < classes)[None, :], tl.where(mean == mean, mean, 0.0), -1.0)
    best = tl.max(mean, 1)
    argmax = tl.argmax(mean, 1)
    second = tl.maximum(tl.max(tl.where(columns[None, :] == argmax[:, None], -1.0, mean), 1), 0.0)
    entropy_value = -tl.sum(tl.where(mean > 0, mean * tl.log(tl.maximum(mean, 1e-38)), 0.0), 1)
    mean_positive = tl.sum(tl.where(columns[None, :] == positive, mean, 0.0), 1)
    first_probability = tl.sum(tl.where(columns[None, :] == 0, mean, 0.0), 1)
    second_probability = tl.sum(tl.where(columns[None, :] == 1, mean, 0.0), 1)
    tl.store(prediction + rows, argmax.to(tl.int64), mask=present)
    tl.store(probability + rows, best + nan_if_any, mask=present)
    tl.store(positive_probability + rows, mean_positive + nan_if_any, mask=present)
    confidence_value = _confidence(
        best, second, entropy_value, tl.log(first_probability) - tl.log(second_probability), log_classes, MEASURE
    )
    tl.store(confidence + rows, confidence_value + nan_if_any, mask=present)
    tl.store(entropy + rows, entropy_value + nan_if_any, mask=present)


def exit_confidence(
    hidden: torch.Tensor,
    heads: torch.Tensor,
    bias: torch.Tensor,
    temperature: torch.Tensor,
    measure: str,
    positive: int,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The operator on the device of ``hidden``, for float32, bfloat16 and float16."""
    hidden, heads = hidden.contiguous(), heads.contiguous()
    batch, (ensemble_size, classes, width) = hidden.shape[0], heads.shape
    prediction = hidden.new_empty(batch, dtype=torch.int64)
    probability, positive_probability, confidence, entropy = (
        hidden.new_empty(batch, dtype=torch.float32) for _ in range(4)
    )
    logsumexp = hidden.new_empty((batch, ensemble_size), dtype=torch.float32)
    target_logprob = hidden.new_empty((batch, ensemble_size if targets.numel() else 0), dtype=torch.float32)
    outputs = (probability, positive_probability, confidence, entropy, logsumexp, target_logprob, prediction)
    if batch == 0:
        return outputs
    log_classes = math.log(max(classes, 2))
    has = {"HAS_BIAS": bias.numel() > 0, "HAS_TARGETS": targets.numel() > 0}
    columns = max(triton.next_power_of_2(classes), 16)
    inputs = (hidden, heads, bias.contiguous(), temperature, targets.contiguous())
    if ensemble_size == 1:
        tile = tile_of(TILES, hidden.dtype, batch)
        blocks, block_c = triton.cdiv(batch, tile.rows), min(columns, tile.classes)
        stretch = stretch_of(classes, blocks, block_c)
        stretches = triton.cdiv(classes, stretch)
        parts = hidden.new_empty((stretches, 6, batch), dtype=torch.float32)
        argmaxes = hidden.new_empty((stretches, batch), dtype=torch.int32)
        stream_kernel[(blocks, stretches)](
            *inputs, parts, argmaxes, batch, classes, width, positive, stretch,
            **has, BLOCK_B=tile.rows, BLOCK_C=block_c, BLOCK_D=BLOCK_D, **tile.launch,
        )  # fmt: skip
        block_s, block_b = JOINED[stretches > JOINED[0][0]]
        join_kernel[(triton.cdiv(batch, block_b),)](
            parts, argmaxes, *outputs, batch, stretches, log_classes,
            HAS_TARGETS=has["HAS_TARGETS"], MEASURE=MEASURES[measure], BLOCK_S=block_s, BLOCK_B=block_b,
        )  # fmt: skip
    else:
        ensemble_kernel[(triton.cdiv(batch, ENSEMBLE.rows),)](
            *inputs, *outputs, batch, classes, width, positive, log_classes,
            **has, BLOCK_B=ENSEMBLE.rows, BLOCK_C=min(columns, ENSEMBLE.classes), BLOCK_D=BLOCK_D,
            MEASURE=MEASURES[measure], MEMBERS=ensemble_size,
        )  # fmt: skip
    return outputs
