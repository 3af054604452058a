"""Triton kernels of ``topk``: exact retrieval, some hundred MiB of scores at a time.

``score_kernel`` writes the scores of a chunk of queries: NaN as -inf, so that NaN can mean "excluded", which
``exclude_kernel`` writes. ``select_kernel`` takes a row, or a stretch of one, whose items it deals into groups. An item
has a 64-bit key: its score, made to order as an integer, above the complement of its index, so that a larger key is a
larger score, or an equal one of a lower index. The K largest keys lie in the K groups whose largest keys are the
largest; these groups alone are read again and sorted. The best of the stretches meet in one sort. More than ``_HELD``
keys a query do not fit the registers: the next ones are found by another pass over what is below the last.

Reads the items once for each block of queries, writes every score and reads it once a pass. A float32 score is the sum
of three products of tensor cores (TF32), near to float32's own rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_HELD = 64
"""Most keys of a query that a program holds."""
_CHUNK = 2**26
"""Scores in memory at a time; but one row at least."""
_MOST_ITEMS = 2**31 - 2**17
"""Their numbers are 32-bit integers, and a program looks past the last."""
_PROGRAMS = 528
"""Programs that fill a device: four for each of the 132 multiprocessors of an H100."""
_MOST_STRETCH, _LEAST_STRETCH = 2**16, 2**13
GROUPS = 1024
"""Groups that a program deals items into."""
READ_AGAIN = 8
"""Items of every chosen group that are sorted at a time."""
TILE = {"BLOCK_B": 64, "BLOCK_N": 64}
LAUNCH = {"num_warps": 4, "num_stages": 3}
SELECT = {"num_warps": 4}


def block_width(dtype: torch.dtype) -> int:
    """Columns of a step of the product."""
    return 32 if dtype == torch.float32 else 64


@triton.jit
def _keys(scores, columns):
    """64-bit keys that order by score, then by falling index; the least of all where a score is NaN."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # both zeros are one
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - columns.to(tl.int64))
    return tl.where(scores == scores, keys, -(2**63))


@triton.jit(do_not_specialize=["batch", "count"])
def score_kernel(
    queries, items, scores, batch, count, width,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores ``[batch, count]``, float32. Programs side by side share their items."""
    blocks = tl.cdiv(batch, BLOCK_B)
    rows = (tl.program_id(0) % blocks) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = (tl.program_id(0) // blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_D):
        inner = start + tl.arange(0, BLOCK_D)
        a = tl.load(
            queries + rows[:, None].to(tl.int64) * width + inner[None, :],
            mask=(rows < batch)[:, None] & (inner < width)[None, :],
            other=0.0,
        )
        b = tl.load(
            items + columns[None, :].to(tl.int64) * width + inner[:, None],
            mask=(columns < count)[None, :] & (inner < width)[:, None],
            other=0.0,
        )
        tile = tl.dot(a, b, tile, input_precision="tf32x3")
    tile = tl.where(tile == tile, tile, float("-inf"))
    place = scores + rows[:, None].to(tl.int64) * count + columns[None, :]
    tl.store(place, tile, mask=(rows < batch)[:, None] & (columns < count)[None, :])


@triton.jit(do_not_specialize=["count"])
def exclude_kernel(indptr, indices, picked, scores, count, BLOCK_E: tl.constexpr):
    """NaN at the items that a row must not return."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.load(picked + row)
    end = tl.load(indptr + at + 1)
    for first in range(tl.load(indptr + at), end, BLOCK_E):
        place = first + tl.arange(0, BLOCK_E)
        item = tl.load(indices + place, mask=place < end, other=-1)
        tl.store(scores + row * count + item, float("nan"), mask=(item >= 0) & (item < count))


@triton.jit(do_not_specialize=["count", "stretch"])
def select_kernel(
    scores, below, found, count, stretch,
    HAS_BELOW: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, READ_AGAIN: tl.constexpr,
):  # fmt: skip
    """Sorted keys ``found [batch, stretches, K]`` of the best items of each stretch, of those below ``below [batch]``;
    K is a power of two."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = part * stretch
    end = tl.minimum(begin + stretch, count)
    line = scores + row * count
    if HAS_BELOW:
        ceiling = tl.load(below + row)
    group = tl.arange(0, GROUPS)
    largest = tl.full((GROUPS,), -(2**63), tl.int64)
    for first in tl.range(begin, end, GROUPS, loop_unroll_factor=4):  # loads of several steps on their way
        columns = first + group
        keys = _keys(tl.load(line + columns, mask=columns < end, other=float("nan")), columns)
        if HAS_BELOW:
            keys = tl.where(keys < ceiling, keys, -(2**63))
        largest = tl.maximum(largest, keys)
    leaders = tl.topk(largest, K)
    # An empty leader stands for no group: it is read at the end, where nothing is.
    leader = (0xFFFFFFFF - (leaders & 0xFFFFFFFF)).to(tl.int32)
    start = tl.where(leaders == -(2**63), end, begin + (leader - begin) % GROUPS)
    best = tl.full((K,), -(2**63), tl.int64)
    steps = tl.arange(0, READ_AGAIN)
    for first in range(0, tl.cdiv(end - begin, GROUPS), READ_AGAIN):
        columns = start[:, None] + (first + steps)[None, :] * GROUPS
        keys = _keys(tl.load(line + columns, mask=columns < end, other=float("nan")), columns)
        if HAS_BELOW:
            keys = tl.where(keys < ceiling, keys, -(2**63))
        both = tl.join(best, tl.topk(tl.reshape(keys, (K * READ_AGAIN,)), K))
        best = tl.topk(tl.reshape(both, (2 * K,)), K)
    place = found + (row * tl.num_programs(1) + part) * K + tl.arange(0, K)
    tl.store(place, best)


@triton.jit(do_not_specialize=["k", "first", "kept", "stride"])
def decode_kernel(keys, values, indices, k, first, kept, stride, BLOCK_K: tl.constexpr):
    """Scores and items of ``kept`` sorted keys of a row, to the places from ``first`` of its ``k``."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_K)
    inside = place < kept
    key = tl.load(keys + row * stride + place, mask=inside, other=-(2**63))
    there = key != -(2**63)
    ordered = (key >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    value = tl.where(there, bits.to(tl.float32, bitcast=True), float("-inf"))
    tl.store(values + row * k + first + place, value, mask=inside)
    tl.store(indices + row * k + first + place, tl.where(there, 0xFFFFFFFF - (key & 0xFFFFFFFF), -1), mask=inside)


def topk(
    queries: torch.Tensor, items: torch.Tensor, k: int, indptr: torch.Tensor, indices: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator on the device of ``queries``, for float32, bfloat16 and float16; 64 of ``k`` are found a pass."""
    queries, items = queries.contiguous(), items.contiguous()
    (batch, width), count = queries.shape, items.shape[0]
    values = queries.new_full((batch, k), -torch.inf, dtype=torch.float32)
    best = queries.new_full((batch, k), -1, dtype=torch.int64)
    if batch == 0 or k == 0 or count == 0:
        return values, best
    indptr, indices, rows = indptr.contiguous(), indices.contiguous(), rows.contiguous()
    if count > _MOST_ITEMS:
        raise ValueError(f"items: expected at most {_MOST_ITEMS} rows on a GPU; got {count}")
    block_b, block_n = TILE["BLOCK_B"], TILE["BLOCK_N"]
    chunk = min(1 << max(_CHUNK // count, 1).bit_length() - 1, batch)
    scores = queries.new_empty((chunk, count), dtype=torch.float32)
    for start in range(0, batch, chunk):
        part = queries[start : start + chunk]
        size = len(part)
        grid = (triton.cdiv(size, block_b) * triton.cdiv(count, block_n),)
        score_kernel[grid](
            part, items, scores, size, count, width, **TILE, BLOCK_D=block_width(queries.dtype), **LAUNCH
        )
        if indptr.numel():
            exclude_kernel[(size,)](indptr, indices, rows[start : start + size], scores, count, BLOCK_E=64, num_warps=1)
        below = None
        for first in range(0, min(k, count), _HELD):
            kept = min(k - first, _HELD)
            keys = _best_keys(scores, size, min(triton.next_power_of_2(max(kept, 2)), _HELD), below)
            decode_kernel[(size,)](
                keys, values[start:], best[start:], k, first, kept, keys.stride(0), BLOCK_K=_HELD, num_warps=1
            )
            if first + kept < k:
                below = keys[:, kept - 1].contiguous()
    return values, best


def _best_keys(scores: torch.Tensor, batch: int, held: int, below: torch.Tensor | None) -> torch.Tensor:
    """The ``held`` largest keys ``[batch, >= held]`` below those given, falling; ``held`` is a power of two."""
    count = scores.shape[1]
    stretches = max(triton.cdiv(count, _MOST_STRETCH), min(_PROGRAMS // batch, count // _LEAST_STRETCH), 1)
    stretch = triton.cdiv(count, stretches)
    stretches = triton.cdiv(count, stretch)
    found = scores.new_empty((batch, stretches, held), dtype=torch.int64)
    select_kernel[(batch, stretches)](
        scores, found if below is None else below, found, count, stretch,
        HAS_BELOW=below is not None, K=held, GROUPS=GROUPS, READ_AGAIN=READ_AGAIN, **SELECT,
    )  # fmt: skip
    keys = found.flatten(1)
    return keys if stretches == 1 else keys.sort(1, descending=True).values
