"""Triton kernels for the element-wise parts of a decoder layer, between its matrix products.

One pass over memory each, where transformers' own code takes two to eight: residual addition with RMS norm, rotary
position embedding of queries and keys (in place), and the gated activation of the feed-forward part. Values are rounded
to their dtype wherever transformers rounds them, so that both differ only by the order of a sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_MOST_COLUMNS = 1024
"""The most columns of one program of ``gate_kernel``."""


@triton.jit
def norm_kernel(
    x, residual, weight, summed, out, eps,
    WIDTH: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PLUS_ONE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row: ``summed = x + residual`` and ``out = norm(summed) * weight`` (PLUS_ONE: times ``1 + weight``)."""
    columns = tl.arange(0, BLOCK_D)
    inside = columns < WIDTH
    offset = tl.program_id(0).to(tl.int64) * WIDTH + columns
    value = tl.load(x + offset, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        value = (value.to(tl.float32) + tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)).to(
            value.dtype
        )
        tl.store(summed + offset, value, mask=inside)
    value_f32 = value.to(tl.float32)
    scaled = value_f32 * tl.rsqrt(tl.sum(value_f32 * value_f32, 0) / WIDTH + eps)
    gain = tl.load(weight + columns, mask=inside, other=0.0)
    if PLUS_ONE:
        scaled = scaled * (1.0 + gain.to(tl.float32))
    else:
        scaled = scaled.to(value.dtype).to(tl.float32) * gain.to(tl.float32)
    tl.store(out + offset, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _apply_rotary(
    x, stride, cosines, sines, token, half, inside, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, WIDTH, HALF
):
    heads = tl.arange(0, BLOCK_H)
    mask = (heads < HEADS)[:, None] & inside[None, :]
    pointer = x + token * stride + heads[:, None] * WIDTH + half[None, :]
    first, second = tl.load(pointer, mask=mask, other=0.0), tl.load(pointer + HALF, mask=mask, other=0.0)
    dtype = first.dtype
    table_offset = token * 2 * HALF + half
    cos_first = tl.load(cosines + table_offset, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_second = tl.load(cosines + table_offset + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_first = tl.load(sines + table_offset, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_second = tl.load(sines + table_offset + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    a, b = first.to(tl.float32), second.to(tl.float32)
    left = (a * cos_first).to(dtype).to(tl.float32) - (b * sin_first).to(dtype).to(tl.float32)
    right = (b * cos_second).to(dtype).to(tl.float32) + (a * sin_second).to(dtype).to(tl.float32)
    tl.store(pointer, left.to(dtype), mask=mask)
    tl.store(pointer + HALF, right.to(dtype), mask=mask)


@triton.jit
def rotary_kernel(
    query, key, cosines, sines, query_stride, key_stride,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rotates the heads of one token in place; columns past ``2 * HALF`` stay unchanged (partial rotary)."""
    token = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, BLOCK_D)
    inside = half < HALF
    _apply_rotary(query, query_stride, cosines, sines, token, half, inside, HEADS, BLOCK_H, WIDTH, HALF)
    _apply_rotary(key, key_stride, cosines, sines, token, half, inside, GROUPS, BLOCK_G, WIDTH, HALF)


@triton.jit
def gate_kernel(gate, up, out, gate_stride, up_stride, width, TANH: tl.constexpr, BLOCK_D: tl.constexpr):
    """``silu(gate) * up``, or with TANH ``gelu(gate) * up`` in its tanh form, for a block of columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    value = tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0)
    gate_f32 = value.to(tl.float32)
    if TANH:
        inner = 0.7978845608028654 * (gate_f32 + 0.044715 * gate_f32 * gate_f32 * gate_f32)
        active = 0.5 * gate_f32 * (2.0 - 2.0 / (1.0 + tl.exp(2.0 * inner)))
    else:
        active = gate_f32 / (1.0 + tl.exp(-gate_f32))
    other = tl.load(up + row * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (active.to(value.dtype).to(tl.float32) * other).to(value.dtype), mask=inside)


def add_and_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, plus_one: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + residual`` and its RMS norm, ``[N, D]`` each; rows of ``x`` and ``residual`` are contiguous."""
    rows, width = x.shape
    out = torch.empty_like(x)
    summed = x if residual is None else torch.empty_like(x)
    if rows:
        norm_kernel[(rows,)](
            x, x if residual is None else residual, weight, summed, out, eps,
            WIDTH=width, HAS_RESIDUAL=residual is not None, PLUS_ONE=plus_one, BLOCK_D=triton.next_power_of_2(width),
        )  # fmt: skip
    return summed, out


def rotate(query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> None:
    """Apply rotary embeddings ``cosines`` and ``sines`` ``[T, r]``, ``r <= d``, to ``query [T, H, d]`` and
    ``key [T, G, d]``, in place.

    The heads of a token must be contiguous.
    """
    (tokens, heads, width), groups, half = query.shape, key.shape[1], cosines.shape[1] // 2
    if tokens:
        rotary_kernel[(tokens,)](
            query, key, cosines, sines, query.stride(0), key.stride(0),
            HEADS=heads, GROUPS=groups, WIDTH=width, HALF=half, BLOCK_H=triton.next_power_of_2(heads),
            BLOCK_G=triton.next_power_of_2(groups), BLOCK_D=triton.next_power_of_2(half), num_warps=2,
        )  # fmt: skip


def gated(gate: torch.Tensor, up: torch.Tensor, tanh: bool) -> torch.Tensor:
    """``activation(gate) * up`` ``[N, D]``: SiLU, or GELU in its tanh form."""
    rows, width = gate.shape
    out = gate.new_empty(rows, width)
    if rows:
        block = min(triton.next_power_of_2(width), _MOST_COLUMNS)
        gate_kernel[(rows, triton.cdiv(width, block))](
            gate, up, out, gate.stride(0), up.stride(0), width, TANH=tanh, BLOCK_D=block
        )
    return out
