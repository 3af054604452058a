"""Act: who answers a query (arXiv 2606.28357): the stack alone, the agent, or the agent after consulting tools.

Destinations are those of :func:`~reasonrec_fast.ops.route_to`: :data:`STACK`, :data:`AGENT`, :data:`CONSULT`. Who is
not sent to the language model costs nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.arrays import as_count, as_numbers, same_length
from reasonrec_fast.early_exit.trees import Trees
from reasonrec_fast.models.reasonrec.confidence import out_of_fold
from reasonrec_fast.ops.route import Route
from reasonrec_fast.settings import Share, check_settings

STACK, AGENT, CONSULT = 0, 1, 2
DESTINATIONS = ("stack", "agent", "consult")
"""Names of the destinations, by number."""

SETTINGS = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_child_samples": 100,
    "feature_fraction": 0.5,
    "lambda_l2": 10.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
NUM_TREES = 80
FILE = "gain.txt"


@dataclass(frozen=True)
class RiskLevels:
    """The paper's policy. Low risk, a warm user and a confident ranking: the stack answers. High risk, a cold user and
    an unsure one: the agent consults tools, then answers. Everything between: the agent answers.

    Attributes:
        warm, cold: evidence horizons below which a user is warm and above which one is cold.
        confident: confidence from which on a ranking counts as sure. The paper gives no value; calibrate it.
    """

    warm: Share = 0.3
    cold: Share = 0.7
    confident: Share = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.warm <= self.cold:
            raise ValueError(f"cold: expected at least warm, {self.warm:g}; got {self.cold:g}")

    def route(self, horizons: np.ndarray, confidence: np.ndarray) -> Route:
        """Destinations by risk.

        Args:
            horizons: evidence horizon of each query's user
                (:func:`~reasonrec_fast.training.curriculum.evidence_horizons`), ``[B]``.
            confidence: of each ranking, in [0, 1], ``[B]``.

        >>> levels = RiskLevels()
        >>> levels.route(np.array([0.1, 0.1, 0.5, 0.9]), np.array([0.8, 0.2, 0.8, 0.1])).destination.tolist()
        [0, 1, 1, 2]
        """
        horizons, confidence = as_numbers(horizons, "horizons"), as_numbers(confidence, "confidence")
        same_length(horizons=horizons, confidence=confidence)
        sure = confidence >= self.confident
        destination = np.full(len(horizons), AGENT)
        destination[(horizons < self.warm) & sure] = STACK
        destination[(horizons > self.cold) & ~sure] = CONSULT
        return ops.route_to(torch.from_numpy(destination), len(DESTINATIONS))


def route_unsure(confidence: np.ndarray, *, budget: int | float | None = None, threshold: float | None = None) -> Route:
    """The unsure queries go to the agent: exactly as many as a budget says, or those whose confidence is below a
    threshold (:func:`~reasonrec_fast.ops.route`).

    Args:
        confidence: of each ranking, in [0, 1], ``[B]``.
        budget: number or share of queries.
        threshold: of the confidence.

    >>> route_unsure(np.array([0.9, 0.2, 0.6]), budget=1).destination.tolist()
    [0, 1, 0]
    """
    uncertainty = 1 - torch.from_numpy(as_numbers(confidence, "confidence"))
    return ops.route(uncertainty, threshold=None if threshold is None else 1 - threshold, budget=budget)


class GainRouter:
    """Predicts what the agent would add to the stack's answer, per query, and sends the queries to it that promise most
    for what they cost.

    The gain of a query is the difference of a metric, agent minus stack, on users that neither has learnt. Boosted
    trees predict it from features that are known before the agent is asked, such as
    :func:`~reasonrec_fast.models.reasonrec.confidence.ranking_features`.

    Args:
        trees: on the features.

    Attributes:
        unseen: expected gains of the queries of :meth:`fit`, each by trees that were grown without it; None for a model
            that was loaded.
    """

    unseen: np.ndarray | None = None

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    @classmethod
    def fit(cls, features: np.ndarray, gain: np.ndarray, *, seed: int = 0) -> GainRouter:
        """Learn from queries that both answered.

        Args:
            features: float ``[B, F]``; NaN where nothing is known.
            gain: agent minus stack, ``[B]``.
            seed: of LightGBM.
        """
        gain = as_numbers(gain, "gain")
        same_length(features=features, gain=gain)
        model = cls(_grow(features, gain, seed))
        model.unseen = out_of_fold(lambda rows: _grow(features[rows], gain[rows], seed), features, seed)
        return model

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Expected gain, float64 ``[B]``; a query's depends on that query alone."""
        return self._trees.predict(features)

    def route(self, features: np.ndarray, *, cost: np.ndarray | None = None, budget: float | None = None) -> Route:
        """Queries to the agent: by default all whose expected gain is positive.

        Args:
            features: as :meth:`fit` had them.
            cost: of asking the agent, in milliseconds or any unit, above 0, ``[B]``; by default 1 each.
            budget: most that all of the queries together may cost; the queries with the largest gain for their cost go
                first, the lower index first of equal ones, and one that does not fit is passed over.

        Raises:
            ValueError: a cost that is not above 0 (with its row), or a negative budget.
        """
        gain = self.predict(features)
        cost = np.ones(len(gain)) if cost is None else as_numbers(cost, "cost")
        same_length(features=gain, cost=cost)
        if len(cost) and cost.min() <= 0:
            raise ValueError(f"cost: expected above 0; got {cost.min():g} in row {int(cost.argmin())}")
        destination = np.where(gain > 0, AGENT, STACK)
        if budget is not None:
            if not budget >= 0:
                raise ValueError(f"budget: expected at least 0; got {budget}")
            left = float(budget)
            for row in np.argsort(-gain / cost, kind="stable").tolist():
                if gain[row] > 0 and cost[row] <= left:
                    left -= cost[row]
                else:
                    destination[row] = STACK
        return ops.route_to(torch.from_numpy(destination.astype(np.int64)), 2)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the trees as text into :data:`FILE`; returns what :meth:`load` holds the file to."""
        return self._trees.save(folder / FILE)

    @classmethod
    def load(cls, folder: Path, expected: Mapping[str, Any]) -> GainRouter:
        """Read what :meth:`save` wrote; see :meth:`Trees.load <reasonrec_fast.early_exit.trees.Trees.load>`."""
        return cls(Trees.load(folder / FILE, expected))


def _grow(features: np.ndarray, gain: np.ndarray, seed: int) -> Trees:
    import lightgbm

    return Trees(lightgbm.train({**SETTINGS, "seed": seed}, lightgbm.Dataset(features, gain), NUM_TREES))


class GainCurve(NamedTuple):
    """Mean gain over all queries if a share of them goes to the agent, ``[P]`` each.

    Attributes:
        share: of the queries.
        routed: those with the largest predicted gain go first.
        random: in any order, the expectation.
        oracle: those with the largest true gain go first.
    """

    share: np.ndarray
    routed: np.ndarray
    random: np.ndarray
    oracle: np.ndarray

    def kept(self, share: float) -> float:
        """Share of the gain of always asking that routing keeps when a share of the queries is asked; NaN where asking
        always gains nothing."""
        always = self.routed[-1]
        return float(np.interp(share, self.share, self.routed) / always) if always > 0 else float("nan")


def gain_curve(predicted: np.ndarray, gain: np.ndarray, points: int = 101) -> GainCurve:
    """What routing by a prediction keeps of the agent's gain.

    Args:
        predicted: larger goes to the agent first, ``[B]``; equal ones share their mean gain.
        gain: agent minus stack, ``[B]``, of queries that the prediction has not learnt from.
        points: shares from 0 to 1.

    >>> curve = gain_curve(np.array([3.0, 2.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, -1.0]), points=5)
    >>> curve.routed.tolist(), curve.oracle.tolist()
    ([0.0, 0.25, 0.25, 0.25, 0.0], [0.0, 0.25, 0.25, 0.25, 0.0])
    """
    predicted, gain = as_numbers(predicted, "predicted"), as_numbers(gain, "gain")
    same_length(predicted=predicted, gain=gain)
    if not len(gain):
        raise ValueError("gain: expected at least one query; got none")
    share = np.linspace(0, 1, as_count(points, "points", 2))
    at = np.arange(len(gain) + 1) / len(gain)

    def curve(score: np.ndarray) -> np.ndarray:
        _, group, sizes = np.unique(-score, return_inverse=True, return_counts=True)
        means = np.bincount(group.reshape(-1), weights=gain) / sizes
        ordered = np.repeat(means, sizes)
        return np.interp(share, at, np.concatenate([[0.0], np.cumsum(ordered)]) / len(gain))

    return GainCurve(share, curve(predicted), share * gain.mean(), curve(gain))
