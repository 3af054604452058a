"""What an H100 and an H200 should need at the ceilings that were measured on such cards; no figure of ours."""

from __future__ import annotations

from benchmarks.gpu.report import table
from benchmarks.gpu.steps import PLAN
from benchmarks.gpu.timing import CASES, least_seconds
from reasonrec_fast.benchmarking.suites import WORK

# Bytes a second of a copy and operations a second of a bfloat16 product, measured on one card of each; a product in
# float32 was not measured: 67 Tflop/s of the data sheet, which both share.
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
