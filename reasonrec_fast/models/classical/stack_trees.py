"""The trees of a stack: LightGBM (Ke et al. 2017) on a softmax over each user's candidates, and its calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from reasonrec_fast.early_exit.trees import Trees, mean_of
from reasonrec_fast.evaluation import fit_platt

TOP = 5
"""The mass of so many best candidates says how likely the target is among the candidates at all."""
_ROWS = 1 << 16  # whose products are in memory at once


class Examples(NamedTuple):
    """Candidates of ``G`` users, each with one target among them.

    Attributes:
        features: float32 ``[N, F]``, the candidates of a user together.
        sizes: candidates of each user, int64 ``[G]``.
        labels: 1 for the target, else 0, ``[N]``.
    """

    features: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray

    @classmethod
    def ordered(cls, features: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> Examples:
        """Candidates of each user in an order that their features alone decide: LightGBM's sums and its samples of
        rows depend on the order of rows, and that of items tells something about them."""
        weights = np.random.default_rng(0).random(features.shape[1])
        # Block by block, as the products need twice the room of the features; a row's sum depends on that row alone.
        blocks = np.split(features, range(_ROWS, len(features), _ROWS))
        key = np.concatenate([(np.nan_to_num(block, nan=-7.0) * weights).sum(1) for block in blocks])
        order = np.lexsort((labels, key, np.repeat(np.arange(len(sizes)), sizes)))
        return cls(features[order], sizes, labels[order])


@dataclass(frozen=True)
class Growth:
    """How the trees are grown; LightGBM's names are in :func:`fit_trees`."""

    trees: int
    patience: int
    learning_rate: float
    leaves: int
    min_leaf: int
    seed: int
    ensemble_size: int = 1


def softmax_of_groups(logits: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Softmax within each of consecutive groups, none of them empty, float64 ``[N]``.

    >>> softmax_of_groups(np.zeros(3), np.array([2, 1])).tolist()
    [0.5, 0.5, 1.0]
    """
    starts = np.cumsum(sizes) - sizes
    shifted = np.exp(logits - np.repeat(np.maximum.reduceat(logits, starts), sizes))
    return shifted / np.repeat(np.add.reduceat(shifted, starts), sizes)


def fit_trees(train: Examples, validation: Examples | None, growth: Growth, names: list[str]) -> tuple[Trees, float]:
    """Trees whose raw score is a candidate's logit in the softmax over a user's candidates.

    Args:
        train: to grow them on.
        validation: the trees are as many as have the least loss on it; without, all are kept.
        growth: how.
        names: of the features.

    Returns:
        the trees, and their mean loss on validation (NaN without). Of an ensemble the logits are means, each member
        has its own seed and its own number of trees.
    """
    import lightgbm

    def objective(logits: np.ndarray, data: Any) -> tuple[np.ndarray, np.ndarray]:
        share = softmax_of_groups(logits, train.sizes)
        return share - train.labels, np.maximum(share * (1 - share), 1e-6)

    def loss(logits: np.ndarray, data: Any) -> tuple[str, float, bool]:
        assert validation is not None
        share = softmax_of_groups(logits, validation.sizes)
        return "loss", float(-np.log(np.maximum(share[validation.labels == 1], 1e-12)).mean()), False

    settings = {
        "objective": objective, "metric": "none", "learning_rate": growth.learning_rate, "num_leaves": growth.leaves,
        "min_data_in_leaf": min(growth.min_leaf, max(len(train.labels) // 20, 1)),
        "feature_fraction": 0.4, "lambda_l2": 10.0, "max_bin": 127,
        "deterministic": True, "force_row_wise": True, "verbosity": -1,
        "num_threads": torch.get_num_threads(),
    }  # fmt: skip
    data = lightgbm.Dataset(train.features, train.labels, feature_name=[_plain(name) for name in names])
    held_out = None
    if validation is not None:
        held_out = lightgbm.Dataset(validation.features, validation.labels, reference=data)

    def grown(seed: int) -> str:
        own = settings | {"seed": seed}
        if held_out is None:
            return str(lightgbm.train(own, data, growth.trees).model_to_string())
        stopping = lightgbm.early_stopping(growth.patience, verbose=False)
        booster = lightgbm.train(own, data, growth.trees, valid_sets=[held_out], feval=loss, callbacks=[stopping])
        return str(booster.model_to_string(num_iteration=booster.best_iteration))

    texts = [grown(growth.seed + member) for member in range(growth.ensemble_size)]
    # As they are read from a file: they know nothing of the data and of the objective.
    trees = Trees(lightgbm.Booster(model_str=texts[0] if len(texts) == 1 else mean_of(texts)))
    if validation is None:
        return trees, float("nan")
    return trees, loss(trees.predict(validation.features), None)[1]


def _plain(name: str) -> str:
    """LightGBM refuses some marks of JSON in names of features."""
    return name.replace(" ", "_").replace(":", ".").replace("'", "")


@dataclass(frozen=True)
class Calibration:
    """From logits to probabilities.

    The softmax over the candidates at a temperature says which of them it is, if it is one; a logistic function of the
    logit of the :data:`TOP` best ones' mass says how likely it is one.

    Attributes:
        temperature: of the softmax.
        slope, intercept: of the logistic function.
    """

    temperature: float = 1.0
    slope: float = 0.0
    intercept: float = 30.0  # without validation: the target is taken to be a candidate

    def shares(self, logits: np.ndarray) -> np.ndarray:
        """Softmax over the candidates ``[B, C]``; ``-inf`` for none, a row of which is all 0."""
        return _shares(logits, self.temperature)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probability that a candidate is the next item, float64 ``[B, C]``; a row sums to less than 1."""
        shares = self.shares(logits)
        inside = 1 / (1 + np.exp(-(self.slope * _mass(shares) + self.intercept)))
        return shares * inside[:, None]

    @classmethod
    def fit(cls, logits: np.ndarray, target: np.ndarray) -> Calibration:
        """By likelihood on validation.

        Args:
            logits: of candidates, ``[B, C]``; ``-inf`` for none.
            target: the column of the target, -1 where it is no candidate, int64 ``[B]``.
        """
        inside = np.flatnonzero(target >= 0)
        if not len(inside):
            return cls()

        def loss(log_temperature: float) -> float:
            shares = _shares(logits[inside], float(np.exp(log_temperature)))
            return float(-np.log(np.maximum(shares[np.arange(len(inside)), target[inside]], 1e-12)).mean())

        temperature = float(np.exp(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x))
        if len(inside) == len(target):  # nothing to tell apart
            return cls(temperature)
        slope, intercept = fit_platt((target >= 0).astype(np.int64), _mass(_shares(logits, temperature)))
        return cls(temperature, float(slope), float(intercept))


def _shares(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits / temperature
    best = scaled.max(1, keepdims=True, initial=-np.inf)
    powers = np.exp(scaled - np.where(np.isfinite(best), best, 0))
    return powers / np.maximum(powers.sum(1, keepdims=True), 1e-300)


def _mass(shares: np.ndarray) -> np.ndarray:
    """Logit of the mass of the :data:`TOP` largest shares of each row."""
    mass = -np.sort(-shares, axis=1)[:, :TOP].sum(1)
    return np.log(np.clip(mass, 1e-6, 1 - 1e-6) / (1 - np.clip(mass, 1e-6, 1 - 1e-6)))
