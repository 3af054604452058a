"""Runs ``tests/gpu`` with pytest, in parallel if xdist is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import Any

from benchmarks.gpu.tools import Done, Shell
from benchmarks.gpu.workers import threads_of

RESULT = r"(?P<result>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
LINES = (
    re.compile(rf"^\[gw\d+\] \[ *\d+%\] {RESULT} (?P<name>tests/.+?) *$"),  # with xdist
    re.compile(rf"^(?P<name>tests/.+?) {RESULT}(?: .*)?$"),
)
MOST_WORKERS = 12


def run(shell: Shell, seconds: float, *, rehearsal: bool) -> dict[str, Any]:
    """Counts of outcomes, and the names of the failed tests."""
    command = [sys.executable, "-m", "pytest", "-v", "-ra", "--durations=15", "-p", "no:cacheprovider", "tests/gpu"]
    workers = 1
    if importlib.util.find_spec("xdist") is not None:
        workers = min(2 if rehearsal else MOST_WORKERS, os.cpu_count() or 1)
        command += ["-n", str(workers), "--dist", "worksteal"]
    if rehearsal:  # takes twenty seconds; the step "checks" covers OptiRAG
        command += ["-k", "not optirag_is_the_same"]
    environment = {**threads_of(workers), **({"REASONREC_FAST_REHEARSAL": "1"} if rehearsal else {})}
    return counted(shell.run(command, seconds=seconds, environment=environment))


def counted(done: Done) -> dict[str, Any]:
    """Counts from pytest's verbose lines, so that an interrupted run counts too."""
    outcomes: dict[str, str] = {}
    for line in done.output.splitlines():
        matched = next((match for pattern in LINES if (match := pattern.match(line))), None)
        if matched:
            outcomes[matched["name"]] = matched["result"]
    counts = {kind.lower(): sum(value == kind for value in outcomes.values()) for kind in set(outcomes.values())}
    failures = sorted(name for name, value in outcomes.items() if value in ("FAILED", "ERROR"))
    line = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or f"failed: {done.last_line}"
    if done.stopped:
        line += f"; {done.stopped}"
    elif done.status not in (0, 1):
        line += f"; pytest ended with {done.status}: {done.last_line}"
    return {"line": line, "counts": counts, "failures": failures, "status": done.status, "seconds": done.seconds}
