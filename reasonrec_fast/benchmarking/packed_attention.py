"""packed_attention beside scaled_dot_product_attention, which wants equal lengths and a copy of the prefix a candidate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Case

HEADS, KEY_HEADS, WIDTH = 9, 3, 64  # SmolLM2-135M's


def _inputs(tokens: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(*shape, generator=generator).bfloat16().to(device) for shape in shapes]


def _rows(x: torch.Tensor, rows: int, repeats: int = 1) -> torch.Tensor:
    """``[T, H, d]`` as ``[rows, H * repeats, T / rows, d]``."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2).repeat_interleave(repeats, 1)


def _case(name: str, groups: int, prefix: int, candidates: int, suffix: int, device: str = "cpu") -> Case:
    """Groups of one prefix and so many candidates; without candidates whole texts of ``prefix`` tokens."""
    repeats, per_group = HEADS // KEY_HEADS, prefix + candidates * suffix
    query, key, value = _inputs(groups * per_group, device)
    segments = []
    for start in range(0, groups * per_group, per_group):
        segments.append([start, prefix, 0, 0, start, 1])
        for at in range(start + prefix, start + per_group, suffix or 1):
            segments.append([at, suffix, start, prefix, at, 1])
    table = torch.tensor(segments)

    def plain() -> torch.Tensor:
        parts = [x.unflatten(0, (groups, per_group)) for x in (query, key, value)]
        heads = [
            _rows(x[:, :prefix].flatten(0, 1), groups, r) for x, r in zip(parts, (1, repeats, repeats), strict=True)
        ]
        found = [scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)]
        if candidates:
            asked = _rows(parts[0][:, prefix:].flatten(0, 1), groups * candidates)
            both = [
                torch.cat(
                    [
                        shared.repeat_interleave(candidates, 0),
                        _rows(x[:, prefix:].flatten(0, 1), groups * candidates, repeats),
                    ],
                    2,
                )
                for shared, x in zip(heads[1:], parts[1:], strict=True)
            ]
            mask = torch.ones(suffix, prefix + suffix, dtype=torch.bool, device=device).tril(prefix)
            told = scaled_dot_product_attention(asked, *both, attn_mask=mask).transpose(1, 2)
            found.append(told.reshape(groups, candidates * suffix, HEADS, WIDTH))
        return torch.cat(found, 1).flatten(0, 1)

    expected = plain()
    return Case(
        "packed_attention",
        name,
        query.dtype,
        {OURS: lambda: ops.packed_attention(query, key, value, table), "torch": plain},
        check=lambda contender, found: torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2),
        results=query.numel() * 2,
        device=device,
    )


CASES: dict[str, Callable[..., Case]] = {
    "attention-shared": partial(_case, "attention-shared", 1, 232, 32, 24),
    "attention-texts": partial(_case, "attention-texts", 8, 256, 0, 0),
}
