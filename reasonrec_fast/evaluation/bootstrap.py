"""Bootstrap confidence intervals and paired tests."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from reasonrec_fast.arrays import as_count, as_keys, as_labels, as_numbers, same_length
from reasonrec_fast.evaluation.ctr import RankedLabels, user_aucs


@dataclass(frozen=True)
class Interval:
    """A mean or a difference between two systems, and its 95 % percentile interval.

    Attributes:
        value, low, high: estimate, and the ends of the interval.
        p_value: of a paired test of the hypothesis of no difference; None if there was no test.
    """

    value: float
    low: float
    high: float
    p_value: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_differences(
    labels: np.ndarray,
    users: np.ndarray,
    scores: np.ndarray,
    baseline: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Differences in AUC and GAUC, ``scores`` minus ``baseline``, with bootstrap intervals over users.

    A user is drawn with all their events, for both systems at once: events of one user are not independent, and the
    errors of two systems on one user are correlated.

    Args:
        labels: 0 or 1, of the events, ``[N]``, at least one.
        users: of the events, ``[N]``; identifiers of any kind.
        scores, baseline: of two systems, ``[N]``.
        resamples: number of bootstrap samples, at least 1.
        seed: of the random numbers.

    Returns:
        ``{"auc": ..., "gauc": ...}``.

    Raises:
        ValueError: as :func:`~reasonrec_fast.evaluation.user_aucs`, no events, or no resamples.

    >>> labels, users = np.array([0, 1] * 20), np.repeat(np.arange(10), 4)
    >>> str(paired_differences(labels, users, labels * 1.0, labels * 1.0, resamples=10)["auc"])
    '+0.0000 [+0.0000, +0.0000]'
    """
    labels, scores, baseline = as_labels(labels), as_numbers(scores, "scores"), as_numbers(baseline, "baseline")
    _, user_index = as_keys(users, "users")
    same_length(labels=labels, users=user_index, scores=scores, baseline=baseline)
    resamples = as_count(resamples, "resamples", 1)
    if not len(labels):
        raise ValueError("labels: expected at least one event; got none")
    generator = np.random.default_rng(seed)
    num_users = int(user_index.max()) + 1
    ranked = [RankedLabels(labels, values) for values in (scores, baseline)]
    user_results = [user_aucs(labels, values, user_index) for values in (scores, baseline)]
    eligible, sizes = user_results[0][0], user_results[0][2]
    auc_gap = user_results[0][1] - user_results[1][1]
    samples = np.empty((resamples, 2))
    for draw in range(resamples):
        weights = np.bincount(generator.integers(num_users, size=num_users), minlength=num_users).astype(float)
        event_weights = weights[user_index]
        user_weights = weights[eligible] * sizes
        samples[draw] = ranked[0].auc(event_weights) - ranked[1].auc(event_weights), _mean(auc_gap, user_weights)
    values = ranked[0].auc() - ranked[1].auc(), _mean(auc_gap, sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # if all samples are NaN, so is the interval
        low, high = np.nanpercentile(samples, [2.5, 97.5], axis=0)
    return {name: Interval(float(values[i]), float(low[i]), float(high[i])) for i, name in enumerate(("auc", "gauc"))}


def mean_interval(values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of one value per user (NaN is skipped), with a bootstrap interval over users.

    Args:
        values: ``[B]``, such as those of :func:`~reasonrec_fast.evaluation.ranking_metrics`; finite or NaN.
        resamples: number of bootstrap samples, at least 1.
        seed: of the random numbers.

    Raises:
        ValueError: not a vector of numbers, an infinite one (with its row), or no resamples.

    >>> mean_interval(np.ones(9)).low
    1.0
    """
    values, resamples = as_numbers(values, "values", nan=True), as_count(resamples, "resamples", 1)
    present = values[~np.isnan(values)]
    if not len(present):
        return Interval(float("nan"), float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    means = [present[generator.integers(len(present), size=len(present))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(present.mean()), float(low), float(high))


def paired_means(values: np.ndarray, baseline: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean difference of one value per user between two systems (``values`` minus ``baseline``), with a sign-flip test.

    Args:
        values, baseline: ``[B]``, of the same users in the same order; a user with NaN in either is skipped. If all are
            skipped, the result is NaN.

    Raises:
        ValueError: not vectors of one length, an infinite value (with its row), or no resamples.

    >>> interval = paired_means(np.array([1.0, 1.0, 0.0, 1.0] * 9), np.array([0.0, 1.0, 0.0, 0.0] * 9))
    >>> interval.value, interval.significant, interval.p_value < 0.01
    (0.5, True, True)
    """
    values, baseline = as_numbers(values, "values", nan=True), as_numbers(baseline, "baseline", nan=True)
    same_length(values=values, baseline=baseline)
    gap = values - baseline
    gap = gap[~np.isnan(gap)]
    interval = mean_interval(gap, resamples=resamples, seed=seed)
    if not len(gap):
        return interval
    generator = np.random.default_rng(seed + 1)
    flipped = [float((gap * generator.choice((-1.0, 1.0), len(gap))).mean()) for _ in range(resamples)]
    extreme = sum(abs(value) >= abs(interval.value) - 1e-12 for value in flipped)
    return Interval(interval.value, interval.low, interval.high, (extreme + 1) / (resamples + 1))


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean; NaN if all weights are 0: a bootstrap sample may miss every user with both classes."""
    return float((weights * values).sum() / weights.sum()) if weights.sum() > 0 else float("nan")
