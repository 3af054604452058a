"""Hardware counters of the hot kernels by ``ncu``; all cases in one process, since imports take long under ncu."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.tools import Shell

HOT = (
    "logprobs-4096-bf16",
    "route-65536-alone",
    "exit-128-bf16",
    "aggregate-gowalla-fp32",
    "topk-64",
    "attention-shared",
)
"""Cases without committed counters come first: there may be no time for the last ones."""
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "launch__registers_per_thread": "registers",
    "dram__bytes_read.sum": "dram_bytes_read",
    "dram__bytes_write.sum": "dram_bytes_written",
}
FIRST_COLUMN = '"ID"'
MARKER = "spin_kernel"
"""The kernel of ``torch.cuda._sleep``, launched before each case."""


def collect(
    shell: Shell, end: float, *, rehearsal: bool, on_kernels: Callable[[list[dict[str, Any]]], None], csv_file: Path
) -> str:
    """Profile the cases of :data:`HOT`; without ``ncu`` a rehearsal runs them once without a profiler.

    Args:
        shell: runs the commands.
        end: in terms of ``time.monotonic``; no case starts after it.
        rehearsal: on the CPU.
        on_kernels: called with the kernels of all cases.
        csv_file: for the complete output of ``ncu``.

    Returns:
        The outcome and the cases without counters, separated by ``"; "``.
    """
    tool = shutil.which("ncu")
    if tool is None and not rehearsal:
        return "left out: ncu is not there"
    profiler: list[str] = []
    if tool is not None:
        # Do not lock the clocks: the card may be shared.
        profiler = [
            tool, "--clock-control", "none", "--print-units", "base", "--csv", "--profile-from-start", "off",
            "--metrics", ",".join(METRICS),
        ]  # fmt: skip
    cases = HOT if tool is not None else HOT[:2]  # enough to exercise this code
    remaining = end - time.monotonic()
    # The process ends before the limit: ncu prints its counters only when the process has ended.
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--once",
        ",".join(cases),
        "--minutes",
        f"{0.6 * remaining / 60:.3f}",
    ]
    done = shell.run([*profiler, *command, *(["--dry-run"] if rehearsal else [])], seconds=remaining)
    profiled = kernels(done.output, cases) if tool is not None else []
    if profiled:
        with csv_file.open("a", encoding="utf-8") as file:
            file.write(done.output[done.output.find(FIRST_COLUMN) :])
        on_kernels(profiled)
    profiled_cases = (
        {kernel["case"] for kernel in profiled} if tool is not None else set(cases if done.status == 0 else ())
    )
    lines = [f"{case}: no counters" for case in cases if case not in profiled_cases]
    if done.stopped or done.status or (lines and not profiled):
        lines.insert(0, f"ncu: {done.stopped or done.last_line}" if tool is not None else done.last_line)
    note = "" if tool is not None else " (as they are: ncu is not there)"
    return "; ".join([f"{len(profiled_cases)} of {len(cases)} cases{note}", *lines])


def kernels(output: str, cases: Sequence[str]) -> list[dict[str, Any]]:
    """The kernels in ``ncu``'s CSV (``--print-units base``: nanoseconds and bytes), in launch order. A ``spin_kernel``
    precedes those of each case."""
    begin = output.find(FIRST_COLUMN)
    if begin < 0:
        return []
    by_id: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(output[begin:])):
        metric, value = row.get("Metric Name"), row.get("Metric Value")
        if metric not in METRICS or value is None:
            continue
        name = (row.get("Kernel Name") or "unknown").split("(")[0].removeprefix("void ")
        kernel = by_id.setdefault(row.get("ID") or "", {"kernel": name[:120]})
        try:
            kernel[METRICS[metric]] = float(value.replace(",", ""))
        except ValueError:  # "n/a"
            kernel[METRICS[metric]] = None
    case_index, of_cases = -1, []
    for kernel in by_id.values():
        if MARKER in kernel["kernel"]:
            case_index += 1
        elif 0 <= case_index < len(cases):
            of_cases.append({"case": cases[case_index], **kernel})
    return of_cases
