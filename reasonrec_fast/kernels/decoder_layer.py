"""Triton kernels of what lies between the matrix products of a decoder layer.

One pass over memory each, where transformers' own code takes two to eight: the sum with the residual and its RMS norm,
the rotary turn of queries and keys (in place), and the gate of the feed-forward part. Numbers are rounded to their type
where transformers rounds them, so that both ways give the same but for the order of a sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_MOST_COLUMNS = 1024
"""Columns that a program of ``gate_kernel`` takes."""


@triton.jit
def norm_kernel(
    x, residual, weight, summed, out, eps,
    WIDTH: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PLUS_ONE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row: ``summed = x + residual`` and ``out = norm(summed) * weight`` (PLUS_ONE: times ``1 + weight``)."""
    columns = tl.arange(0, BLOCK_D)
    inside = columns < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + columns
    value = tl.load(x + place, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        value = (value.to(tl.float32) + tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)).to(
            value.dtype
        )
        tl.store(summed + place, value, mask=inside)
    wide = value.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    gain = tl.load(weight + columns, mask=inside, other=0.0)
    if PLUS_ONE:
        scaled = scaled * (1.0 + gain.to(tl.float32))
    else:
        scaled = scaled.to(value.dtype).to(tl.float32) * gain.to(tl.float32)
    tl.store(out + place, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turn(x, stride, cosines, sines, token, half, inside, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, WIDTH, HALF):
    heads = tl.arange(0, BLOCK_H)
    mask = (heads < HEADS)[:, None] & inside[None, :]
    place = x + token * stride + heads[:, None] * WIDTH + half[None, :]
    first, second = tl.load(place, mask=mask, other=0.0), tl.load(place + HALF, mask=mask, other=0.0)
    kind = first.dtype
    at = token * 2 * HALF + half
    cos_first = tl.load(cosines + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_second = tl.load(cosines + at + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_first = tl.load(sines + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_second = tl.load(sines + at + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    a, b = first.to(tl.float32), second.to(tl.float32)
    left = (a * cos_first).to(kind).to(tl.float32) - (b * sin_first).to(kind).to(tl.float32)
    right = (b * cos_second).to(kind).to(tl.float32) + (a * sin_second).to(kind).to(tl.float32)
    tl.store(place, left.to(kind), mask=mask)
    tl.store(place + HALF, right.to(kind), mask=mask)


@triton.jit
def rotary_kernel(
    query, key, cosines, sines, query_stride, key_stride,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Turns the heads of one token in place; columns past ``2 * HALF`` stay."""
    token = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, BLOCK_D)
    inside = half < HALF
    _turn(query, query_stride, cosines, sines, token, half, inside, HEADS, BLOCK_H, WIDTH, HALF)
    _turn(key, key_stride, cosines, sines, token, half, inside, GROUPS, BLOCK_G, WIDTH, HALF)


@triton.jit
def gate_kernel(gate, up, out, gate_stride, up_stride, width, TANH: tl.constexpr, BLOCK_D: tl.constexpr):
    """``silu(gate) * up``, or (TANH) ``gelu(gate) * up`` by its tanh form; some columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    value = tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    if TANH:
        inner = 0.7978845608028654 * (wide + 0.044715 * wide * wide * wide)
        active = 0.5 * wide * (2.0 - 2.0 / (1.0 + tl.exp(2.0 * inner)))
    else:
        active = wide / (1.0 + tl.exp(-wide))
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
    """Turn ``query [T, H, d]`` and ``key [T, G, d]`` in place by ``cosines`` and ``sines`` ``[T, r]``, ``r <= d``.

    The heads of a token lie side by side.
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
