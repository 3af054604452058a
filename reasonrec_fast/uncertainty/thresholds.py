"""Thresholds of early exit that keep a metric within a given loss on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasonrec_fast.arrays import as_array, as_numbers


@dataclass(frozen=True)
class Limit:
    """A metric of the exiting scores that may lie at most ``loss`` below that of full depth.

    Attributes:
        metric: from scores ``[N]`` to a number, larger is better.
        loss: how much may be lost.
    """

    metric: Callable[[np.ndarray], float]
    loss: float


def simulate(
    scores: np.ndarray,
    confidence: np.ndarray,
    thresholds: Sequence[float],
    *,
    trend: bool = False,
    heads_from: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Where each row would leave, and with which score.

    Args:
        scores, confidence: at every exit, ``[E, N]``.
        thresholds: of every exit but the last, ``[E - 1]``.
        trend: leave only where the confidence has not fallen since the head before.
        heads_from: the first exit that is a head: 1 where exits begin at depth 0, whose confidence may be of another
            kind and is no part of the trend.

    Returns:
        scores ``[N]`` and exits ``[N]`` (indices).

    Raises:
        ValueError: shapes that do not fit, or one that is NaN (with its exit as row, and its row as column).

    >>> simulate(np.array([[0.9, 0.6], [0.8, 0.1]]), np.array([[2.0, 0.4], [9.0, 9.0]]), [1.0])[1].tolist()
    [0, 1]
    """
    scores, confidence = at_exits(scores, "scores"), at_exits(confidence, "confidence")
    bounds = as_numbers(thresholds, "thresholds", infinite=True)
    if scores.shape != confidence.shape or len(scores) != len(bounds) + 1:
        raise ValueError(
            f"scores, confidence: expected [{len(bounds) + 1}, N]; got {scores.shape} and {confidence.shape}"
        )
    return _simulate(scores, confidence, bounds, trend, heads_from)


def at_exits(values: Any, name: str) -> np.ndarray:
    """Numbers of rows at every exit, ``[E, N]``, of the floating-point type that they came in.

    Raises:
        ValueError: no matrix of numbers, or one that is NaN (its exit is the row that is named, its row the column).
    """
    array = as_array(values, name)
    numbers = as_numbers(array, name, dims=2, infinite=True)
    return array if array.dtype.kind == "f" else numbers


def _simulate(
    scores: np.ndarray,
    confidence: np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    trend: bool,
    heads_from: int,
) -> tuple[np.ndarray, np.ndarray]:
    leaves = confidence[:-1] >= np.asarray(thresholds)[:, None]
    if trend:
        heads = confidence[heads_from:-1]
        leaves[heads_from + 1 :] &= heads[1:] >= heads[:-1]
    leaves = np.concatenate([leaves, np.ones_like(confidence[-1:], dtype=bool)])
    exits = leaves.argmax(0)
    return scores[exits, np.arange(scores.shape[1])], exits


def choose_thresholds(
    scores: np.ndarray,
    confidence: np.ndarray,
    depths: Sequence[int],
    limits: Sequence[Limit],
    *,
    trend: bool = False,
    quantiles: int = 25,
    heads_from: int = 0,
) -> tuple[float, ...]:
    """Thresholds with the least mean depth that keep every limit, searched exit by exit from the shallowest.

    Each threshold is the lowest, among quantiles of the confidence at its exit, with which all limits still hold,
    given those chosen before; then, from the deepest back, each is lowered as far as the limits allow once more.

    Args:
        scores, confidence: at every exit on validation, ``[E, N]``.
        depths: layers of each exit.
        limits: what must hold.
        trend, heads_from: as of :func:`simulate`.
        quantiles: of the confidence at an exit, that are tried as its threshold.

    Returns:
        one threshold an exit but the last; ``inf`` where no row may leave.

    Raises:
        ValueError: shapes that do not fit, no rows, or one that is NaN (with its exit as row, and its row as column).
    """
    scores, confidence = at_exits(scores, "scores"), at_exits(confidence, "confidence")
    if scores.shape != confidence.shape or scores.shape[0] != len(depths):
        raise ValueError(f"scores, confidence: expected [{len(depths)}, N]; got {scores.shape} and {confidence.shape}")
    if not scores.size:
        raise ValueError("scores: expected at least one row; got none")
    floors = [(limit.metric, limit.metric(scores[-1]) - limit.loss) for limit in limits]
    chosen = [float("inf")] * (len(depths) - 1)
    candidates = [[*_quantiles(confidence[index], quantiles), float("inf")] for index in range(len(chosen))]

    def holds(thresholds: Sequence[float]) -> bool:
        exited, _ = _simulate(scores, confidence, thresholds, trend, heads_from)
        return all(metric(exited) >= floor for metric, floor in floors)

    for index in [*range(len(chosen)), *reversed(range(len(chosen)))]:
        for candidate in candidates[index]:
            if candidate >= chosen[index]:
                break
            trial = [*chosen[:index], candidate, *chosen[index + 1 :]]
            if holds(trial):
                chosen = trial
                break
    return tuple(chosen)


def _quantiles(values: np.ndarray, count: int) -> list[float]:
    """Of values of which some may be infinite: nothing lies between such a one and the next."""
    shares = np.linspace(0, 1, count)
    return np.quantile(values, shares, method="linear" if np.isfinite(values).all() else "lower").tolist()
