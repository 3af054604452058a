"""Scores as percentiles within their scale: what makes scores of different scales one kind of number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasonrec_fast.arrays import as_numbers
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.opinions import Opinions

ONE_SCALE = ""
"""The name of the scale of opinions that name none."""

_SMALLEST, _LARGEST = np.finfo(np.float64).tiny, 1.0 - np.finfo(np.float64).epsneg
"""The ends of (0, 1) in float64."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """The training scores of one scale.

    Attributes:
        values: distinct scores, ascending, float64 ``[M]``, two at least.
        percentiles: of each the mid-rank, strictly ascending in (0, 1), float64 ``[M]``.
        count: number of training scores.
    """

    values: np.ndarray
    percentiles: np.ndarray
    count: int

    @classmethod
    def of(cls, scores: np.ndarray) -> Distribution:
        """The mid-rank of a score is (number below + half the number equal) / N."""
        values, counts = np.unique(scores, return_counts=True)
        below = np.cumsum(counts) - counts
        return cls(values, (below + counts / 2) / len(scores), len(scores))

    def forward(self, scores: np.ndarray) -> np.ndarray:
        """Percentile of each score: linear between training scores, exponential beyond them."""
        result = np.interp(scores, self.values, self.percentiles)
        low, high = self._tails()
        below, above = scores < self.values[0], scores > self.values[-1]
        with np.errstate(over="ignore", under="ignore"):  # far beyond, the tail ends at 0 or 1
            result[below] = self.percentiles[0] * np.exp((scores[below] - self.values[0]) / low)
            result[above] = 1 - (1 - self.percentiles[-1]) * np.exp((self.values[-1] - scores[above]) / high)
        return result.clip(_SMALLEST, _LARGEST)

    def inverse(self, percentiles: np.ndarray) -> np.ndarray:
        """Score of each percentile in (0, 1)."""
        result = np.interp(percentiles, self.percentiles, self.values)
        low, high = self._tails()
        below, above = percentiles < self.percentiles[0], percentiles > self.percentiles[-1]
        result[below] = self.values[0] + low * np.log(percentiles[below] / self.percentiles[0])
        result[above] = self.values[-1] - high * np.log((1 - percentiles[above]) / (1 - self.percentiles[-1]))
        return result

    def _tails(self) -> tuple[float, float]:
        """Decay lengths below and above, in units of the scale, with which the slope of the end segments goes on."""
        values, percentiles = self.values, self.percentiles
        low = percentiles[0] * (values[1] - values[0]) / (percentiles[1] - percentiles[0])
        high = (1 - percentiles[-1]) * (values[-1] - values[-2]) / (percentiles[-1] - percentiles[-2])
        return low, high


@dataclass(frozen=True)
class Percentiles:
    """The empirical distribution of the training scores of each scale.

    The percentile of a training score is its mid-rank among the training scores of its scale, (number below + half the
    number equal) / N: a strictly increasing change of a scale changes none, to the last bit. Between two training
    scores a new score is interpolated linearly; beyond the lowest and the highest the slope goes on and decays
    exponentially toward 0 and 1, so that better is always higher, up to the precision of float64.

    >>> from pathlib import Path
    >>> opinions = Opinions(("a", "b", "c", "d"), np.array([1.0, 2.0, 2.0, 5.0]), Path())
    >>> percentiles = Percentiles.fit(opinions)
    >>> percentiles.of([1, 2, 3.5, 5]).tolist()
    [0.125, 0.5, 0.6875, 0.875]
    >>> percentiles.back([0.5, 0.6875]).tolist()
    [2.0, 3.5]
    """

    distributions: dict[str, Distribution]

    @classmethod
    def fit(cls, opinions: Opinions) -> Percentiles:
        """Of training images.

        Raises:
            DataError: a score that is not finite (with its row), or a scale of fewer than two different scores.
        """
        scores = as_numbers(opinions.scores, "scores", error=DataError)
        scales = np.array(_filled(opinions.scales, len(scores)), dtype=object)
        distributions = {}
        for scale in sorted(set(scales)):
            distribution = Distribution.of(scores[scales == scale])
            if len(distribution.values) < 2:
                row = int(np.flatnonzero(scales == scale)[0])
                raise DataError(
                    f"scores: expected two different scores at least {_on(scale)}; got only {scores[row]}, first in row"
                    f" {row}"
                )
            distributions[scale] = distribution
        if not distributions:
            raise DataError("scores: expected two different scores at least; got none")
        return cls(distributions)

    def of(self, scores: Any, scales: Sequence[str] | None = None) -> np.ndarray:
        """The percentile of each score within its scale, in (0, 1), float64 ``[N]``.

        Args:
            scores: numbers ``[N]``.
            scales: of each; None where the training opinions had none.

        Raises:
            DataError: a score that is not finite, or a scale without training scores (with its row).
        """
        scores = as_numbers(scores, "scores", error=DataError)
        result = np.empty_like(scores)
        for scale, rows in self._rows(scales, len(scores)):
            result[rows] = self.distributions[scale].forward(scores[rows])
        return result

    def back(self, percentiles: Any, scale: str = ONE_SCALE) -> np.ndarray:
        """Scores of a scale, the inverse of :meth:`of`, strictly increasing, float64 ``[N]``.

        Percentiles beyond those of the lowest and the highest training score lie beyond these scores. What may not
        leave a range is read by ``models/s2ad/scales.py``.

        Raises:
            DataError: a percentile outside (0, 1) (with its row), or a scale without training scores.
        """
        percentiles = as_numbers(percentiles, "percentiles", error=DataError)
        for row in np.flatnonzero((percentiles <= 0) | (percentiles >= 1))[:1]:
            raise DataError(f"percentiles: expected numbers in (0, 1); got {percentiles[row]} in row {row}")
        if scale not in self.distributions:
            raise DataError(f"scale: expected {self._known()}; got {scale!r}")
        return self.distributions[scale].inverse(percentiles)

    def deviations(self, scores: Any, deviations: Any, scales: Sequence[str] | None = None) -> np.ndarray:
        """Standard errors in percentiles, float64 ``[N]``; NaN where they are not known.

        The slope of the distribution is taken over the error itself, (F(s + e) - F(s - e)) / 2: over less, it would be
        that of a few training scores.

        Args:
            scores, scales: of :meth:`of`.
            deviations: standard errors on the scales of the scores, ``[N]``; NaN where they are not known.

        Raises:
            DataError: as in :meth:`of`, or a deviation that is negative or infinite (with its row).

        >>> from pathlib import Path
        >>> opinions = Opinions(tuple("abcde"), np.arange(5.0), Path())
        >>> Percentiles.fit(opinions).deviations([2, 2, 2], [0.5, 0, np.nan]).round(12).tolist()
        [0.1, 0.0, nan]
        """
        scores = as_numbers(scores, "scores", error=DataError)
        deviations = as_numbers(deviations, "deviations", nan=True, error=DataError)
        if len(deviations) != len(scores):
            raise DataError(f"deviations: expected {len(scores)}, one a score; got {len(deviations)}")
        for row in np.flatnonzero(deviations < 0)[:1]:
            raise DataError(
                f"deviations: expected at least 0, or NaN where unknown; got {deviations[row]} in row {row}"
            )
        known = np.nan_to_num(deviations)
        result = (self.of(scores + known, scales) - self.of(scores - known, scales)) / 2
        return np.where(np.isnan(deviations), np.nan, result)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which keeps every bit."""
        return {
            scale: {
                "values": distribution.values.tolist(),
                "percentiles": distribution.percentiles.tolist(),
                "count": distribution.count,
            }
            for scale, distribution in self.distributions.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Percentiles:
        """What :meth:`to_dict` made.

        Raises:
            ValueError: not strictly ascending scores with percentiles in (0, 1).
        """
        distributions = {}
        for scale, stored in values.items():
            scores = as_numbers(stored["values"], f"{scale!r}, values")
            percentiles = as_numbers(stored["percentiles"], f"{scale!r}, percentiles")
            ascending = len(scores) == len(percentiles) >= 2 and (np.diff(scores) > 0).all()
            if not ascending or not (np.diff(percentiles, prepend=0, append=1) > 0).all():
                raise ValueError(f"{scale!r}: expected ascending scores with percentiles in (0, 1); got others")
            distributions[scale] = Distribution(scores, percentiles, int(stored["count"]))
        return cls(distributions)

    def _rows(self, scales: Sequence[str] | None, count: int) -> list[tuple[str, np.ndarray]]:
        filled = _filled(scales, count)
        for row, scale in enumerate(filled):
            if scale not in self.distributions:
                raise DataError(f"scales: expected {self._known()}; got {scale!r} in row {row}")
        names = np.array(filled, dtype=object)
        return [(scale, np.flatnonzero(names == scale)) for scale in sorted(set(filled))]

    def _known(self) -> str:
        known = sorted(self.distributions)
        return "no scales, as in training" if known == [ONE_SCALE] else f"one of {', '.join(map(repr, known))}"


def _filled(scales: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if scales is None:
        return (ONE_SCALE,) * count
    if isinstance(scales, str) or len(scales) != count:
        raise DataError(
            f"scales: expected {count}, one a score; got {scales if isinstance(scales, str) else len(scales)!r}"
        )
    return tuple(scales)


def _on(scale: str) -> str:
    return f"on scale {scale!r}" if scale else "on the scale"
