"""exit_confidence beside torch as people write it: linear, softmax, the largest two, entropy."""

import pytest
import torch

from reasonrec_fast import ops

CASES = {"yes-no-ensemble": (4096, 576, 2, 4), "vocabulary": (16, 576, 49_152, 1)}


def plain(hidden, heads):
    logits = torch.einsum("bd,kcd->bkc", hidden, heads)
    mean = logits.softmax(-1).mean(1)
    best = mean.topk(2, -1)
    entropy = -torch.special.xlogy(mean, mean).sum(-1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1], entropy, logits.logsumexp(-1)


@pytest.mark.benchmark(group="exit_confidence")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("contender", ["reasonrec_fast", "torch"])
def bench_exit_confidence(benchmark, case, contender):
    rows, width, classes, members = CASES[case]
    hidden, heads = torch.randn(rows, width), torch.randn(members, classes, width) * width**-0.5
    _, margin, entropy, _ = plain(hidden, heads)
    if contender == "torch":
        benchmark(lambda: plain(hidden, heads))
        return
    found = benchmark(lambda: ops.exit_confidence(hidden, heads, measure="margin"))
    torch.testing.assert_close(found.confidence, margin, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.entropy, entropy, rtol=1e-4, atol=1e-4)
