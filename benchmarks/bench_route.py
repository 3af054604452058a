"""route, dispatch and combine beside the best composition of torch operators."""

import pytest
import torch

from reasonrec_fast import ops

ROWS, WIDTH, SHARE = 65_536, 256, 0.35


@pytest.mark.benchmark(group="route")
@pytest.mark.parametrize("contender", ["reasonrec_fast", "torch"])
def bench_route(benchmark, contender):
    uncertainty, x = torch.rand(ROWS), torch.randn(ROWS, WIDTH)

    def ours():
        route = ops.route(uncertainty, budget=SHARE)
        return ops.combine(ops.dispatch(x, route), route)

    def plain():
        delegated = torch.zeros(ROWS, dtype=torch.bool)
        delegated[uncertainty.topk(int(SHARE * ROWS), sorted=False).indices] = True
        order = torch.cat([(~delegated).nonzero().flatten(), delegated.nonzero().flatten()])
        return torch.empty_like(x).index_copy_(0, order, x.index_select(0, order))

    assert torch.equal(benchmark(ours if contender == "reasonrec_fast" else plain), x)
