"""The strongest cheap rival: gradient-boosted trees on the evidence that the language model reads."""

from __future__ import annotations

import numpy as np

from reasonrec_fast.models.optirag.evidence import Evidence

ROUNDS, PATIENCE = 5000, 100
SETTINGS = {
    "objective": "binary",
    "learning_rate": 0.01,
    "num_leaves": 31,
    "min_child_samples": 50,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class BoostedEvidence:
    """LightGBM (Ke et al. 2017) on all of the evidence that is a number.

    Trees stop growing in number when the log-loss on validation has not fallen for :data:`PATIENCE` rounds.

    Args:
        train: evidence of the training requests, out of fold, as it must not know their labels.
        labels: of them, 0 or 1, ``[N]``.
        validation: evidence of later requests.
        validation_labels: of them.
        seed: of the draws of rows and columns.
    """

    def __init__(
        self,
        train: Evidence,
        labels: np.ndarray,
        validation: Evidence,
        validation_labels: np.ndarray,
        *,
        seed: int = 0,
    ) -> None:
        import lightgbm

        data = lightgbm.Dataset(boosted_features(train), labels)
        self._trees = lightgbm.train(
            {**SETTINGS, "seed": seed},
            data,
            ROUNDS,
            valid_sets=[lightgbm.Dataset(boosted_features(validation), validation_labels, reference=data)],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )

    @property
    def num_trees(self) -> int:
        """Of the round that did best on validation."""
        return int(self._trees.best_iteration)

    def log_odds(self, evidence: Evidence) -> np.ndarray:
        """Log-odds of a like, float64 ``[N]``."""
        return np.asarray(self._trees.predict(boosted_features(evidence), raw_score=True), dtype=np.float64)


def boosted_features(evidence: Evidence) -> np.ndarray:
    """The numbers, the tastes (of each value of the item's attribute, and averaged) and the votes, float32 ``[N, F]``;
    NaN where somebody met none of the values."""
    taste = evidence.taste
    met = ~np.isnan(taste)
    with np.errstate(invalid="ignore"):
        mean = np.where(met, taste, 0).sum(1) / np.where(met.any(1), met.sum(1), np.nan)
    parts = [evidence.numbers, taste.reshape(len(taste), -1), mean, evidence.votes]
    return np.concatenate(parts, axis=1).astype(np.float32)
