"""topk beside a full score matrix with a mask."""

import pytest
import torch

from reasonrec_fast import ops

BATCH, ITEMS, DIM, K, SEEN = 64, 40_981, 64, 20, 50


@pytest.mark.benchmark(group="topk")
@pytest.mark.parametrize("contender", ["reasonrec_fast", "torch"])
def bench_topk(benchmark, contender):
    queries, items = torch.randn(BATCH, DIM), torch.randn(ITEMS, DIM)
    seen = torch.stack([torch.randperm(ITEMS)[:SEEN] for _ in range(BATCH)])
    exclude = (torch.arange(BATCH + 1) * SEEN, seen.flatten())

    def plain():
        return (queries @ items.T).scatter_(1, seen, -torch.inf).topk(K)

    if contender == "torch":
        benchmark(plain)
        return
    found = benchmark(lambda: ops.topk(queries, items, K, exclude=exclude))
    torch.testing.assert_close(found.values, plain().values)
