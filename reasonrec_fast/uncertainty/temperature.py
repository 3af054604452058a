"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from reasonrec_fast.arrays import as_array, as_labels, as_numbers, same_length


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the log-loss of ``sigmoid(logits / temperature)``.

    Args:
        logits: log-odds of yes, ``[N]``, or ``[N, K]`` for an ensemble whose probabilities are averaged.
        labels: 0 or 1, ``[N]``.

    Raises:
        ValueError: no rows, not one label a row, a label other than 0 and 1, or logits that are NaN (with the row).

    >>> generator = np.random.default_rng(0)
    >>> logits = generator.normal(size=4000)
    >>> labels = generator.random(4000) < 1 / (1 + np.exp(-logits))
    >>> round(fit_temperature(3 * logits, labels), 0)
    3.0
    """
    labels = as_labels(labels)
    if len(labels) == 0:
        raise ValueError("labels: expected at least one; got none")
    logits = as_array(logits, "logits")
    logits = as_numbers(logits, "logits", dims=2 if logits.ndim == 2 else 1, infinite=True)
    same_length(labels=labels, logits=logits)
    ensemble = logits if logits.ndim == 2 else logits[:, None]

    def loss(log_temperature: float) -> float:
        scaled = np.clip(ensemble / np.exp(log_temperature), -60, 60)
        yes = (1 / (1 + np.exp(-scaled))).mean(1)
        chosen = np.clip(np.where(labels == 1, yes, 1 - yes), 1e-12, None)
        return float(-np.log(chosen).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
