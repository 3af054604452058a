"""Operators on a GPU: against float64 on the CPU, the same bits twice, no host synchronisation, in CUDA graphs.

More sizes, strides, ties and NaN are in ``benchmarks/gpu/checks.py``, which ``python -m benchmarks.gpu`` runs as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from on_gpu import parts

from reasonrec_fast import InteractionGraph, ops

WIDTHS = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# A prefix of 200 tokens with two rows behind it, and a row alone.
SEGMENTS = torch.tensor(
    [[0, 200, 0, 0, 0, 1], [200, 24, 0, 200, 200, 1], [224, 9, 0, 200, 224, 1], [233, 70, 0, 0, 233, 1]]
)


@dataclass(frozen=True)
class Problem:
    """Attributes: the inputs, of which floating-point ones are converted to the type under test; and the
    computation."""

    inputs: tuple[torch.Tensor, ...]
    run: Callable[..., Any]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def integers(high: int, size: int) -> torch.Tensor:
    return torch.randint(high, (size,), generator=torch.Generator().manual_seed(high + size))


def aggregate_problem() -> Problem:
    users, items = integers(300, 6000), integers(1000, 6000)
    users[:3000] = 0  # one heavy user
    items[:1000] = torch.arange(1000)
    graph = InteractionGraph.from_edges(users, items)
    csr = tuple(getattr(graph, name) for name in graph.__dataclass_fields__)
    options: dict[str, Any] = {"layers": 3, "combine": "mean", "dropout": 0.2, "seed": 3}
    return Problem(
        (normal(graph.num_users + graph.num_items, 64), *csr),
        lambda x, *csr: ops.aggregate(InteractionGraph(*csr), x, **options),
    )


@cache
def problems() -> dict[str, Problem]:
    tokens = integers(3000, 70)
    exclude = (torch.arange(41) * 3, integers(5000, 120))
    return {
        "exit_confidence": Problem(
            (normal(33, 96), normal(3000, 96) / 10),
            lambda hidden, heads: ops.exit_confidence(hidden, heads, measure="margin")[1:7],
        ),
        "exit_ensemble": Problem(
            (normal(33, 96), normal(3, 5, 96) / 10),
            lambda hidden, heads: ops.exit_confidence(hidden, heads, measure="entropy")[1:7],
        ),
        "token_logprobs": Problem(
            (normal(70, 96), normal(3000, 96) / 10, tokens), lambda h, w, t: tuple(ops.token_logprobs(h, w, t))
        ),
        "aggregate": aggregate_problem(),
        "topk": Problem(
            (normal(40, 48), normal(5000, 48), *exclude), lambda q, i, p, x: ops.topk(q, i, 20, exclude=(p, x)).values
        ),
        "route": Problem((normal(5000),), lambda u: tuple(ops.route(u, budget=0.35))),
        "route_to": Problem((torch.arange(5000) * 7 % 300,), lambda d: tuple(ops.route_to(d, 300))),
        "policy_loss": Problem(
            (normal(70, 96), normal(3000, 96) / 10, tokens, normal(7), normal(70) * 0.1 - 8, torch.arange(70) % 7),
            lambda h, w, t, a, o, s: ops.policy_loss(h, w, t, a, o, sequence_ids=s)[0],
        ),
        "packed_attention": Problem(
            (normal(303, 9, 64), normal(303, 3, 64), normal(303, 3, 64)),
            lambda q, k, v: ops.packed_attention(q, k, v, SEGMENTS),
        ),
    }


NAMES = (
    "exit_confidence", "exit_ensemble", "token_logprobs", "aggregate", "topk", "route", "route_to", "policy_loss",
    "packed_attention",
)  # fmt: skip


def given(problem: Problem, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(device, dtype if x.is_floating_point() else None) for x in problem.inputs)


def in_float64(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return parts(problem.run(*(x.cpu().double() if x.is_floating_point() else x.cpu() for x in inputs)))


@pytest.mark.parametrize("dtype", list(WIDTHS))
@pytest.mark.parametrize("name", NAMES)
def test_equals_float64(name, dtype, device):
    problem = problems()[name]
    inputs = given(problem, device, dtype)
    for actual, wanted in zip(parts(problem.run(*inputs)), in_float64(problem, inputs), strict=True):
        torch.testing.assert_close(
            actual.cpu().double(), wanted.double(), atol=WIDTHS[dtype] * 4, rtol=WIDTHS[dtype] * 4
        )


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_twice(name, device):
    problem = problems()[name]
    inputs = given(problem, device, torch.bfloat16)
    for once, again in zip(parts(problem.run(*inputs)), parts(problem.run(*inputs)), strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize("name", NAMES)
def test_runs_in_a_graph_without_synchronisation(name, device, replayed):
    problem = problems()[name]
    inputs = given(problem, device, torch.float32)
    expected = [part.clone() for part in parts(problem.run(*inputs))]
    for actual, wanted in zip(replayed(lambda: problem.run(*inputs)), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_transposed_inputs_give_the_same(name, device):
    problem = problems()[name]
    inputs = given(problem, device, torch.float32)
    turned = [x.movedim(0, -1).contiguous().movedim(-1, 0) if x.is_floating_point() else x for x in inputs]
    for actual, wanted in zip(parts(problem.run(*turned)), parts(problem.run(*inputs)), strict=True):
        assert torch.equal(actual, wanted)
        assert actual.stride() == wanted.stride()


@pytest.mark.parametrize("name", ["exit_confidence", "token_logprobs", "aggregate", "policy_loss", "packed_attention"])
def test_gradients_equal_float64(name, device):
    problem = problems()[name]

    def gradients(inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
        first = next(part for part in parts(problem.run(*leaves)) if part.requires_grad)
        return list(torch.autograd.grad(first.sum(), [x for x in leaves if x.is_floating_point()][:2]))

    exact = gradients(tuple(x.double() if x.is_floating_point() else x for x in problem.inputs))
    for actual, wanted in zip(gradients(given(problem, device, torch.float32)), exact, strict=True):
        torch.testing.assert_close(actual.cpu().double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_a_second_device(name, device, second_device):
    """Tensors on the second device, while the first is the current one."""
    problem = problems()[name]
    results = parts(problem.run(*given(problem, second_device, torch.float32)))
    expected = parts(problem.run(*given(problem, device, torch.float32)))
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.device == torch.device(second_device)
        assert torch.equal(actual.cpu(), wanted.cpu())


def test_destinations_out_of_range_stay_in_memory(device):
    """On a GPU they count as the nearest in range; on a CPU they are refused."""
    destination = torch.tensor([1, -5, 2, 7, 2**63 - 1, -(2**63), 0] * 300)
    if device == "cpu":
        with pytest.raises(RuntimeError, match="destination"):
            ops.route_to(destination, 3)
        return
    results = ops.route_to(destination.to(device), 3)
    expected = ops.route_to(destination.clamp(0, 2), 3)
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual.cpu(), wanted)


def test_autocast_computes_in_the_low_precision(device):
    hidden, heads = torch.randn(8, 32, device=device), torch.randn(3, 32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = ops.exit_confidence(hidden, heads)
    assert torch.equal(result.probability, ops.exit_confidence(hidden.bfloat16(), heads.bfloat16()).probability)


def test_compiles_without_breaks(device):
    hidden, heads = torch.randn(8, 32, device=device), torch.randn(300, 32, device=device)
    compiled = torch.compile(lambda h: ops.exit_confidence(h, heads, threshold=0.5), fullgraph=True)
    for actual, wanted in zip(compiled(hidden), ops.exit_confidence(hidden, heads, threshold=0.5), strict=True):
        torch.testing.assert_close(actual, wanted)
