"""The report: one JSON file and one Markdown page, rewritten after every step."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.tools import write_text

OURS, FLOOR = "reasonrec_fast", "floor"


@dataclass
class Step:
    """The result of a step.

    Attributes:
        outcome: in one line.
        state: ``done``, ``failed`` or ``left out``.
        seconds: duration.
        lines: one for each failed or skipped part.
    """

    outcome: str
    state: str
    seconds: float
    lines: list[str] = field(default_factory=list)


@dataclass
class Report:
    """All results: the steps by name, and the records of each of them (see ``docs/gpu.md``)."""

    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    minutes: float = 0.0
    rehearsal: bool = False
    versions: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    tests: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)
    engine: list[dict[str, Any]] = field(default_factory=list)
    counters: list[dict[str, Any]] = field(default_factory=list)
    sanitizers: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Base name of its files, from device and date.

        >>> Report(date="2026-01-02", versions={"device": "NVIDIA H100 80GB HBM3"}).name
        'gpu-nvidia-h100-80gb-hbm3-2026-01-02'
        """
        device = str(self.versions.get("device", "unknown"))
        letters = "".join(c if c.isalnum() and c.isascii() else "-" for c in device.lower())
        return f"gpu-{'-'.join(filter(None, letters.split('-')))}-{self.date}"

    def write(self, folder: Path) -> None:
        """Write ``NAME.json`` and ``NAME.md`` atomically. If that fails, print one line and continue."""
        try:
            self._write(folder)
        except OSError as problem:
            print(f"report: not written to {folder}: {problem.strerror}", file=sys.stderr, flush=True)

    def _write(self, folder: Path) -> None:
        self.compare()
        for stale in folder.glob(f"gpu-unknown-{self.date}.*"):  # written before the device was known
            stale.unlink()
        text = json.dumps(_finite(asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / f"{self.name}.json", text + "\n")
        write_text(folder / f"{self.name}.md", "\n".join(self.lines()) + "\n")

    def compare(self) -> None:
        """Add ratios to the times: over the floor's, over the ceiling's, and the best peer's over this one."""
        for record in self.times:
            records = [other for other in self.times if other["unit"] == record["unit"]]
            floor = next((_best(other) for other in records if other["part"] == FLOOR), None)
            time, ceiling = _best(record), record.get("ceiling_us")
            peers = [_best(other) for other in records if other["part"] not in (OURS, FLOOR)]
            best_peer = min((peer for peer in peers if peer), default=None)
            record["over_floor"] = time / floor if time and floor and record["part"] != FLOOR else None
            record["over_ceiling"] = time / ceiling if time and ceiling else None
            record["best_peer_over"] = best_peer / time if time and best_peer and record["part"] == OURS else None

    def lines(self) -> list[str]:
        """The lines of the Markdown page."""
        heading = f"# {self.versions.get('device', 'unknown device')}, {self.date}"
        text = [heading + (": a rehearsal on a CPU, no figure means anything" if self.rehearsal else ""), ""]
        text += table(("step", "outcome", "s"), [(n, s.outcome, f"{s.seconds:.1f}") for n, s in self.steps.items()])
        problems = [f"- {name}: {step.outcome}" for name, step in self.steps.items() if step.state != "done"]
        problems += [f"- {name}: {line}" for name, step in self.steps.items() for line in step.lines]
        text += ["", "## What went wrong or was left out", "", *(problems or ["Nothing."])]
        text += ["", "## The machine", ""]
        text += [f"- {name}: {value}" for name, value in self.versions.items() if name != "packages"]
        packages = self.versions.get("packages", {})
        text += ["- " + ", ".join(f"{name} {version or '–'}" for name, version in packages.items())]
        text += [f"- {name}: {_ceiling(name, value)}" for name, value in self.ceilings.items()]
        text += ["", "## Tests and checks", "", self.tests.get("line", "No tests have run."), ""]
        text += ["Errors are shares of what is allowed: 1 is the limit.", ""]
        groups: dict[str, list[dict[str, Any]]] = {}
        for check in self.checks:
            groups.setdefault(str(check["unit"]).split("/")[0], []).append(check)
        text += table(
            ("checked", "cases", "largest error", "where"),
            [
                (name, len(group), _f(worst.get("worst"), 3), worst["unit"])
                for name, group in groups.items()
                for worst in [max(group, key=lambda check: check.get("worst") or 0.0)]
            ],
        )
        text += [
            "",
            "## Times",
            "",
            "µs a run: of a graph's replay over rotating inputs, and eagerly (GPU, host). The spread is the "
            "interquartile range of the replays over their median.",
            "",
        ]
        text += table(
            ("case", "contender", "graph, µs", "spread", "eager, µs", "host, µs", "this / floor", "best peer / this",
             "this / ceiling", "problem"),
            [
                (r["unit"], r["part"], _f(r.get("graph_us"), 2), _f(r.get("spread"), 2), _f(r.get("eager_us"), 1),
                 _f(r.get("host_us"), 1), _f(r.get("over_floor"), 2), _f(r.get("best_peer_over"), 2),
                 _f(r.get("over_ceiling"), 2), r.get("problem", ""))
                for r in self.times
            ],
        )  # fmt: skip
        text += ["", "## The engine", ""]
        text += table(
            ("tokens", "contender", "ms", "spread", "tokens/s", "requests/s", "GPU ms", "host ms", "launches",
             "a layer", "synchronisations"),
            [
                (r["tokens"], r["contender"], _f(r["ms"], 2), _f(r["spread"], 2), _f(r["tokens_a_second"], 0),
                 _f(r["requests_a_second"], 0), _f(r["device_ms"], 2), _f(r["host_ms"], 2), r["launches"],
                 _f(r["launches_a_layer"], 1), r["synchronisations"])
                for r in self.engine
            ],
        )  # fmt: skip
        for record in self.engine:
            if record["kernels"]:
                text += ["", f"### {record['tokens']} tokens, {record['contender']}: longest kernels", ""]
                text += table(
                    ("kernel", "launches", "µs"), [(k["kernel"], k["count"], _f(k["us"], 1)) for k in record["kernels"]]
                )
        text += ["", "## Counters", ""]
        text += table(
            ("case", "kernel", "µs", "DRAM %", "SM %", "occupancy %", "registers", "MB read", "MB written"),
            [
                (k["case"], k["kernel"], _f(k.get("ns"), 2, 1e-3), _f(k.get("dram_percent"), 1),
                 _f(k.get("sm_percent"), 1), _f(k.get("occupancy_percent"), 1), _f(k.get("registers"), 0),
                 _f(k.get("dram_bytes_read"), 2, 1e-6), _f(k.get("dram_bytes_written"), 2, 1e-6))
                for k in self.counters
            ],
        )  # fmt: skip
        text += ["", "## Sanitizers", "", *(f"- {name}: {value}" for name, value in self.sanitizers.items())]
        return text


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table.

    >>> table(("a", "b"), [(1, "x|y")])
    ['| a | b |', '| --- | --- |', '| 1 | x/y |']
    """
    cells = [[str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + " --- |" * len(columns), *lines[1:]]


def _ceiling(name: str, value: float) -> str:
    """A ceiling with its unit: bytes or operations per second, or the time of the shortest kernel.

    >>> _ceiling("copy", 3.0e12), _ceiling("product-bfloat16", 8e14), _ceiling("launch", 2e-6)
    ('3.00 TB/s', '800.0 Tflop/s', '2.00 µs')
    """
    if name == "launch":
        return f"{value * 1e6:.2f} µs"
    return f"{value / 1e12:.2f} TB/s" if name == "copy" else f"{value / 1e12:.1f} Tflop/s"


def _best(record: dict[str, Any]) -> float | None:
    """The time of the graph, or the eager time if there is no graph."""
    return record.get("graph_us") or record.get("eager_us")


def _f(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{value * scale:.{digits}f}"


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
