"""How sure a ranking is: features of its best candidates, and the probability that the next item is among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reasonrec_fast.arrays import as_count, as_labels, same_length
from reasonrec_fast.early_exit.trees import Trees
from reasonrec_fast.evaluation import fit_platt

SETTINGS = {
    "objective": "binary",
    "learning_rate": 0.03,
    "num_leaves": 8,
    "min_child_samples": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
NUM_TREES = 200
FOLDS = 5
FILE = "confidence.txt"


class Ranking(Protocol):
    """What a stack says of the best candidates of ``B`` users
    (:class:`~reasonrec_fast.models.classical.stack.StackRanking`)."""

    @property
    def logits(self) -> np.ndarray: ...
    @property
    def probabilities(self) -> np.ndarray: ...
    @property
    def features(self) -> np.ndarray: ...
    @property
    def entropy(self) -> np.ndarray: ...
    @property
    def candidates(self) -> np.ndarray: ...


def ranking_features(ranking: Ranking, k: int = 5) -> np.ndarray:
    """What tells sure rankings from unsure ones, float32 ``[B, 7 + 3 F]``.

    Mass of the ``k`` best, entropy over all candidates, margin between the first two and between the last of the best
    and the first beyond, the first one's probability, the number of candidates, the spread of the logits; and of every
    feature of the candidates the first one's value, the mean over the best and how far the first is above it.

    Args:
        ranking: with more than ``k`` candidates a user.
        k: how many count as a hit.
    """
    k = as_count(k, "k", 1)
    probabilities = ranking.probabilities
    if probabilities.shape[1] <= k:
        raise ValueError(f"ranking: expected more than k = {k} candidates; got {probabilities.shape[1]}")
    logits = np.where(np.isfinite(ranking.logits), ranking.logits, np.nan)
    best = ranking.features[:, :k]
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(best)
        mean = np.where(known, best, 0).sum(1) / known.sum(1)
    first = best[:, 0]
    columns = [
        probabilities[:, :k].sum(1),
        ranking.entropy,
        logits[:, 0] - logits[:, 1],
        logits[:, k - 1] - logits[:, k],
        probabilities[:, 0],
        ranking.candidates,
        logits[:, 0] - logits[:, k - 1],
    ]
    return np.concatenate([np.stack(columns, 1), first, mean, first - mean], axis=1).astype(np.float32)


class HitConfidence:
    """The calibrated probability that one of the ``k`` best is the user's next item.

    Boosted trees on :func:`ranking_features`; Platt scaling on their out-of-fold logits, so that it knows the error of
    unseen users and not of those that the trees have learnt.

    Args:
        trees: on the features.
        slope, intercept: of Platt scaling.
        k: how many count as a hit.

    Attributes:
        unseen: probabilities of the users of :meth:`fit`, each by trees that were grown without that user: what those
            of new users are distributed like. None for a model that was loaded.
    """

    unseen: np.ndarray | None = None

    def __init__(self, trees: Trees, slope: float, intercept: float, k: int) -> None:
        self._trees, self._slope, self._intercept, self.k = trees, slope, intercept, k

    @classmethod
    def fit(cls, ranking: Ranking, hits: np.ndarray, *, k: int = 5, seed: int = 0) -> HitConfidence:
        """Learn from users whose next item is known and was used for nothing that made the ranking.

        Args:
            ranking: of ``B`` users.
            hits: whether the next item was among the ``k`` best, 0 or 1, ``[B]``.
            k: how many count.
            seed: of LightGBM and the folds.

        Raises:
            ValueError: hits of one kind alone, or another number of them.
        """
        features, hits = ranking_features(ranking, k), as_labels(hits)
        same_length(ranking=features, hits=hits)
        if not 0 < hits.sum() < len(hits):
            raise ValueError(f"hits: expected both 0 and 1; got {hits[:1].tolist()} alone in {len(hits)} rows")
        unseen = out_of_fold(lambda rows: _grow(features[rows], hits[rows], seed), features, seed)
        model = cls(_grow(features, hits, seed), *fit_platt(hits, unseen), k)
        model.unseen = model._calibrated(unseen)
        return model

    def probability(self, ranking: Ranking) -> np.ndarray:
        """Of a hit, float64 ``[B]``; a user's depends on that user's ranking alone.

        Raises:
            ValueError: a ranking with other features than the one it was fitted on.
        """
        return self._calibrated(self._trees.predict(ranking_features(ranking, self.k)))

    def _calibrated(self, logits: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(self._slope * logits + self._intercept)))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the trees as text into :data:`FILE`; returns what :meth:`load` holds the file to."""
        stored = self._trees.save(folder / FILE)
        return {"trees": stored, "slope": self._slope, "intercept": self._intercept, "k": self.k}

    @classmethod
    def load(cls, folder: Path, stored: Mapping[str, Any]) -> HitConfidence:
        """Read what :meth:`save` wrote; see :meth:`Trees.load <reasonrec_fast.early_exit.trees.Trees.load>`."""
        trees = Trees.load(folder / FILE, stored["trees"])
        return cls(trees, float(stored["slope"]), float(stored["intercept"]), int(stored["k"]))


def out_of_fold(grow: Callable[[np.ndarray], Trees], features: np.ndarray, seed: int) -> np.ndarray:
    """Predictions for each row by trees that were grown on the rows of other folds, float64 ``[B]``.

    Args:
        grow: trees of some rows, bool ``[B]``.
        features: ``[B, F]``.
        seed: of the folds.
    """
    folds = np.random.default_rng(seed).permutation(len(features)) % FOLDS
    unseen = np.empty(len(features))
    for fold in np.unique(folds):
        inside = folds == fold
        others = ~inside if not inside.all() else inside  # of one row there are no others
        unseen[inside] = grow(others).predict(features[inside])
    return unseen


def _grow(features: np.ndarray, hits: np.ndarray, seed: int) -> Trees:
    import lightgbm

    return Trees(lightgbm.train({**SETTINGS, "seed": seed}, lightgbm.Dataset(features, hits), NUM_TREES))


def agreement(answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Share of the commonest answer among several chains of each query, float64 ``[B]`` (self-consistency, Wang et al.
    2023); 0 for a query without any.

    >>> agreement([["tea", "tea", "bread"], []]).round(2).tolist()
    [0.67, 0.0]
    """
    return np.array([max(map(list(row).count, row)) / len(row) if len(row) else 0.0 for row in answers])
