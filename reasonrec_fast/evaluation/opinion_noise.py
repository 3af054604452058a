"""How far opinions can be predicted at all: from raters' standard errors, and from how much alike images differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from reasonrec_fast.arrays import as_count, as_numbers
from reasonrec_fast.evaluation.bootstrap import Interval
from reasonrec_fast.evaluation.duplicates import nearest_pairs


class NoiseCeiling(NamedTuple):
    """What a perfect judge would reach.

    Attributes:
        srcc: Spearman's correlation of true scores with the mean opinions, mean and 95 % of the draws.
        images: how many it is of: those whose standard error is known.
    """

    srcc: Interval
    images: int


def noise_ceiling(scores: np.ndarray, deviations: np.ndarray, *, draws: int = 200, seed: int = 0) -> NoiseCeiling:
    """The SRCC with these mean opinions of a judge who knows what all people would say.

    A mean opinion is the true score and an error of its standard error: s = t + e. What the true scores may have been
    is drawn from their posterior with a normal prior of the scores' mean m and variance τ², the variance of the
    opinions without that of their errors: t ~ N(m + b (s - m), b σ²), b = τ² / (τ² + σ²). (Adding errors to the
    opinions instead would take the first errors for truth: the ceiling would be too high.)

    Args:
        scores: mean opinions on one scale, ``[N]``.
        deviations: their standard errors, ``[N]``; NaN where not known, which are left out.
        draws: of the true scores.
        seed: of the random numbers.

    Raises:
        ValueError: not two vectors of one length, deviations below 0 (with the row), fewer than five that are known, or
            scores that are all the same.

    >>> print(noise_ceiling(np.arange(100.0), np.zeros(100)).srcc)
    +1.0000 [+1.0000, +1.0000]
    """
    scores, deviations = as_numbers(scores, "scores"), as_numbers(deviations, "deviations", nan=True)
    draws = as_count(draws, "draws", least=1)
    if len(scores) != len(deviations):
        raise ValueError(f"deviations: expected {len(scores)}, one a score; got {len(deviations)}")
    for row in np.flatnonzero(deviations < 0)[:1]:
        raise ValueError(f"deviations: expected at least 0; got {deviations[row]} in row {row}")
    known = ~np.isnan(deviations)
    if known.sum() < 5:
        raise ValueError(f"deviations: expected at least five that are known; got {int(known.sum())}")
    scores, errors = scores[known], deviations[known] ** 2
    if not np.ptp(scores):
        raise ValueError("scores: expected different ones; got scores that are all the same")
    true_variance = max(scores.var(ddof=1) - errors.mean(), 0.0)
    with np.errstate(invalid="ignore"):
        kept = np.where(errors > 0, true_variance / (true_variance + errors), 1.0)
    expected, spread = scores.mean() + kept * (scores - scores.mean()), np.sqrt(kept * errors)
    generator = np.random.default_rng(seed)
    reached = np.array([_spearman(expected + spread * generator.standard_normal(len(scores)), scores)
                        for _ in range(draws)])  # fmt: skip
    low, high = np.quantile(reached, [0.025, 0.975])
    return NoiseCeiling(Interval(float(reached.mean()), float(low), float(high)), len(scores))


def _spearman(true: np.ndarray, scores: np.ndarray) -> float:
    if not np.ptp(true):  # the opinions differ by no more than their errors: nothing can be known
        return 0.0
    return float(stats.spearmanr(true, scores).statistic)


def nearest_pair_correlation(features: np.ndarray, scores: np.ndarray, pairs: int = 100) -> float:
    """Pearson correlation of the scores within the pairs of images that are nearest in feature space.

    Near 1 where alike images got alike opinions; near 0 where opinions are noise, or the features do not see what they
    are about. Each pair counts in both orders, as none of its images is the first.

    Args:
        features: ``[N, D]``; nearness is their cosine, so centre and scale them first.
        scores: on one scale, ``[N]``.
        pairs: how many of the nearest pairs; all that tie with the last are among them.

    Returns:
        The correlation; NaN where the scores of the pairs are all the same.

    Raises:
        ValueError: other shapes, values that are not finite, a row of zeros, or fewer than three rows.

    >>> features = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    >>> print(f"{nearest_pair_correlation(features, np.array([1.0, 2.0, 4.0, 5.0]), pairs=2):.1f}")
    0.8
    """
    scores = as_numbers(scores, "scores")
    features = as_numbers(features, "features", dims=2)
    if len(features) != len(scores) or len(scores) < 3:
        raise ValueError(f"features: expected {len(scores)} rows, one a score, at least three; got {len(features)}")
    alike = nearest_pairs(features, pairs)
    both = np.concatenate([alike.first, alike.second]), np.concatenate([alike.second, alike.first])
    if not np.ptp(scores[both[0]]):
        return float("nan")
    return float(np.corrcoef(scores[both[0]], scores[both[1]])[0, 1])
