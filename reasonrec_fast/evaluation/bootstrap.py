"""Paired bootstrap over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonrec_fast.evaluation.ctr import RankedLabels, user_aucs


@dataclass(frozen=True)
class Interval:
    """A difference between two systems and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_differences(
    labels: np.ndarray,
    users: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Differences in AUC and GAUC, ours minus theirs, over resampled users.

    A user is drawn with all their events, for both systems at once: events of one user are not independent, and two
    systems err on the same users.

    Args:
        labels, users: of the events, ``[N]``.
        ours, theirs: scores, ``[N]``.

    Returns:
        ``{"auc": ..., "gauc": ...}``.

    >>> labels, users = np.array([0, 1] * 20), np.repeat(np.arange(10), 4)
    >>> str(paired_differences(labels, users, labels * 1.0, labels * 1.0, resamples=10)["auc"])
    '+0.0000 [+0.0000, +0.0000]'
    """
    generator = np.random.default_rng(seed)
    _, members = np.unique(users, return_inverse=True)
    count = int(members.max()) + 1
    ranked = [RankedLabels(labels, scores) for scores in (ours, theirs)]
    by_user = [user_aucs(labels, scores, members) for scores in (ours, theirs)]
    counted, sizes = by_user[0][0], by_user[0][2]
    gap = by_user[0][1] - by_user[1][1]
    samples = np.empty((resamples, 2))
    for draw in range(resamples):
        weights = np.bincount(generator.integers(count, size=count), minlength=count).astype(float)
        events = weights[members]
        own = weights[counted] * sizes
        samples[draw] = ranked[0].auc(events) - ranked[1].auc(events), _mean(gap, own)
    values = ranked[0].auc() - ranked[1].auc(), _mean(gap, sizes)
    low, high = np.nanpercentile(samples, [2.5, 97.5], axis=0)
    return {name: Interval(float(values[i]), float(low[i]), float(high[i])) for i, name in enumerate(("auc", "gauc"))}


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """NaN where no weight is left: a resample may miss every user who has both classes."""
    return float((weights * values).sum() / weights.sum()) if weights.sum() > 0 else float("nan")
