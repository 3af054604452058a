"""Runs ``compute-sanitizer``'s memcheck and racecheck on ``walk.py``, in parallel."""

from __future__ import annotations

import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.tools import Done, Shell

TOOLS = ("memcheck", "racecheck")
OPTIONS = {"memcheck": ("--report-api-errors", "no")}  # torch and Triton look up optional driver symbols
SUMMARY = re.compile(r"=+ (?:ERROR|RACECHECK) SUMMARY: .*")
HAZARD = re.compile(r"=+ (?:Error|Warning): Race reported between .*? access at (\S+?)\+.*\n=+ .*? access at (\S+?)\+")
LIBRARY_KERNELS = ("nvjet_", "cublas", "cudnn", "cutlass")
"""Name prefixes of kernels of NVIDIA's closed libraries, in which racecheck reports false races: seen in cuBLAS's
``splitK`` products on an H200."""


def check(shell: Shell, end: float, *, rehearsal: bool) -> dict[str, str]:
    """The summary of each tool; without ``compute-sanitizer`` a rehearsal runs the script by itself."""
    tool = shutil.which("compute-sanitizer")
    script = [sys.executable, "-m", "benchmarks.gpu.walk", *(["cpu"] if rehearsal else [])]
    if tool is None and not rehearsal:
        return dict.fromkeys(TOOLS, "left out: compute-sanitizer is not there")
    remaining = end - time.monotonic()
    if tool is None:
        done = shell.run(script, seconds=remaining)
        return {
            "script": "left out: compute-sanitizer is not there; the script runs" if done.status == 0 else failed(done)
        }

    def run(name: str) -> str:
        # Without torch's caching allocator each tensor is an allocation of its own, whose bounds memcheck knows.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name == "memcheck" else {}
        command = [
            tool,
            "--tool",
            name,
            "--error-exitcode",
            "9",
            "--print-limit",
            "40",
            *OPTIONS.get(name, ()),
            *script,
        ]
        return summary(shell.run(command, seconds=remaining, environment=environment))

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return dict(zip(TOOLS, pool.map(run, TOOLS), strict=True))


def summary(done: Done) -> str:
    """The result in one line; the full output is in the log."""
    summaries = SUMMARY.findall(done.output)
    line = summaries[-1].strip("= ") if summaries else f"no summary: {done.last_line!a}"
    if not summaries or done.stopped:
        return f"failed: {done.stopped or line}"
    if done.status == 0:
        return line
    kernels = HAZARD.findall(done.output)
    displayed = re.search(r"(\d+) hazards? displayed", line)
    within_libraries = [pair for pair in kernels if all(name.startswith(LIBRARY_KERNELS) for name in pair)]
    if displayed and len(within_libraries) == len(kernels) == int(displayed.group(1)):
        names = ", ".join(sorted({name for pair in within_libraries for name in pair}))
        return f"{line}, all within NVIDIA's libraries: {names}"
    return f"failed: {line}"


def failed(done: Done) -> str:
    return f"failed: {done.stopped or done.last_line}"
