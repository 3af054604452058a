"""Triton kernels of ``topk``: exact retrieval with a bounded buffer of scores.

``score_kernel`` writes the scores of a chunk of queries, NaN as -inf, so that NaN can mark excluded items;
``exclude_kernel`` writes those marks. ``select_kernel`` selects from one stretch of a row, whose items it splits into
interleaved groups. The 64-bit key of an item has its score, mapped to an integer of the same order, in the high half
and the complement of its index in the low half: a larger key is a larger score, or an equal score of a lower index. The
K largest keys lie in the K groups with the largest maxima, so only these groups are read again and sorted. One sort
merges the results of the stretches. More than ``_HELD`` keys per query do not fit into registers: each further pass
selects among the keys below the last one.

Reads the items once for each block of queries, writes every score and reads it once per pass. A float32 score is the
sum of three TF32 tensor-core products, close to float32's own rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_HELD = 64
"""Keys per query that a program holds in registers; also the most that one pass selects."""
_CHUNK = 2**26
"""Scores in memory at a time; at least one row."""
_MOST_ITEMS = 2**31 - 2**17
"""Item indices are 32-bit, and a program computes indices past the last item before it masks them."""
_PROGRAMS = 528
"""Programs that fill a device: four for each of the 132 multiprocessors of an H100."""
_MOST_STRETCH, _LEAST_STRETCH = 2**16, 2**13
GROUPS = 1024
"""Groups that a program splits items into."""
READ_AGAIN = 8
"""Items of each selected group that are sorted per step."""
TILE = {"BLOCK_B": 64, "BLOCK_N": 64}
LAUNCH = {"num_warps": 4, "num_stages": 3}
SELECT = {"num_warps": 4}


def block_width(dtype: torch.dtype) -> int:
    """Columns per step of the product."""
    return 32 if dtype == torch.float32 else 64


@triton.jit
def _keys(scores, columns):
    """64-bit keys that order by score, then by descending index; the smallest key where a score is NaN."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # -0.0 becomes +0.0: they are equal scores
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - columns.to(tl.int64))
    return tl.where(scores == scores, keys, -(2**63))


@triton.jit(do_not_specialize=["batch", "count"])
def score_kernel(
    queries, items, scores, batch, count, width,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores ``[batch, count]``, float32. Neighbouring programs score the same items, which are then in the cache."""
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
    pointer = scores + rows[:, None].to(tl.int64) * count + columns[None, :]
    tl.store(pointer, tile, mask=(rows < batch)[:, None] & (columns < count)[None, :])


@triton.jit(do_not_specialize=["count"])
def exclude_kernel(indptr, indices, picked, scores, count, BLOCK_E: tl.constexpr):
    """Writes NaN over the scores of the items that a row must not return."""
    row = tl.program_id(0).to(tl.int64)
    csr_row = tl.load(picked + row)
    end = tl.load(indptr + csr_row + 1)
    for first in range(tl.load(indptr + csr_row), end, BLOCK_E):
        position = first + tl.arange(0, BLOCK_E)
        item = tl.load(indices + position, mask=position < end, other=-1)
        tl.store(scores + row * count + item, float("nan"), mask=(item >= 0) & (item < count))


@triton.jit(do_not_specialize=["count", "stretch"])
def select_kernel(
    scores, below, found, count, stretch,
    HAS_BELOW: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, READ_AGAIN: tl.constexpr,
):  # fmt: skip
    """Sorted keys ``found [batch, stretches, K]`` of the best items of each stretch; with HAS_BELOW only of keys below
    ``below [batch]``. K is a power of two."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = part * stretch
    end = tl.minimum(begin + stretch, count)
    line = scores + row * count
    if HAS_BELOW:
        ceiling = tl.load(below + row)
    group = tl.arange(0, GROUPS)
    largest = tl.full((GROUPS,), -(2**63), tl.int64)
    for first in tl.range(begin, end, GROUPS, loop_unroll_factor=4):  # several loads in flight
        columns = first + group
        keys = _keys(tl.load(line + columns, mask=columns < end, other=float("nan")), columns)
        if HAS_BELOW:
            keys = tl.where(keys < ceiling, keys, -(2**63))
        largest = tl.maximum(largest, keys)
    leaders = tl.topk(largest, K)
    # An empty leader is no group: its reads start at the end, where the mask drops them.
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
    pointer = found + (row * tl.num_programs(1) + part) * K + tl.arange(0, K)
    tl.store(pointer, best)


@triton.jit(do_not_specialize=["k", "first", "kept", "stride"])
def decode_kernel(keys, values, indices, k, first, kept, stride, BLOCK_K: tl.constexpr):
    """Decodes ``kept`` sorted keys of a row into scores and items, for the slots from ``first`` of its ``k``."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, BLOCK_K)
    inside = slot < kept
    key = tl.load(keys + row * stride + slot, mask=inside, other=-(2**63))
    exists = key != -(2**63)
    ordered = (key >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    value = tl.where(exists, bits.to(tl.float32, bitcast=True), float("-inf"))
    tl.store(values + row * k + first + slot, value, mask=inside)
    tl.store(indices + row * k + first + slot, tl.where(exists, 0xFFFFFFFF - (key & 0xFFFFFFFF), -1), mask=inside)


def topk(
    queries: torch.Tensor, items: torch.Tensor, k: int, indptr: torch.Tensor, indices: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator on the device of ``queries``, for float32, bfloat16 and float16; one pass selects 64 items."""
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
    """The largest keys ``[batch, >= held]`` below ``below``, at least ``held`` of them (a power of two), descending."""
    count = scores.shape[1]
    stretches = max(triton.cdiv(count, _MOST_STRETCH), min(_PROGRAMS // batch, count // _LEAST_STRETCH), 1)
    stretch = triton.cdiv(count, stretches)
    stretches = triton.cdiv(count, stretch)
    best_keys = scores.new_empty((batch, stretches, held), dtype=torch.int64)
    select_kernel[(batch, stretches)](
        scores, best_keys if below is None else below, best_keys, count, stretch,
        HAS_BELOW=below is not None, K=held, GROUPS=GROUPS, READ_AGAIN=READ_AGAIN, **SELECT,
    )  # fmt: skip
    keys = best_keys.flatten(1)
    return keys if stretches == 1 else keys.sort(1, descending=True).values
