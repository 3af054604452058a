"""Gradient-boosted trees on evidence: what a :class:`~reasonrec_fast.models.optirag.CTRStack` answers with.

Without tools and tastes they are the exit at depth 0 of OptiRAG-Rec: they give the logit that the exits in the language
model correct, and requests that exit with it cost no token.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.early_exit.trees import Trees, mean_of
from reasonrec_fast.models.optirag.evidence import Evidence

_logger = logging.getLogger("reasonrec_fast")

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
    """LightGBM (Ke et al. 2017) on all numeric evidence.

    Args:
        trees: whose raw score is the logit of a like.
    """

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    @property
    def num_trees(self) -> int:
        return self._trees.num_trees

    @classmethod
    def fit(
        cls,
        train: Evidence,
        labels: np.ndarray,
        validation: Evidence | None = None,
        validation_labels: np.ndarray | None = None,
        *,
        num_trees: int | None = None,
        seed: int = 0,
        ensemble_size: int = 1,
    ) -> BoostedEvidence:
        """Grow the trees; equal arguments give equal trees.

        With validation requests the number of trees is that after which the log-loss on them had not fallen for
        :data:`PATIENCE` rounds; without, ``num_trees``.

        Args:
            train: evidence of the training requests, out of fold, as it must not know their labels.
            labels: of them, 0 or 1, ``[N]``.
            validation: evidence of later requests.
            validation_labels: of them.
            num_trees: how many to grow where there is no validation.
            seed: of the draws of rows and columns.
            ensemble_size: models of different seeds, whose logits are averaged: as many times the trees.

        Raises:
            ValueError: neither validation requests nor a number of trees, or both.
        """
        import lightgbm

        if (validation is None) == (num_trees is None):
            raise ValueError(
                "validation, num_trees: expected exactly one of the two; got "
                + ("neither" if num_trees is None else f"validation and num_trees={num_trees}")
            )
        data, held_out = lightgbm.Dataset(boosted_features(train), labels), None
        if validation is not None:
            held_out = lightgbm.Dataset(boosted_features(validation), validation_labels, reference=data)

        def grown(seed: int) -> str:
            # LightGBM's sums of columns do not depend on the number of threads: the trees are the same with any.
            settings = {**SETTINGS, "seed": seed, "num_threads": torch.get_num_threads()}
            if held_out is None:
                assert num_trees is not None
                return str(lightgbm.train(settings, data, num_trees).model_to_string())
            stopping = lightgbm.early_stopping(PATIENCE, verbose=False)
            trees = lightgbm.train(settings, data, ROUNDS, valid_sets=[held_out], callbacks=[stopping])
            return str(trees.model_to_string(num_iteration=trees.best_iteration))

        texts = [grown(seed + member) for member in range(ensemble_size)]
        if not any(re.search(r"^num_leaves=(?!1$)", text, re.MULTILINE) for text in texts):
            _logger.warning(
                "no tree splits %d training requests, so that all requests get one score: a leaf has at least %d",
                len(labels), SETTINGS["min_child_samples"],
            )  # fmt: skip
        return cls(Trees(lightgbm.Booster(model_str=texts[0] if len(texts) == 1 else mean_of(texts))))

    def logits(self, evidence: Evidence) -> np.ndarray:
        """Logit of a like, float64 ``[N]``.

        Raises:
            ValueError: evidence with another number of features, as of other settings.
        """
        return self._trees.predict(boosted_features(evidence))

    def save(self, file: Path) -> dict[str, Any]:
        """Write the trees as text; returns what :meth:`load` holds the file to."""
        return self._trees.save(file)

    @classmethod
    def load(cls, file: Path, expected: Mapping[str, Any]) -> BoostedEvidence:
        """Read what :meth:`save` wrote; see :meth:`Trees.load <reasonrec_fast.early_exit.trees.Trees.load>`."""
        return cls(Trees.load(file, expected))


def out_of_fold_logits(
    train: Evidence, labels: np.ndarray, folds: np.ndarray, others: Evidence, other_folds: np.ndarray, num_trees: int,
    *, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """Logits of training requests, each from trees that were grown without any request of its fold.

    The heads that correct the trees must not learn from logits that remember the labels of their own rows.

    Args:
        train: evidence of the training requests, out of fold itself.
        labels: of them, 0 or 1, ``[N]``.
        folds: of each, int64 ``[N]``: all requests of a user have the same.
        others: evidence of the requests that are scored: those of ``train``, or more.
        other_folds: of each of them, int64 ``[M]``.
        num_trees: in every fold, as many as the whole model has.
        seed: of the draws of rows and columns.

    Returns:
        float64 ``[M]``.
    """
    logits = np.empty(len(other_folds))
    for fold in np.unique(other_folds):
        inside, outside = other_folds == fold, folds != fold
        if not outside.any():  # all requests are of this fold: there is nothing to grow trees from
            logits[inside] = 0.0
            continue
        trees = BoostedEvidence.fit(take(train, outside), labels[outside], num_trees=num_trees, seed=seed)
        logits[inside] = trees.logits(take(others, inside))
    return logits


def take(evidence: Evidence, rows: np.ndarray) -> Evidence:
    """Evidence of some of the rows."""
    return Evidence(*(values[rows] for values in vars(evidence).values()))


def boosted_features(evidence: Evidence) -> np.ndarray:
    """The dense features, the tastes (of each value of the item's attribute, and averaged), the votes and the further
    columns, float32 ``[N, F]``; NaN where there is no event with any of the values."""
    taste = evidence.taste
    present = ~np.isnan(taste)
    with np.errstate(invalid="ignore"):
        mean = np.where(present, taste, 0).sum(1) / np.where(present.any(1), present.sum(1), np.nan)
    parts = [evidence.dense_features, taste.reshape(len(taste), -1), mean, evidence.votes, evidence.columns]
    return np.concatenate(parts, axis=1).astype(np.float32)
