"""Depth 0: what is answered from features alone, and what going on into the language model is expected to gain."""

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
NUM_TREES = {"correction": 150, "gain": 60}
FILES = {name: f"{name}.txt" for name in NUM_TREES}


class DepthZero:
    """The exit before the first layer.

    It corrects the logit that it is given by what the deepest exit is expected to add (self-distillation, arXiv
    1905.08094, into trees on the features), and predicts the gain of going on: how far the deepest exit's answer ``q``
    will still lie from this one's, ``p``. If ``q`` is calibrated, taking it instead of ``p`` lowers the expected
    log-loss by ``KL(q || p)``, whatever the label turns out to be. Neither needs a label, so both regressions have far
    less noise than one of the losses' difference, and neither is tempted to learn who likes what.

    Args:
        correction, gain: trees on the features.
    """

    def __init__(self, correction: Trees, gain: Trees) -> None:
        self._correction, self._gain = correction, gain

    @classmethod
    def fit(cls, features: np.ndarray, offset: np.ndarray, deep: np.ndarray, *, seed: int = 0) -> DepthZero:
        """Learn from requests whose deepest answers are known; thresholds should be chosen on others.

        Args:
            features: float ``[N, F]``; NaN where nothing is known.
            offset: logits that are corrected, ``[N]``.
            deep: logits of the deepest exit, ``[N]``.
            seed: of LightGBM, and of the halves by which the gain is that over corrections of unseen requests.
        """
        half = np.random.default_rng(seed).permutation(len(offset)) % 2
        unseen = np.zeros(len(offset))
        for part in (0, 1):
            inside = half == part
            if inside.any() and not inside.all():
                trees = _grow("correction", features[~inside], (deep - offset)[~inside], seed)
                unseen[inside] = trees.predict(features[inside])
        gain = divergence(_sigmoid(deep), _sigmoid(offset + unseen))
        return cls(_grow("correction", features, deep - offset, seed), _grow("gain", features, gain, seed))

    def logits(self, features: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Logits of yes of who leaves here, float64 ``[N]``."""
        return np.asarray(offset, dtype=np.float64) + self._correction.predict(features)

    def gain(self, features: np.ndarray) -> np.ndarray:
        """Expected gain of going on, in nats of log-loss, float64 ``[N]``; minus it is the confidence of depth 0."""
        return self._gain.predict(features)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the trees as text into :data:`FILES`; returns what :meth:`load` holds the files to."""
        trees = {"correction": self._correction, "gain": self._gain}
        return {name: trees[name].save(folder / file) for name, file in FILES.items()}

    @classmethod
    def load(cls, folder: Path, expected: Mapping[str, Any]) -> DepthZero:
        """Read what :meth:`save` wrote; see :meth:`Trees.load <reasonrec_fast.early_exit.trees.Trees.load>`."""
        return cls(**{name: Trees.load(folder / file, expected[name]) for name, file in FILES.items()})


def _grow(name: str, features: np.ndarray, target: np.ndarray, seed: int) -> Trees:
    import lightgbm

    data = lightgbm.Dataset(features, target)
    return Trees(lightgbm.train({**SETTINGS, "seed": seed}, data, NUM_TREES[name]))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)))


def divergence(deep: np.ndarray, shallow: np.ndarray) -> np.ndarray:
    """``KL(deep || shallow)`` of two probabilities of yes, in nats.

    >>> divergence(np.array([0.5, 0.9]), np.array([0.5, 0.5])).round(3).tolist()
    [0.0, 0.368]
    """
    q, p = (np.clip(np.asarray(x, dtype=np.float64), 1e-9, 1 - 1e-9) for x in (deep, shallow))
    return q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
