"""When rows leave a model before its last layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasonrec_fast.ops.exit_confidence import Measure


@dataclass(frozen=True)
class ExitPolicy:
    """When a row leaves.

    Attributes:
        thresholds: for each stratum of requests, the least confidence at each exit but the last (which takes
            everyone); ``inf``: nobody leaves there. Where exits begin at depth 0, its threshold is the first.
        measure: a measure of ``exit_confidence``.
        trend: leave only where the confidence is at least that of the head before (OptiRAG-Rec's trend across heads;
            depth 0 is no head).
    """

    thresholds: tuple[tuple[float, ...], ...]
    measure: Measure = "ratio"
    trend: bool = False

    def check_exits(self, count: int) -> None:
        """Refuse a model with another number of exits, that of depth 0 included.

        Raises:
            ValueError: no stratum, or one with other than ``count - 1`` thresholds.
        """
        if not self.thresholds:
            raise ValueError("policy: expected thresholds of at least one stratum; got none")
        for stratum, row in enumerate(self.thresholds):
            if len(row) != count - 1:
                raise ValueError(
                    f"policy: expected {count - 1} thresholds, one an exit but the last; got {len(row)} in stratum "
                    f"{stratum}"
                )

    def leaves_at_zero(self, confidence: np.ndarray, strata: np.ndarray | None = None) -> np.ndarray:
        """Which rows leave at depth 0, bool ``[R]``: they cost no token.

        Args:
            confidence: at depth 0, ``[R]``. NaN goes on.
            strata: row of :attr:`thresholds` for each, int64 ``[R]``; 0 by default.

        >>> policy = ExitPolicy(((1.0, 2.0), (float("inf"), 2.0)))
        >>> policy.leaves_at_zero(np.array([0.5, 1.5, 1.5]), np.array([0, 0, 1])).tolist()
        [False, True, False]
        """
        thresholds = np.array([row[0] for row in self.thresholds])
        strata = np.zeros(len(confidence), dtype=np.int64) if strata is None else strata
        return np.asarray(np.asarray(confidence) >= thresholds[strata])

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: ``None`` stands for ``inf``.

        >>> ExitPolicy.from_dict(ExitPolicy(((0.5, float("inf")),)).to_dict()).thresholds
        ((0.5, inf),)
        """
        thresholds = [[_as_json(value) for value in row] for row in self.thresholds]
        return {"thresholds": thresholds, "measure": self.measure, "trend": self.trend}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExitPolicy:
        """What :meth:`to_dict` made."""
        rows = (tuple(math.inf if value is None else float(value) for value in row) for row in values["thresholds"])
        return cls(tuple(rows), values["measure"], values["trend"])


def _as_json(threshold: float) -> float | str | None:
    if math.isinf(threshold):
        return None if threshold > 0 else "-inf"
    return threshold
