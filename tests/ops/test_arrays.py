"""Operators take arrays of other libraries by DLPack, without a copy."""

import numpy as np
import pytest
import torch

from reasonrec_fast import InteractionGraph, ops


class Exported:
    """Any array: nothing but the protocol."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


@pytest.fixture(params=[lambda t: t.numpy(), Exported], ids=["numpy", "dlpack"])
def array(request):
    return request.param


def assert_same(results, expected):
    results, expected = ((x,) if isinstance(x, torch.Tensor) else x for x in (results, expected))
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual, wanted)


def test_every_operator(array):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(6, 4, generator=generator), torch.randn(5, 4, generator=generator)
    tokens = torch.randint(5, (6,), generator=generator)
    advantages, old, ids = torch.randn(2), torch.randn(6), torch.tensor([0, 0, 0, 1, 1, 1])
    a = array
    assert_same(
        ops.exit_confidence(a(hidden), a(weight), bias=a(old[:5]), targets=a(tokens)),
        ops.exit_confidence(hidden, weight, bias=old[:5], targets=tokens),
    )
    assert_same(ops.token_logprobs(a(hidden), a(weight), a(tokens)), ops.token_logprobs(hidden, weight, tokens))
    exclude = (torch.arange(7), tokens)
    assert_same(
        ops.topk(a(hidden), a(weight), 3, exclude=(a(exclude[0]), a(exclude[1]))),
        ops.topk(hidden, weight, 3, exclude=exclude),
    )
    route = ops.route(a(old), budget=2)
    assert_same(route, ops.route(old, budget=2))
    assert_same(ops.route_to(a(ids), 2), ops.route_to(ids, 2))
    assert_same(ops.combine(ops.dispatch(a(hidden), route), route), hidden)
    loss, _ = ops.policy_loss(a(hidden), a(weight), a(tokens), a(advantages), a(old), sequence_ids=a(ids))
    assert_same(loss, ops.policy_loss(hidden, weight, tokens, advantages, old, sequence_ids=ids)[0])
    assert_same(ops.group_advantages(a(old), a(ids)), ops.group_advantages(old, ids))
    graph = InteractionGraph.from_edges(a(torch.tensor([0, 1])), a(torch.tensor([2, 0])))
    users, items = hidden[:2], hidden[2:5]
    assert_same(ops.aggregate(graph, (a(users), a(items))), ops.aggregate(graph, (users, items)))


def test_results_go_out_without_a_copy():
    result = ops.topk(torch.eye(2), torch.eye(2), 1)
    out = np.from_dlpack(result.values)
    assert out.ctypes.data == result.values.data_ptr()


def test_inputs_come_in_without_a_copy():
    values = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    seen = ops.library._as_tensor(values)
    assert seen.data_ptr() == values.ctypes.data
