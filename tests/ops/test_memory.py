"""No operator holds what it promises not to hold: all logits, all scores, a value an edge."""

import pytest
import torch

from reasonrec_fast import InteractionGraph, ops
from reasonrec_fast.benchmarking.measure import peak_extra_bytes

MB = 2**20


def extra(run, results):
    result = peak_extra_bytes(run, results)
    if result is None:
        pytest.skip("this system does not tell a process's peak memory")
    return result


def test_exit_confidence_holds_no_logits():
    hidden, heads = torch.randn(512, 64).bfloat16(), torch.randn(60_000, 64).bfloat16()
    logits = 512 * 60_000 * 2
    assert extra(lambda: ops.exit_confidence(hidden, heads), 512 * 40) < 0.1 * logits


def test_gradients_of_exit_confidence_hold_no_logits():
    hidden, heads = torch.randn(2048, 32).requires_grad_(), torch.randn(60_000, 32).requires_grad_()

    def run():
        result = ops.exit_confidence(hidden, heads)
        return torch.autograd.grad((result.probability + result.entropy).sum(), (hidden, heads))

    eager = 2 * 2048 * 60_000 * 4
    assert extra(run, (hidden.numel() + heads.numel()) * 4) < 0.15 * eager


def test_token_logprobs_hold_no_logits():
    hidden = torch.randn(2048, 32).requires_grad_()
    weight = torch.randn(60_000, 32).requires_grad_()
    tokens = torch.arange(2048)

    def run():
        return torch.autograd.grad(ops.token_logprobs(hidden, weight, tokens).logprobs.sum(), (hidden, weight))

    eager = 2 * 2048 * 60_000 * 4  # the logits and their gradient, at the least
    assert extra(run, (hidden.numel() + weight.numel()) * 4) < 0.15 * eager


def test_topk_holds_no_scores():
    queries, items = torch.randn(4096, 16), torch.randn(20_000, 16)
    scores = 4096 * 20_000 * 4
    assert extra(lambda: ops.topk(queries, items, 20), 4096 * 20 * 12) < 0.1 * scores


def test_aggregate_holds_nothing_an_edge():
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(2000, (2, 1_000_000), generator=generator)
    graph = InteractionGraph.from_edges(*ends)
    x = torch.randn(4000, 16)
    assert extra(lambda: ops.aggregate(graph, x, layers=3, combine="mean"), x.numel() * 4) < 3 * MB


def test_a_node_with_a_million_edges():
    edges = 1_000_000
    graph = InteractionGraph.from_edges(torch.zeros(edges, dtype=torch.int64), torch.arange(edges))
    x = torch.rand(edges + 1, 2)
    result = ops.aggregate(graph, x)
    # Its neighbours have one edge each: a mean, times the root of the degree.
    expected = x[1:].double().sum(0) / edges**0.5
    torch.testing.assert_close(result[0].double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(result[1:], (x[0] / edges**0.5).expand(edges, 2))


def test_more_than_two_to_the_31_elements():
    """Untouched zeros cost no memory; one row is written."""
    width = 64
    rows = 2**31 // width + 100
    items = torch.zeros(rows, width, dtype=torch.bfloat16)
    items[-7] = 1.0
    result = ops.topk(torch.ones(1, width).bfloat16(), items, 2)
    assert result.indices[0].tolist() == [rows - 7, 0]
    assert result.values[0].tolist() == [width, 0]
