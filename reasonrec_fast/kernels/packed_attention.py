"""Triton kernel of ``packed_attention``: one flash pass over two ranges of keys a query, its prefix and its own.

A program takes a tile of query tokens and the query heads of one key head: row ``m`` of its products is head ``m % P``
of token ``m // P``, so that grouped heads read their keys once and no row is padding but at the end of a tile. It walks
over the prefix, which all tokens of a tile share, and then over the own keys of the tile's tokens, each of which sees
its part of them. Scores, weights and sums stay in registers (FlashAttention-2, arXiv 2307.08691, algorithm 1).

Which tokens form a tile is decided on the host (:func:`plan_tiles`), once for a table of segments: one copy to the
device, no value read back, and nothing but the kernel inside a CUDA graph.

Reads every query once, and every key and value once for each tile that sees it; writes every output once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

_LOG2E = math.log2(math.e)
_LONE_KEYS = 64
"""A segment of so many own keys shares no tile with others: each token of a tile walks over the keys of all of them."""
_PROGRAMS = 132
"""Programs that keep a device busy: the multiprocessors of an H100."""


class Blocks(NamedTuple):
    """Shape of a program: rows, keys a step, width of a head, and how it is launched."""

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
    if dtype == torch.float32:  # products on the plain units: registers are what is short
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
    """Take the keys ``[first, last)`` into the running softmax; a row sees those in its ``[low, high)``."""
    inside = (columns < WIDTH)[None, :]
    for start in range(first, last, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        live = (place < last)[:, None] & inside
        wide = place.to(tl.int64)[:, None]
        keys = tl.load(key + wide * key_stride + head * WIDTH + columns[None, :], mask=live, other=0.0)
        values = tl.load(value + wide * value_stride + head * WIDTH + columns[None, :], mask=live, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        if HAS_CAP:  # softcap * tanh(scores / softcap), in bits as everything here
            scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores)))
        if SAME_RANGE:
            seen = (place < last)[None, :]
        else:
            seen = (place[None, :] >= low[:, None]) & (place[None, :] < high[:, None])
            # A weight of 0 times what is not finite is NaN: it goes through the scores to those who see it, alone.
            zeros = values * 0.0
            scores += tl.sum(zeros.to(tl.float32), 1)[None, :]
            values = tl.where(zeros == 0.0, values, 0.0)
        scores = tl.where(seen, scores, float("-inf"))
        grown = tl.maximum(largest, tl.max(scores, 1))
        origin = tl.where(grown == float("-inf"), 0.0, grown)
        weights = tl.exp2(scores - origin[:, None])
        shrink = tl.exp2(largest - origin)
        summed = summed * shrink + tl.sum(weights, 1)
        total = tl.dot(weights.to(values.dtype), values, total * shrink[:, None], input_precision="ieee")
        largest = grown
    return total, largest, summed


@triton.jit(do_not_specialize=["tokens"])
def attention_kernel(
    query, key, value, out, tiles, bounds, query_stride, key_stride, value_stride, tokens, scale, softcap,
    GROUP: tl.constexpr, ROW_HEADS: tl.constexpr, WIDTH: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile ``tiles [n, 6]`` (first token, tokens, first and end of the prefix keys, of the own keys) for
    ``ROW_HEADS`` of the ``GROUP`` query heads of a key head; ``bounds [2, Q]`` are the own keys of each token."""
    tile = tiles + tl.program_id(0) * 6
    parts: tl.constexpr = (GROUP + ROW_HEADS - 1) // ROW_HEADS
    head = tl.program_id(1) // parts
    rows = tl.arange(0, BLOCK_M)
    in_group = (tl.program_id(1) % parts) * ROW_HEADS + rows % ROW_HEADS
    inside = rows // ROW_HEADS
    token = tl.load(tile) + inside
    live = (inside < tl.load(tile + 1)) & (in_group < GROUP)
    low = tl.load(bounds + token, mask=live, other=0)
    high = tl.load(bounds + tokens + token, mask=live, other=0)
    columns = tl.arange(0, BLOCK_D)
    mask = live[:, None] & (columns < WIDTH)[None, :]
    of_head = (head * GROUP + in_group)[:, None] * WIDTH + columns[None, :]
    queries = tl.load(query + token.to(tl.int64)[:, None] * query_stride + of_head, mask=mask, other=0.0)
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
    whole = token.to(tl.int64)[:, None] * (groups * heads) + of_head
    total = total / tl.where(live, summed, 1.0)[:, None]
    tl.store(out + whole, total.to(out.dtype.element_ty), mask=mask)


def plan_tiles(segments: np.ndarray, queries: int, keys: int, tile_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of at most ``tile_tokens`` query tokens, and the own keys that each token sees.

    A tile holds one prefix at most. Those that walk over the most keys come first, so that none of them begins last.

    Args:
        segments: int64 ``[S, 6]``, as ``ops.packed_attention`` takes them.
        queries, keys: tokens that have a query, and tokens that have a key.
        tile_tokens: at least 1.

    Returns:
        ``tiles`` int32 ``[n, 6]``: first token, tokens, first and end of the prefix, first and end of all own keys;
        ``bounds`` int32 ``[2, Q]``: first and end of each token's own keys.

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
    inside = np.arange(queries) - np.repeat(begin, count)
    bounds = np.stack([np.repeat(own_begin, count), np.repeat(own_end, count) + inside])
    # A run of segments whose tokens may share tiles: of one prefix, and of few own keys each.
    lone = seen + count - 1 >= _LONE_KEYS
    apart = (prefix_begin[1:] != prefix_begin[:-1]) | (prefix[1:] != prefix[:-1]) | lone[1:] | lone[:-1]
    runs = np.flatnonzero(np.append(True, apart))
    run_begin = begin[runs]
    run_size = np.append(run_begin[1:], queries) - run_begin
    tiles_of_run = -(-run_size // tile_tokens)
    of_run = np.repeat(np.arange(len(runs)), tiles_of_run)
    within = np.arange(len(of_run)) - np.repeat(np.cumsum(tiles_of_run) - tiles_of_run, tiles_of_run)
    first = run_begin[of_run] + within * tile_tokens
    size = np.minimum(run_size[of_run] - within * tile_tokens, tile_tokens)
    own_first = np.minimum.reduceat(bounds[0], first)
    own_last = np.maximum.reduceat(bounds[1], first)
    at, length = prefix_begin[runs][of_run], prefix[runs][of_run]
    order = np.argsort(-(length + own_last - own_first), kind="stable")
    tiles = np.stack([first, size, at, at + length, own_first, own_last], 1)[order]
    return tiles.astype(np.int32), bounds.astype(np.int32)


def _check_segments(segments: np.ndarray, queries: int, keys: int) -> None:
    begin, count, prefix_begin, prefix, own_begin, seen = segments.T
    # Each number by itself first: sums of such numbers do not overflow.
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
    """Tiles ``[n, 6]`` and bounds ``[2, Q]`` on a device, int32, for tiles of so many tokens."""

    tiles: torch.Tensor
    bounds: torch.Tensor


def make_plan(segments: torch.Tensor, queries: int, keys: int, tile_tokens: int, device: torch.device) -> Plan:
    """:func:`plan_tiles` on a device, by one copy that the host does not wait for."""
    tiles, bounds = plan_tiles(segments.numpy(), queries, keys, tile_tokens)
    # Both begin at multiples of 16 bytes, whatever their sizes: Triton compiles anew for another alignment.
    skip = -(-tiles.size // 4) * 4
    flat = torch.empty(skip + bounds.size, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
    flat[: tiles.size] = torch.from_numpy(tiles.reshape(-1))
    flat[skip:] = torch.from_numpy(bounds.reshape(-1))
    flat = flat.to(device, non_blocking=device.type == "cuda")
    return Plan(flat[: tiles.size].view(-1, 6), flat[skip:].view(2, -1))


def tile_tokens(blocks: Blocks, group: int) -> int:
    """Tokens of a tile: as many as have room with all heads of their group (``GROUP``)."""
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
    query, key, value = (_head_by_head(x) for x in (query, key, value))
    out = torch.empty((tokens, heads, width), dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    group = heads // groups
    row_heads = min(group, blocks.rows)
    grid = (plan.tiles.shape[0], groups * triton.cdiv(group, row_heads))
    # tanh(x) = 1 - 2 / (1 + e^2x): the kernel's 2^x then wants 2x in bits.
    in_bits = scale * _LOG2E * (2.0 / softcap if softcap else 1.0)
    attention_kernel[grid](
        query, key, value, out, plan.tiles, plan.bounds, query.stride(0), key.stride(0), value.stride(0), tokens,
        in_bits, softcap * _LOG2E,
        GROUP=group, ROW_HEADS=row_heads, WIDTH=width, HAS_CAP=softcap != 0.0,
        BLOCK_M=blocks.rows, BLOCK_N=blocks.keys, BLOCK_D=blocks.width,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    return out


def _head_by_head(x: torch.Tensor) -> torch.Tensor:
    """``x`` as it is where the heads of a token lie side by side (a part of a joint projection), else a copy."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
