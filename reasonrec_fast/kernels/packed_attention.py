"""Triton kernel of ``packed_attention``: one flash pass over two key ranges per query, the prefix and its own keys.

A program computes a tile of query tokens for the query heads of one key head: row ``m`` of its products is head
``m % P`` of token ``m // P``, so that grouped heads read their keys once, and only the end of a tile is padding. It
loops over the prefix, which all tokens of a tile share, and then over the union of the own keys of the tile's tokens;
each token masks those that it must not see. Scores, weights and sums stay in registers (FlashAttention-2,
arXiv 2307.08691, algorithm 1).

The host decides which tokens form a tile (:func:`plan_tiles`), once per table of segments: one copy to the device, no
value read back, and only the kernel itself in a CUDA graph.

Reads every query once, and every key and value once for each tile that uses it; writes every output once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

_LOG2E = math.log2(math.e)
_MANY_KEYS = 64
"""A segment with at least this many own keys shares no tile: every token of a tile loops over the keys of all."""
_PROGRAMS = 132
"""Programs that fill a device: one per multiprocessor of an H100."""


class Blocks(NamedTuple):
    """Block shape of a program (rows, keys per step, padded head width) and its launch options."""

    rows: int
    keys: int
    width: int
    num_warps: int
    num_stages: int


def choose_blocks(dtype: torch.dtype, width: int, rows: int) -> Blocks:
    """Blocks for a head width and ``rows`` of query tokens and heads, without spills (``tests/static_budget.json``).

    >>> choose_blocks(torch.bfloat16, 64, 9_000)
    Blocks(rows=64, keys=32, width=64, num_warps=4, num_stages=3)
    """
    block_d = max(triton.next_power_of_2(width), 16)
    few = rows < 64 * _PROGRAMS
    if dtype == torch.float32:  # no tensor cores (input_precision="ieee"): registers are the limit
        keys, num_warps = {64: (32, 8), 128: (16, 8), 256: (16, 4)}.get(block_d, (32, 4))
        return Blocks(16, keys, block_d, num_warps, 2)
    if few or block_d == 256:  # 64 rows of 256 columns spill on some targets
        return Blocks(16, 32, block_d, 4, 3 if block_d <= 64 else 2)
    if block_d <= 64:
        return Blocks(64, 32, block_d, 4, 3) if rows < 512 * _PROGRAMS else Blocks(128, 32, block_d, 8, 3)
    return Blocks(64, 32, block_d, 8, 3)


@triton.jit
def _walk(
    query, key, value, total, largest, summed, first, last, low, high,
    key_stride, value_stride, head, columns, scale, softcap,
    WIDTH: tl.constexpr, SAME_RANGE: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the keys ``[first, last)`` to the running softmax; a row attends to those in its ``[low, high)``.

    The state of a row is its largest score so far, the sum of its weights and their weighted values, both relative to
    that score. Scores are in units of log2, since ``exp2`` is one instruction: the caller multiplies by log2(e).
    """
    inside = (columns < WIDTH)[None, :]
    for start in range(first, last, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        loaded = (position < last)[:, None] & inside
        key_row = position.to(tl.int64)[:, None]
        keys = tl.load(key + key_row * key_stride + head * WIDTH + columns[None, :], mask=loaded, other=0.0)
        values = tl.load(value + key_row * value_stride + head * WIDTH + columns[None, :], mask=loaded, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        if HAS_CAP:  # softcap * tanh(scores / softcap), in log2 units
            scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores)))
        if SAME_RANGE:
            visible = (position < last)[None, :]
        else:
            visible = (position[None, :] >= low[:, None]) & (position[None, :] < high[:, None])
            # The weight of a masked key is 0, but 0 * inf or 0 * NaN in the product would be NaN and reach rows that
            # must not see the key. So a value that is not finite becomes 0 in the product, and NaN is added to the
            # key's scores instead, where the mask removes it for all other rows.
            zeros = values * 0.0
            scores += tl.sum(zeros.to(tl.float32), 1)[None, :]
            values = tl.where(zeros == 0.0, values, 0.0)
        scores = tl.where(visible, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        origin = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(scores - origin[:, None])
        rescale = tl.exp2(largest - origin)
        summed = summed * rescale + tl.sum(weights, 1)
        total = tl.dot(weights.to(values.dtype), values, total * rescale[:, None], input_precision="ieee")
        largest = new_largest
    return total, largest, summed


@triton.jit(do_not_specialize=["tokens"])
def attention_kernel(
    query, key, value, out, tiles, bounds, query_stride, key_stride, value_stride, tokens, scale, softcap,
    GROUP: tl.constexpr, ROW_HEADS: tl.constexpr, WIDTH: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of ``tiles [n, 6]`` (first token, tokens, begin and end of the prefix keys, begin and end of the own
    keys) for ``ROW_HEADS`` of the ``GROUP`` query heads of a key head; ``bounds [2, Q]`` are the begin and end of each
    token's own keys."""
    tile = tiles + tl.program_id(0) * 6
    parts: tl.constexpr = (GROUP + ROW_HEADS - 1) // ROW_HEADS
    head = tl.program_id(1) // parts
    rows = tl.arange(0, BLOCK_M)
    in_group = (tl.program_id(1) % parts) * ROW_HEADS + rows % ROW_HEADS
    token_in_tile = rows // ROW_HEADS
    token = tl.load(tile) + token_in_tile
    live = (token_in_tile < tl.load(tile + 1)) & (in_group < GROUP)
    low = tl.load(bounds + token, mask=live, other=0)
    high = tl.load(bounds + tokens + token, mask=live, other=0)
    columns = tl.arange(0, BLOCK_D)
    mask = live[:, None] & (columns < WIDTH)[None, :]
    head_offset = (head * GROUP + in_group)[:, None] * WIDTH + columns[None, :]
    queries = tl.load(query + token.to(tl.int64)[:, None] * query_stride + head_offset, mask=mask, other=0.0)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    summed = tl.zeros((BLOCK_M,), tl.float32)
    total, largest, summed = _walk(
        queries, key, value, total, largest, summed, tl.load(tile + 2), tl.load(tile + 3), low, high,
        key_stride, value_stride, head, columns, scale, softcap, WIDTH, True, HAS_CAP, BLOCK_N,
    )  # fmt: skip
    total, largest, summed = _walk(
        queries, key, value, total, largest, summed, tl.load(tile + 4), tl.load(tile + 5), low, high,
        key_stride, value_stride, head, columns, scale, softcap, WIDTH, False, HAS_CAP, BLOCK_N,
    )  # fmt: skip
    heads: tl.constexpr = GROUP * WIDTH
    groups = tl.num_programs(1) // parts
    out_offset = token.to(tl.int64)[:, None] * (groups * heads) + head_offset
    total = total / tl.where(live, summed, 1.0)[:, None]
    tl.store(out + out_offset, total.to(out.dtype.element_ty), mask=mask)


def plan_tiles(segments: np.ndarray, queries: int, keys: int, tile_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of at most ``tile_tokens`` query tokens, and the own keys visible to each token.

    A tile has at most one prefix. Tiles with the most keys come first: a long tile that started last would run alone.

    Args:
        segments: int64 ``[S, 6]``, as ``ops.packed_attention`` takes them.
        queries, keys: number of query tokens and of key tokens.
        tile_tokens: at least 1.

    Returns:
        ``tiles`` int32 ``[n, 6]``: first token, tokens, begin and end of the prefix, begin and end of the union of the
        own keys; ``bounds`` int32 ``[2, Q]``: begin and end of each token's own keys.

    Raises:
        RuntimeError: ranges outside the keys, or segments that do not cover the queries in order.

    >>> plan_tiles(np.array([[0, 3, 0, 0, 0, 1], [3, 2, 0, 3, 3, 1]]), 5, 5, tile_tokens=2)[0].tolist()
    [[3, 2, 0, 3, 3, 5], [2, 1, 0, 0, 0, 3], [0, 2, 0, 0, 0, 2]]
    """
    begin, count, prefix_begin, prefix, own_begin, seen = np.ascontiguousarray(segments.T)
    _check_segments(segments, queries, keys)
    if queries == 0:
        return np.empty((0, 6), np.int32), np.empty((2, 0), np.int32)
    prefix_begin = np.where(prefix > 0, prefix_begin, 0)
    own_end = own_begin + seen
    index_in_segment = np.arange(queries) - np.repeat(begin, count)
    bounds = np.stack([np.repeat(own_begin, count), np.repeat(own_end, count) + index_in_segment])
    # A run is a maximal sequence of segments whose tokens may share tiles: the same prefix, and few own keys each.
    many_keys = seen + count - 1 >= _MANY_KEYS
    starts_run = (prefix_begin[1:] != prefix_begin[:-1]) | (prefix[1:] != prefix[:-1]) | many_keys[1:] | many_keys[:-1]
    runs = np.flatnonzero(np.append(True, starts_run))
    run_begin = begin[runs]
    run_size = np.append(run_begin[1:], queries) - run_begin
    tiles_of_run = -(-run_size // tile_tokens)
    run = np.repeat(np.arange(len(runs)), tiles_of_run)
    tile_in_run = np.arange(len(run)) - np.repeat(np.cumsum(tiles_of_run) - tiles_of_run, tiles_of_run)
    first = run_begin[run] + tile_in_run * tile_tokens
    size = np.minimum(run_size[run] - tile_in_run * tile_tokens, tile_tokens)
    own_first = np.minimum.reduceat(bounds[0], first)
    own_last = np.maximum.reduceat(bounds[1], first)
    prefix_first, length = prefix_begin[runs][run], prefix[runs][run]
    order = np.argsort(-(length + own_last - own_first), kind="stable")
    tiles = np.stack([first, size, prefix_first, prefix_first + length, own_first, own_last], 1)[order]
    return tiles.astype(np.int32), bounds.astype(np.int32)


def _check_segments(segments: np.ndarray, queries: int, keys: int) -> None:
    begin, count, prefix_begin, prefix, own_begin, seen = segments.T
    # Each value is checked by itself first, so that the sums below cannot overflow int64.
    inside = (segments >= 0).all(1) & (segments <= max(keys, queries)).all(1) & (seen >= 1)
    if inside.all():
        inside &= (prefix_begin + prefix <= keys) & (own_begin + seen + count - 1 <= keys)
        inside &= (begin == np.cumsum(count) - count) & (begin + count <= queries)
    if not inside.all():
        row = int(np.flatnonzero(~inside)[0])
        raise RuntimeError(
            f"segments: expected ranges within the queries, in order, and the keys; row {row} is outside"
        )
    if int(count.sum()) != queries:
        raise RuntimeError(f"segments: expected to cover {queries} queries; they cover {int(count.sum())}")


class Plan(NamedTuple):
    """The result of :func:`plan_tiles` on a device: tiles ``[n, 6]`` and bounds ``[2, Q]``, int32."""

    tiles: torch.Tensor
    bounds: torch.Tensor


def make_plan(segments: torch.Tensor, queries: int, keys: int, tile_tokens: int, device: torch.device) -> Plan:
    """:func:`plan_tiles` on a device, by one asynchronous copy."""
    tiles, bounds = plan_tiles(segments.numpy(), queries, keys, tile_tokens)
    # Both start at multiples of 16 bytes for every size: Triton would compile another kernel for another alignment.
    bounds_offset = -(-tiles.size // 4) * 4
    flat = torch.empty(bounds_offset + bounds.size, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
    flat[: tiles.size] = torch.from_numpy(tiles.reshape(-1))
    flat[bounds_offset:] = torch.from_numpy(bounds.reshape(-1))
    flat = flat.to(device, non_blocking=device.type == "cuda")
    return Plan(flat[: tiles.size].view(-1, 6), flat[bounds_offset:].view(2, -1))


def tile_tokens(blocks: Blocks, group: int) -> int:
    """Tokens per tile: the rows of a block divided by the query heads of a key head (``GROUP``), at least 1."""
    return blocks.rows // min(group, blocks.rows)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Plan,
    blocks: Blocks,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """The operator on the device of ``query``, for float32, bfloat16 and float16 and heads of 1 to 256 columns."""
    (tokens, heads, width), groups = query.shape, key.shape[1]
    query, key, value = (_with_adjacent_heads(x) for x in (query, key, value))
    out = torch.empty((tokens, heads, width), dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    group = heads // groups
    row_heads = min(group, blocks.rows)
    grid = (plan.tiles.shape[0], groups * triton.cdiv(group, row_heads))
    # tanh(x) = 1 - 2 / (1 + e^2x): the kernel computes e^2x as 2^(2x log2(e)).
    scale_log2 = scale * _LOG2E * (2.0 / softcap if softcap else 1.0)
    attention_kernel[grid](
        query, key, value, out, plan.tiles, plan.bounds, query.stride(0), key.stride(0), value.stride(0), tokens,
        scale_log2, softcap * _LOG2E,
        GROUP=group, ROW_HEADS=row_heads, WIDTH=width, HAS_CAP=softcap != 0.0,
        BLOCK_M=blocks.rows, BLOCK_N=blocks.keys, BLOCK_D=blocks.width,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    return out


def _with_adjacent_heads(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself where the heads of a token are contiguous (such as a slice of a fused projection), else a copy."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
