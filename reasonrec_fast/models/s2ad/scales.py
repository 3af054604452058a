"""Scale steering: a judge's scores in (0, 1) as marks of any scale, without a change of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import nnls

from reasonrec_fast.arrays import as_numbers
from reasonrec_fast.data.errors import DataError

_LEAST_SLOPE = 0.02
"""Of the scale's mean slope, everywhere: where anchors are equal or contradict each other, order is still kept."""
_SMOOTHNESS = tuple(np.logspace(-3, 2, 11))
_DIGITS = 4
"""Of anchors' scores: a slope between two that are nearer would be chance."""
_FEW = 4
"""With fewer anchors the smoothness is not chosen by leaving anchors out."""
_EXACT = 1e4
"""Weight of the equation that makes a stated range end where it should; what is left of its error is scaled away."""


class Scale(Protocol):
    """Marks of scores."""

    def __call__(self, scores: Any) -> np.ndarray:
        """Marks of scores in [0, 1], ``[N]``."""
        ...


@dataclass(frozen=True)
class NumericScale:
    """Linear from the worst to the best mark. Scores that differ by 1e-9 of the range's magnitude stay different.

    Raises:
        ValueError: a range that does not ascend.

    >>> NumericScale(1, 5)([0.0, 0.5, 0.75]).tolist()
    [1.0, 3.0, 4.0]
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _checked_range((self.low, self.high))

    def __call__(self, scores: Any) -> np.ndarray:
        """Marks, float64 ``[N]``.

        Raises:
            DataError: a score outside [0, 1] (with its row).
        """
        scores = _checked_scores(scores)
        return self.low * (1 - scores) + self.high * scores


@dataclass(frozen=True)
class LetterScale:
    """Names in place of numbers, from the worst to the best; a better score never has a worse name.

    Attributes:
        names: such as ``("E", "D", "C", "B", "A")``.
        shares: of the scores that each name has, all above 0; equal by default. They are of percentiles: a judge whose
            scores are not spread evenly gives other shares.

    Raises:
        ValueError: fewer than two names, a name twice, or shares that are none.

    >>> LetterScale(("C", "B", "A"), (0.2, 0.6, 0.2))([0.1, 0.2, 0.79, 0.9]).tolist()
    ['C', 'B', 'B', 'A']
    """

    names: tuple[str, ...]
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"names: expected two different ones at least; got {self.names}")
        if self.shares is not None:
            shares = as_numbers(self.shares, "shares")
            if len(shares) != len(self.names) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
                raise ValueError(f"shares: expected {len(self.names)} above 0 whose sum is 1; got {self.shares}")

    def __call__(self, scores: Any) -> np.ndarray:
        """Names, ``[N]`` objects. A score at the border of two names has the better one.

        Raises:
            DataError: a score outside [0, 1] (with its row).
        """
        shares = np.full(len(self.names), 1 / len(self.names)) if self.shares is None else np.array(self.shares)
        levels = np.searchsorted(np.cumsum(shares)[:-1] - 1e-12, _checked_scores(scores), side="right")
        return np.array(self.names, dtype=object)[levels]


@dataclass(frozen=True, eq=False)
class AnchorScale:
    """A strictly increasing map that is fitted to a handful of anchors, images whose marks a user gave.

    The map is piecewise linear between the anchors' scores. Its increments minimise the squared error at the anchors
    plus a penalty on changes of slope, whose weight is chosen by leaving each anchor out (largest where two do equally
    well, so that little data gives a straight line); no slope is below a fiftieth of the mean one.

    - One anchor needs a stated range: the map leads from its low end through the anchor, nearly, to its high end.
    - Anchors of equal marks need one too: the map is nearly level between them.
    - Anchors that contradict each other (a better score, a lower mark) are averaged: the map rises least there.
      :attr:`contradictions` counts such pairs.
    - Beyond the outermost anchors the slope goes on; in a stated range it bends so that scores of 0 and 1 stay inside.

    Attributes:
        knots: scores, ascending from 0 to 1, float64 ``[M]``.
        marks: at the knots, strictly ascending, float64 ``[M]``.
        contradictions: pairs of anchors whose marks are in the other order than their scores.

    >>> scale = AnchorScale.fit([0.2, 0.5, 0.8], [2, 5, 8])
    >>> scale([0.1, 0.35, 1.0]).round(6).tolist()
    [1.0, 3.5, 10.0]
    """

    knots: np.ndarray
    marks: np.ndarray
    contradictions: int = 0

    @classmethod
    def fit(cls, scores: Any, marks: Any, *, range: tuple[float, float] | None = None) -> AnchorScale:
        """Of anchors.

        Args:
            scores: the judge's, in [0, 1], ``[N]``, rounded to 1e-4; anchors of one score are averaged.
            marks: the user's, ``[N]``.
            range: the lowest and the highest mark that may be given; by default there is none.

        Raises:
            DataError: no anchors, a score outside [0, 1], a mark that is not finite or outside the range (with its
                row), or no range where there is one mark or one score alone.
            ValueError: a range that does not ascend.
        """
        scores, marks = _checked_scores(scores).round(_DIGITS), as_numbers(marks, "marks", error=DataError)
        if len(scores) != len(marks) or not len(scores):
            raise DataError(f"marks: expected one anchor at least, a mark a score; got {len(scores)} and {len(marks)}")
        if range is not None:
            low, high = _checked_range(range)
            for row in np.flatnonzero((marks < low) | (marks > high))[:1]:
                raise DataError(f"marks: expected marks in [{low}, {high}]; got {marks[row]} in row {row}")
        elif len(np.unique(scores)) < 2 or not np.ptp(marks):
            raise DataError("range: expected one where anchors have one mark or one score alone; got None")
        order = np.lexsort((marks, scores))  # sums do not depend on the order of anchors
        scores, marks = scores[order], marks[order]
        knots = np.unique(np.concatenate([[0.0, 1.0], scores]))
        if range is None:  # a straight line says how high the marks reach; the map may go beyond
            low, high = marks.min(), marks.max()
        problem = _Problem(knots, scores, (marks - low) / (high - low), range is not None)
        values = low + (high - low) * problem.solve(problem.smoothness())
        steps = (marks[:, None] > marks) & (scores[:, None] < scores)
        return cls(knots, _ascending(values, range), int(steps.sum()))

    def __call__(self, scores: Any) -> np.ndarray:
        """Marks, float64 ``[N]``; strictly increasing in scores that differ by 1e-9, and never decreasing.

        Raises:
            DataError: a score outside [0, 1] (with its row).
        """
        scores = _checked_scores(scores)
        piece = np.clip(np.searchsorted(self.knots, scores, side="right") - 1, 0, len(self.knots) - 2)
        start, stop = self.marks[piece], self.marks[piece + 1]
        share = (scores - self.knots[piece]) / (self.knots[piece + 1] - self.knots[piece])
        return np.clip(start + (stop - start) * share, start, stop)  # rounding never leads past the next knot

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which keeps every bit."""
        return {"knots": self.knots.tolist(), "marks": self.marks.tolist(), "contradictions": self.contradictions}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AnchorScale:
        """What :meth:`to_dict` made.

        Raises:
            ValueError: knots or marks that do not ascend.
        """
        knots, marks = as_numbers(values["knots"], "knots"), as_numbers(values["marks"], "marks")
        if not len(knots) == len(marks) >= 2 or not (np.diff(knots) > 0).all() or not (np.diff(marks) > 0).all():
            raise ValueError("knots, marks: expected as many, strictly ascending; got others")
        return cls(knots, marks, int(values["contradictions"]))


def as_scale(scale: Scale | Sequence[Any]) -> Scale:
    """A scale as it is, a pair of numbers as :class:`NumericScale`, or texts as :class:`LetterScale`.

    Raises:
        ValueError: something else.

    >>> as_scale((1, 5))
    NumericScale(low=1, high=5)
    >>> as_scale("EDCBA")([0.9]).tolist()
    ['A']
    """
    if callable(scale):
        return scale
    parts = tuple(scale)
    if parts and all(isinstance(part, str) for part in parts):
        return LetterScale(parts)
    if len(parts) == 2:
        return NumericScale(*_checked_range(parts))
    raise ValueError(f"scale: expected (low, high), names from worst to best, or a scale; got {scale!r}")


class _Problem:
    """Least squares over increments that are not negative; marks in units of the range.

    Unknowns: what the map has at 0 above the low end (with a range; any number without), the increment of each piece,
    and with a range what is left to the high end at 1.
    """

    def __init__(self, knots: np.ndarray, scores: np.ndarray, marks: np.ndarray, bounded: bool) -> None:
        self.widths, self.bounded = np.diff(knots), bounded
        self.scores, self.marks = scores, marks
        pieces = len(self.widths)
        # Column of the start, then the share of each piece that lies below a score.
        below = np.clip((scores[:, None] - knots[:-1]) / self.widths, 0, 1)
        self.design = np.concatenate([np.ones((len(scores), 1)), below], 1)
        slopes = np.diag(1 / self.widths)
        turns = np.diff(slopes, axis=0) / np.sqrt(np.maximum((self.widths[1:] + self.widths[:-1]) / 2, 1e-9))[:, None]
        self.rough = np.concatenate([np.zeros((len(turns), 1)), turns], 1)
        slope = 1.0 if bounded else abs(float(np.polyfit(scores, marks, 1)[0])) or 1.0
        self.least = np.concatenate([[0.0], _LEAST_SLOPE * slope * self.widths])
        assert len(self.least) == pieces + 1

    def solve(self, smoothness: float, kept: np.ndarray | None = None) -> np.ndarray:
        """The map at the knots, ``[M]``."""
        kept = np.arange(len(self.marks)) if kept is None else kept
        matrix = np.concatenate([self.design[kept], np.sqrt(smoothness) * self.rough])
        wanted = np.concatenate([self.marks[kept], np.zeros(len(self.rough))]) - matrix @ self.least
        if self.bounded:
            matrix = np.concatenate([matrix, np.zeros((len(matrix), 1))], 1)
            matrix = np.concatenate([matrix, np.full((1, matrix.shape[1]), _EXACT)])
            room = 1 - self.least.sum()
            found = nnls(matrix, np.append(wanted, _EXACT * room))[0]
            found = found[:-1] * room / found.sum()
        else:
            negative = np.concatenate([-matrix[:, :1], matrix], 1)
            found = nnls(negative, wanted)[0]
            found = np.concatenate([[found[1] - found[0]], found[2:]])
        return np.cumsum(found + self.least)

    def smoothness(self) -> float:
        """The weight whose maps err least at anchors that they were not fitted to; the largest of equals."""
        count = len(self.marks)
        if count < _FEW or len(np.unique(self.scores)) < 3:
            return _SMOOTHNESS[0]
        errors = []
        for weight in _SMOOTHNESS:
            error = 0.0
            for row in range(count):
                fitted = np.diff(self.solve(weight, np.delete(np.arange(count), row)), prepend=0.0)
                error += float((self.design[row] @ fitted - self.marks[row]) ** 2)
            errors.append(error)
        best = min(errors)
        return max(w for w, error in zip(_SMOOTHNESS, errors, strict=True) if error <= best * 1.02 + 1e-12)


def _ascending(values: np.ndarray, range: tuple[float, float] | None) -> np.ndarray:
    """Values without what rounding did to them: inside the range, and strictly ascending."""
    if range is not None:
        values = values.clip(*range)
    if not (np.diff(values) > 0).all():
        raise DataError("anchors: expected scores that float64 tells apart on the scale; got some too near each other")
    return values


def _checked_range(range: Sequence[Any]) -> tuple[float, float]:
    numbers = as_numbers(range, "range")
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"range: expected (low, high), the better mark last; got {tuple(range)}")
    return range[0], range[1]


def _checked_scores(scores: Any) -> np.ndarray:
    scores = as_numbers(scores, "scores", error=DataError)
    for row in np.flatnonzero((scores < 0) | (scores > 1))[:1]:
        raise DataError(f"scores: expected numbers in [0, 1]; got {scores[row]} in row {row}")
    return scores
