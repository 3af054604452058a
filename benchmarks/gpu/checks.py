"""Every operator on the GPU against float64 on the CPU; a unit is ``operator/kind/dtype``.

Inputs are rounded to the dtype first, so that only the arithmetic is compared.
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
"""Relative and absolute tolerance of results that are float32 for every input dtype."""
ROUNDED = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Tolerance of results in the inputs' dtype, and of gradients."""
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "every_second": lambda x: torch.stack([x, x * 0], 1).flatten(0, 1)[::2],
    "inner": lambda x: torch.cat([x * 0, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "expanded": lambda x: x[:1].expand_as(x),
}
Results = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """A computation to check.

    Attributes:
        inputs: floating-point ones are converted to the dtype under test.
        run: the computation.
        tolerance: by dtype.
        exact: the computation in float64, if not ``run``.
        gradients: compare gradients of the first result in the first two floating-point inputs instead of results.
    """

    inputs: tuple[Any, ...]
    run: Callable[..., Results]
    tolerance: dict[torch.dtype, float]
    exact: Callable[..., Results] | None = None
    gradients: bool = False


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(high + sum(shape)))


# Sizes on both sides of the edges of tiles: queries, width, items, k of topk; then rows, width, classes of
# exit_confidence, token_logprobs and policy_loss.
TOPK_EDGES = ((1, 64, 5000, 20), (40, 48, 5000, 20), (17, 100, 4097, 100), (16, 64, 10, 20), (33, 64, 9000, 256))
EDGES = ((1, 64, 2), (17, 96, 63), (33, 100, 65), (129, 64, 1000), (16, 128, 3001))


def _exit(measure: Any = "margin", **options: Any) -> Callable[..., Results]:
    # Without the prediction, which rounding may change between two nearly equal classes.
    return lambda hidden, heads: ops.exit_confidence(hidden, heads, measure=measure, **options)[1:7]


def _logprobs(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> Results:
    return ops.token_logprobs(hidden, weight, tokens)


def _logprobs_problem(rows: int, width: int, classes: int) -> Problem:
    inputs = (normal(rows, width), normal(classes, width) / width**0.5, integers(classes, rows))
    return Problem(inputs, _logprobs, STATISTICS)


def _policy(
    hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, advantages: torch.Tensor, ids: torch.Tensor
) -> Results:
    # Old log-probabilities: those of the policy itself, shifted so that no ratio is at an edge of the clip.
    with torch.no_grad():
        logprobs = ops.token_logprobs(hidden, weight, tokens).logprobs
    old = logprobs - torch.tensor([0.4, -0.1, 0.05], device=logprobs.device, dtype=logprobs.dtype)[tokens % 3]
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
"""A prefix of 200 tokens with two continuations, and a text without a prefix."""
LAST = torch.tensor([[0, 1, 0, 200, 200, 24], [1, 1, 0, 200, 224, 9], [2, 1, 0, 0, 233, 70]])
"""Only the last tokens of the three texts."""


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
    """Sizes on both sides of the tiles' edges, for every code path of the kernels."""
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
    """Ties go to the lower index; NaN behaves as documented and does not leave its row."""
    hidden, heads = normal(20, 64), normal(70, 64) / 8
    hidden[3, 5], hidden[4, 0] = torch.nan, torch.inf
    steps = integers(4, 40, 64).float()  # integer scores, with many ties
    uncertainty = integers(5, 3000).float()
    uncertainty[::100], uncertainty[1::100] = torch.nan, torch.inf
    nodes = normal(1301, 64)
    nodes[5] = torch.nan
    key = normal(303, 3, 64)
    key[230] = torch.nan  # visible to a single row
    run, exact = _attention(SEGMENTS, None)

    def finite(*results: torch.Tensor) -> Results:
        """The results with 0 for NaN and infinity, and masks of the finite values as further results."""
        return [*(r.nan_to_num(0.0, 0.0, 0.0) for r in results), *(torch.isfinite(r).long() for r in results)]

    def exits(hidden: torch.Tensor, heads: torch.Tensor) -> Results:
        statistics = ops.exit_confidence(hidden, heads, threshold=0.0)
        broken = ~torch.isfinite(hidden).all(1)
        return [
            statistics.probability.masked_fill(broken, 0.0),
            statistics.exit.masked_fill(torch.isinf(hidden).any(1), False),
        ]

    def tied(hidden: torch.Tensor, heads: torch.Tensor) -> Results:
        return [ops.exit_confidence(hidden, torch.cat([heads, heads])).prediction]

    def logprobs(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> Results:
        broken = ~torch.isfinite(hidden).all(1)
        statistics = ops.token_logprobs(hidden, weight, tokens)
        return [statistics.logprobs.masked_fill(broken, 0.0), statistics.logsumexp.masked_fill(broken, 0.0)]

    def best(queries: torch.Tensor, items: torch.Tensor) -> Results:
        return [ops.topk(queries, items, 20).indices]

    items_with_nan = integers(4, 500, 64).float()
    items_with_nan[7], items_with_nan[9] = torch.nan, items_with_nan[8]
    return {
        "exit_confidence": [
            Problem((hidden, heads), exits, STATISTICS),
            Problem((steps, integers(3, 35, 64).float()), tied, STATISTICS),
        ],
        "token_logprobs": [Problem((hidden, heads, integers(70, 20)), logprobs, STATISTICS)],
        "aggregate": [
            Problem((nodes, *_graph()), lambda *a: finite(*_aggregate(layers=2)(*a)), ROUNDED),
        ],
        "topk": [Problem((steps, items_with_nan), best, STATISTICS)],
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
    """Inputs without rows."""
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
    """Gradients of the first result in the first two floating-point inputs."""
    problems = {
        name: [edges()[name][index] for index in indices]
        for name, indices in {
            "exit_confidence": (1, 4), "exit_ensemble": (1,), "token_logprobs": (1, 4), "policy_loss": (0,),
            "aggregate": (0, 4),
        }.items()
    }  # fmt: skip
    return {name: [replace(problem, gradients=True) for problem in selected] for name, selected in problems.items()}


def interpreted() -> dict[str, list[Problem]]:
    """Problems that are small enough for Triton's interpreter, in which rehearsals run the kernels."""
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

    names = [f"{name}/{kind}/{dtype}" for kind, make in KINDS.items() for name in make() for dtype in DTYPES]
    names += [f"{name}/strides/{dtype}" for name in edges() for dtype in DTYPES]
    if device.tiny:
        names += [f"{name}/interpreter/float32" for name in interpreted()]
    return model_checks.units(device) + names


def run(unit: str, device: Cuda, emit: Emit, done: set[str]) -> None:
    """Check one unit.

    Raises:
        AssertionError: a result is wrong.
    """
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
        if not (name == "route" and view in ("transposed", "inner")):  # a vector has no such view
            yield problem, view


def smallest(problems: Sequence[Problem]) -> Problem:
    """The smallest problem, counting only inputs of more than one row."""
    return min(problems, key=lambda p: sum(x.numel() for x in p.inputs if len(x) > 1))


def _worst(problem: Problem, view: str | None, dtype: torch.dtype, device: str) -> float:
    """The largest error divided by the tolerance, at most 1.

    Raises:
        AssertionError: a result is wrong.
    """
    rounded = [x.to(dtype) if x.is_floating_point() else x for x in problem.inputs]
    if view == "expanded":  # changes the values, so the exact input must be changed too
        rounded = [VIEWS[view](x).contiguous() if x.is_floating_point() and len(x) else x for x in rounded]
    exact_inputs = [x.double() if x.is_floating_point() else x for x in rounded]
    inputs = [x.to(device) for x in rounded]
    if view is not None:
        inputs = [VIEWS[view](x) if x.is_floating_point() and x.dim() > 1 - (view != "inner") else x for x in inputs]
    if problem.gradients:
        results, exact = _gradients(problem.run, inputs), _gradients(problem.exact or problem.run, exact_inputs)
    else:
        results, exact = problem.run(*inputs), (problem.exact or problem.run)(*exact_inputs)
    tolerance = (ROUNDED if problem.gradients else problem.tolerance)[dtype]
    assert len(results) == len(exact), f"expected {len(exact)} results; got {len(results)}"
    worst = 0.0
    for index, (result, expected) in enumerate(zip(results, exact, strict=True)):
        result, expected = result.detach().cpu(), expected.detach()
        assert result.shape == expected.shape, (
            f"result {index}: expected {list(expected.shape)}; got {list(result.shape)}"
        )
        if not expected.numel():
            continue
        if not expected.is_floating_point():
            assert torch.equal(result, expected), (
                f"result {index}: {int((result != expected).sum())} of {result.numel()} differ"
            )
            continue
        assert torch.equal(torch.isfinite(result), torch.isfinite(expected)), f"result {index}: other values are finite"
        # Errors of gradients are relative to the largest one: their sums of many terms may cancel.
        scale = expected.abs().max() if problem.gradients else 1 + expected.abs()
        error = ((result.double() - expected).abs() / (tolerance * scale)).nan_to_num(0.0)
        worst = max(worst, float(error.max()))
        assert worst <= 1.0, f"result {index}: off by {worst:.2f} times what is allowed ({tolerance:g})"
    return worst


def _gradients(run: Callable[..., Results], inputs: Sequence[torch.Tensor]) -> Results:
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    first = next(result for result in run(*leaves) if result.requires_grad)
    differentiated = [x for x in leaves if x.is_floating_point()][:2]
    return torch.autograd.grad(first.sum(), differentiated)
