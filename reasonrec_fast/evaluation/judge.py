"""Metrics of a quality judge: agreement of its scores with mean opinion scores."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import optimize, special, stats

from reasonrec_fast.arrays import as_numbers


def judge_metrics(predicted: np.ndarray, opinion: np.ndarray) -> dict[str, float]:
    """Correlations and error of predicted quality.

    Args:
        predicted: scores, ``[N]``, on any scale.
        opinion: mean opinion scores, ``[N]``.

    Returns:
        ``srcc`` (Spearman) and ``krcc`` (Kendall's tau-b) of the ranks; ``plcc`` (Pearson) and ``rmse``, in the units
        of the opinions, after :func:`fit_logistic` as in the Video Quality Experts Group's reports. Correlations of
        constant values are NaN.

    Raises:
        ValueError: not two vectors of the same length of at least five entries, or a value that is not finite (with
            its row).

    >>> metrics = judge_metrics(np.linspace(0, 1, 9) ** 3, np.linspace(0, 1, 9))
    >>> metrics["srcc"], round(metrics["plcc"], 2)
    (1.0, 0.98)
    """
    predicted, opinion = _checked(predicted, opinion, least=5)
    fitted = fit_logistic(predicted, opinion)
    return {
        "srcc": float(stats.spearmanr(predicted, opinion).statistic),
        "plcc": float(stats.pearsonr(fitted, opinion).statistic),
        "krcc": float(stats.kendalltau(predicted, opinion).statistic),
        "rmse": float(np.sqrt(np.mean((fitted - opinion) ** 2))),
    }


def fit_logistic(predicted: np.ndarray, opinion: np.ndarray) -> np.ndarray:
    """Scores mapped to the scale of the opinions by the four-parameter logistic function
    ``low + (high - low) / (1 + exp(-(x - centre) / width))``, or by a line if the least-squares fit does not converge.

    Args:
        predicted, opinion: ``[N]``, finite, at least one.

    Raises:
        ValueError: as :func:`judge_metrics`.

    >>> x = np.linspace(-4, 4, 50)
    >>> bool(np.abs(fit_logistic(x, special.expit(x)) - special.expit(x)).max() < 1e-6)
    True
    """

    predicted, opinion = _checked(predicted, opinion, least=1)

    def logistic(x: np.ndarray, low: float, high: float, centre: float, width: float) -> np.ndarray:
        return low + (high - low) * special.expit((x - centre) / width)

    is_decreasing = ((predicted - predicted.mean()) * (opinion - opinion.mean())).sum() < 0
    initial_width = (predicted.std() or 1.0) * (-1 if is_decreasing else 1)
    start = (opinion.min(), opinion.max(), predicted.mean(), initial_width)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # about the covariance, which is not used
            parameters, _ = optimize.curve_fit(logistic, predicted, opinion, p0=start, maxfev=20_000)
    except RuntimeError:
        return np.polyval(np.polyfit(predicted, opinion, 1), predicted)
    return logistic(predicted, *parameters)


def _checked(predicted: np.ndarray, opinion: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    predicted, opinion = as_numbers(predicted, "predicted"), as_numbers(opinion, "opinion")
    if predicted.shape != opinion.shape or len(predicted) < least:
        raise ValueError(
            f"predicted, opinion: expected vectors of one length, at least {least}; got {predicted.shape} and "
            f"{opinion.shape}"
        )
    return predicted, opinion
