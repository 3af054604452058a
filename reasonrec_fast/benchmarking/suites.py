"""The suites by name, and the cases of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reasonrec_fast.benchmarking import (
    aggregate,
    engine,
    exit_confidence,
    packed_attention,
    policy_loss,
    route,
    token_logprobs,
    topk,
)
from reasonrec_fast.benchmarking.case import Case

SUITES: dict[str, dict[str, Callable[..., Case]]] = {
    "exit_confidence": exit_confidence.CASES,
    "token_logprobs": token_logprobs.CASES,
    "policy_loss": policy_loss.CASES,
    "aggregate": aggregate.CASES,
    "topk": topk.CASES,
    "route": route.CASES,
    "packed_attention": packed_attention.CASES,
    "engine": engine.CASES,
}


def make_cases(names: list[str], device: str = "cpu") -> Iterator[Case]:
    """The cases of the suites and the single cases that are named; all without names.

    Raises:
        ValueError: a name that is neither.
    """
    known = {name for suite, cases in SUITES.items() for name in (suite, *cases)}
    if not set(names) <= known:
        raise ValueError(f"names: expected some of {sorted(known)}; got {sorted(set(names) - known)}")
    for suite, cases in SUITES.items():
        for name, make in cases.items():
            if not names or suite in names or name in names:
                yield make(device=device)
