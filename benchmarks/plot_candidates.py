"""``python -m benchmarks.plot_candidates RECORDS.json PLOT.png``: plots ms per candidate over candidates per user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib
import typer

matplotlib.use("Agg")
from matplotlib import pyplot

from reasonrec_fast.benchmarking.engine import CANDIDATES
from reasonrec_fast.files import atomic_write, read_json

REQUESTS = 2 * max(CANDIDATES)
"""Requests per run, in every case."""


def main(
    records: Annotated[Path, typer.Argument(help="what benchmarks.run wrote, with engine")],
    plot: Annotated[Path, typer.Argument(help="PNG to write")],
) -> None:
    """Plot milliseconds per candidate of the cases engine-candidates-*."""
    start = "engine-candidates-"
    points = sorted(
        (int(record["case"].removeprefix(start)), record["median_ms"])
        for record in read_json(records)
        if record["case"].startswith(start)
    )
    counts = [count for count, _ in points]
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(counts, [milliseconds / REQUESTS for count, milliseconds in points], "o-")
    axis.set(xscale="log", yscale="log", xlabel="candidates a user", ylabel="ms a candidate")
    axis.set_xticks(counts, [str(count) for count in counts])
    with atomic_write(plot) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    for count, milliseconds in points:
        print(f"{count:4d} candidates: {milliseconds / REQUESTS:.2f} ms a candidate")


if __name__ == "__main__":
    typer.run(main)
