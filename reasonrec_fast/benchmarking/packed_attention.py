"""packed_attention against scaled_dot_product_attention, which needs equal lengths and a prefix copy per candidate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Bound, Case, Work

HEADS, KEY_HEADS, WIDTH = 9, 3, 64  # SmolLM2-135M's
SIZES = {
    "attention-shared": (1, 232, 32, 24),
    "attention-shared-4": (4, 232, 32, 24),
    "attention-texts": (8, 256, 0, 0),
}
"""Groups, tokens per prefix, candidates per group, tokens per candidate; without candidates the prefixes are texts."""


def _inputs(tokens: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(*shape, generator=generator).bfloat16().to(device) for shape in shapes]


def _rows(x: torch.Tensor, rows: int, repeats: int = 1) -> torch.Tensor:
    """``[T, H, d]`` as ``[rows, H * repeats, T / rows, d]``."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2).repeat_interleave(repeats, 1)


def _case(
    name: str, groups: int, prefix: int, candidates: int, suffix: int, device: str = "cpu", tiny: bool = False
) -> Case:
    if tiny:
        groups, prefix, candidates, suffix = min(groups, 2), 20, min(candidates, 3), min(suffix, 4)
    repeats, per_group = HEADS // KEY_HEADS, prefix + candidates * suffix
    inputs = _inputs(groups * per_group, device)
    segments = []
    for start in range(0, groups * per_group, per_group):
        segments.append([start, prefix, 0, 0, start, 1])
        for position in range(start + prefix, start + per_group, suffix or 1):
            segments.append([position, suffix, start, prefix, position, 1])
    table = torch.tensor(segments)
    mask = torch.ones(max(suffix, 1), prefix + max(suffix, 1), dtype=torch.bool).tril(prefix).to(device)

    def prefixes(x: torch.Tensor, repeats: int) -> torch.Tensor:
        return _rows(x.unflatten(0, (groups, per_group))[:, :prefix].flatten(0, 1), groups, repeats)

    def suffixes(x: torch.Tensor, repeats: int) -> torch.Tensor:
        rows = groups * candidates
        return _rows(x.unflatten(0, (groups, per_group))[:, prefix:].flatten(0, 1), rows, repeats)

    def both(x: torch.Tensor) -> torch.Tensor:
        """Keys or values of each candidate, after a copy of its prefix's."""
        return torch.cat([prefixes(x, repeats).repeat_interleave(candidates, 0), suffixes(x, repeats)], 2)

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query_heads, key_heads, value_heads = prefixes(query, 1), prefixes(key, repeats), prefixes(value, repeats)
        outputs = [scaled_dot_product_attention(query_heads, key_heads, value_heads, is_causal=True).transpose(1, 2)]
        if candidates:
            suffix_outputs = scaled_dot_product_attention(suffixes(query, 1), both(key), both(value), attn_mask=mask)
            outputs.append(suffix_outputs.transpose(1, 2).reshape(groups, candidates * suffix, HEADS, WIDTH))
        return torch.cat(outputs, 1).flatten(0, 1)

    expected = plain(*inputs)
    return Case(
        "packed_attention",
        name,
        expected.dtype,
        {OURS: Bound(ops.packed_attention, (*inputs, table)), "torch": Bound(plain, tuple(inputs))},
        check=lambda contender, result: torch.testing.assert_close(result, expected, atol=3e-2, rtol=3e-2),
        results=expected.numel() * 2,
        device=device,
    )


def _work(groups: int, prefix: int, candidates: int, suffix: int) -> Work:
    """Queries, keys, values and outputs once; two products over the (query, key) pairs that are not masked."""
    tokens = groups * (prefix + candidates * suffix)
    pairs = prefix * (prefix + 1) // 2 + candidates * (suffix * prefix + suffix * (suffix + 1) // 2)
    return Work(2 * WIDTH * tokens * 2 * (HEADS + KEY_HEADS), 4 * WIDTH * HEADS * groups * pairs, torch.bfloat16)


CASES: dict[str, Callable[..., Case]] = {name: partial(_case, name, *sizes) for name, sizes in SIZES.items()}
WORK = {name: _work(*sizes) for name, sizes in SIZES.items()}
