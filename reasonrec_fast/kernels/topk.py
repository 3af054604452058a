"""Triton kernel of ``topk``: exact retrieval, a tile of scores at a time.

A program takes a block of queries and a stretch of the items. It keeps the best of each query as sorted 64-bit keys,
which hold the score, made to order as an integer, above the complement of the item's index: a larger key is a larger
score, or an equal one of a lower index. A tile of scores none of which beats the worst that is kept costs a product and
a comparison; only in others are exclusions looked up and keys merged. The best of the stretches meet in one sort.
More than ``_HELD`` keys a query do not fit the registers: the next ones are found by another pass, of what is below the
last.

Reads the items once for each block of queries and pass; writes the best keys a query and stretch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LAUNCH = {"num_warps": 8}
_EMPTY, _ABOVE_ALL = -(2**63), 2**63 - 1
_BLOCK_B, _BLOCK_E = 16, 8
_HELD = 64
"""Most keys of a query that a program holds."""
_LEAST_STRETCH = 1024
_PROGRAMS = 264
"""Programs that fill a device: two for each of the 132 multiprocessors of an H100."""


def block_width(dtype: torch.dtype, held: int) -> int:
    """Columns of a step of the product; the sorting leaves it few registers, and products in float32 take more."""
    return 16 if dtype == torch.float32 else 64 if held < _HELD else 32


@triton.jit
def _keys(scores, columns):
    """64-bit keys that order by score (NaN as -inf, both zeros equal), then by falling index."""
    scores = tl.where(scores == scores, scores, float("-inf")) + 0.0
    bits = scores.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - columns.to(tl.int64))[None, :]


@triton.jit
def _excluded(
    tile_first, columns, starts, ends, indices,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Which items of a tile the rows must not return, ``[BLOCK_B, BLOCK_N]``."""
    gone = tl.zeros((BLOCK_B, BLOCK_N), tl.int1)
    longest = tl.max(ends - starts, 0)
    for first in range(0, longest, BLOCK_E):
        places = starts[:, None] + first + tl.arange(0, BLOCK_E)[None, :]
        items = tl.load(indices + places, mask=places < ends[:, None], other=-1)
        near = (items >= tile_first) & (items < tile_first + BLOCK_N)
        if tl.max(near.to(tl.int32)) > 0:
            same = (items[:, :, None] == columns[None, None, :]).to(tl.int32)
            gone = gone | (tl.max(same, 1) > 0)
    return gone


@triton.jit(do_not_specialize=["batch", "count", "stretch"])
def topk_kernel(
    queries, items, indptr, indices, picked, below, found,
    batch, count, width, stretch,
    EXCLUDE: tl.constexpr, HAS_BELOW: tl.constexpr, K: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sorted keys ``found [stretches, batch, K]`` of the best items of each stretch, of those below ``below [batch]``;
    K is a power of two."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = rows < batch
    starts = tl.zeros((BLOCK_B,), tl.int64)
    ends = tl.zeros((BLOCK_B,), tl.int64)
    if EXCLUDE:
        place = tl.load(picked + rows, mask=present, other=0)
        starts = tl.load(indptr + place, mask=present, other=0)
        ends = tl.load(indptr + place + 1, mask=present, other=0)
    if HAS_BELOW:
        ceiling = tl.load(below + rows, mask=present, other=-(2**63))
    best = tl.full((BLOCK_B, K), -(2**63), tl.int64)
    begin = tl.program_id(1) * stretch
    end = tl.minimum(begin + stretch, count)
    for first in range(begin, end, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        scores = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
        for start in range(0, width, BLOCK_D):
            inner = start + tl.arange(0, BLOCK_D)
            a = tl.load(
                queries + rows[:, None].to(tl.int64) * width + inner[None, :],
                mask=present[:, None] & (inner < width)[None, :],
                other=0.0,
            )
            b = tl.load(
                items + columns[None, :].to(tl.int64) * width + inner[:, None],
                mask=(columns < end)[None, :] & (inner < width)[:, None],
                other=0.0,
            )
            scores = tl.dot(a, b, scores, input_precision="ieee")
        keys = tl.where((columns < end)[None, :] & present[:, None], _keys(scores, columns), -(2**63))
        if HAS_BELOW:
            keys = tl.where(keys < ceiling[:, None], keys, -(2**63))
        bar = tl.min(best, 1)
        if tl.max((keys > bar[:, None]).to(tl.int32)) > 0:
            if EXCLUDE:
                gone = _excluded(first, columns, starts, ends, indices, BLOCK_B, BLOCK_N, BLOCK_E)
                keys = tl.where(gone, -(2**63), keys)
            both = tl.join(best, tl.topk(keys, K))
            best = tl.topk(tl.reshape(both, (BLOCK_B, 2 * K)), K)
    slots = tl.arange(0, K)
    out = found + (tl.program_id(1).to(tl.int64) * batch + rows[:, None]) * K + slots[None, :]
    tl.store(out, best, mask=present[:, None])


def topk(
    queries: torch.Tensor, items: torch.Tensor, k: int, indptr: torch.Tensor, indices: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator on the device of ``queries``, for float32, bfloat16 and float16; 64 of ``k`` are found a pass."""
    queries, items = queries.contiguous(), items.contiguous()
    batch, count = queries.shape[0], items.shape[0]
    values = queries.new_full((batch, k), -torch.inf, dtype=torch.float32)
    best = queries.new_full((batch, k), -1, dtype=torch.int64)
    if batch == 0 or k == 0 or count == 0:
        return values, best
    excluded = (indptr.contiguous(), indices.contiguous(), rows.contiguous())
    if k <= _HELD:
        keys = _best_keys(queries, items, triton.next_power_of_2(max(k, 2)), excluded, None)[:, :k]
    else:
        # Every pass runs the same code: a score has the same bits in all of them, so that none is lost or found twice.
        below, passes = queries.new_full((batch,), _ABOVE_ALL, dtype=torch.int64), []
        for _ in range(0, min(k, count), _HELD):
            passes.append(_best_keys(queries, items, _HELD, excluded, below))
            below = passes[-1][:, -1].contiguous()
        keys = torch.cat(passes, 1)[:, :k]
    there = keys != _EMPTY
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    kept = keys.shape[1]
    values[:, :kept] = torch.where(there, bits.view(torch.float32), -torch.inf)
    best[:, :kept] = torch.where(there, 0xFFFFFFFF - (keys & 0xFFFFFFFF), -1)
    return values, best


def _best_keys(
    queries: torch.Tensor,
    items: torch.Tensor,
    held: int,
    excluded: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    below: torch.Tensor | None,
) -> torch.Tensor:
    """The ``held`` largest keys ``[B, held]`` below those given, falling; ``held`` is a power of two."""
    (batch, width), count = queries.shape, items.shape[0]
    blocks = triton.cdiv(batch, _BLOCK_B)
    stretch = triton.cdiv(count, triton.cdiv(_PROGRAMS, blocks) * _LEAST_STRETCH) * _LEAST_STRETCH
    stretches = triton.cdiv(count, stretch)
    found = queries.new_empty((stretches, batch, held), dtype=torch.int64)
    topk_kernel[(blocks, stretches)](
        queries, items, *excluded, found if below is None else below, found, batch, count, width, stretch,
        EXCLUDE=excluded[0].numel() > 0, HAS_BELOW=below is not None, K=held,
        BLOCK_B=_BLOCK_B, BLOCK_N=64, BLOCK_D=block_width(queries.dtype, held), BLOCK_E=_BLOCK_E, **LAUNCH,
    )  # fmt: skip
    return found.transpose(0, 1).reshape(batch, -1).sort(1, descending=True).values[:, :held]
