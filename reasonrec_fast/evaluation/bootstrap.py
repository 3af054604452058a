"""Bootstrap intervals and paired tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonrec_fast.evaluation.ctr import RankedLabels, user_aucs


@dataclass(frozen=True)
class Interval:
    """A mean or a difference between two systems, and its 95 % percentile interval.

    Attributes:
        value, low, high: of the metric.
        p_value: of a paired test that there is no difference, where one was made.
    """

    value: float
    low: float
    high: float
    p_value: float | None = None

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


def mean_interval(values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of one value a user (NaN left out) over resampled users.

    Args:
        values: ``[B]``, such as those of :func:`~reasonrec_fast.evaluation.ranking_metrics`.

    >>> mean_interval(np.ones(9)).low
    1.0
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(float("nan"), float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    means = [known[generator.integers(len(known), size=len(known))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(known.mean()), float(low), float(high))


def paired_means(ours: np.ndarray, theirs: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean difference of one value a user between two systems (ours minus theirs), with a sign-flip test.

    Args:
        ours, theirs: ``[B]``, of the same users; one that is NaN for either is left out.

    Raises:
        ValueError: not vectors of one length.

    >>> found = paired_means(np.array([1.0, 1.0, 0.0, 1.0] * 9), np.array([0.0, 1.0, 0.0, 0.0] * 9))
    >>> found.value, found.significant, found.p_value < 0.01
    (0.5, True, True)
    """
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"ours, theirs: expected vectors of one length; got {ours.shape} and {theirs.shape}")
    gap = ours - theirs
    gap = gap[~np.isnan(gap)]
    found = mean_interval(gap, resamples=resamples, seed=seed)
    generator = np.random.default_rng(seed + 1)
    flipped = [float((gap * generator.choice((-1.0, 1.0), len(gap))).mean()) for _ in range(resamples)]
    as_far = sum(abs(value) >= abs(found.value) - 1e-12 for value in flipped)
    return Interval(found.value, found.low, found.high, (as_far + 1) / (resamples + 1))


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """NaN where no weight is left: a resample may miss every user who has both classes."""
    return float((weights * values).sum() / weights.sum()) if weights.sum() > 0 else float("nan")
