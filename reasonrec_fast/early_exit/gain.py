"""What going deeper is worth to a request, predicted from its features: who leaves at depth 0, and who goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reasonrec_fast.early_exit.trees import Trees

SETTINGS = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_child_samples": 50,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
NUM_TREES = 60


class PredictedGain:
    """Expected gain of going on from depth 0, in nats of log-loss.

    If the deeper answer ``q`` is calibrated, taking it instead of ``p`` lowers the expected log-loss by ``KL(q || p)``,
    whatever the label turns out to be. That needs no label, so its regression on the features has far less noise than
    one of the losses' difference, and is not tempted to learn who likes what.

    Args:
        trees: from features to the gain.
    """

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    @classmethod
    def fit(cls, features: np.ndarray, shallow: np.ndarray, deep: np.ndarray, *, seed: int = 0) -> PredictedGain:
        """Learn from requests whose deeper answers are known; thresholds should be chosen on others.

        Args:
            features: what depth 0 reads, float ``[N, F]``; NaN where nothing is known.
            shallow: probability of yes at depth 0, ``[N]``.
            deep: probability of yes at the exit that is compared, ``[N]``.
            seed: of LightGBM.
        """
        import lightgbm

        data = lightgbm.Dataset(features, divergence(deep, shallow))
        return cls(Trees(lightgbm.train({**SETTINGS, "seed": seed}, data, NUM_TREES)))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Expected gain, float64 ``[N]``."""
        return self._trees.predict(features)

    def save(self, file: Path) -> dict[str, Any]:
        """Write the trees as text; returns what :meth:`load` holds the file to."""
        return self._trees.save(file)

    @classmethod
    def load(cls, file: Path, expected: Mapping[str, Any]) -> PredictedGain:
        """Read what :meth:`save` wrote; see :meth:`Trees.load <reasonrec_fast.early_exit.trees.Trees.load>`."""
        return cls(Trees.load(file, expected))


def divergence(deep: np.ndarray, shallow: np.ndarray) -> np.ndarray:
    """``KL(deep || shallow)`` of two probabilities of yes, in nats.

    >>> divergence(np.array([0.5, 0.9]), np.array([0.5, 0.5])).round(3).tolist()
    [0.0, 0.368]
    """
    q, p = (np.clip(np.asarray(x, dtype=np.float64), 1e-9, 1 - 1e-9) for x in (deep, shallow))
    return q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
