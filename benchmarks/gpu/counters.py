"""Hardware counters of the hot kernels by ``ncu``, all cases in one process: under ncu imports take long."""

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
"""What has no counters yet comes first: the time may be over before the last."""
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
"""What ``torch.cuda._sleep`` launches."""


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
        The outcome in one line, and what is missing.
    """
    tool = shutil.which("ncu")
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
    left = end - time.monotonic()
    # The process ends before its time does: what ncu has seen it prints then.
    command = [sys.executable, "-m", "benchmarks.gpu", "--once", ",".join(cases), "--minutes", f"{0.6 * left / 60:.3f}"]
    done = shell.run([*profiler, *command, *(["--dry-run"] if rehearsal else [])], seconds=left)
    found = kernels(done.output, cases) if tool is not None else []
    if found:
        with csv_file.open("a", encoding="utf-8") as file:
            file.write(done.output[done.output.find(FIRST_COLUMN) :])
        on_kernels(found)
    seen = {kernel["case"] for kernel in found} if tool is not None else set(cases if done.status == 0 else ())
    lines = [f"{case}: no counters" for case in cases if case not in seen]
    if done.stopped or done.status or (lines and not found):
        lines.insert(0, f"ncu: {done.stopped or done.last_line}" if tool is not None else done.last_line)
    absent = "" if tool is not None else " (as they are: ncu is not there)"
    return "; ".join([f"{len(seen)} of {len(cases)} cases{absent}", *lines])


def kernels(output: str, cases: Sequence[str]) -> list[dict[str, Any]]:
    """The kernels in ``ncu``'s CSV (``--print-units base``: nanoseconds and bytes), in the order of their launches; a
    ``spin_kernel`` stands before those of each case."""
    begin = output.find(FIRST_COLUMN)
    if begin < 0:
        return []
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(output[begin:])):
        metric, value = row.get("Metric Name"), row.get("Metric Value")
        if metric not in METRICS or value is None:
            continue
        name = (row.get("Kernel Name") or "unknown").split("(")[0].removeprefix("void ")
        kernel = found.setdefault(row.get("ID") or "", {"kernel": name[:120]})
        try:
            kernel[METRICS[metric]] = float(value.replace(",", ""))
        except ValueError:  # "n/a"
            kernel[METRICS[metric]] = None
    place, of_cases = -1, []
    for kernel in found.values():
        if MARKER in kernel["kernel"]:
            place += 1
        elif 0 <= place < len(cases):
            of_cases.append({"case": cases[place], **kernel})
    return of_cases
