"""The benchmark suites by name, and the cases of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reasonrec_fast.benchmarking import (
    aggregate,
    engine,
    engine_stored,
    exit_confidence,
    generate,
    packed_attention,
    policy_loss,
    route,
    token_logprobs,
    topk,
)
from reasonrec_fast.benchmarking.case import Case, Work

SUITES: dict[str, dict[str, Callable[..., Case]]] = {
    "exit_confidence": exit_confidence.CASES,
    "token_logprobs": token_logprobs.CASES,
    "policy_loss": policy_loss.CASES,
    "aggregate": aggregate.CASES,
    "topk": topk.CASES,
    "route": route.CASES,
    "packed_attention": packed_attention.CASES,
    "engine": engine.CASES,
    "engine_stored": engine_stored.CASES,
    "generate": generate.CASES,
}
WORK: dict[str, Work] = {
    **exit_confidence.WORK,
    **token_logprobs.WORK,
    **policy_loss.WORK,
    **aggregate.WORK,
    **topk.WORK,
    **route.WORK,
    **packed_attention.WORK,
}
"""Least memory traffic and arithmetic of the operators' cases."""


def make_cases(names: list[str], device: str = "cpu", *, tiny: bool = False) -> Iterator[Case]:
    """The named suites' cases and the named single cases; all cases if no names are given.

    Args:
        names: of suites and cases.
        device: of the inputs.
        tiny: use small sizes under the same names, for rehearsals; not supported by the suite ``engine``.

    Raises:
        ValueError: an unknown name.
    """
    known = {name for suite, cases in SUITES.items() for name in (suite, *cases)}
    if not set(names) <= known:
        raise ValueError(f"names: expected some of {sorted(known)}; got {sorted(set(names) - known)}")
    for suite, cases in SUITES.items():
        for name, make in cases.items():
            if not names or suite in names or name in names:
                yield make(device=device, tiny=True) if tiny else make(device=device)
