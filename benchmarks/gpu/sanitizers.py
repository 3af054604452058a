"""``compute-sanitizer``'s memcheck and racecheck of ``walk.py``, side by side."""

from __future__ import annotations

import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.tools import Done, Shell

TOOLS = ("memcheck", "racecheck")
OPTIONS = {"memcheck": ("--report-api-errors", "no")}  # torch and Triton ask for symbols that a driver need not have
SUMMARY = re.compile(r"=+ (?:ERROR|RACECHECK) SUMMARY: .*")


def check(shell: Shell, end: float, *, rehearsal: bool) -> dict[str, str]:
    """The summary of each tool; without ``compute-sanitizer`` a rehearsal runs the script as it is."""
    tool = shutil.which("compute-sanitizer")
    script = [sys.executable, "-m", "benchmarks.gpu.walk", *(["cpu"] if rehearsal else [])]
    if tool is None and not rehearsal:
        return dict.fromkeys(TOOLS, "left out: compute-sanitizer is not there")
    left = end - time.monotonic()
    if tool is None:
        done = shell.run(script, seconds=left)
        return {
            "script": "left out: compute-sanitizer is not there; the script runs" if done.status == 0 else failed(done)
        }

    def run(name: str) -> str:
        # memcheck sees each tensor by itself only where torch does not cut them from blocks of its own.
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
        return summary(shell.run(command, seconds=left, environment=environment))

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return dict(zip(TOOLS, pool.map(run, TOOLS), strict=True))


def summary(done: Done) -> str:
    """In one line; the rest is in the log."""
    found = SUMMARY.findall(done.output)
    line = found[-1].strip("= ") if found else f"it said no summary: {done.last_line!a}"
    return line if found and done.status == 0 and not done.stopped else f"failed: {done.stopped or line}"


def failed(done: Done) -> str:
    return f"failed: {done.stopped or done.last_line}"
