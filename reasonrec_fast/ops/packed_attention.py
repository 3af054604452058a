"""Attention over a packed batch: queries of a segment attend to a shared prefix and, causally, to their own keys."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from reasonrec_fast.devices import on_device
from reasonrec_fast.ops import library


@library.takes_arrays
def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: torch.Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """``softmax(scale * query keyᵀ) value`` without padding, and without copying prefixes that segments share.

    Args:
        query: ``[Q, H, d]``, the tokens of all segments, concatenated.
        key, value: ``[K, G, d]``, ``G`` a divisor of ``H`` (grouped queries: head ``h`` reads ``h // (H / G)``).
        segments: int64 ``[S, 6]`` on the CPU: ``query_begin, queries, prefix_begin, prefix, own_begin, seen``. Query
            ``i`` of a segment attends to keys ``[prefix_begin, prefix_begin + prefix)`` and
            ``[own_begin, own_begin + seen + i)``. Segments are in the order of their queries and cover all of them.
        scale: ``d ** -0.5`` by default.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2); None or 0 leaves them unchanged.
        dropout: of the attention weights, in [0, 1].

    Returns:
        ``[Q, H, d]`` in the dtype of ``query``; sums are float32 (float64 for float64). Without gradients and dropout
        it is one fused pass: on a CPU, and on a GPU for float32, bfloat16 and float16 and heads of up to 256 columns.
        On a GPU, pass the same ``segments`` tensor to calls with the same segments: its tiles are then planned and
        copied once. A CUDA graph needs that, and replays the segments of its capture. Otherwise it is matrix products
        of torch, which are differentiable. On a GPU a value that is not finite makes all columns of its head NaN for
        the queries that attend to it, and for no others; on a CPU and in the matrix products it may also reach earlier
        queries of its own segment, and no other segment.

    Raises:
        ValueError: shapes or types that do not fit (argument, expected, got), a number out of range, or segments
            outside the queries or keys (with their row).

    >>> x = torch.eye(4)[:, None]
    >>> both = torch.tensor([[0, 2, 0, 0, 0, 1], [2, 2, 0, 2, 2, 1]])
    >>> packed_attention(x, x, x, both, scale=0.0)[:, 0].mul(6).round().tolist()
    [[6.0, 0.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0], [2.0, 2.0, 2.0, 2.0]]
    """
    if query.dim() != 3 or key.dim() != 3 or key.shape != value.shape or key.shape[2] != query.shape[2]:
        raise ValueError(
            f"query, key, value: expected [Q, H, d], [K, G, d], [K, G, d]; got {list(query.shape)}, "
            f"{list(key.shape)}, {list(value.shape)}"
        )
    if not query.is_floating_point():
        raise ValueError(f"query: expected a floating-point type; got {query.dtype}")
    if key.dtype != query.dtype or value.dtype != query.dtype:
        raise ValueError(f"key, value: expected {query.dtype}, as query has; got {key.dtype} and {value.dtype}")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(f"key: expected a number of heads that divides {query.shape[1]}; got {key.shape[1]}")
    if segments.dim() != 2 or segments.shape[1] != 6 or segments.dtype != torch.int64 or segments.is_cuda:
        raise ValueError(
            f"segments: expected int64 [S, 6] on the CPU; got {segments.dtype} {list(segments.shape)} on "
            f"{segments.device}"
        )
    scale = query.shape[2] ** -0.5 if scale is None else scale
    _check_settings(scale, softcap, dropout)
    differentiable = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if dropout or differentiable or query.device.type not in ("cpu", "cuda", "meta"):
        return _composed(query, key, value, segments.numpy(), scale, softcap or 0.0, dropout)
    return torch.ops.reasonrec_fast.packed_attention(query, key, value, segments, scale, softcap or 0.0)


def _check_settings(scale: float, softcap: float | None, dropout: float) -> None:
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale: expected a finite number; got {scale}")
    if softcap is not None and not 0 <= softcap < math.inf:
        raise ValueError(f"softcap: expected a number of at least 0; got {softcap}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a share in [0, 1]; got {dropout}")


def packed_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: torch.Tensor,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The definition, one query at a time; for tests."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    out = torch.zeros_like(query)
    for begin, queries, prefix_begin, prefix, own_begin, seen in segments.tolist():
        for i in range(queries):
            visible = [*range(prefix_begin, prefix_begin + prefix), *range(own_begin, own_begin + seen + i)]
            scores = scale * torch.einsum("hd,khd->hk", query[begin + i], key[visible])
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            out[begin + i] = torch.einsum("hk,khd->hd", scores.softmax(-1), value[visible])
    return out


@dataclass
class _PlanCache:
    """The tile plans of one ``segments`` tensor.

    Attributes:
        segments: a copy of the values that the plans were made for; the caller may change its tensor in place.
        plans: by numbers of queries and keys, tile size and device.
        ready: on a GPU, the stream on which each plan was copied, and an event recorded after the copy.
    """

    segments: torch.Tensor
    plans: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    ready: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict)


_plans: MutableMapping[torch.Tensor, _PlanCache] = WeakTensorKeyDictionary()
_captured: dict[int, Any] = {}
"""Plans that CUDA graphs read by address. Kept forever: a graph may be replayed after its ``segments`` were freed."""


def _on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: torch.Tensor, scale: float, softcap: float
) -> torch.Tensor:
    kernel = library.triton_kernel("packed_attention", "packed_attention")
    with library.device_of("packed_attention", (query, key, value)):
        if kernel is None or query.dtype == torch.float64 or query.shape[2] > MOST_WIDTH:
            return _composed(query, key, value, segments.numpy(), scale, softcap, 0.0)
        from reasonrec_fast.kernels import packed_attention as kernels  # here, since it imports Triton

        blocks = kernels.choose_blocks(query.dtype, query.shape[2], query.shape[0] * query.shape[1])
        tokens = kernels.tile_tokens(blocks, query.shape[1] // key.shape[1])
        return kernel(
            query, key, value, _plan(segments, len(query), len(key), tokens, query.device), blocks, scale, softcap
        )


def _plan(segments: torch.Tensor, queries: int, keys: int, tile_tokens: int, device: torch.device) -> Any:
    """The kernel's tile plan of some segments, cached while the same tensor holds the same values.

    A plan is written on one stream. Another stream waits for the write's event before it reads the plan, and is
    recorded as a user of its memory, which the allocator would otherwise reuse too early. Nothing is created during a
    capture: the host-to-device copy would be captured too, and would read host memory that is gone at the replay.
    """
    from reasonrec_fast.kernels.packed_attention import make_plan

    entry = _plans.get(segments)
    if entry is None or not torch.equal(entry.segments, segments):
        entry = _plans[segments] = _PlanCache(segments.clone())
    key = (queries, keys, tile_tokens, device)
    if device.type != "cuda":
        if key not in entry.plans:
            entry.plans[key] = make_plan(segments, queries, keys, tile_tokens, device)
        return entry.plans[key]
    capturing = torch.cuda.is_current_stream_capturing()
    stream = torch.cuda.current_stream(device)
    if key not in entry.plans:
        if capturing:
            raise RuntimeError(
                "packed_attention: expected one call with these segments before a CUDA graph is captured; got none"
            )
        entry.plans[key] = make_plan(segments, queries, keys, tile_tokens, device)
        entry.ready[key] = stream, stream.record_event()
        return entry.plans[key]
    plan, (written_on, written) = entry.plans[key], entry.ready[key]
    if capturing:  # torch.cuda.graph synchronises the device before a capture: the plan is written
        _captured[id(plan)] = plan
    elif stream != written_on:
        stream.wait_event(written)
        plan.tiles.record_stream(stream)  # tiles and bounds are views of one allocation
    return plan


def _composed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: np.ndarray,
    scale: float,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    """Differentiable path: two matrix products of torch for each run of segments that share a prefix."""
    table = segments.tolist()
    _check_segments(table, query.shape[0], key.shape[0])
    outputs = []
    for _, run in groupby(table, key=lambda row: (row[2], row[3]) if row[3] else tuple(row)):
        rows = np.array(list(run))
        outputs.append(_shared_prefix(query, key, value, rows, scale, softcap, dropout))
    return torch.cat(outputs) if outputs else torch.zeros_like(query)


def _check_segments(segments: list[list[int]], queries: int, keys: int) -> None:
    """The native check in Python: ranges lie within the keys, and the segments cover the queries in order."""
    covered = 0
    for row, (query_begin, count, prefix_begin, prefix, own_begin, seen) in enumerate(segments):
        inside = 0 <= count <= queries - covered and query_begin == covered
        inside = inside and prefix_begin >= 0 <= prefix and prefix_begin + prefix <= keys
        if not inside or own_begin < 0 or seen < 1 or own_begin + seen + max(count - 1, 0) > keys:
            raise library.ArgumentError(
                f"segments: expected ranges within the queries, in order, and the keys; row {row} is outside"
            )
        covered += count
    if covered != queries:
        raise library.ArgumentError(f"segments: expected to cover {queries} queries; they cover {covered}")


def _shared_prefix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: np.ndarray,
    scale: float,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    """Attention of the ``n`` segments of one run, which share a prefix of ``p`` keys.

    Own keys are padded to ``[n, w]``. The prefix is not copied per segment: the queries of all segments are stacked, so
    that one product with the ``p`` prefix keys gives their scores. Both score blocks are concatenated (prefix first)
    for one softmax.
    """
    count, groups, width = len(rows), key.shape[1], query.shape[2]
    prefix_begin, prefix = rows[0, 2:4]
    queries, sizes = rows[:, 1], rows[:, 5] + rows[:, 1] - 1
    rows_query, positions = _as_rows(query, rows[:, 0], queries)
    longest = rows_query.shape[1]
    # [n, w, G, r, d] -> [n, G, r * w, d]: the r query heads that read one key head are stacked as more rows.
    rows_query = rows_query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3) * scale
    own_key, _ = _as_rows(key, rows[:, 4], sizes)
    own_value, _ = _as_rows(value, rows[:, 4], sizes)
    scores = rows_query @ own_key.permute(0, 2, 3, 1)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    reach = on_device(rows[:, 5, None] + np.arange(longest), query.device)  # own keys visible to each query
    masked = torch.arange(int(sizes.max()), device=query.device) >= reach[:, :, None]
    masked = masked[:, None, None].expand(-1, -1, rows_query.shape[2] // longest, -1, -1).flatten(2, 3)
    scores = scores.masked_fill(masked, -math.inf)
    if prefix:
        shared = slice(int(prefix_begin), int(prefix_begin + prefix))
        flat = rows_query.transpose(0, 1).flatten(1, 2)
        prefix_scores = flat @ key[shared].permute(1, 2, 0)
        if softcap:
            prefix_scores = softcap * torch.tanh(prefix_scores / softcap)
        scores = torch.cat([prefix_scores.unflatten(1, (count, -1)).transpose(0, 1), scores], -1)
    weights = functional.dropout(scores.softmax(-1), dropout)
    outputs = weights[..., int(prefix) :] @ own_value.transpose(1, 2)
    if prefix:
        prefix_outputs = weights[..., : int(prefix)].transpose(0, 1).flatten(1, 2) @ value[shared].transpose(0, 1)
        outputs = outputs + prefix_outputs.unflatten(1, (count, -1)).transpose(0, 1)
    outputs = outputs.unflatten(2, (-1, longest)).permute(0, 3, 1, 2, 4).reshape(count * longest, -1, width)
    return _Collect.apply(outputs, positions)


def _as_rows(x: torch.Tensor, begins: np.ndarray, sizes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranges of ``x [N, ...]`` as rows ``[n, w, ...]`` padded with zeros, and the flat row index of each entry.

    Consecutive ranges are a slice of ``x``, whose gradient needs no scatter.
    """
    rows, longest = len(begins), int(sizes.max())
    inside = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    positions = on_device(np.repeat(np.arange(rows) * longest, sizes) + inside, x.device)
    if (begins[1:] == begins[:-1] + sizes[:-1]).all():
        source = x[int(begins[0]) : int(begins[-1] + sizes[-1])]
    else:
        source = x.index_select(0, on_device(np.repeat(begins, sizes) + inside, x.device))
    padded = source.new_zeros(rows * longest, *x.shape[1:]).index_copy(0, positions, source)
    return padded.unflatten(0, (rows, longest)), positions


class _Collect(torch.autograd.Function):
    """``x[index]`` for distinct indices: the gradient is a plain copy, where autograd would use a slower index_add."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        zeros = gradient.new_zeros(ctx.rows, *gradient.shape[1:])
        return zeros.index_copy(0, index, gradient), None


MOST_WIDTH = 256
"""The largest head width that the kernel supports."""

library.register_on_gpu("packed_attention", _on_gpu)
torch.library.register_fake(
    "reasonrec_fast::packed_attention",
    lambda query, key, value, segments, scale, softcap: torch.empty_like(query, memory_format=torch.contiguous_format),
)
