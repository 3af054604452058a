"""Triton code shared by the operators over logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

BLOCK_D = 64
"""Columns per step of the product."""
LEAST = tl.constexpr(-1e4)
"""Lower bound of a logit minus the largest: its exponential is 0, and masks such as -3e38 cannot overflow in sums."""
_PROGRAMS = 264
"""Programs that fill a device: two for each of the 132 multiprocessors of an H100."""


class Tile(NamedTuple):
    """Rows and classes of a tile of logits, and the launch options of its program."""

    rows: int
    classes: int
    num_warps: int = 4
    num_stages: int = 3

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def tile_of(tiles: tuple[Tile, ...], dtype: torch.dtype, batch: int) -> Tile:
    """The first tile with room for all rows, else the last. float32 uses the first: its products use no tensor cores.

    >>> tile_of((Tile(32, 64), Tile(128, 128)), torch.bfloat16, 33).rows
    128
    """
    if dtype == torch.float32:
        return tiles[0]._replace(rows=16)
    return next((tile for tile in tiles if batch <= tile.rows), tiles[-1])


def stretch_of(classes: int, blocks: int, tile_classes: int) -> int:
    """Classes per program, a multiple of a tile, so that ``blocks`` blocks of rows fill a device.

    >>> stretch_of(32_000, 1, 64), stretch_of(32_000, 8, 64), stretch_of(32_000, 500, 64)
    (128, 1024, 32000)
    """
    stretches = max(_PROGRAMS // blocks, 1)
    return triton.cdiv(triton.cdiv(classes, stretches), tile_classes) * tile_classes


@triton.jit
def logits_tile(
    hidden, heads, bias, rows, first_class, batch, classes, width, inverse_temperature,
    HAS_BIAS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scaled logits ``[BLOCK_B, BLOCK_C]`` of the classes from ``first_class``; -inf past the last class."""
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
