"""Starts the workers of a step, reads what they tell, and starts the next where one has died."""

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
"""Of workers of one share in a row, none of which gets any further: no unit and no part is finished."""


@dataclass
class Outcome:
    """What became of a step's units.

    Attributes:
        done: units that ended.
        errors: by unit, one line.
        left: units that had no time.
        problem: why no unit ran, where none did.
    """

    done: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    problem: str | None = None

    def line(self) -> str:
        """In one line.

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
    """Works through the units of one module.

    Args:
        shell: what runs them.
        module: by its full name; see :mod:`benchmarks.gpu.worker`.
        rehearsal: on the CPU.
        count: of processes side by side.
        unit_seconds: after which a unit has failed.
        on_record: is given each record as it comes, one at a time.
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
        """All units that can be done before ``end`` (of ``time.monotonic``)."""
        with tempfile.TemporaryDirectory() as folder:
            threads = [
                threading.Thread(target=self._share, args=(Path(folder), place, end), daemon=True)
                for place in range(self._count)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return self._outcome

    def _share(self, folder: Path, place: int, end: float) -> None:
        share = _Share(folder, place, self._unit_seconds, self._tell)
        in_vain = 0
        while end - time.monotonic() >= 1.0:
            if share.units is not None and not share.waiting():
                break
            finished = len(share.finished)
            share.done_file.write_text(json.dumps(sorted(share.finished)))
            command = [
                sys.executable, "-m", "benchmarks.gpu.worker", self._module, "--records", share.records,
                "--done", share.done_file, "--share", f"{place}/{self._count}",
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
                self._tell({"event": "error", "unit": unit, "error": reason})
                share.finished.add(unit)
            in_vain = in_vain + 1 if len(share.finished) == finished else 0
            if in_vain == MOST_STARTS:
                reason = f"given up after {in_vain} starts without progress ({done.status}): {done.last_line}"
                for unit in share.waiting():
                    self._tell({"event": "error", "unit": unit, "error": reason})
                    share.finished.add(unit)
        with self._lock:
            self._outcome.left += share.waiting()

    def _tell(self, line: dict[str, Any]) -> None:
        with self._lock:
            if line["event"] == "record":
                self._on_record({"unit": line["unit"], **line["record"]})
            elif line["event"] == "error":
                self._outcome.errors[line["unit"]] = line["error"]
            elif line["event"] == "end" and line["unit"] not in self._outcome.errors:
                self._outcome.done.append(line["unit"])


def threads_of(processes: int) -> dict[str, str]:
    """So many threads for each of several processes that compute on the CPU beside the GPU; all for one alone."""
    return {} if processes == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}


class _Share:
    """What one worker after another tells of a share of the units."""

    def __init__(self, folder: Path, place: int, unit_seconds: float, tell: Callable[[dict[str, Any]], None]) -> None:
        self.records, self.done_file = folder / f"{place}.jsonl", folder / f"{place}.json"
        self.units: list[str] | None = None
        self.finished: set[str] = set()
        self.current: str | None = None
        self._begun, self._read_to, self._unit_seconds, self._tell = 0.0, 0, unit_seconds, tell

    def waiting(self) -> list[str]:
        return [unit for unit in self.units or [] if unit not in self.finished]

    def read(self) -> str | None:
        """Take in new lines; a reason to stop where a unit takes too long."""
        text = self.records.read_text() if self.records.exists() else ""
        whole = text.rfind("\n") + 1
        for line in text[self._read_to : whole].splitlines():
            told = json.loads(line)
            if told["event"] == "units":
                self.units = told["units"]
            elif told["event"] == "begin":
                self.current, self._begun = told["unit"], time.monotonic()
            elif told["event"] == "end":
                self.finished.add(told["unit"])
                self.current = None
            elif told["event"] == "record" and told["record"].get("part"):
                self.finished.add(f"{told['unit']}/{told['record']['part']}")
            elif told["event"] == "error":
                self.finished.add(told["unit"])
            self._tell(told)
        self._read_to = max(whole, self._read_to)
        if self.current is not None and time.monotonic() - self._begun > self._unit_seconds:
            return f"took longer than {self._unit_seconds:.0f} s"
        return None
