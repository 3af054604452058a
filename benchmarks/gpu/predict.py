"""Predicted times on an H100 and an H200 at ceilings measured on such cards; not measurements of this package."""

from __future__ import annotations

from benchmarks.gpu.report import table
from benchmarks.gpu.steps import PLAN
from benchmarks.gpu.timing import CASES, least_seconds
from reasonrec_fast.benchmarking.suites import WORK

# Bytes per second of a copy and operations per second of a bfloat16 product, measured on one card of each. A float32
# product was not measured: 67 Tflop/s are from the data sheet and the same for both.
CARDS = {
    "H100": (3.0e12, {"bfloat16": 798e12, "float32": 67e12}),
    "H200": (4.3e12, {"bfloat16": 788e12, "float32": 67e12}),
}


def page() -> list[str]:
    """Two tables: kernels and steps."""
    rows = []
    for case in CASES:
        work = WORK[case]
        floors = [least_seconds(case, *card) * 1e6 for card in CARDS.values()]
        copy, product = CARDS["H100"]
        bound = "bytes" if work.num_bytes / copy > work.operations / product[_name(case)] else "operations"
        rows.append(
            (
                f"`{case}`",
                f"{work.num_bytes / 1e6:.2f}",
                f"{work.operations / 1e9:.3g}",
                *(f"{us:.2f}" for us in floors),
                bound,
            )
        )
    columns = ("case", "MB", "Gflop", *(f"{name}, µs" for name in CARDS), "bound on the H100 by")
    steps = [(name, f"{plan.expected:.0f}", f"{plan.most * 390:.0f}") for name, plan in PLAN.items()]
    return [*table(columns, rows), "", *table(("step", "expected, s", "at most, s"), steps)]


def _name(case: str) -> str:
    return str(WORK[case].dtype).removeprefix("torch.")
