"""The plot of ``reasonrec-fast optirag pareto``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reasonrec_fast.files import atomic_write

if TYPE_CHECKING:
    from reasonrec_fast.experiments.pareto import Point

_MARKERS = {"thresholds": "o-", "one exit": "s:", "full depth": "D", "transformers": "^"}
_LABELS = {
    "thresholds": "thresholds (loss allowed on validation)",
    "one exit": "all requests at one exit (layer)",
    "full depth": "full depth, packed",
    "transformers": "full depth, transformers",
}


def plot(points: list[Point], path: Path) -> None:
    """Plot AUC against requests per second, a line for each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    for kind, marker in _MARKERS.items():
        some = sorted((p for p in points if p.kind == kind), key=lambda p: p.requests_per_s)
        axis.plot([p.requests_per_s for p in some], [p.auc for p in some], marker, label=_LABELS[kind])
        for p in some if kind in ("thresholds", "one exit") else ():
            axis.annotate(p.label, (p.requests_per_s, p.auc), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel="requests per second", ylabel="AUC")
    axis.margins(x=0.1, y=0.15)
    axis.legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
