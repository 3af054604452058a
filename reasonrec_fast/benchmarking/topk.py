"""topk against a full score matrix with a mask, and FAISS's exact index."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Bound, Case, Work, installed
from reasonrec_fast.benchmarking.measure import Run

ITEMS, DIM, K, SEEN = 40_981, 64, 20, 50


def _case(batch: int, device: str = "cpu", tiny: bool = False) -> Case:
    name, count = f"topk-{batch}", ITEMS
    if tiny:
        batch, count = 20, 1000
    generator = torch.Generator().manual_seed(0)
    items, queries = torch.randn(count, DIM, generator=generator), torch.randn(batch, DIM, generator=generator)
    seen = torch.rand(batch, 4 * SEEN, generator=generator).argsort(dim=1)[:, :SEEN] * (count // (4 * SEEN))
    items, queries, seen = items.to(device), queries.to(device), seen.sort(1).values.to(device)
    exclude = (torch.arange(batch + 1, device=device) * SEEN, seen.flatten())

    def ours(
        queries: torch.Tensor, items: torch.Tensor, indptr: torch.Tensor, indices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.topk(queries, items, K, exclude=(indptr, indices))

    def plain(queries: torch.Tensor, items: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best = (queries @ items.T).scatter_(1, seen, -torch.inf).topk(K)
        return best.values, best.indices

    values = plain(queries, items, seen)[0]
    contenders: dict[str, Run] = {
        OURS: Bound(ours, (queries, items, *exclude)),
        "torch": Bound(plain, (queries, items, seen)),
    }
    if device == "cpu" and installed("faiss"):
        contenders["faiss"] = _faiss(queries, items, seen)
    return Case(
        "topk",
        name,
        torch.float32,
        contenders,
        floor=Bound(lambda queries, items: queries @ items.T, (queries, items)),
        check=lambda name, result: torch.testing.assert_close(result[0], values, rtol=1e-4, atol=1e-4),
        results=batch * K * 12,
        device=device,
    )


def _faiss(queries: torch.Tensor, items: torch.Tensor, seen: torch.Tensor) -> Run:
    """Fetches as many more items as a row has exclusions, then drops the excluded ones."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items.numpy())

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = (torch.from_numpy(part) for part in index.search(queries.numpy(), K + seen.shape[1]))
        is_excluded = (indices[:, :, None] == seen[:, None, :]).any(2)
        order = is_excluded.to(torch.uint8).argsort(dim=1, stable=True)[:, :K]
        return values.gather(1, order), indices.gather(1, order)

    return run


def _work(batch: int) -> Work:
    """Items, queries, exclusions and results; scores are float32."""
    num_bytes = 4 * DIM * (ITEMS + batch) + 8 * (batch * SEEN + batch + 1) + 12 * K * batch
    return Work(num_bytes, 2 * DIM * ITEMS * batch)


BATCHES = (64, 8192)
CASES: dict[str, Callable[..., Case]] = {f"topk-{batch}": partial(_case, batch) for batch in BATCHES}
WORK = {f"topk-{batch}": _work(batch) for batch in BATCHES}
