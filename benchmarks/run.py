"""``python -m benchmarks.run [NAMES] --json FILE``: times contenders in turns, one record each."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from reasonrec_fast.benchmarking.case import run_case
from reasonrec_fast.benchmarking.suites import make_cases
from reasonrec_fast.files import write_json


def main(
    names: Annotated[list[str] | None, typer.Argument(help="suites or cases; all by default")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="where to write the records")] = None,
    cpu_time: Annotated[
        bool, typer.Option(help="time of the processor, for one thread on a machine that others use too")
    ] = False,
) -> None:
    """Time the operators against their peers."""
    records = []
    for case in make_cases(names or []):
        for record in run_case(case, time.process_time if cpu_time else time.perf_counter):
            records.append(asdict(record))
            print(json.dumps(asdict(record)), flush=True)
    if json_file is not None:
        write_json(json_file, records)
    table = Table("case", "contender", "median ms", "spread", "best peer / this", "this / floor", "extra MB")
    for r in records:
        figures = (r["ratio_to_best_peer"], r["ratio_to_floor"])
        extra = r["peak_extra_bytes"]
        table.add_row(
            r["case"], r["contender"], f"{r['median_ms']:.3f}", f"{r['spread']:.2f}",
            *("–" if value is None else f"{value:.2f}" for value in figures),
            "–" if extra is None else f"{extra / 1e6:.1f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
