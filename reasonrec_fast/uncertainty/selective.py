"""How well confidence orders mistakes, and how well probabilities match frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonrec_fast.arrays import as_count, as_labels, as_numbers, same_length


def risk_coverage(confidence: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss of the surest rows, for every share of the rows (El-Yaniv and Wiener 2010).

    Rows of equal confidence share their mean loss, so that the order of the input does not matter.

    Args:
        confidence: larger is surer, ``[N]``.
        losses: ``[N]``.

    Returns:
        coverage ``[N]`` in (0, 1], rising, and the risk ``[N]`` at each.

    Raises:
        ValueError: lengths that differ, no rows, or one that is NaN (a loss: not finite), with the row.

    >>> coverage, risk = risk_coverage(np.array([0.9, 0.2, 0.6]), np.array([0.0, 1.0, 0.5]))
    >>> risk.tolist()
    [0.0, 0.25, 0.5]
    """
    confidence, losses = as_numbers(confidence, "confidence", infinite=True), as_numbers(losses, "losses")
    same_length(confidence=confidence, losses=losses)
    if len(losses) == 0:
        raise ValueError("losses: expected at least one; got none")
    order = np.argsort(-confidence, kind="stable")
    _, group, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=losses[order]) / sizes
    rows = np.arange(1, len(losses) + 1)
    return rows / len(losses), np.cumsum(means[group]) / rows


def aurc(confidence: np.ndarray, losses: np.ndarray) -> float:
    """Area under the risk–coverage curve (Geifman et al. 2019): smaller is better.

    >>> round(aurc(np.array([0.9, 0.2, 0.6]), np.array([0.0, 1.0, 0.5])), 2)
    0.25
    """
    return float(risk_coverage(confidence, losses)[1].mean())


@dataclass(frozen=True)
class Reliability:
    """Bins of a reliability diagram that hold any rows.

    Attributes:
        probability: mean of the predictions in each bin, ``[bins]``.
        frequency: share of positive labels, ``[bins]``.
        count: rows, ``[bins]``.
    """

    probability: np.ndarray
    frequency: np.ndarray
    count: np.ndarray


def reliability(probability: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Predictions and frequencies in ``bins`` equal parts of [0, 1].

    Raises:
        ValueError: lengths that differ, no rows, a probability outside [0, 1] or a label other than 0 and 1 (with the
            row), or no bins.

    >>> diagram = reliability(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 1]), bins=2)
    >>> diagram.probability.round(2).tolist(), diagram.frequency.tolist(), diagram.count.tolist()
    ([0.15, 0.9], [0.5, 1.0], [2, 1])
    """
    probability, labels, bins = as_numbers(probability, "probability"), as_labels(labels), as_count(bins, "bins", 1)
    same_length(probability=probability, labels=labels)
    if len(labels) == 0:
        raise ValueError("labels: expected at least one; got none")
    outside = (probability < 0) | (probability > 1)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"probability: expected numbers in [0, 1]; got {probability[row]} in row {row}")
    bin_index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    held = count > 0
    predicted = np.bincount(bin_index, weights=probability, minlength=bins)[held]
    positive = np.bincount(bin_index, weights=labels, minlength=bins)[held]
    return Reliability(predicted / count[held], positive / count[held], count[held])


def ece(probability: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean distance of frequency and prediction over the rows' bins.

    >>> round(ece(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 1]), bins=2), 4)
    0.2667
    """
    diagram = reliability(probability, labels, bins)
    return float((np.abs(diagram.frequency - diagram.probability) * diagram.count).sum() / diagram.count.sum())
