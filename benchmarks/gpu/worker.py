"""A process that runs the units of one step and records an event for each as soon as it is done.

A unit that fails does not affect the others. After an error that the CUDA context does not survive, and after a failed
capture, the process exits, and ``workers.py`` starts another one that continues.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

BROKEN, GO_ON = 13, 14
"""Exit statuses: the unit's error is recorded and the context is lost; the same unit continues in a new process."""

Emit = Callable[[dict[str, Any]], None]


def main() -> None:
    """Run the units of a module that are not done yet; see the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module", help="has units(device) and run(unit, device, emit, done)")
    parser.add_argument("--records", type=Path, required=True, help="where lines of JSON are added")
    parser.add_argument("--done", type=Path, required=True, help="JSON list of what need not be done")
    parser.add_argument("--share", default="0/1", help="i/n: every n-th unit from the i-th")
    parser.add_argument("--rehearsal", action="store_true")
    arguments = parser.parse_args()

    from benchmarks.gpu.device import CaptureFailed, Cuda, Rehearsal

    device = Rehearsal() if arguments.rehearsal else Cuda()
    module = importlib.import_module(arguments.module)
    done = set(json.loads(arguments.done.read_text()))
    file = arguments.records.open("a", encoding="utf-8")

    def write_event(event: str, **values: Any) -> None:
        file.write(json.dumps({"event": event, **values}) + "\n")
        file.flush()

    first, every = map(int, arguments.share.split("/"))
    units = module.units(device)[first::every]
    write_event("units", units=units)
    for unit in units:
        if unit in done:
            continue
        write_event("begin", unit=unit)
        print(f"--- {unit}", flush=True)
        parts: list[str] = []

        def emit(record: dict[str, Any], unit: str = unit, parts: list[str] = parts) -> None:
            if record.get("part"):
                parts.append(record["part"])
            write_event("record", unit=unit, record=record)

        try:
            module.run(unit, device, emit, done)
        except CaptureFailed as problem:
            traceback.print_exc()
            sys.stdout.flush()
            if parts:
                sys.exit(GO_ON)
            write_event("error", unit=unit, error=explained(problem))  # a new process would fail in the same way
            sys.exit(BROKEN)
        except Exception as problem:
            traceback.print_exc()
            write_event("error", unit=unit, error=explained(problem))
            if not device.healthy():
                sys.exit(BROKEN)
        write_event("end", unit=unit)
        device.empty_cache()


def explained(problem: Exception) -> str:
    """An exception in one line; an out-of-memory error with the device's free memory."""
    import torch

    from benchmarks.gpu.device import one_line

    if not isinstance(problem, torch.OutOfMemoryError):
        return one_line(problem)
    free, total = torch.cuda.mem_get_info()
    return f"out of memory ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free): {one_line(problem)}"


if __name__ == "__main__":
    main()
