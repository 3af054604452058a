"""From the scores of every exit on validation to temperatures, exit thresholds and Platt scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reasonrec_fast import evaluation, ops, uncertainty
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.ops.exit_confidence import Measure


@dataclass(frozen=True)
class ExitScores:
    """What every exit says of ``N`` validation requests.

    Attributes:
        odds: log-odds of yes of each ensemble member, at temperature 1, ``[E, N, K]``.
        labels, users: of the requests, ``[N]``.
        cold: whether nobody had rated the item, bool ``[N]``.
    """

    odds: np.ndarray
    labels: np.ndarray
    users: np.ndarray
    cold: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Attributes: ``temperatures`` of the exits; when rows leave; slope and intercept of Platt scaling on the log-odds
    of the scores, for ``"early_exit"`` and ``"full_depth"``."""

    temperatures: tuple[float, ...]
    policy: ExitPolicy
    platt: dict[str, tuple[float, float]]


def calibrate(
    known: ExitScores, unrated: ExitScores | None, depths: Sequence[int], config: OptiRAGConfig
) -> Calibration:
    """Fit a temperature for every exit and choose the least depth within the configured losses.

    Requests whose item somebody has rated and those whose item nobody has (cold) have thresholds of their own: only
    the text, deep in the model, knows anything of the latter.

    Args:
        known: validation requests as they are.
        unrated: validation requests with their items shown as if nobody had rated them; truly cold ones are too few
            to choose by. Without them cold requests read every layer.
        depths: layers of each exit.
        config: the losses, and how confidence is measured.
    """
    temperatures = [uncertainty.fit_temperature(odds, known.labels) for odds in known.odds]
    scores = probabilities(known.odds, temperatures)
    confidence = confidence_of(scores, config.measure)
    warm, cold = ~known.cold, known.cold

    def with_cold(metric: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
        """Of all requests, when the warm ones have these scores and the cold ones read every layer."""

        def of_all(values: np.ndarray) -> float:
            joint = scores[-1].copy()
            joint[warm] = values
            return metric(joint)

        return of_all

    limits = [uncertainty.Limit(with_cold(metric), loss) for metric, loss in _limits(known, config)]
    warm_thresholds = _thresholds(scores[:, warm], confidence[:, warm], depths, limits, known.users[warm], config)
    cold_thresholds = tuple(float("inf") for _ in depths[:-1])
    if unrated is not None:
        hidden = probabilities(unrated.odds, temperatures)
        limits = [uncertainty.Limit(metric, loss) for metric, loss in _limits(unrated, config)]
        hidden_confidence = confidence_of(hidden, config.measure)
        cold_thresholds = _thresholds(hidden, hidden_confidence, depths, limits, unrated.users, config)
    exited = np.empty_like(scores[-1])
    for rows, thresholds in ((warm, warm_thresholds), (cold, cold_thresholds)):
        exited[rows], _ = uncertainty.simulate(scores[:, rows], confidence[:, rows], thresholds, trend=config.trend)
    return Calibration(
        tuple(temperatures),
        ExitPolicy((warm_thresholds, cold_thresholds), config.measure, config.trend),
        {
            name: evaluation.fit_platt(known.labels, log_odds(values))
            for name, values in (("early_exit", exited), ("full_depth", scores[-1]))
        },
    )


def _thresholds(
    scores: np.ndarray,
    confidence: np.ndarray,
    depths: Sequence[int],
    limits: Sequence[uncertainty.Limit],
    users: np.ndarray,
    config: OptiRAGConfig,
) -> tuple[float, ...]:
    """With the promise that is asked for, over users; else the least depth within the limits. Of nothing that could
    tell, nobody leaves early."""
    if not scores.shape[1]:
        return tuple(float("inf") for _ in depths[:-1])
    if config.max_disagreement is None:
        return uncertainty.choose_thresholds(scores, confidence, depths, limits, trend=config.trend)
    differs = ((scores > 0.5) != (scores[-1] > 0.5)).astype(np.float64)
    return uncertainty.guarantee_thresholds(
        differs, confidence, depths, alpha=config.max_disagreement, trend=config.trend, groups=users
    ).thresholds


def confidence_of(probability: np.ndarray, measure: Measure) -> np.ndarray:
    """The confidence that ``exit_confidence`` gives a probability of yes, in the same shape.

    >>> confidence_of(np.array([0.5, 0.9]), "margin").round(2).tolist()
    [0.0, 0.8]
    """
    odds = torch.from_numpy(log_odds(probability).reshape(-1, 1))
    heads = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return ops.exit_confidence(odds, heads, measure=measure).confidence.numpy().reshape(probability.shape)


def log_odds(probability: np.ndarray) -> np.ndarray:
    """``log(p / (1 - p))``, finite at 0 and 1.

    >>> log_odds(np.array([0.5])).tolist()
    [0.0]
    """
    bounded = np.clip(np.asarray(probability, dtype=np.float64), 1e-9, 1 - 1e-9)
    return np.log(bounded) - np.log1p(-bounded)


def probabilities(odds: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """Mean probability of yes over the members, ``[E, N]``."""
    return (1 / (1 + np.exp(-odds / np.array(temperatures)[:, None, None]))).mean(2)


def _limits(scores: ExitScores, config: OptiRAGConfig) -> list[tuple[Callable[[np.ndarray], float], float]]:
    """Metrics, and what they may lose; GAUC where some user has both answers."""
    labels, users = scores.labels, scores.users

    def auc(values: np.ndarray) -> float:
        return evaluation.auc(labels, values)

    def gauc(values: np.ndarray) -> float:
        return evaluation.gauc(labels, values, users)

    found: list[tuple[Callable[[np.ndarray], float], float]] = [(auc, config.max_auc_loss)]
    if not np.isnan(gauc(labels.astype(np.float64))):
        found.append((gauc, config.max_gauc_loss))
    return found
