"""``python -m benchmarks.gpu --output DIR``: all tests and measurements that need a GPU, in minutes, without a network.

Steps in order of importance: build, machine, tests, checks, times, engine, counters, sanitizers. The report
(``gpu-DEVICE-DATE.json`` and ``.md``), ``log.txt`` and ``counters.csv`` in DIR are updated after every step.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from benchmarks.gpu.steps import PLAN, Steps, environment
from benchmarks.gpu.tools import Log, Shell

PROGRAM = "benchmarks.gpu"


def main(
    output: Annotated[Path | None, typer.Option(help="folder of the report and the log")] = None,
    minutes: Annotated[float, typer.Option(help="for all steps together")] = 6.5,
    dry_run: Annotated[bool, typer.Option(help="walk every step on the CPU, with tiny sizes")] = False,
    predict: Annotated[bool, typer.Option(help="print what an H100 and an H200 should need, and end")] = False,
    only: Annotated[str | None, typer.Option(help="steps to take, with commas between them; all by default")] = None,
    once: Annotated[str | None, typer.Option(help="run our side of cases once, for a profiler")] = None,
) -> None:
    """Build, test, check, time and profile on the GPU at hand."""
    if predict:
        from benchmarks.gpu.predict import page

        return print("\n".join(page()))
    if once is not None:
        return run_once(once, dry_run, minutes)
    names = list(PLAN) if only is None else only.split(",")
    if not set(names) <= set(PLAN):
        sys.exit(f"{PROGRAM}: --only: expected some of {','.join(PLAN)}; got {only}")
    if not 0 < minutes < math.inf:
        sys.exit(f"{PROGRAM}: --minutes: expected a number above 0; got {minutes}")
    if output is None:
        sys.exit(f"{PROGRAM}: expected --output DIR, a folder of the report and the log")
    if not dry_run and (reason := no_gpu()):
        sys.exit(
            f"{PROGRAM}: {reason}; --dry-run walks every step without one, python -m benchmarks.run times the "
            "operators on the CPU"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        log = Log(output / "log.txt")
    except OSError as problem:
        sys.exit(f"{PROGRAM}: --output: expected a folder that can be written; got {output}: {problem.strerror}")
    signal.signal(signal.SIGTERM, _interrupted)
    begin = time.monotonic()
    shell = Shell(log, environment() | _rehearsal(dry_run))
    steps = Steps(output, shell, minutes=minutes, rehearsal=dry_run, names=names)
    try:
        steps.run(lambda line: print(line, flush=True))
    finally:
        shell.stop()
        steps.report.write(output)
        print(f"{output / steps.report.name}.md after {time.monotonic() - begin:.0f} s", flush=True)
    if any(step.state == "failed" for step in steps.report.steps.values()):
        sys.exit(2)


def no_gpu() -> str | None:
    """Why no GPU can be used, in one line; None if one can."""
    import torch

    if torch.cuda.is_available():
        return None
    from benchmarks.gpu.machine import why_no_gpu

    return why_no_gpu()


def run_once(cases: str, dry_run: bool, minutes: float) -> None:
    end = time.monotonic() + 60 * minutes  # before the imports, which take long under ncu
    from benchmarks.gpu.device import Cuda, Rehearsal
    from benchmarks.gpu.timing import run_once as run_cases_once

    run_cases_once(cases.split(","), Rehearsal() if dry_run else Cuda(), end)


def _rehearsal(dry_run: bool) -> dict[str, str]:
    """Environment of a rehearsal: no GPU even if the machine has one, and few threads."""
    if not dry_run:
        return {}
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Raise an exception, so that child processes are ended and the report is written."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    typer.run(main)
