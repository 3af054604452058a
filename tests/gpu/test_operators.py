"""Operators on a GPU: against float64 on the CPU, the same bits twice, no host synchronisation, in CUDA graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from reasonrec_fast import InteractionGraph, ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDTHS = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Problem:
    """Attributes: inputs, of which floating ones take the type under test; what is computed; whether order is exact."""

    inputs: tuple[torch.Tensor, ...]
    run: Callable[..., Any]


def problems() -> dict[str, Problem]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    users, items = torch.randint(300, (6000,), generator=generator), torch.randint(1000, (6000,), generator=generator)
    users[:3000] = 0  # one heavy user
    items[:1000] = torch.arange(1000)
    graph = {device: InteractionGraph.from_edges(users, items).to(device) for device in ("cpu", "cuda")}
    tokens = torch.randint(3000, (70,), generator=generator)
    exclude = (torch.arange(41) * 3, torch.randint(5000, (120,), generator=generator))
    ids = torch.arange(70) % 7
    old = normal(70) * 0.1 - 8
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
        "aggregate": Problem(
            (normal(graph["cpu"].num_users + graph["cpu"].num_items, 64),),
            lambda x: ops.aggregate(graph[x.device.type], x, layers=3, combine="mean", dropout=0.2, seed=3),
        ),
        "topk": Problem(
            (normal(40, 48), normal(5000, 48), *exclude), lambda q, i, p, x: ops.topk(q, i, 20, exclude=(p, x)).values
        ),
        "route": Problem((normal(5000),), lambda u: tuple(ops.route(u, budget=0.35))),
        "route_to": Problem((torch.arange(5000) * 7 % 300,), lambda d: tuple(ops.route_to(d, 300))),
        "policy_loss": Problem(
            (normal(70, 96), normal(3000, 96) / 10, tokens, normal(7), old, ids),
            lambda h, w, t, a, o, s: ops.policy_loss(h, w, t, a, o, sequence_ids=s)[0],
        ),
    }


NAMES = (
    "exit_confidence", "exit_ensemble", "token_logprobs", "aggregate", "topk", "route", "route_to", "policy_loss",
)  # fmt: skip


def parts(found: Any) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else list(found)


def on_gpu(problem: Problem, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(x.to("cuda", dtype if x.is_floating_point() else None) for x in problem.inputs)


@pytest.mark.parametrize("dtype", list(WIDTHS))
@pytest.mark.parametrize("name", NAMES)
def test_equals_float64(name, dtype):
    problem = problems()[name]
    inputs = on_gpu(problem, dtype)
    exact = problem.run(*(x.cpu().double() if x.is_floating_point() else x.cpu() for x in inputs))
    for ours, theirs in zip(parts(problem.run(*inputs)), parts(exact), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs.double(), atol=WIDTHS[dtype] * 4, rtol=WIDTHS[dtype] * 4)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_twice(name):
    problem = problems()[name]
    inputs = on_gpu(problem, torch.bfloat16)
    for once, again in zip(parts(problem.run(*inputs)), parts(problem.run(*inputs)), strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize("name", NAMES)
def test_runs_in_a_graph_without_synchronisation(name):
    problem = problems()[name]
    inputs = on_gpu(problem, torch.float32)
    expected = parts(problem.run(*inputs))  # compiles the kernels too
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem.run(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = parts(problem.run(*inputs))
    for part in captured:
        part.zero_()
    graph.replay()
    for ours, theirs in zip(captured, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["exit_confidence", "token_logprobs", "aggregate", "policy_loss"])
def test_gradients_equal_float64(name):
    problem = problems()[name]

    def gradients(inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()][:2]
        first = next(part for part in parts(problem.run(*inputs)) if part.requires_grad)
        return list(torch.autograd.grad(first.sum(), leaves))

    exact = gradients(tuple(x.double() if x.is_floating_point() else x for x in problem.inputs))
    for ours, theirs in zip(gradients(on_gpu(problem, torch.float32)), exact, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, atol=1e-4, rtol=1e-4)


def test_autocast_computes_in_the_low_precision():
    hidden, heads = torch.randn(8, 32, device="cuda"), torch.randn(3, 32, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = ops.exit_confidence(hidden, heads)
    assert torch.equal(found.probability, ops.exit_confidence(hidden.bfloat16(), heads.bfloat16()).probability)


def test_compiles_without_breaks():
    hidden, heads = torch.randn(8, 32, device="cuda"), torch.randn(300, 32, device="cuda")
    compiled = torch.compile(lambda h: ops.exit_confidence(h, heads, threshold=0.5), fullgraph=True)
    for ours, theirs in zip(compiled(hidden), ops.exit_confidence(hidden, heads, threshold=0.5), strict=True):
        torch.testing.assert_close(ours, theirs)
