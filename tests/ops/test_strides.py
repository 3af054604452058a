"""Operators on views: for any strides the result of the contiguous input; and on empty inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import InteractionGraph, ops

GRAPH = InteractionGraph.from_edges([0, 0, 1, 2, 2], [0, 3, 1, 1, 2])
VIEWS = {
    "whole": lambda t: t,
    "transposed": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "every_second": lambda t: torch.stack([t, t * 0], 1).flatten(0, 1)[::2],
    "inner": lambda t: torch.cat([t * 0, t, t], -1)[..., t.shape[-1] : 2 * t.shape[-1]],
    "expanded": lambda t: t[:1].expand_as(t),
}


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


TOKENS = torch.tensor([4, 0, 1, 4, 2, 3])
RUNS = {
    "exit_confidence": (lambda h, w: ops.exit_confidence(h, w, targets=TOKENS), (normal(6, 5), normal(70, 5))),
    "exit_ensemble": (lambda h, w: ops.exit_confidence(h, w), (normal(6, 5), normal(3, 2, 5))),
    "token_logprobs": (lambda h, w: ops.token_logprobs(h, w, TOKENS), (normal(6, 5), normal(9, 5))),
    "aggregate": (lambda x: [ops.aggregate(GRAPH, x, layers=2, combine="mean")], (normal(7, 20),)),
    "topk": (lambda q, i: ops.topk(q, i, 4), (normal(6, 5), normal(30, 5))),
    "route": (lambda u: ops.route(u, budget=2), (normal(6),)),
    "dispatch": (lambda x: [ops.dispatch(x, ops.route_to(TOKENS, 5))], (normal(6, 3),)),
    "policy_loss": (
        lambda h, w, a, o: [ops.policy_loss(h, w, TOKENS, a, o)[0]],
        (normal(6, 5), normal(9, 5), normal(6), normal(6) - 2),
    ),
    "group_advantages": (lambda r: [ops.group_advantages(r, TOKENS % 2)], (normal(6),)),
}


@settings(deadline=None, max_examples=120)
@given(
    name=st.sampled_from(sorted(RUNS)),
    views=st.lists(st.sampled_from(sorted(VIEWS)), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_views_equal_contiguous(name, views, dtype):
    run, inputs = RUNS[name]
    strided = [VIEWS[view](x.to(dtype)) for view, x in zip(views, inputs, strict=False)]
    for actual, wanted in zip(run(*strided), run(*(x.contiguous() for x in strided)), strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_rows(dtype):
    hidden, weight, none = torch.zeros(0, 5, dtype=dtype), torch.ones(9, 5, dtype=dtype), torch.zeros(0).long()
    assert ops.exit_confidence(hidden, weight, targets=none, threshold=0.5).exit.shape == (0,)
    assert ops.exit_confidence(hidden, weight.expand(3, 9, 5)).logsumexp.shape == (0, 3)
    assert ops.token_logprobs(hidden, weight, none).logprobs.shape == (0,)
    assert ops.topk(hidden, weight, 3).indices.shape == (0, 3)
    assert ops.topk(weight, hidden, 3).indices.eq(-1).all()
    assert ops.route(hidden[:, 0], budget=0.5).offsets.tolist() == [0, 0, 0]
    assert ops.route_to(none, 3).offsets.tolist() == [0, 0, 0, 0]
    assert float(ops.policy_loss(hidden, weight, none, hidden[:, 0], hidden[:, 0])[0]) == 0.0
    assert ops.group_advantages(hidden[:, 0], none).shape == (0,)
    graph = InteractionGraph.from_edges([], [], num_users=0, num_items=0)
    assert ops.aggregate(graph, hidden, layers=2).shape == (0, 5)
