"""Triton code that operators over logits share."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_C = 64
"""Classes of a tile of logits."""
LEAST = tl.constexpr(-1e4)
"""Logits as far below the largest have no share; farther ones (masks of -3e38) would overflow where they are summed."""
_PROGRAMS = 264
"""Programs that fill a device: two for each of the 132 multiprocessors of an H100."""


def stretch_of(classes: int, blocks: int) -> int:
    """Classes that one program walks over, whole tiles of them, so that ``blocks`` blocks of rows fill a device.

    >>> stretch_of(32_000, 1), stretch_of(32_000, 8), stretch_of(32_000, 500)
    (128, 1024, 32000)
    """
    return triton.cdiv(triton.cdiv(classes, triton.cdiv(_PROGRAMS, blocks)), BLOCK_C) * BLOCK_C


@triton.jit
def logits_tile(
    hidden, heads, bias, rows, first_class, batch, classes, width, inverse_temperature,
    HAS_BIAS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scaled logits ``[BLOCK_B, BLOCK_C]`` of the classes from ``first_class``; -inf beyond the last."""
    columns = first_class + tl.arange(0, BLOCK_C)
    tile = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for start in range(0, width, BLOCK_D):
        inner = start + tl.arange(0, BLOCK_D)
        a = tl.load(
            hidden + rows[:, None].to(tl.int64) * width + inner[None, :],
            mask=(rows < batch)[:, None] & (inner < width)[None, :],
            other=0.0,
        )
        b = tl.load(
            heads + columns[None, :].to(tl.int64) * width + inner[:, None],
            mask=(columns < classes)[None, :] & (inner < width)[:, None],
            other=0.0,
        )
        tile = tl.dot(a, b, tile, input_precision="ieee")
    if HAS_BIAS:
        tile += tl.load(bias + columns, mask=columns < classes, other=0.0).to(tl.float32)[None, :]
    return tl.where((columns < classes)[None, :], tile * inverse_temperature, float("-inf"))
