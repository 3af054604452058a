"""When rows leave a model before its last layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from reasonrec_fast.ops.exit_confidence import Measure


@dataclass(frozen=True)
class ExitPolicy:
    """When a row leaves.

    Attributes:
        thresholds: for each stratum of requests, the least confidence at each exit but the last (which takes
            everyone); ``inf``: nobody leaves there.
        measure: a measure of ``exit_confidence``.
        trend: leave only where the confidence is at least that of the exit before (OptiRAG-Rec's trend across heads).
    """

    thresholds: tuple[tuple[float, ...], ...]
    measure: Measure = "ratio"
    trend: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: ``None`` stands for ``inf``.

        >>> ExitPolicy.from_dict(ExitPolicy(((0.5, float("inf")),)).to_dict()).thresholds
        ((0.5, inf),)
        """
        thresholds = [[None if math.isinf(value) else value for value in row] for row in self.thresholds]
        return {"thresholds": thresholds, "measure": self.measure, "trend": self.trend}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExitPolicy:
        """What :meth:`to_dict` made."""
        rows = (tuple(math.inf if value is None else value for value in row) for row in values["thresholds"])
        return cls(tuple(rows), values["measure"], values["trend"])
