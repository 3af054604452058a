"""Hardware counters of the hot kernels by ``ncu``, one process a case."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.tools import Shell

HOT = (
    "exit-128-bf16",
    "attention-shared",
    "aggregate-gowalla-fp32",
    "topk-64",
    "logprobs-4096-bf16",
    "route-65536-alone",
)
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


def collect(
    shell: Shell, end: float, *, rehearsal: bool, on_kernels: Callable[[list[dict[str, Any]]], None], csv_file: Path
) -> str:
    """Profile the cases of :data:`HOT`; without ``ncu`` a rehearsal runs them once as they are.

    Args:
        shell: what runs them.
        end: of ``time.monotonic``; no case begins after it.
        rehearsal: on the CPU.
        on_kernels: is given the kernels of each case.
        csv_file: what ``ncu`` said, whole.

    Returns:
        The outcome in one line.
    """
    tool, lines, done_cases = shutil.which("ncu"), [], 0
    if tool is None and not rehearsal:
        return "left out: ncu is not there"
    profiler: list[str] = []
    if tool is not None:
        # The clocks stay as they are: the card is not ours.
        profiler = [
            tool, "--clock-control", "none", "--print-units", "base", "--csv", "--profile-from-start", "off",
            "--metrics", ",".join(METRICS),
        ]  # fmt: skip
    cases = HOT if tool is not None else HOT[:2]  # any case walks the same way
    for case in cases:
        left = end - time.monotonic()
        if left < 3.0:
            lines.append(f"{case}: left out: no time")
            continue
        command = [*profiler, sys.executable, "-m", "benchmarks.gpu", "--once", case]
        done = shell.run([*command, *(["--dry-run"] if rehearsal else [])], seconds=min(left, 60.0))
        if done.stopped or done.status:
            lines.append(f"{case}: {done.stopped or done.last_line}")
            continue
        done_cases += 1
        if tool is not None:
            with csv_file.open("a", encoding="utf-8") as file:
                file.write(f"# {case}\n{done.output[max(done.output.find(FIRST_COLUMN), 0) :]}\n")
            found = kernels(done.output, case)
            if not found:
                lines.append(f"{case}: no kernel in what ncu said: {done.last_line}")
            on_kernels(found)
    absent = "" if tool is not None else " (as they are: ncu is not there)"
    return "; ".join([f"{done_cases} of {len(cases)} cases{absent}", *lines])


def kernels(output: str, case: str) -> list[dict[str, Any]]:
    """The kernels in ``ncu``'s CSV (``--print-units base``: nanoseconds and bytes), in the order of their launches."""
    begin = output.find(FIRST_COLUMN)
    if begin < 0:
        return []
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(output[begin:])):
        metric, value = row.get("Metric Name"), row.get("Metric Value")
        if metric not in METRICS or value is None:
            continue
        name = (row.get("Kernel Name") or "unknown").split("(")[0].removeprefix("void ")
        kernel = found.setdefault(row.get("ID") or "", {"case": case, "kernel": name[:120]})
        try:
            kernel[METRICS[metric]] = float(value.replace(",", ""))
        except ValueError:  # "n/a"
            kernel[METRICS[metric]] = None
    return list(found.values())
