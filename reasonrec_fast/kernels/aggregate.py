"""Triton kernels of ``aggregate``: one layer of propagation, with its share of the sum over layers.

Layers are kept times the inverse root degree, in the type of ``x``: a row is then a bare sum of its neighbours' rows.
``propagate_kernel`` sums the rows of few neighbours, one warp a row: its sums need no barrier and no shared memory, and
while rows are on their way the next neighbours are fetched. Rows of more than ``_SPLIT`` are cut where the
edge list has been cut into equal pieces: ``piece_kernel`` sums what a piece holds of such rows (at most two: one that
came in and one that goes on), ``join_kernel`` adds the pieces of a row in their order. One heavy user stalls nobody;
no atomics, the same bits on every run.

Reads E rows and writes N rows of 4 D bytes a layer (2 D in 16 bits); one add a number read.
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
def _sum_edges(
    indices, x, begin, end, row, other_start, columns, inside, width, seed, drop_below,
    USER_SIDE: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum ``[BLOCK_D]`` of the rows of ``x`` at the far ends of the edges ``[begin, end)`` of a row."""
    result = tl.zeros((BLOCK_D,), tl.float32)
    edge = begin + tl.arange(0, BLOCK_E)
    following = tl.load(indices + edge, mask=edge < end, other=0)
    for _ in range(begin, end, BLOCK_E):
        neighbour, keep = following.to(tl.int64), edge < end
        edge += BLOCK_E
        following = tl.load(indices + edge, mask=edge < end, other=0)
        if DROPOUT:
            drawn_seed = tl.load(seed)
            if USER_SIDE:  # noqa: SIM108  (a compile-time branch)
                drawn = edge_hash(drawn_seed, row, neighbour)
            else:
                drawn = edge_hash(drawn_seed, neighbour, row)
            keep = keep & (drawn.to(tl.int64) >= drop_below)
        places = (other_start + neighbour)[:, None] * width + columns[None, :]
        values = tl.load(x + places, mask=keep[:, None] & inside[None, :], other=0.0)
        result += tl.sum(values.to(tl.float32), axis=0)
    return result


@triton.jit
def _finish_row(result, node, columns, inside, inverse_root, y, total, weights, layer, width, drop_scale):
    """From the sum of the neighbours to the layer, kept for the next one, and to its share of the total."""
    root = tl.load(inverse_root + node)
    result = result * (root * drop_scale)
    place = node * width + columns
    tl.store(y + place, (result * root).to(y.dtype.element_ty), mask=inside)
    before = tl.load(total + place, mask=inside, other=0.0)
    tl.store(total + place, before + tl.load(weights + layer) * result, mask=inside)


@triton.jit(do_not_specialize=["layer", "own_start", "other_start", "drop_below"])
def propagate_kernel(
    indptr, indices, inverse_root, x, y, total, weights, seed,
    layer, own_start, other_start, width, drop_below, drop_scale,
    USER_SIDE: tl.constexpr, DROPOUT: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    begin = tl.load(indptr + row).to(tl.int64)
    end = tl.load(indptr + row + 1).to(tl.int64)
    if end - begin <= SPLIT:
        result = _sum_edges(
            indices, x, begin, end, row, other_start, columns, inside, width, seed, drop_below,
            USER_SIDE, DROPOUT, BLOCK_E, BLOCK_D,
        )  # fmt: skip
        _finish_row(result, own_start + row, columns, inside, inverse_root, y, total, weights, layer, width, drop_scale)


@triton.jit
def _row_of_edge(indptr, rows, edge):
    """The row whose edges hold this one: the last whose start is at most the edge."""
    low = tl.zeros((), tl.int64)
    high = low + rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(indptr + middle).to(tl.int64) <= edge:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["rows", "edges", "other_start", "drop_below"])
def piece_kernel(
    indptr, indices, x, parts, seed, rows, edges, other_start, width, drop_below,
    USER_SIDE: tl.constexpr, DROPOUT: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums ``parts [pieces, 2, width]`` of the heavy rows of a piece: of its first edge, and of its last."""
    piece = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    first = piece * SPLIT
    last = tl.minimum(first + SPLIT, edges)
    one = _row_of_edge(indptr, rows, first)
    other = _row_of_edge(indptr, rows, last - 1)
    for slot in tl.static_range(2):
        row = one if slot == 0 else other
        begin = tl.load(indptr + row).to(tl.int64)
        end = tl.load(indptr + row + 1).to(tl.int64)
        if (end - begin > SPLIT) & ((slot == 0) | (other != one)):
            result = _sum_edges(
                indices, x, tl.maximum(begin, first), tl.minimum(end, last), row, other_start, columns, inside, width,
                seed, drop_below, USER_SIDE, DROPOUT, BLOCK_E, BLOCK_D,
            )  # fmt: skip
            tl.store(parts + (piece * 2 + slot) * width + columns, result, mask=inside)


@triton.jit(do_not_specialize=["layer", "own_start"])
def join_kernel(
    indptr, inverse_root, parts, y, total, weights, layer, own_start, width, drop_scale,
    SPLIT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    begin = tl.load(indptr + row).to(tl.int64)
    end = tl.load(indptr + row + 1).to(tl.int64)
    if end - begin > SPLIT:
        result = tl.zeros((BLOCK_D,), tl.float32)
        for piece in range(begin // SPLIT, (end - 1) // SPLIT + 1):
            slot = tl.where(piece * SPLIT >= begin, 0, 1)
            result += tl.load(parts + (piece * 2 + slot) * width + columns, mask=inside, other=0.0)
        _finish_row(result, own_start + row, columns, inside, inverse_root, y, total, weights, layer, width, drop_scale)


_SPLIT = 256
"""Edges that one warp sums; rows of more are cut."""
LAUNCH = {"num_warps": 1}


def block_edges(dtype: torch.dtype) -> int:
    """Rows that a warp fetches at a time; of two bytes a number twice as many fit its registers."""
    return 16 if dtype == torch.float32 else 32


def aggregate(
    user_indptr: torch.Tensor,
    user_indices: torch.Tensor,
    item_indptr: torch.Tensor,
    item_indices: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    dropout: float,
    seed: torch.Tensor,
    split: int = _SPLIT,
) -> torch.Tensor:
    """The operator on the device of ``x``; sums in float32, layers in the type of ``x``."""
    x, weights = x.contiguous(), weights.contiguous()
    user_indptr, user_indices = user_indptr.contiguous(), user_indices.contiguous()
    item_indptr, item_indices = item_indptr.contiguous(), item_indices.contiguous()
    num_users, num_items, width = user_indptr.numel() - 1, item_indptr.numel() - 1, x.shape[1]
    degrees = torch.cat([user_indptr.diff(), item_indptr.diff()])
    inverse_root = torch.where(degrees > 0, degrees.float().rsqrt(), 0.0)
    total = weights[0] * x.float()
    layer = (x.float() * inverse_root[:, None]).to(x.dtype)
    edges, blocks = user_indices.numel(), triton.cdiv(width, 128)
    pieces = triton.cdiv(edges, split)
    parts = x.new_empty((pieces, 2, width), dtype=torch.float32)
    block_d = min(max(triton.next_power_of_2(width), 16), 128)
    for index in range(1, weights.numel()):
        following = torch.empty_like(layer)
        for user_side in (True, False):
            rows = num_users if user_side else num_items
            if rows == 0 or width == 0:
                continue
            indptr, indices = (user_indptr, user_indices) if user_side else (item_indptr, item_indices)
            own_start, other_start = (0, num_users) if user_side else (num_users, 0)
            drop_below, drop_scale = int(dropout * 2**32), 1.0 / (1.0 - dropout)
            options = {"USER_SIDE": user_side, "DROPOUT": dropout > 0.0, "SPLIT": split}
            options |= {"BLOCK_E": block_edges(x.dtype), "BLOCK_D": block_d, **LAUNCH}
            propagate_kernel[(rows, blocks)](
                indptr, indices, inverse_root, layer, following, total, weights, seed,
                index, own_start, other_start, width, drop_below, drop_scale, **options,
            )  # fmt: skip
            if edges <= split:
                continue  # no row can be that heavy
            piece_kernel[(pieces, blocks)](
                indptr, indices, layer, parts, seed, rows, edges, other_start, width, drop_below, **options,
            )  # fmt: skip
            join_kernel[(rows, blocks)](
                indptr, inverse_root, parts, following, total, weights, index, own_start, width, drop_scale,
                SPLIT=split, BLOCK_D=block_d, **LAUNCH,
            )  # fmt: skip
        layer = following
    return total.to(x.dtype)
