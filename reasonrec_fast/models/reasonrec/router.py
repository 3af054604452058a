"""Who answers a query: confidence, predicted gain and risk levels, with thresholds found on validation users."""

from __future__ import annotations

import logging
import numbers
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from reasonrec_fast.models.reasonrec.confidence import HitConfidence, Ranking, ranking_features
from reasonrec_fast.models.reasonrec.config import Policy
from reasonrec_fast.models.reasonrec.routing import AGENT, CONSULT, STACK, GainRouter, RiskLevels

_logger = logging.getLogger("reasonrec_fast")
EVERY: dict[Policy, int] = {"always": AGENT, "consult": CONSULT, "never": STACK}
"""Policies that send all queries to one destination."""
_LEAST = 50  # hits, and misses, from which a confidence is learnt


class Decision(NamedTuple):
    """Of ``B`` queries.

    Attributes:
        destination: who answers, int64 ``[B]``.
        confidence: in the stack's ranking, ``[B]``.
        gain: expected of the agent, ``[B]``.
    """

    destination: np.ndarray
    confidence: np.ndarray
    gain: np.ndarray


@dataclass(frozen=True)
class Router:
    """Decides each query by itself: a budget is a quantile of the validation users' confidence or gain.

    Attributes:
        k: items that count as a hit.
        hits: the probability of one; None, and then the mass of the ``k`` best, where validation was too small.
        gains: predicts the agent's gain; None without an agent.
        levels: the paper's risk levels; ``confident`` is the median of the validation users.
        confidences, expected: of the validation users, ascending, for budgets.
    """

    k: int = 5
    hits: HitConfidence | None = None
    gains: GainRouter | None = None
    levels: RiskLevels = field(default_factory=RiskLevels)
    confidences: np.ndarray = field(default_factory=lambda: np.zeros(0))
    expected: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(
        cls, ranking: Ranking, position: np.ndarray, gain: np.ndarray, horizons: np.ndarray, k: int, *, seed: int = 0
    ) -> Router:
        """Learn from users whose next item is known, and that neither stack nor agent has learnt from.

        Args:
            ranking: of ``B`` users.
            position: of the next item in the ranking, -1 where it is not in it, int64 ``[B]``.
            gain: of asking the agent, ``[B]``.
            horizons: evidence horizons, ``[B]``.
            k: items that count as a hit.
            seed: of the trees.
        """
        hit = (position >= 0) & (position < k)
        hits = None
        if min(int(hit.sum()), int((~hit).sum())) >= _LEAST:
            hits = HitConfidence.fit(ranking, hit.astype(np.int64), k=k, seed=seed)
        else:
            _logger.info("confidence is the mass of the %d best: validation has too few hits to learn it", k)
        gains = GainRouter.fit(_features(ranking, horizons, k), gain, seed=seed) if gain.any() else None
        first = cls(k, hits, gains)
        # As of users whom the trees have not learnt: new ones are distributed like these.
        confidence = first._confidence(ranking) if hits is None or hits.unseen is None else hits.unseen
        expected = np.zeros(len(horizons)) if gains is None or gains.unseen is None else gains.unseen
        levels = RiskLevels(confident=float(np.median(confidence))) if len(confidence) else RiskLevels()
        return cls(k, hits, gains, levels, np.sort(confidence), np.sort(expected))

    def decide(
        self, ranking: Ranking, horizons: np.ndarray, policy: Policy, budget: float, *, has_agent: bool
    ) -> Decision:
        """Where the queries go.

        Args:
            ranking: by the stack, with more than ``k`` columns.
            horizons: evidence horizons, ``[B]``.
            policy, budget: as of :class:`~reasonrec_fast.models.reasonrec.config.ReasonRecConfig`.
            has_agent: without one the stack answers all.

        Raises:
            ValueError: a policy that does not exist, or a budget outside [0, 1].
        """
        if policy not in get_args(Policy):
            raise ValueError(f"policy: expected one of {', '.join(get_args(Policy))}; got {policy!r}")
        if isinstance(budget, bool) or not isinstance(budget, numbers.Real) or not 0 <= budget <= 1:
            raise ValueError(f"budget: expected a share in [0, 1]; got {budget!r}")
        confidence, gain = self._confidence(ranking), self._gain(ranking, horizons)
        if policy in EVERY:
            asked = np.full(len(confidence), EVERY[policy])
        elif policy == "risk":
            asked = self.levels.route(horizons, confidence).destination.numpy()
        elif policy == "budget":
            asked = np.where(confidence < _quantile(self.confidences, budget), AGENT, STACK)
        else:
            least = max(_quantile(self.expected, 1 - budget), 0.0) if budget < 1 else 0.0
            asked = np.where(gain > least, AGENT, STACK)
        destination = asked.astype(np.int64) if has_agent else np.full(len(confidence), STACK)
        return Decision(destination, confidence, gain)

    def _confidence(self, ranking: Ranking) -> np.ndarray:
        if self.hits is None:
            return ranking.probabilities[:, : self.k].sum(1)
        return self.hits.probability(ranking)

    def _gain(self, ranking: Ranking, horizons: np.ndarray) -> np.ndarray:
        if self.gains is None:
            return np.zeros(len(horizons))
        return self.gains.predict(_features(ranking, horizons, self.k))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the trees; returns what :meth:`load` needs beside them."""
        return {
            "k": self.k,
            "hits": None if self.hits is None else self.hits.save(folder),
            "gains": None if self.gains is None else self.gains.save(folder),
            "levels": asdict(self.levels),
            "confidences": self.confidences.tolist(),
            "expected": self.expected.tolist(),
        }

    @classmethod
    def load(cls, folder: Path, stored: dict[str, Any]) -> Router:
        """Read what :meth:`save` wrote."""
        return cls(
            int(stored["k"]),
            None if stored["hits"] is None else HitConfidence.load(folder, stored["hits"]),
            None if stored["gains"] is None else GainRouter.load(folder, stored["gains"]),
            RiskLevels(**stored["levels"]),
            np.array(stored["confidences"]),
            np.array(stored["expected"]),
        )


def _features(ranking: Ranking, horizons: np.ndarray, k: int) -> np.ndarray:
    return np.concatenate([ranking_features(ranking, k), horizons[:, None].astype(np.float32)], axis=1)


def _quantile(ascending: np.ndarray, share: float) -> float:
    """Value below which a share of the validation users lies: infinite for all, minus infinite for none of them."""
    if share >= 1:
        return float("inf")
    if share <= 0 or not len(ascending):
        return float("-inf")
    return float(np.quantile(ascending, share))
