"""Triton kernels of ``aggregate``: one launch per layer, and a small one that joins the heavy rows.

Layers are stored multiplied by the inverse square root of the degree, in the dtype of ``x``: a row is then a plain sum
of its neighbours' rows. Work is split evenly: a row is one unit of work and each of its edges is one more; ``_SPLIT``
units are a piece, which one warp computes. A piece sums the rows that begin in it, in steps that run across row ends:
while a row is finished, the embeddings of the next step and the indices of the step after it are being loaded. A heavy
row, of more than ``_SPLIT`` edges, is summed by all pieces that it reaches: the first of these also sums the edges in
the piece where the row begins, each stores its partial sum, and ``join_kernel`` adds the parts in order.
``prepare_kernel`` searches the rows of the pieces once per call and scales layer 0. There are no atomics, and results
have the same bits on every run. A layer of weight 0 neither reads nor writes the total.

A layer reads E + N rows of 4 D bytes (2 D in 16 bits) and writes 2 N, the last one N; one addition per value read.
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
def _inverse_root(degree):
    return tl.where(degree > 0, tl.rsqrt(tl.maximum(degree, 1).to(tl.float32)), 0.0)


@triton.jit
def _find_rows(indptr, rows, pieces, block, first, joined, steps, SPLIT: tl.constexpr, BLOCK_P: tl.constexpr):
    piece = block * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = piece <= tl.where(tl.program_id(1) == 0, pieces, -1)
    work_index = piece.to(tl.int64) * SPLIT
    low = tl.zeros((BLOCK_P,), tl.int32)
    high = low + rows
    for _ in range(steps):
        middle = low + (high - low) // 2
        begin = tl.load(indptr + middle, mask=low < high, other=0).to(tl.int64)
        before = (low < high) & (begin + middle < work_index)
        low, high = tl.where(before, middle + 1, low), tl.where(before, high, middle)
    tl.store(first + piece, low, mask=inside)
    row = tl.maximum(low - 1, 0)
    begin = tl.load(indptr + row).to(tl.int64)
    end = tl.load(indptr + low).to(tl.int64)
    is_first_part = (end - begin > SPLIT) & ((row + begin) // SPLIT == piece - 1) & ((row + end) // SPLIT > piece)
    tl.store(joined + piece, tl.where(is_first_part, row, -1), mask=inside)


@triton.jit
def _scale_rows(
    user_indptr, item_indptr, x, scaled, users, items, block,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    node = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    item = node - users
    is_user, is_item = item < 0, (item >= 0) & (item < items)
    degree = tl.load(user_indptr + node + 1, mask=is_user, other=0)
    degree -= tl.load(user_indptr + node, mask=is_user, other=0)
    degree += tl.load(item_indptr + item + 1, mask=is_item, other=0)
    degree -= tl.load(item_indptr + item, mask=is_item, other=0)
    offsets = node[:, None] * WIDTH + columns[None, :]
    inside = (is_user | is_item)[:, None] & (columns < WIDTH)[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) * _inverse_root(degree)[:, None]
    tl.store(scaled + offsets, values.to(scaled.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["layers", "users", "items", "user_pieces", "pieces", "steps"])
def prepare_kernel(
    user_indptr, item_indptr, x, scaled, weights, plan, layers, users, items, user_pieces, pieces, steps,
    WIDTH: tl.constexpr, SPLIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes layer 0 (``scaled``) and the ``plan``, which has three parts: for each piece, and for the end of each
    side, the first row that begins there or later; for each piece the heavy row whose first partial sum it has, else
    -1; and for each layer, how many layers between 0 and it are in the total."""
    block = tl.program_id(0)
    joined = plan + (pieces + 2)
    of_users = user_pieces // BLOCK_P + 1
    of_items = (pieces - user_pieces) // BLOCK_P + 1
    if block < of_users:
        if block + tl.program_id(1) == 0:
            counted = tl.zeros((), tl.int32)
            for layer in range(1, layers + 1):
                tl.store(joined + (pieces + 2 + layer), counted)
                counted += (tl.load(weights + layer) != 0).to(tl.int32)
        _find_rows(user_indptr, users, user_pieces, block, plan, joined, steps, SPLIT, BLOCK_P)
    elif block < of_users + of_items:
        plan += user_pieces + 1
        joined += user_pieces + 1
        _find_rows(item_indptr, items, pieces - user_pieces, block - of_users, plan, joined, steps, SPLIT, BLOCK_P)
    else:
        block -= of_users + of_items
        _scale_rows(user_indptr, item_indptr, x, scaled, users, items, block, WIDTH, BLOCK_R, BLOCK_D)


@triton.jit
def _tile(node, columns, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """Offsets of a row as a ``[BLOCK_T, columns]`` tile that fills a warp, and a mask of its first line.

    The tile has the register layout of the summed values. A vector would have another one, and threads would have to
    exchange values.
    """
    offsets = (node * WIDTH + columns)[None, :] + tl.zeros((BLOCK_T, 1), tl.int64)
    return offsets, (tl.arange(0, BLOCK_T) == 0)[:, None]


@triton.jit
def _load_total(x, total, node, columns, takes, is_counted, first_weight, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """The total of a row before this layer: earlier layers, or layer 0 from ``x`` if nothing has been added yet."""
    offsets, own = _tile(node, columns, WIDTH, BLOCK_T)
    of_total = (columns < tl.where(takes & is_counted, WIDTH, 0))[None, :]
    of_x = (columns < tl.where(takes & (first_weight != 0) & (is_counted == 0), WIDTH, 0))[None, :]
    if x.dtype == total.dtype:
        source = total if is_counted else x
        so_far = tl.load(source + offsets, mask=own & (of_total | of_x), other=0.0)
        from_x = so_far
    else:
        so_far = tl.load(total + offsets, mask=own & of_total, other=0.0)
        from_x = tl.load(x + offsets, mask=own & of_x, other=0.0)
    return so_far, from_x


@triton.jit
def _finish_row(
    result, degree, node, columns, so_far, of_x, y, total, out, is_counted, first_weight, weight, is_last, drop_scale,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Stores a row of this layer, scaled for the next one, and adds its weighted value to the total."""
    inverse_root = _inverse_root(degree)
    result = (result * (inverse_root * drop_scale))[None, :]
    if total.dtype == out.dtype:
        so_far = tl.where(is_counted, so_far, tl.where(first_weight != 0, first_weight * so_far, 0.0))
    else:
        so_far += tl.where(first_weight != 0, first_weight * of_x.to(tl.float32), 0.0)
    share = tl.where(weight != 0, weight * result, 0.0) + so_far
    offsets, own = _tile(node, columns, WIDTH, BLOCK_T)
    mask = own & (columns < WIDTH)[None, :]
    if is_last:
        tl.store(out + offsets, share.to(out.dtype.element_ty), mask=mask)
    else:
        tl.store(y + offsets, tl.broadcast_to(result * inverse_root, share.shape).to(y.dtype.element_ty), mask=mask)
        if weight != 0:
            tl.store(total + offsets, share, mask=mask)


@triton.jit
def _fetch(
    others, columns, neighbours, count, row, is_user, seed, drop_below,
    WIDTH: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The embeddings ``[BLOCK_E, BLOCK_D]`` of a row's next neighbours; 0 where an edge is dropped."""
    neighbours, keep = neighbours.to(tl.int64), tl.arange(0, BLOCK_E) < count
    if DROPOUT:
        drawn_seed, own = tl.load(seed), row.to(tl.int64)
        users, items = tl.where(is_user, own, neighbours), tl.where(is_user, neighbours, own)
        keep = keep & (edge_hash(drawn_seed, users, items).to(tl.int64) >= drop_below)
    offsets = neighbours[:, None] * WIDTH + columns[None, :]
    return tl.load(others + offsets, mask=keep[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def _clamp_distance(distance):
    """A distance between edges as int32, clamped: all that matters of a large one is that it exceeds a few pieces."""
    return tl.minimum(distance, 1 << 30).to(tl.int32)


@triton.jit(do_not_specialize=["layer", "layers", "users", "user_pieces", "pieces", "drop_below"])
def layer_kernel(
    user_indptr, user_indices, item_indptr, item_indices, plan, x, scaled, y, total, out, parts, weights, seed,
    layer, layers, users, user_pieces, pieces, drop_below, drop_scale,
    WIDTH: tl.constexpr, DROPOUT: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_user = program < user_pieces
    if is_user:
        indptr, indices, piece, entry = user_indptr, user_indices, program, program
    else:
        indptr, indices, piece, entry = item_indptr, item_indices, program - user_pieces, program + 1
    own_start = tl.where(is_user, 0, users).to(tl.int64)
    others = scaled + (users - own_start) * WIDTH
    first_row = tl.load(plan + entry)
    next_first = tl.load(plan + entry + 1)
    is_counted = tl.load(plan + 2 * (pieces + 2) + layer) > 0
    first_weight, weight, is_last = tl.load(weights), tl.load(weights + layer), layer == layers
    in_total = (weight != 0) | is_last

    # The row that began before this piece (`came`, `came_end`: its edges). If it is heavy, this piece sums some of
    # them. Edge e of row r is unit e + r + 1 of the work, so the first edge of this piece would be `own`.
    came = tl.load(indptr + tl.maximum(first_row - 1, 0)).to(tl.int64)
    came_end = tl.load(indptr + first_row).to(tl.int64)
    next_end = tl.load(indptr + first_row + 1, mask=first_row < next_first, other=0).to(tl.int64)
    own = piece.to(tl.int64) * SPLIT - first_row
    is_heavy, begins_before = (
        came_end - came > SPLIT,
        came > own - SPLIT,
    )  # begins in the previous piece: sum its edges too
    start = tl.where(is_heavy, tl.where(begins_before, came, own), came_end)
    # From here on edge offsets are relative to the first edge that this piece sums. Those of `row` end at `stop`; the
    # embeddings of those before `cursor` have been loaded.
    indices += start
    limit = _clamp_distance(tl.load(indptr + next_first).to(tl.int64) - start)
    row = tl.where(is_heavy, first_row - 1, first_row)
    end = _clamp_distance(tl.where(is_heavy, came_end, next_end) - start)
    degree = tl.where(is_heavy, _clamp_distance(came_end - came), end)
    stop = tl.where(is_heavy, tl.minimum(end, _clamp_distance(own + SPLIT - start)), end)
    is_whole = tl.where(is_heavy, begins_before & (stop == end), (degree <= SPLIT) & (row < next_first))
    is_part = is_heavy & (is_whole == 0) & (stop > 0)
    stop = tl.where(is_whole | is_part, stop, 0)
    edges = tl.arange(0, BLOCK_E)
    neighbours = tl.load(indices + edges, mask=edges < limit, other=0)
    so_far, of_x = _load_total(
        x, total, own_start + row, columns, is_whole & in_total, is_counted, first_weight, WIDTH, BLOCK_T
    )
    next_end = tl.load(indptr + row + 2, mask=row + 1 < next_first, other=0).to(tl.int64)
    values = _fetch(others, columns, neighbours, stop, row, is_user, seed, drop_below, WIDTH, DROPOUT, BLOCK_E)
    cursor = tl.minimum(stop, BLOCK_E)
    neighbours = tl.load(indices + cursor + edges, mask=edges < limit - cursor, other=0)
    result = tl.zeros((BLOCK_D,), tl.float32)
    while row < next_first:
        # Start loading the next step, which may belong to the next row, before this row is finished.
        is_last_step = cursor >= stop
        step_row = row + is_last_step.to(tl.int32)
        step_end = tl.where(is_last_step, _clamp_distance(next_end - start), end)
        step_degree = tl.where(is_last_step, step_end - end, degree)
        step_whole = tl.where(is_last_step, (step_degree <= SPLIT) & (step_row < next_first), is_whole)
        stop = tl.where(is_last_step, tl.where(step_whole, step_end, cursor), stop)
        if cursor < stop:
            step_values = _fetch(
                others, columns, neighbours, stop - cursor, step_row, is_user, seed, drop_below, WIDTH, DROPOUT, BLOCK_E
            )  # fmt: skip
            cursor = tl.minimum(cursor + BLOCK_E, stop)
            neighbours = tl.load(indices + cursor + edges, mask=edges < limit - cursor, other=0)
        else:
            step_values = tl.zeros((BLOCK_E, BLOCK_D), scaled.dtype.element_ty)
        result += tl.sum(values.to(tl.float32), axis=0)
        if is_last_step:
            if is_whole:
                _finish_row(
                    result, degree, own_start + row, columns, so_far, of_x, y, total, out, is_counted, first_weight,
                    weight, is_last, drop_scale, WIDTH, BLOCK_T,
                )  # fmt: skip
            if is_part:
                tl.store(parts + program.to(tl.int64) * WIDTH + columns, result, mask=columns < WIDTH)
            result = tl.zeros((BLOCK_D,), tl.float32)
            next_end = tl.load(indptr + step_row + 2, mask=step_row + 1 < next_first, other=0).to(tl.int64)
            takes = step_whole & in_total
            so_far, of_x = _load_total(
                x, total, own_start + step_row, columns, takes, is_counted, first_weight, WIDTH, BLOCK_T
            )
        row, end, degree, is_whole, values = step_row, step_end, step_degree, step_whole, step_values
        is_part = is_part & (is_last_step == 0)


@triton.jit(do_not_specialize=["layer", "layers", "users", "user_pieces", "pieces"])
def join_kernel(
    user_indptr, item_indptr, plan, x, y, total, out, parts, weights, layer, layers, users, user_pieces, pieces,
    drop_scale,
    WIDTH: tl.constexpr, SPLIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    is_user = program < user_pieces
    row = tl.load(plan + (pieces + 2) + tl.where(is_user, program, program + 1))
    if row >= 0:
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        if is_user:
            indptr, piece, node = user_indptr, program, row.to(tl.int64)
        else:
            indptr, piece, node = item_indptr, program - user_pieces, row.to(tl.int64) + users
        begin = tl.load(indptr + row).to(tl.int64)
        end = tl.load(indptr + row + 1).to(tl.int64)
        is_counted = tl.load(plan + 2 * (pieces + 2) + layer) > 0
        first_weight, weight, is_last = tl.load(weights), tl.load(weights + layer), layer == layers
        so_far, of_x = _load_total(
            x, total, node, columns, (weight != 0) | is_last, is_counted, first_weight, WIDTH, BLOCK_T
        )
        count = ((row + end) // SPLIT - piece + 1).to(tl.int32)
        parts += program.to(tl.int64) * WIDTH
        result = tl.zeros((BLOCK_D,), tl.float32)
        for start in range(0, count, BLOCK_P):
            part = start + tl.arange(0, BLOCK_P)
            offsets = part.to(tl.int64)[:, None] * WIDTH + columns[None, :]
            inside = (part < count)[:, None] & (columns < WIDTH)[None, :]
            result += tl.sum(tl.load(parts + offsets, mask=inside, other=0.0), axis=0)
        _finish_row(
            result, end - begin, node, columns, so_far, of_x, y, total, out, is_counted, first_weight, weight,
            is_last, drop_scale, WIDTH, BLOCK_T,
        )  # fmt: skip


_SPLIT = 128
"""Rows plus edges per warp; rows of more edges are split."""
_FETCHED_BYTES = 4096
"""Bytes of embeddings that a warp loads at a time, in at most 16 rows."""
_SEARCHED_PIECES, _SCALED_ROWS, _JOINED_BYTES = 128, 32, 4096
"""Pieces and rows per program of ``prepare_kernel`` (search, scale); bytes of parts that ``join_kernel`` loads."""
LAUNCH = {"num_warps": 1}


def block_edges(element_bytes: int, block_d: int) -> int:
    """Neighbours per step of the sums.

    >>> block_edges(4, 64), block_edges(2, 64), block_edges(4, 128)
    (16, 16, 8)
    """
    return min(max(_FETCHED_BYTES // (element_bytes * block_d), 1), 16)


def block_rows(element_bytes: int, block_d: int) -> int:
    """Rows that a warp loads or stores at once, 16 bytes per thread.

    >>> block_rows(4, 64), block_rows(2, 64), block_rows(4, 128)
    (2, 4, 1)
    """
    return max(32 * 16 // (element_bytes * block_d), 1)


def block_parts(block_d: int) -> int:
    """Parts of a row that are loaded at once.

    >>> block_parts(64), block_parts(16)
    (16, 32)
    """
    return min(_JOINED_BYTES // (4 * block_d), 32)


def aggregate(
    user_indptr: torch.Tensor,
    user_indices: torch.Tensor,
    item_indptr: torch.Tensor,
    item_indices: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    dropout: float,
    seed: torch.Tensor,
    split: int | None = None,
) -> torch.Tensor:
    """The operator on the device of ``x``; sums in float32, layers in the dtype of ``x``."""
    split = split or _SPLIT
    x, weights = x.contiguous(), weights.contiguous()
    user_indptr, user_indices = user_indptr.contiguous(), user_indices.contiguous()
    item_indptr, item_indices = item_indptr.contiguous(), item_indices.contiguous()
    users, items, width = user_indptr.numel() - 1, item_indptr.numel() - 1, x.shape[1]
    edges, layers = user_indices.numel(), weights.numel() - 1
    if layers == 0 or x.numel() == 0:
        return torch.where(weights[0] == 0, 0.0, weights[0] * x.float()).to(x.dtype)
    user_pieces, item_pieces = triton.cdiv(users + edges, split), triton.cdiv(items + edges, split)
    pieces, blocks = user_pieces + item_pieces, triton.cdiv(width, 128)
    block_d = min(max(triton.next_power_of_2(width), 16), 128)
    block_e, block_t = block_edges(x.element_size(), block_d), block_rows(x.element_size(), block_d)
    out, scaled = torch.empty_like(x), torch.empty_like(x)
    plan = torch.empty(2 * (pieces + 2) + layers + 1, dtype=torch.int32, device=x.device)
    has_parts = edges > split  # otherwise no row can be heavy
    parts = torch.empty((pieces, width) if has_parts else 1, dtype=torch.float32, device=x.device)
    total, other = parts, scaled  # placeholders: a single layer uses neither
    if layers > 1:
        other = torch.empty_like(x)
    if x.dtype == torch.float32:
        total = out
    elif layers > 1:
        total = torch.empty_like(x, dtype=torch.float32)
    searches = user_pieces // _SEARCHED_PIECES + item_pieces // _SEARCHED_PIECES + 2
    prepare_kernel[(searches + triton.cdiv(users + items, _SCALED_ROWS), blocks)](
        user_indptr, item_indptr, x, scaled, weights, plan, layers, users, items, user_pieces, pieces,
        max(users, items).bit_length(),
        WIDTH=width, SPLIT=split, BLOCK_P=_SEARCHED_PIECES, BLOCK_R=_SCALED_ROWS, BLOCK_D=block_d,
    )  # fmt: skip
    drop_below, drop_scale = int(dropout * 2**32), 1.0 / (1.0 - dropout)
    for layer in range(1, layers + 1):
        layer_kernel[(pieces, blocks)](
            user_indptr, user_indices, item_indptr, item_indices, plan, x, scaled, other, total, out, parts, weights,
            seed, layer, layers, users, user_pieces, pieces, drop_below, drop_scale,
            WIDTH=width, DROPOUT=dropout > 0.0, SPLIT=split,
            BLOCK_E=block_e, BLOCK_T=block_t, BLOCK_D=block_d, **LAUNCH,
        )  # fmt: skip
        if has_parts:
            join_kernel[(pieces, blocks)](
                user_indptr, item_indptr, plan, x, other, total, out, parts, weights, layer, layers, users,
                user_pieces, pieces, drop_scale,
                WIDTH=width, SPLIT=split, BLOCK_P=block_parts(block_d), BLOCK_T=block_t,
                BLOCK_D=block_d, **LAUNCH,
            )  # fmt: skip
        scaled, other = other, scaled
    return out
