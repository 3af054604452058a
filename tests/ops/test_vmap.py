"""torch.vmap over operators equals a loop."""

import pytest
import torch

from reasonrec_fast import InteractionGraph, ops


def assert_loop(function, *batches):
    results = torch.vmap(function)(*batches)
    looped = [function(*items) for items in zip(*batches, strict=True)]
    if isinstance(results, torch.Tensor):
        results, looped = (results,), [(item,) for item in looped]
    for part, parts in zip(results, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(parts))


def test_exit_confidence():
    hidden, heads, targets = torch.randn(3, 5, 4), torch.randn(2, 3, 4), torch.randint(3, (3, 5))
    assert_loop(lambda h, t: tuple(ops.exit_confidence(h, heads, targets=t, threshold=0.5)), hidden, targets)
    assert_loop(lambda h: tuple(ops.exit_confidence(h, heads[0])), hidden)


def test_token_logprobs():
    hidden, weight, tokens = torch.randn(3, 5, 4), torch.randn(7, 4), torch.randint(7, (3, 5))
    assert_loop(lambda h, t: tuple(ops.token_logprobs(h, weight, t)), hidden, tokens)


def test_topk():
    queries, items = torch.randn(3, 5, 4), torch.randn(9, 4)
    exclude = (torch.arange(6), torch.arange(5))
    assert_loop(lambda q: tuple(ops.topk(q, items, 2)), queries)
    assert_loop(lambda q: tuple(ops.topk(q, items, 2, exclude=exclude)), queries)


def test_aggregate():
    graph = InteractionGraph.from_edges([0, 0, 1], [0, 1, 1])
    assert_loop(lambda x: ops.aggregate(graph, x, layers=2, combine="mean"), torch.randn(3, 4, 5))


def test_other_batches_are_refused():
    queries = torch.randn(2, 4)
    with pytest.raises(ValueError, match="topk: vmap expects batches"):
        torch.vmap(lambda items: ops.topk(queries, items, 1).values)(torch.randn(3, 9, 4))
