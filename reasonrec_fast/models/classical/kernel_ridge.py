"""Kernel ridge regression whose penalty and kernel width are chosen by leave-one-out, which scikit-learn's does not."""

from __future__ import annotations

from typing import Literal

import numpy as np

Kernel = Literal["linear", "rbf"]
_WIDTHS = (0.1, 0.25, 0.5, 1.0)
_PENALTIES = np.logspace(-5, 3, 25)  # times the mean eigenvalue


class KernelRidge:
    """Ridge regression in the space of a kernel, linear or exp(-width |a - b|² / F).

    Attributes:
        features: of the training rows, float32 ``[N, F]``.
        weights: of each training row, ``[N]``.
        offset: mean of the training targets, which is added.
        width: of the kernel; 0 for a linear one.
        penalty: that was chosen.
    """

    def __init__(self, features: np.ndarray, weights: np.ndarray, offset: float, width: float, penalty: float) -> None:
        self.features, self.weights = features.astype(np.float32), weights
        self.offset, self.width, self.penalty = offset, width, penalty

    @classmethod
    def fit(cls, features: np.ndarray, targets: np.ndarray, kernel: Kernel = "rbf") -> KernelRidge:
        """Choose width and penalty by the least squared error of leave-one-out, in closed form (Rasmussen and Williams
        2006, equation 5.12).

        Args:
            features: standardised, ``[N, F]``.
            targets: ``[N]``.
            kernel: ``"rbf"`` has four widths to choose from.

        >>> x = np.linspace(-2, 2, 40)[:, None]
        >>> model = KernelRidge.fit(x, np.sin(2 * x[:, 0]))
        >>> bool(abs(model.predict(np.array([[0.5]]))[0] - np.sin(1.0)) < 0.01)
        True
        """
        features = features.astype(np.float32).astype(np.float64)
        offset = float(targets.mean())
        least, best = np.inf, (np.zeros(len(targets)), 0.0, 0.0)
        squared = squared_distances(features, features) / features.shape[1] if kernel == "rbf" else None
        for width in (0.0,) if squared is None else _WIDTHS:
            gram = features @ features.T if squared is None else np.exp(-width * squared)
            eigenvalues, vectors = np.linalg.eigh(gram)
            eigenvalues, rotated = np.maximum(eigenvalues, 0), vectors.T @ (targets - offset)
            for penalty in _PENALTIES * eigenvalues.mean():
                weights = vectors @ (rotated / (eigenvalues + penalty))
                error = float(((weights / (vectors**2 @ (1 / (eigenvalues + penalty)))) ** 2).mean())
                if error < least:
                    least, best = error, (weights, width, float(penalty))
        return cls(features, best[0], offset, best[1], best[2])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predictions, float64 ``[M]``, each of its own row alone: the same bits, whatever the others are."""
        result = np.empty(len(features))
        for row, values in enumerate(features.astype(np.float32)):
            if self.width:
                distances = np.square(self.features - values).sum(1, dtype=np.float64)
                similarity = np.exp(-self.width * distances / self.features.shape[1])
            else:
                similarity = (self.features * values).sum(1, dtype=np.float64)
            result[row] = (similarity * self.weights).sum() + self.offset
        return result


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a_i - b_j|², ``[N, M]``."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
