"""Every operator on the GPU against float64 on the CPU; a unit is ``operator/what/dtype``.

Inputs are rounded to the dtype first, so that what is compared is the arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.device import Cuda
from benchmarks.gpu.interpreted import kernels_on_cpu
from benchmarks.gpu.worker import Emit
from reasonrec_fast import InteractionGraph, ops
from reasonrec_fast.ops.packed_attention import packed_attention_reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATISTICS = {torch.float32: 1e-4, torch.bfloat16: 2e-3, torch.float16: 2e-3}
"""Relative and absolute error of results that are float32 whatever the inputs."""
ROUNDED = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Of results in the inputs' dtype, and of gradients."""
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "every_second": lambda x: torch.stack([x, x * 0], 1).flatten(0, 1)[::2],
    "inner": lambda x: torch.cat([x * 0, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "expanded": lambda x: x[:1].expand_as(x),
}
Results = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """Attributes: inputs, of which floating ones take the dtype under test; what is computed, and how in float64 where
    that is something else; errors allowed; gradients are of the first result in the first two floating inputs."""

    inputs: tuple[Any, ...]
    run: Callable[..., Results]
    tolerance: dict[torch.dtype, float]
    exact: Callable[..., Results] | None = None
    gradients: bool = False


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(high + sum(shape)))


# -- exit_confidence, token_logprobs, policy_loss: rows, width, classes that cross the edges of tiles
# and of topk: queries, width, items, k
TOPK_EDGES = ((1, 64, 5000, 20), (40, 48, 5000, 20), (17, 100, 4097, 100), (16, 64, 10, 20), (33, 64, 9000, 256))
EDGES = ((1, 64, 2), (17, 96, 63), (33, 100, 65), (129, 64, 1000), (16, 128, 3001))


def _exit(measure: Any = "margin", **options: Any) -> Callable[..., Results]:
    # All but the prediction, which rounding may turn where two classes are alike.
    return lambda hidden, heads: ops.exit_confidence(hidden, heads, measure=measure, **options)[1:7]


def _logprobs(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> Results:
    return ops.token_logprobs(hidden, weight, tokens)


def _logprobs_problem(rows: int, width: int, classes: int) -> Problem:
    inputs = (normal(rows, width), normal(classes, width) / width**0.5, integers(classes, rows))
    return Problem(inputs, _logprobs, STATISTICS)


def _policy(
    hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, advantages: torch.Tensor, ids: torch.Tensor
) -> Results:
    # Old log-probabilities are those of the policy itself, moved off the clip's edges.
    with torch.no_grad():
        now = ops.token_logprobs(hidden, weight, tokens).logprobs
    old = now - torch.tensor([0.4, -0.1, 0.05], device=now.device, dtype=now.dtype)[tokens % 3]
    return [ops.policy_loss(hidden, weight, tokens, advantages, old, sequence_ids=ids)[0]]


def _policy_problem(rows: int, width: int, classes: int) -> Problem:
    inputs = (
        normal(rows, width), normal(classes, width) / width**0.5, integers(classes, rows), normal(7),
        torch.arange(rows) % 7,
    )  # fmt: skip
    return Problem(inputs, _policy, {**STATISTICS, torch.float32: 1e-3})


def _graph(users: int = 300, items: int = 1000, edges: int = 6000) -> tuple[torch.Tensor, ...]:
    ends = [integers(users, edges), integers(items, edges)]
    ends[0][: edges // 2] = 0  # a heavy user
    ends[1][: min(items, edges)] = torch.arange(min(items, edges))
    graph = InteractionGraph.from_edges(*ends, num_users=users + 1, num_items=items)  # a user without edges
    return tuple(getattr(graph, name) for name in graph.__dataclass_fields__)


def _aggregate(**options: Any) -> Callable[..., Results]:
    return lambda x, *csr: [ops.aggregate(InteractionGraph(*csr), x, **options)]


def _topk(k: int) -> Callable[..., Results]:
    return lambda queries, items, indptr, indices: [ops.topk(queries, items, k, exclude=(indptr, indices)).values]


def _exclusions(batch: int, items: int, each: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(batch + 1) * each, integers(items, batch * each)


SEGMENTS = torch.tensor(
    [[0, 200, 0, 0, 0, 1], [200, 24, 0, 200, 200, 1], [224, 9, 0, 200, 224, 1], [233, 70, 0, 0, 233, 1]]
)
"""A prefix of 200 tokens with two rows behind it, and a row alone."""
LAST = torch.tensor([[0, 1, 0, 200, 200, 24], [1, 1, 0, 200, 224, 9], [2, 1, 0, 0, 233, 70]])
"""The last tokens of the three rows alone."""


def _attention(segments: torch.Tensor, softcap: float | None) -> tuple[Callable[..., Results], Callable[..., Results]]:
    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Results:
        return [ops.packed_attention(query, key, value, segments, softcap=softcap)]

    def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Results:
        scale = query.shape[2] ** -0.5
        return [packed_attention_reference(query, key, value, segments, scale, softcap or 0.0)]

    return run, exact


def _attention_problem(width: int, segments: torch.Tensor = SEGMENTS, softcap: float | None = None) -> Problem:
    run, exact = _attention(segments, softcap)
    queries = int(segments[:, 1].sum())
    inputs = (normal(queries, 9, width), normal(303, 3, width, seed=1), normal(303, 3, width, seed=2))
    return Problem(inputs, run, ROUNDED, exact)


def edges() -> dict[str, list[Problem]]:
    """Sizes on both sides of the tiles' edges, and of the kernels' ways."""
    return {
        "exit_confidence": [
            *(Problem((normal(b, d), normal(c, d) / d**0.5), _exit(), STATISTICS) for b, d, c in EDGES),
            Problem((normal(33, 96), normal(2, 96) / 10), _exit("ratio", temperature=0.7), STATISTICS),
        ],
        "exit_ensemble": [
            Problem((normal(b, 96), normal(k, c, 96) / 10), _exit("entropy"), STATISTICS)
            for b, k, c in ((1, 2, 2), (33, 3, 5), (130, 4, 64))
        ],
        "token_logprobs": [
            *(_logprobs_problem(b, d, c) for b, d, c in EDGES),
            Problem((normal(20, 64), normal(500, 64) / 8, integers(500, 20, 3)), _logprobs, STATISTICS),
        ],
        "policy_loss": [_policy_problem(70, 96, 3000), _policy_problem(33, 100, 65)],
        "aggregate": [
            Problem((normal(1301, width), *_graph()), _aggregate(layers=layers, combine="mean", **more), ROUNDED)
            for width, layers, more in (
                (64, 3, {}), (1, 1, {}), (33, 2, {}), (300, 1, {}), (64, 2, {"dropout": 0.3, "seed": 5}), (64, 0, {}),
            )
        ],
        "topk": [
            Problem((normal(b, d), normal(n, d), *_exclusions(b, n)), _topk(k), STATISTICS)
            for b, d, n, k in TOPK_EDGES
        ],
        "route": [
            Problem((normal(size),), lambda u: ops.route(u, budget=0.35), STATISTICS)
            for size in (1, 1023, 1025, 70_001)
        ],
        "route_to": [
            Problem((torch.arange(size) * 7 % count,), lambda d, count=count: ops.route_to(d, count), STATISTICS)
            for size, count in ((5000, 300), (1, 1), (1025, 2), (4096, 1000))
        ],
        "packed_attention": [
            *(_attention_problem(width) for width in (8, 16, 64, 80, 128, 256)),
            _attention_problem(64, softcap=3.0),
            _attention_problem(64, LAST),
        ],
    }  # fmt: skip


def ties_and_nan() -> dict[str, list[Problem]]:
    """Equal values go to the lower index; NaN does what the contract says, and stays in its row."""
    hidden, heads = normal(20, 64), normal(70, 64) / 8
    hidden[3, 5], hidden[4, 0] = torch.nan, torch.inf
    steps = integers(4, 40, 64).float()  # scores that are whole numbers, many of them equal
    uncertainty = integers(5, 3000).float()
    uncertainty[::100], uncertainty[1::100] = torch.nan, torch.inf
    nodes = normal(1301, 64)
    nodes[5] = torch.nan
    key = normal(303, 3, 64)
    key[230] = torch.nan  # seen by one row alone
    run, exact = _attention(SEGMENTS, None)

    def finite(*results: torch.Tensor) -> Results:
        """Rows without NaN or infinity as they are; which rows have them is another result."""
        return [*(r.nan_to_num(0.0, 0.0, 0.0) for r in results), *(torch.isfinite(r).long() for r in results)]

    def exits(hidden: torch.Tensor, heads: torch.Tensor) -> Results:
        found = ops.exit_confidence(hidden, heads, threshold=0.0)
        broken = ~torch.isfinite(hidden).all(1)
        return [found.probability.masked_fill(broken, 0.0), found.exit.masked_fill(torch.isinf(hidden).any(1), False)]

    def tied(hidden: torch.Tensor, heads: torch.Tensor) -> Results:
        return [ops.exit_confidence(hidden, torch.cat([heads, heads])).prediction]

    def logprobs(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> Results:
        broken = ~torch.isfinite(hidden).all(1)
        found = ops.token_logprobs(hidden, weight, tokens)
        return [found.logprobs.masked_fill(broken, 0.0), found.logsumexp.masked_fill(broken, 0.0)]

    def best(queries: torch.Tensor, items: torch.Tensor) -> Results:
        return [ops.topk(queries, items, 20).indices]

    broken_items = integers(4, 500, 64).float()
    broken_items[7], broken_items[9] = torch.nan, broken_items[8]
    return {
        "exit_confidence": [
            Problem((hidden, heads), exits, STATISTICS),
            Problem((steps, integers(3, 35, 64).float()), tied, STATISTICS),
        ],
        "token_logprobs": [Problem((hidden, heads, integers(70, 20)), logprobs, STATISTICS)],
        "aggregate": [
            Problem((nodes, *_graph()), lambda *a: finite(*_aggregate(layers=2)(*a)), ROUNDED),
        ],
        "topk": [Problem((steps, broken_items), best, STATISTICS)],
        "route": [
            Problem((uncertainty,), lambda u: ops.route(u, budget=700), STATISTICS),
            Problem((uncertainty,), lambda u: ops.route(u, threshold=2.0), STATISTICS),
        ],
        "route_to": [
            Problem(
                (torch.arange(900) * 7 % 5, torch.tensor([9, 10, 500, 0, 3]), integers(3, 900).float()),
                lambda d, c, s: ops.route_to(d, 5, capacity=c, score=s),
                STATISTICS,
            )
        ],
        "packed_attention": [
            Problem(
                (normal(303, 9, 64), key, normal(303, 3, 64, seed=3)),
                lambda *a: finite(*run(*a)),
                ROUNDED,
                lambda *a: finite(*exact(*a)),
            )
        ],
    }


def empty() -> dict[str, list[Problem]]:
    """No rows."""
    none, weight = torch.zeros(0, 64), normal(9, 64)
    csr = _graph()
    return {
        "exit_confidence": [Problem((none, weight), _exit(), STATISTICS)],
        "exit_ensemble": [Problem((none, normal(3, 9, 64)), _exit(), STATISTICS)],
        "token_logprobs": [Problem((none, weight, torch.zeros(0).long()), _logprobs, STATISTICS)],
        "aggregate": [Problem((torch.zeros(1301, 0), *csr), _aggregate(layers=2), ROUNDED)],
        "topk": [
            Problem((none, weight), lambda q, i: ops.topk(q, i, 3), STATISTICS),
            Problem((weight, none), lambda q, i: ops.topk(q, i, 3), STATISTICS),
        ],
        "route": [Problem((none[:, 0],), lambda u: ops.route(u, budget=0.5), STATISTICS)],
        "route_to": [Problem((torch.zeros(0).long(),), lambda d: ops.route_to(d, 3), STATISTICS)],
    }


def gradients() -> dict[str, list[Problem]]:
    """Of the first result in the first two floating inputs."""
    problems = {
        name: [edges()[name][place] for place in places]
        for name, places in {
            "exit_confidence": (1, 4), "exit_ensemble": (1,), "token_logprobs": (1, 4), "policy_loss": (0,),
            "aggregate": (0, 4),
        }.items()
    }  # fmt: skip
    return {name: [replace(problem, gradients=True) for problem in found] for name, found in problems.items()}


def interpreted() -> dict[str, list[Problem]]:
    """Small enough for Triton's interpreter, which rehearsals run the kernels in."""
    hidden, weight, tokens = normal(5, 20), normal(70, 20), integers(70, 5)
    both = [False, True]
    segments = torch.tensor([[0, 5, 0, 0, 0, 1], [5, 3, 0, 5, 5, 1], [8, 2, 0, 5, 8, 1], [10, 4, 0, 0, 10, 1]])
    attend, exact = _attention(segments, 3.0)
    nodes = _aggregate(layers=2, combine="mean", dropout=0.2, seed=3)
    return {
        "exit_confidence": [Problem((hidden, weight), _exit(), STATISTICS, gradients=g) for g in both],
        "exit_ensemble": [Problem((hidden, normal(3, 4, 20)), _exit(), STATISTICS, gradients=g) for g in both],
        "token_logprobs": [Problem((hidden, weight, tokens), _logprobs, STATISTICS, gradients=g) for g in both],
        "policy_loss": [replace(_policy_problem(14, 20, 70), gradients=g) for g in both],
        "aggregate": [Problem((normal(21, 20), *_graph(8, 12, 40)), nodes, ROUNDED, gradients=g) for g in both],
        "topk": [Problem((hidden, weight, *_exclusions(5, 70)), _topk(4), STATISTICS)],
        "packed_attention": [
            Problem((normal(14, 6, 16), normal(14, 2, 16), normal(14, 2, 16)), attend, ROUNDED, exact)
        ],
    }


KINDS: dict[str, Callable[[], dict[str, list[Problem]]]] = {
    "edges": edges,
    "ties_and_nan": ties_and_nan,
    "empty": empty,
    "gradients": gradients,
}


def units(device: Cuda) -> list[str]:
    from benchmarks.gpu import model_checks

    found = [f"{name}/{kind}/{dtype}" for kind, make in KINDS.items() for name in make() for dtype in DTYPES]
    found += [f"{name}/strides/{dtype}" for name in edges() for dtype in DTYPES]
    if device.tiny:
        found += [f"{name}/interpreter/float32" for name in interpreted()]
    return model_checks.units(device) + found


def run(unit: str, device: Cuda, emit: Emit, done: set[str]) -> None:
    """Raises AssertionError where a result is wrong."""
    name, kind, dtype_name = unit.split("/")
    if name in ("engine", "optirag"):
        from benchmarks.gpu import model_checks

        emit(model_checks.run(name, kind, DTYPES[dtype_name], device))
        return
    dtype, worst = DTYPES[dtype_name], 0.0
    with kernels_on_cpu() if kind == "interpreter" else nullcontext():
        for problem, view in _problems(name, kind):
            worst = max(worst, _worst(problem, view, dtype, device.kind))
    emit({"worst": worst})


def _problems(name: str, kind: str) -> Iterator[tuple[Problem, str | None]]:
    if kind == "interpreter":
        for problem in interpreted()[name]:
            yield from ((problem, view) for view in (None, "transposed"))
        return
    if kind != "strides":
        yield from ((problem, None) for problem in KINDS[kind]()[name])
        return
    problem = edges()[name][-1 if name in ("route", "topk") else 1]
    for view in VIEWS:
        if not (name == "route" and view in ("transposed", "inner")):  # of a vector there is no such view
            yield problem, view


def smallest(problems: Sequence[Problem]) -> Problem:
    """Of more than one row."""
    return min(problems, key=lambda p: sum(x.numel() for x in p.inputs if len(x) > 1))


def _worst(problem: Problem, view: str | None, dtype: torch.dtype, device: str) -> float:
    """The largest error in units of what is allowed, at most 1."""
    rounded = [x.to(dtype) if x.is_floating_point() else x for x in problem.inputs]
    if view == "expanded":  # another input, not another view of the same
        rounded = [VIEWS[view](x).contiguous() if x.is_floating_point() and len(x) else x for x in rounded]
    exact_inputs = [x.double() if x.is_floating_point() else x for x in rounded]
    inputs = [x.to(device) for x in rounded]
    if view is not None:
        inputs = [VIEWS[view](x) if x.is_floating_point() and x.dim() > 1 - (view != "inner") else x for x in inputs]
    if problem.gradients:
        found, exact = _gradients(problem.run, inputs), _gradients(problem.exact or problem.run, exact_inputs)
    else:
        found, exact = problem.run(*inputs), (problem.exact or problem.run)(*exact_inputs)
    tolerance = (ROUNDED if problem.gradients else problem.tolerance)[dtype]
    assert len(found) == len(exact), f"expected {len(exact)} results; got {len(found)}"
    worst = 0.0
    for place, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        ours, theirs = ours.detach().cpu(), theirs.detach()
        assert ours.shape == theirs.shape, f"result {place}: expected {list(theirs.shape)}; got {list(ours.shape)}"
        if not theirs.numel():
            continue
        if not theirs.is_floating_point():
            assert torch.equal(ours, theirs), f"result {place}: {int((ours != theirs).sum())} of {ours.numel()} differ"
            continue
        assert torch.equal(torch.isfinite(ours), torch.isfinite(theirs)), f"result {place}: other values are finite"
        # Gradients in shares of their largest: sums of many terms have no relative error of their own.
        scale = theirs.abs().max() if problem.gradients else 1 + theirs.abs()
        error = ((ours.double() - theirs).abs() / (tolerance * scale)).nan_to_num(0.0)
        worst = max(worst, float(error.max()))
        assert worst <= 1.0, f"result {place}: off by {worst:.2f} times what is allowed ({tolerance:g})"
    return worst


def _gradients(run: Callable[..., Results], inputs: Sequence[torch.Tensor]) -> Results:
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    first = next(result for result in run(*leaves) if result.requires_grad)
    wanted = [x for x in leaves if x.is_floating_point()][:2]
    return torch.autograd.grad(first.sum(), wanted)
