"""Triton kernel of ``aggregate``: one layer of propagation, with its share of the sum over layers.

A program sums one node's neighbours for one block of columns, in the order of the neighbours: no atomics, the same
bits on every run. Reads E rows and writes 2 N rows of 4 D bytes a layer; a multiply and an add a number read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def edge_hash(seed, user, item):
    """The hash of ``reasonrec_fast.ops.aggregate.edge_hash``, in wrapping 32-bit arithmetic."""
    state = _fold(seed)
    state = _mix(state ^ _fold(user))
    return _mix(state ^ _fold(item))


@triton.jit
def _fold(value):
    value = value.to(tl.uint64, bitcast=True)
    return (value & 0xFFFFFFFF).to(tl.uint32) ^ (value >> 32).to(tl.uint32)


@triton.jit
def _mix(state):
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    return state ^ (state >> 16)


@triton.jit
def propagate_kernel(
    own_indptr,
    own_indices,
    other_indptr,
    x,
    y,
    total,
    weights,
    seed,
    layer,
    own_start,
    other_start,
    width,
    drop_below,
    drop_scale,
    USER_SIDE: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    begin = tl.load(own_indptr + row).to(tl.int64)
    end = tl.load(own_indptr + row + 1).to(tl.int64)
    result = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(begin, end, BLOCK_E):
        edge = start + tl.arange(0, BLOCK_E)
        present = edge < end
        neighbour = tl.load(own_indices + edge, mask=present, other=0).to(tl.int64)
        first = tl.load(other_indptr + neighbour, mask=present, other=0)
        last = tl.load(other_indptr + neighbour + 1, mask=present, other=1)
        scale = 1.0 / tl.sqrt((last - first).to(tl.float32))
        keep = present
        if DROPOUT:
            drawn_seed = tl.load(seed)
            if USER_SIDE:  # noqa: SIM108  (a compile-time branch)
                drawn = edge_hash(drawn_seed, row, neighbour)
            else:
                drawn = edge_hash(drawn_seed, neighbour, row)
            keep = keep & (drawn.to(tl.int64) >= drop_below)
        places = (other_start + neighbour)[:, None] * width + columns[None, :]
        values = tl.load(x + places, mask=keep[:, None] & inside[None, :], other=0.0)
        result += tl.sum(values * tl.where(keep, scale, 0.0)[:, None], axis=0)
    degree = tl.maximum(end - begin, 1).to(tl.float32)
    result = result * (drop_scale / tl.sqrt(degree))
    place = (own_start + row) * width + columns
    tl.store(y + place, result, mask=inside)
    before = tl.load(total + place, mask=inside, other=0.0)
    tl.store(total + place, before + tl.load(weights + layer) * result, mask=inside)


def aggregate(
    user_indptr: torch.Tensor,
    user_indices: torch.Tensor,
    item_indptr: torch.Tensor,
    item_indices: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    dropout: float,
    seed: torch.Tensor,
) -> torch.Tensor:
    """The operator on the device of ``x``; sums and layers in float32."""
    num_users, num_items, width = user_indptr.numel() - 1, item_indptr.numel() - 1, x.shape[1]
    layer = x.float().contiguous()
    total = weights[0] * layer
    block_d = min(max(triton.next_power_of_2(width), 16), 128)
    for index in range(1, weights.numel()):
        following = torch.empty_like(layer)
        for user_side in (True, False):
            rows = num_users if user_side else num_items
            if rows == 0 or width == 0:
                continue
            propagate_kernel[(rows, triton.cdiv(width, block_d))](
                user_indptr if user_side else item_indptr,
                user_indices if user_side else item_indices,
                item_indptr if user_side else user_indptr,
                layer,
                following,
                total,
                weights,
                seed,
                index,
                0 if user_side else num_users,
                num_users if user_side else 0,
                width,
                int(dropout * 2**32),
                1.0 / (1.0 - dropout),
                USER_SIDE=user_side,
                DROPOUT=dropout > 0.0,
                BLOCK_E=16,
                BLOCK_D=block_d,
            )
        layer = following
    return total.to(x.dtype)
