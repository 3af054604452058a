"""A process that works through the units of one step and tells of each as soon as it is done.

A unit that fails costs itself. After an error that the CUDA context does not survive, and after a capture that broke
off, the process ends, and ``workers.py`` starts another that goes on.
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
"""Exit statuses: the unit's error is told and the context is lost; the same unit goes on in a new process."""

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

    def tell(event: str, **values: Any) -> None:
        file.write(json.dumps({"event": event, **values}) + "\n")
        file.flush()

    first, every = map(int, arguments.share.split("/"))
    units = module.units(device)[first::every]
    tell("units", units=units)
    for unit in units:
        if unit in done:
            continue
        tell("begin", unit=unit)
        print(f"--- {unit}", flush=True)
        parts: list[str] = []

        def emit(record: dict[str, Any], unit: str = unit, parts: list[str] = parts) -> None:
            if record.get("part"):
                parts.append(record["part"])
            tell("record", unit=unit, record=record)

        try:
            module.run(unit, device, emit, done)
        except CaptureFailed as problem:
            traceback.print_exc()
            sys.stdout.flush()
            if parts:
                sys.exit(GO_ON)
            tell("error", unit=unit, error=explained(problem))  # it would fail in the same way again
            sys.exit(BROKEN)
        except Exception as problem:
            traceback.print_exc()
            tell("error", unit=unit, error=explained(problem))
            if not device.healthy():
                sys.exit(BROKEN)
        tell("end", unit=unit)
        device.empty_cache()


def explained(problem: Exception) -> str:
    """In one line; of memory that was out, with how much there is."""
    import torch

    from benchmarks.gpu.device import one_line

    if not isinstance(problem, torch.OutOfMemoryError):
        return one_line(problem)
    free, total = torch.cuda.mem_get_info()
    return f"out of memory ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free): {one_line(problem)}"


if __name__ == "__main__":
    main()
