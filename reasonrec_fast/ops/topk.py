"""Exact inner-product retrieval with per-row exclusions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from reasonrec_fast.ops import library

Exclusions = tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_BLOCK = 8192
"""Items scored per step; bounds the extra memory to ``B * (k + _BLOCK)`` scores."""


class TopK(NamedTuple):
    """The top-k items of each query, best first."""

    values: torch.Tensor
    indices: torch.Tensor


@library.takes_arrays
def topk(queries: torch.Tensor, items: torch.Tensor, k: int, *, exclude: Exclusions | None = None) -> TopK:
    """The ``k`` items with the largest inner product with each query.

    Args:
        queries: ``[B, D]``.
        items: ``[N, D]``, of the same dtype.
        k: at least 0; may be larger than ``N``.
        exclude: items that a row must not return, in CSR form: ``(indptr [B + 1], indices)``, or
            ``(indptr, indices, rows [B])`` where the CSR has more rows than the batch and ``rows`` selects them. On a
            GPU, where a check would read values back, ``indptr`` must be non-decreasing and within ``indices``, and
            items outside ``[0, N)`` exclude nothing.

    Returns:
        values ``[B, k]`` float32 (float64 for float64 inputs) and indices ``[B, k]`` int64, by descending value; equal
        values by ascending index. Slots without an item hold ``-inf`` and ``-1``. NaN scores count as ``-inf``, but
        their items are still returned before empty slots. The same input gives the same bits for any number of
        threads. On a GPU a float32 product is computed as three TF32 tensor-core products, with a relative error of
        about 2^-22.

    Raises:
        ValueError: shapes or dtypes that do not fit (argument, expected, got); on a CPU, an invalid CSR, or an excluded
            item outside ``[0, N)`` (with its row).

    >>> topk(torch.eye(2), torch.tensor([[1.0, 0.0], [0.5, 2.0]]), 1).indices.tolist()
    [[0], [1]]
    """
    if queries.dim() != 2 or items.dim() != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(
            f"queries, items: expected [B, D] and [N, D]; got {list(queries.shape)} and {list(items.shape)}"
        )
    if not queries.is_floating_point() or items.dtype != queries.dtype:
        raise ValueError(f"queries, items: expected one floating-point type; got {queries.dtype} and {items.dtype}")
    if type(k) is not int or k < 0:
        library.check_count(k, "k")
    indptr, indices, rows = _exclusion_tensors(exclude, queries)
    return TopK(*torch.ops.reasonrec_fast.topk(queries, items, k, indptr, indices, rows))


def _exclusion_tensors(exclude: Exclusions | None, queries: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if exclude is None:
        empty = library.nothing(torch.int64, queries.device, library.may_keep(queries.device))
        return empty, empty, empty
    if not isinstance(exclude, tuple) or len(exclude) not in (2, 3):
        raise ValueError("exclude: expected (indptr, indices) or (indptr, indices, rows); got something else")
    batch = queries.shape[0]
    parts: list[torch.Tensor] = []
    for part in exclude:
        fits = isinstance(part, torch.Tensor) and part.dtype is torch.int64 and part.dim() == 1
        parts.append(part if fits else _as_int64(part, ("indptr", "indices", "rows")[len(parts)]))
    if len(parts) == 2:
        if parts[0].numel() != batch + 1:
            raise ValueError(
                f"exclude: expected an indptr of {batch + 1} entries; got {parts[0].numel()} (or pass rows)"
            )
        return parts[0], parts[1], torch.arange(batch, device=queries.device)
    if parts[2].numel() != batch:
        raise ValueError(f"exclude: expected {batch} rows, one a query; got {parts[2].numel()}")
    if parts[0].numel() == 0:
        raise ValueError("exclude: expected an indptr of at least one entry; got none")
    return tuple(parts)


def _as_int64(part: Any, name: str) -> torch.Tensor:
    if not isinstance(part, torch.Tensor):
        raise ValueError(f"exclude: expected {name} to be a vector of integers; got {type(part).__name__}")
    if part.dim() != 1 or (not library.is_integer(part) and part.numel()):
        raise ValueError(f"exclude: expected {name} to be a vector of integers; got {list(part.shape)} of {part.dtype}")
    return part.long()


def _topk(
    queries: torch.Tensor,
    items: torch.Tensor,
    k: int,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    rows: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores blocks of items and merges each into the best so far by a stable sort, which keeps lower indices first.

    On a GPU only for float64 and large ``k``; there it reads the number of exclusions back to the host.
    """
    batch, dtype = queries.shape[0], torch.float64 if queries.dtype == torch.float64 else torch.float32
    values = queries.new_full((batch, k), -torch.inf, dtype=dtype)
    best = queries.new_full((batch, k), -1, dtype=torch.int64)
    if batch == 0 or k == 0:
        return values, best
    excluded_rows, excluded_items = _excluded_pairs(indptr, indices, rows)
    for start in range(0, items.shape[0], _BLOCK):
        block = items[start : start + _BLOCK]
        scores = (queries.to(dtype) @ block.to(dtype).T).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        index = torch.arange(start, start + block.shape[0], device=items.device).expand(batch, -1)
        inside = (excluded_items >= start) & (excluded_items < start + block.shape[0])
        excluded = torch.zeros_like(scores, dtype=torch.bool)
        # Pairs outside this block write to an extra column that is dropped: no data-dependent shapes.
        excluded = torch.cat([excluded, excluded.new_zeros(batch, 1)], dim=1)
        excluded[excluded_rows, torch.where(inside, excluded_items - start, block.shape[0])] = True
        index = torch.where(excluded[:, :-1], -1, index)
        scores = scores.masked_fill(excluded[:, :-1], -torch.inf)
        values, best = _merge(torch.cat([values, scores], 1), torch.cat([best, index], 1), k)
    return values, best


def _merge(values: torch.Tensor, index: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    present_first = torch.sort(index < 0, dim=1, stable=True).indices
    values, index = values.gather(1, present_first), index.gather(1, present_first)
    values, order = torch.sort(values, dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), index.gather(1, order)[:, :k].contiguous()


def _excluded_pairs(
    indptr: torch.Tensor, indices: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch row and item of every exclusion, ``[E]`` each."""
    if indptr.numel() == 0:
        return indices, indices
    indptr = indptr.clamp(0, indices.numel())
    sizes = (indptr[rows + 1] - indptr[rows]).clamp_min(0)
    batch_rows = torch.repeat_interleave(torch.arange(rows.numel(), device=rows.device), sizes)
    within = torch.arange(batch_rows.numel(), device=rows.device) - (sizes.cumsum(0) - sizes)[batch_rows]
    return batch_rows, indices[indptr[rows][batch_rows] + within]


def topk_reference(scores: torch.Tensor, k: int, excluded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator's result, from all scores ``[B, N]`` (float64) and a mask ``[B, N]`` of exclusions."""
    values = scores.new_full((scores.shape[0], k), -torch.inf)
    indices = torch.full((scores.shape[0], k), -1, dtype=torch.int64)
    for row in range(scores.shape[0]):
        allowed = [
            (-torch.inf if torch.isnan(s) else float(s), i) for i, s in enumerate(scores[row]) if not excluded[row, i]
        ]
        for slot, (value, index) in enumerate(sorted(allowed, key=lambda pair: (-pair[0], pair[1]))[:k]):
            values[row, slot], indices[row, slot] = value, index
    return values, indices


def _fake(queries, items, k, indptr, indices, rows):
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=dtype), queries.new_empty(shape, dtype=torch.int64)


_MOST_IN_KERNEL = 256

torch.library.register_fake("reasonrec_fast::topk", _fake)
library.implement_on_gpu(
    "topk",
    _topk,
    reference_dtypes=(torch.float64,),
    fits=lambda queries, items, k, *exclude: k <= _MOST_IN_KERNEL,
)
library.batch_rows("topk", rows=(0, 5))
