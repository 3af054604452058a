"""Runs as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from reasonrec_fast.experiments.runner import Run

_LEFT_OUT = ("recall@", "mrr@")


def markdown_table(runs: Sequence[Run], names: Sequence[str] | None = None) -> str:
    """Means over seeds, with the sample standard deviation if there are several; runs that differ in the seed share a
    row.

    Args:
        runs: of any experiments.
        names: metrics to show; by default those that all runs have, except for strata, and for recall and reciprocal
            rank (which are redundant with a single target).
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    if names is None:
        shared = set.intersection(*(set(run.metrics) for run in runs)) if runs else set()
        names = [
            n for n in (runs[0].metrics if runs else ()) if n in shared and "/" not in n and not n.startswith(_LEFT_OUT)
        ]
    lines = [
        "| model | data | seeds | " + " | ".join(names) + " | minutes a seed | peak GiB |",
        "| --- " * (len(names) + 5) + "|",
    ]
    for some in groups.values():
        cells = [_spread([run.metrics[name] for run in some]) for name in names]
        minutes = statistics.mean(run.seconds for run in some) / 60
        peaks = [run.peak_memory_bytes for run in some if run.peak_memory_bytes is not None]
        peak = f"{max(peaks) / 2**30:.2f}" if peaks else "–"
        lines.append(
            f"| {some[0].model} | {some[0].dataset} | {len(some)} | "
            + " | ".join(cells)
            + f" | {minutes:.1f} | {peak} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    mean = f"{statistics.mean(known):.4f}"
    return f"{mean} ± {statistics.stdev(known):.4f}" if len(known) > 1 else mean
