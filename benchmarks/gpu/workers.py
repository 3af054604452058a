"""Starts the worker processes of a step, reads their events, and replaces those that have died."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.tools import Shell
from benchmarks.gpu.worker import BROKEN, GO_ON

MOST_STARTS = 3
"""Consecutive starts of workers of one share without progress (no unit or part finished) before giving up."""


@dataclass
class Outcome:
    """The outcome of a step's units.

    Attributes:
        done: completed units.
        errors: one line for each failed unit.
        left: units for which there was no time.
        problem: why no unit could run; None if one could.
    """

    done: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    problem: str | None = None

    def line(self) -> str:
        """A summary in one line.

        >>> Outcome(["a"], {"b": "ValueError: no"}, ["c"]).line()
        '1 of 3 done, 1 failed, 1 without time'
        """
        if self.problem is not None:
            return f"failed: {self.problem}"
        total = len(self.done) + len(self.errors) + len(self.left)
        parts = [f"{len(self.done)} of {total} done"]
        parts += [f"{len(self.errors)} failed"] if self.errors else []
        parts += [f"{len(self.left)} without time"] if self.left else []
        return ", ".join(parts)


class Workers:
    """Runs the units of one module.

    Args:
        shell: runs the worker processes.
        module: its full name; see :mod:`benchmarks.gpu.worker`.
        rehearsal: on the CPU.
        count: number of parallel processes.
        unit_seconds: time limit of a unit.
        on_record: called with each record as it arrives, by one thread at a time.
    """

    def __init__(
        self,
        shell: Shell,
        module: str,
        *,
        rehearsal: bool,
        count: int = 1,
        unit_seconds: float = 60.0,
        on_record: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        self._shell, self._module, self._rehearsal, self._count = shell, module, rehearsal, count
        self._unit_seconds, self._on_record = unit_seconds, on_record
        self._lock, self._outcome = threading.Lock(), Outcome()

    def run(self, end: float) -> Outcome:
        """Run the units that can be completed before ``end`` (in terms of ``time.monotonic``)."""
        with tempfile.TemporaryDirectory() as folder:
            threads = [
                threading.Thread(target=self._share, args=(Path(folder), index, end), daemon=True)
                for index in range(self._count)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return self._outcome

    def _share(self, folder: Path, index: int, end: float) -> None:
        share = _Share(folder, index, self._unit_seconds, self._on_event)
        idle_starts = 0
        while end - time.monotonic() >= 1.0:
            if share.units is not None and not share.waiting():
                break
            finished = len(share.finished)
            share.done_file.write_text(json.dumps(sorted(share.finished)))
            command = [
                sys.executable, "-m", "benchmarks.gpu.worker", self._module, "--records", share.records,
                "--done", share.done_file, "--share", f"{index}/{self._count}",
                *(["--rehearsal"] if self._rehearsal else []),
            ]  # fmt: skip
            share.current = None
            done = self._shell.run(
                command, seconds=end - time.monotonic(), watch=share.read, environment=threads_of(self._count)
            )
            if share.units is None:
                with self._lock:
                    self._outcome.problem = done.stopped or done.last_line
                return
            unit = share.current
            if unit is None and done.status == 0:
                break
            if done.stopped and done.stopped.startswith("stopped after"):
                break  # the step's time is over
            if unit is not None and done.status not in (BROKEN, GO_ON):
                reason = done.stopped or f"its process died ({done.status}): {done.last_line}"
                self._on_event({"event": "error", "unit": unit, "error": reason})
                share.finished.add(unit)
            idle_starts = idle_starts + 1 if len(share.finished) == finished else 0
            if idle_starts == MOST_STARTS:
                reason = f"given up after {idle_starts} starts without progress ({done.status}): {done.last_line}"
                for unit in share.waiting():
                    self._on_event({"event": "error", "unit": unit, "error": reason})
                    share.finished.add(unit)
        with self._lock:
            self._outcome.left += share.waiting()

    def _on_event(self, event: dict[str, Any]) -> None:
        with self._lock:
            if event["event"] == "record":
                self._on_record({"unit": event["unit"], **event["record"]})
            elif event["event"] == "error":
                self._outcome.errors[event["unit"]] = event["error"]
            elif event["event"] == "end" and event["unit"] not in self._outcome.errors:
                self._outcome.done.append(event["unit"])


def threads_of(processes: int) -> dict[str, str]:
    """Environment that divides the cores among several processes; a single one may use all."""
    return {} if processes == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}


class _Share:
    """The state of a share of the units, from the events of its successive workers."""

    def __init__(
        self, folder: Path, index: int, unit_seconds: float, on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        self.records, self.done_file = folder / f"{index}.jsonl", folder / f"{index}.json"
        self.units: list[str] | None = None
        self.finished: set[str] = set()
        self.current: str | None = None
        self._begun, self._read_to, self._unit_seconds, self._on_event = 0.0, 0, unit_seconds, on_event

    def waiting(self) -> list[str]:
        return [unit for unit in self.units or [] if unit not in self.finished]

    def read(self) -> str | None:
        """Read new events; returns a reason to stop the worker if a unit takes too long."""
        text = self.records.read_text() if self.records.exists() else ""
        complete = text.rfind("\n") + 1
        for line in text[self._read_to : complete].splitlines():
            event = json.loads(line)
            if event["event"] == "units":
                self.units = event["units"]
            elif event["event"] == "begin":
                self.current, self._begun = event["unit"], time.monotonic()
            elif event["event"] == "end":
                self.finished.add(event["unit"])
                self.current = None
            elif event["event"] == "record" and event["record"].get("part"):
                self.finished.add(f"{event['unit']}/{event['record']['part']}")
            elif event["event"] == "error":
                self.finished.add(event["unit"])
            self._on_event(event)
        self._read_to = max(complete, self._read_to)
        if self.current is not None and time.monotonic() - self._begun > self._unit_seconds:
            return f"took longer than {self._unit_seconds:.0f} s"
        return None
