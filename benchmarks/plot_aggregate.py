"""``python -m benchmarks.plot_aggregate RECORDS PNG``: plots the time per edge of one layer over the size of the graph.

RECORDS is the output of ``python -m benchmarks.run aggregate --json RECORDS`` on this machine, whose cache sizes are
marked in the plot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib
import typer

from reasonrec_fast.benchmarking.aggregate import DIM, MEAN_DEGREE
from reasonrec_fast.files import atomic_write, read_json

NAMES = {"reasonrec_fast": "reasonrec_fast", "torch_csr": "torch, CSR", "torch_coo": "torch, COO"}


def main(
    records: Annotated[Path, typer.Argument(help="JSON file of benchmarks.run")],
    output: Annotated[Path, typer.Argument(help="PNG file to write")],
) -> None:
    """Draw the plot."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for contender, label in NAMES.items():
        points = sorted(
            (float(r["case"].removeprefix("aggregate-")), r["median_ms"])
            for r in read_json(records)
            if r["contender"] == contender and r["case"].startswith(("aggregate-1e", "aggregate-3e"))
        )
        if points:
            axes.plot([e for e, _ in points], [ms * 1e6 / (2 * e) for e, ms in points], marker="o", label=label)
    for level, size in cache_bytes().items():
        edges = size / (2 / MEAN_DEGREE * DIM * 4)  # one user and one item per MEAN_DEGREE edges, a float32 row each
        axes.axvline(edges, color="grey", linestyle=":", linewidth=1)
        axes.annotate(f"rows fill L{level}", (edges, axes.get_ylim()[1]), rotation=90, va="top", ha="right", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="edges", ylabel="ns an edge and direction, one layer, D 64")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    with atomic_write(output) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")


def cache_bytes() -> dict[int, int]:
    """Sizes in bytes of the L2 and L3 caches of the first core, on Linux; empty on other systems."""
    sizes = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = (folder / name for name in ("level", "size"))
        text = size.read_text().strip() if size.is_file() else ""
        if text.endswith("K") and int(level.read_text()) > 1:
            sizes[int(level.read_text())] = int(text[:-1]) * 1024
    return sizes


if __name__ == "__main__":
    typer.run(main)
