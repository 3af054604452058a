"""The steps in order of importance, each with its share of the time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import counters, sanitizers, tests_step
from benchmarks.gpu.report import Report, Step
from benchmarks.gpu.tools import ROOT, Shell
from benchmarks.gpu.workers import Outcome, Workers

PARALLEL_CHECKS = 8
"""Processes that check in parallel; each compiles its kernels on a core of its own."""


@dataclass(frozen=True)
class Plan:
    """The time of a step.

    Attributes:
        most: limit, as a share of the total time.
        expected: seconds on a GPU, in a run of 6.5 minutes.
        least: seconds that must remain for the step to start.
    """

    most: float
    expected: float
    least: float


PLAN = {
    "build": Plan(0.25, 10, 1),
    "machine": Plan(0.12, 15, 1),
    "tests": Plan(0.25, 60, 10),
    "checks": Plan(0.22, 60, 10),
    "times": Plan(0.35, 110, 15),
    "engine": Plan(0.15, 40, 10),
    "counters": Plan(0.16, 55, 10),
    "sanitizers": Plan(0.20, 40, 10),
}

ALL = sum(plan.most for plan in PLAN.values())


class Steps:
    """Runs the steps and keeps the report.

    Args:
        folder: of the results.
        shell: runs the commands.
        minutes: for all steps together.
        rehearsal: on the CPU.
        names: of the steps to take; the others' time is divided among them.
    """

    def __init__(
        self, folder: Path, shell: Shell, *, minutes: float, rehearsal: bool, names: Sequence[str] = tuple(PLAN)
    ) -> None:
        self.report = Report(minutes=minutes, rehearsal=rehearsal)
        self._folder, self._shell, self._rehearsal, self._names = folder, shell, rehearsal, names
        self._seconds, self._end = 60 * minutes, time.monotonic() + 60 * minutes

    def run(self, say: Callable[[str], None]) -> None:
        """Run all steps; after one that fails or has no time the next still runs."""
        steps: dict[str, Callable[[float], Step]] = {
            "build": self._build, "machine": self._machine, "tests": self._tests, "checks": self._checks,
            "times": self._times, "engine": self._engine, "counters": self._counters, "sanitizers": self._sanitizers,
        }  # fmt: skip
        for name, step in steps.items():
            if name not in self._names:
                continue
            begin, remaining = time.monotonic(), self._end - time.monotonic()
            if remaining < PLAN[name].least * min(1.0, self._seconds / 390):
                outcome = Step("left out: no time", "left out", 0.0)
            else:
                self._shell.log.write(f"\n===== {name} =====\n")
                try:
                    outcome = step(begin + min(remaining, self._longest(name)))
                except Exception as problem:  # an error of this program must not prevent the following steps
                    outcome = Step(f"failed: {type(problem).__name__}: {problem}", "failed", 0.0)
            outcome.seconds = time.monotonic() - begin
            self.report.steps[name] = outcome
            self.report.write(self._folder)
            say(
                "\n".join(
                    [f"{name}: {outcome.outcome} ({outcome.seconds:.0f} s)", *(f"  {line}" for line in outcome.lines)]
                )
            )

    def _longest(self, name: str) -> float:
        """Limit of a step in seconds; in a rehearsal only the total time limits it."""
        if self._rehearsal:
            return self._seconds
        return self._seconds * min(ALL / sum(PLAN[chosen].most for chosen in self._names) * PLAN[name].most, 1.0)

    def _build(self, end: float) -> Step:
        """Install the bundled libraries, or build them here; a rehearsal only checks whether they load."""
        expression = "[*bundle.install(), *bundle.build()]"
        if self._rehearsal:
            expression = "[f'{name} left out: {problem}' for name, problem in bundle.missing().items()]"
        script = f"from benchmarks import bundle\nprint(*({expression} or ['every library loads']), sep='\\n')"
        done = self._shell.run([sys.executable, "-c", script], seconds=end - time.monotonic())
        lines = [line for line in done.output.splitlines() if line.strip()]
        check = self._shell.run([sys.executable, "-c", "import reasonrec_fast"], seconds=60.0)
        if check.status != 0:
            return Step(f"failed: the package does not load: {check.last_line}", "failed", 0.0, lines)
        problem_lines = [line for line in lines if "left out" in line or "failed" in line]
        return Step(
            done.stopped or done.last_line, "failed" if done.status or done.stopped else "done", 0.0, problem_lines
        )

    def _machine(self, end: float) -> Step:
        lines: list[str] = []

        def on_record(record: dict[str, Any]) -> None:
            unit = record.pop("unit")
            if unit == "versions":
                self.report.versions = record["versions"]
                lines.extend(record["lines"])
            else:
                self.report.ceilings |= record

        outcome = self._workers("machine", on_record, unit_seconds=40).run(end)
        return _step(outcome, lines)

    def _tests(self, end: float) -> Step:
        self.report.tests = results = tests_step.run(self._shell, end - time.monotonic(), rehearsal=self._rehearsal)
        good = results["status"] == 0
        return Step(results["line"], "done" if good else "failed", 0.0, results["failures"])

    def _checks(self, end: float) -> Step:
        count = min(2 if self._rehearsal else PARALLEL_CHECKS, os.cpu_count() or 1)
        workers = self._workers("checks", self.report.checks.append, unit_seconds=60, count=count)
        return _step(workers.run(end))

    def _times(self, end: float) -> Step:
        def on_record(record: dict[str, Any]) -> None:
            self.report.times.append(record)
            self.report.write(self._folder)

        outcome = self._workers("timing", on_record, unit_seconds=45).run(end)
        if {"copy", "product-bfloat16", "product-float32"} <= set(self.report.ceilings):
            self._add_ceilings()
        problems = [record for record in self.report.times if "problem" in record]
        parts = [record for record in problems if "waits for values" not in record["problem"]]
        step = _step(outcome, [f"{record['unit']}/{record['part']}: {record['problem']}" for record in parts])
        # If a capture failed and a new process finished the case, its errors are lost, but its records are not.
        if not all(record["problem"].startswith("no graph") for record in parts):
            step.state = "failed"
        return step

    def _add_ceilings(self) -> None:
        from benchmarks.gpu.timing import least_seconds

        ceilings = self.report.ceilings
        rates = {name: ceilings[f"product-{name}"] for name in ("bfloat16", "float32")}
        for record in self.report.times:
            record["ceiling_us"] = least_seconds(record["unit"], ceilings["copy"], rates) * 1e6

    def _engine(self, end: float) -> Step:
        return _step(self._workers("engine", self.report.engine.append, unit_seconds=45).run(end))

    def _counters(self, end: float) -> Step:
        outcome, *lines = counters.collect(
            self._shell, end, rehearsal=self._rehearsal, on_kernels=self.report.counters.extend,
            csv_file=self._folder / "counters.csv",
        ).split("; ")  # fmt: skip
        state = "left out" if outcome.startswith("left out") else "failed" if outcome.startswith("0 of") else "done"
        return Step(outcome, state, 0.0, lines)

    def _sanitizers(self, end: float) -> Step:
        self.report.sanitizers = results = sanitizers.check(self._shell, end, rehearsal=self._rehearsal)
        lines = [f"{name}: {line}" for name, line in results.items()]
        bad = any(line.startswith("failed") for line in results.values())
        left_out = all(line.startswith("left out") for line in results.values()) and not self._rehearsal
        return Step("; ".join(lines), "failed" if bad else "left out" if left_out else "done", 0.0)

    def _workers(
        self, module: str, on_record: Callable[[dict[str, Any]], None], *, unit_seconds: float, count: int = 1
    ) -> Workers:
        return Workers(
            self._shell,
            f"benchmarks.gpu.{module}",
            rehearsal=self._rehearsal,
            count=count,
            unit_seconds=unit_seconds * (3 if self._rehearsal else 1),  # its machine may have two shared cores
            on_record=on_record,
        )


def _step(outcome: Outcome, lines: list[str] | None = None) -> Step:
    errors = [f"{unit}: {error}" for unit, error in outcome.errors.items()]
    skipped = [f"{unit}: left out: no time" for unit in outcome.left]
    state = "failed" if outcome.problem or outcome.errors else "done"
    return Step(outcome.line(), state, 0.0, [*(lines or []), *errors, *skipped])


def environment(root: Path = ROOT) -> dict[str, str]:
    """Environment of every command: the bundled packages, no network, and unbuffered output."""
    paths = [str(root / ".gpu-bundle" / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
