"""pytest-benchmark over the cases of ``reasonrec_fast.benchmarking`` (in turns: ``python -m benchmarks.run``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from reasonrec_fast.benchmarking.case import Case

CONTENDERS = ("reasonrec_fast", "torch", "torch_coo", "torch_csr", "transformers", "transformers_prefix_cache")


@pytest.fixture
def time_case(benchmark: Any) -> Callable[[Mapping[str, Callable[..., Case]], str, str], None]:
    """Times one contender of one case, and checks its answer."""

    def run(cases: Mapping[str, Callable[..., Case]], name: str, contender: str) -> None:
        case = cases[name]()
        if contender not in case.contenders:
            pytest.skip(f"{contender} does not take part in {name}")
        benchmark.group = name
        case.check(contender, benchmark(case.contenders[contender]))

    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = getattr(metafunc.module, "CASES", None)
    if cases is not None and "contender" in metafunc.fixturenames:
        metafunc.parametrize("name", list(cases))
        metafunc.parametrize("contender", CONTENDERS)
