"""From the scores of every exit on validation to temperatures, exit thresholds and Platt scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reasonrec_fast import evaluation, uncertainty
from reasonrec_fast.early_exit.depth_zero import DepthZero
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.scorer import disagreement
from reasonrec_fast.early_exit.scores import logit_confidence
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.ops.exit_confidence import Measure

DELTA = 0.1
"""Probability, over calibration sets, that the promises of ``max_disagreement`` may fail: any of them."""


@dataclass(frozen=True)
class ExitScores:
    """Logits of every exit for ``N`` validation requests.

    Attributes:
        logits: logits of yes of each ensemble member at every head, at temperature 1, ``[H, N, K]``.
        labels, users: of the requests, ``[N]``.
        cold: whether the item had no rating, bool ``[N]``.
        offset: logits of depth 0, ``[N]``; None where exits begin with the first head.
        features: features that depth 0 reads, ``[N, P]``, with ``offset``.
    """

    logits: np.ndarray
    labels: np.ndarray
    users: np.ndarray
    cold: np.ndarray
    offset: np.ndarray | None = None
    features: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> ExitScores:
        """Scores of some of the requests (mask or indices)."""
        offset, features = (None if values is None else values[rows] for values in (self.offset, self.features))
        return ExitScores(self.logits[:, rows], self.labels[rows], self.users[rows], self.cold[rows], offset, features)

    def scaled(self, scales: Sequence[float]) -> ExitScores:
        """With a share (one for each head) of what the head adds to the logit of depth 0."""
        assert self.offset is not None
        offset = self.offset.astype(np.float64)[:, None]
        return replace(self, logits=offset + np.array(scales)[:, None, None] * (self.logits - offset))


@dataclass(frozen=True)
class Calibration:
    """The result of calibration.

    Attributes:
        temperatures: of the heads.
        policy: when requests exit.
        platt: slope and intercept of Platt scaling on the logits of the scores, for ``"early_exit"`` and
            ``"full_depth"``.
        scales: shares of the heads' residuals, where they correct the logit of depth 0; else none.
        depth_zero: None where exits begin with the first head.
    """

    temperatures: tuple[float, ...]
    policy: ExitPolicy
    platt: dict[str, tuple[float, float]]
    scales: tuple[float, ...] = ()
    depth_zero: DepthZero | None = None


def calibrate(
    known: ExitScores, unrated: ExitScores | None, depths: Sequence[int], config: OptiRAGConfig
) -> Calibration:
    """Fit a temperature for every head and choose the least depth within the configured losses.

    Requests whose item somebody has rated (warm) and those whose item nobody has (cold) have thresholds of their own:
    for the latter only the text carries information.

    With depth 0 the heads are scaled first (:func:`residual_scale`). Then the requests of one half of the users train
    depth 0, and those of the other half choose the thresholds, so that these rest on predictions for users whom depth 0
    has not seen. Where there are too few users for both halves to have both labels, the requests are divided, and where
    a label is too rare for that, all requests do both.

    With ``max_disagreement`` scales, temperatures and depth 0 come from one half of the users, with or without depth 0,
    and the thresholds of both strata are tested on the other half. The two promises hold jointly with probability
    ``1 - DELTA``: each may fail with ``DELTA / 2`` (Bonferroni's bound, which needs no independence: the same users are
    in both strata), or with ``DELTA`` where the other stratum has nobody to test and reads every layer.

    Args:
        known: validation requests as they are.
        unrated: validation requests with their items shown as if nobody had rated them; truly cold ones are too few
            to choose by. Without them cold requests read every layer.
        depths: layers of each exit, depth 0 included.
        config: the losses, and how confidence is measured.

    Raises:
        ValueError: with ``max_disagreement``, fewer users than :func:`check_promise` needs.
    """
    promise = config.max_disagreement is not None
    if promise:
        check_promise(known.labels, known.users, config)
    depth_zero: DepthZero | None = None
    scales: tuple[float, ...] = ()
    all_known, fit_known, fit_unrated = known, known, unrated
    if promise or known.offset is not None:
        fit_mask, unrated_mask = _halves(known, unrated, config)
        if fit_mask is not None:
            fit_known, known = known.of(fit_mask), known.of(~fit_mask)
            if unrated is not None and unrated_mask is not None:
                fit_unrated, unrated = unrated.of(unrated_mask), unrated.of(~unrated_mask)
    if known.offset is not None:
        # One share a head is steadier from all requests; a promise needs exits that its test has not seen.
        scale_from = fit_known if promise else all_known
        scales = tuple(residual_scale(scale_from, head) for head in range(len(known.logits)))
        fit_known, known = fit_known.scaled(scales), known.scaled(scales)
        fit_unrated, unrated = (None if part is None else part.scaled(scales) for part in (fit_unrated, unrated))
    temperatures = [uncertainty.fit_temperature(logits, fit_known.labels) for logits in fit_known.logits]
    if fit_known.offset is not None:
        parts = [part for part in (fit_known, fit_unrated) if part is not None]
        depth_zero = _fit_depth_zero(parts, temperatures, config)
    scores, confidence = exit_statistics(known, temperatures, depth_zero, config.measure)
    warm, cold = ~known.cold, known.cold

    def with_cold(metric: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
        """Of all requests, when the warm ones have these scores and the cold ones read every layer."""

        def of_all(values: np.ndarray) -> float:
            joint = scores[-1].copy()
            joint[warm] = values
            return metric(joint)

        return of_all

    cold_users = np.zeros(0, dtype=np.int64) if unrated is None else unrated.users
    tested = sum(_can_be_tested(users) for users in (known.users[warm], cold_users))
    delta = DELTA / max(tested, 1)
    limits = [uncertainty.Limit(with_cold(metric), loss) for metric, loss in _limits(known, config)]
    warm_thresholds = _thresholds(
        scores[:, warm], confidence[:, warm], depths, limits, known.users[warm], delta, config
    )
    cold_thresholds = tuple(float("inf") for _ in depths[:-1])
    if unrated is not None and len(unrated.labels):
        limits = [uncertainty.Limit(metric, loss) for metric, loss in _limits(unrated, config)]
        unrated_statistics = exit_statistics(unrated, temperatures, depth_zero, config.measure)
        cold_thresholds = _thresholds(*unrated_statistics, depths, limits, unrated.users, delta, config)
    exited = np.empty_like(scores[-1])
    for rows, thresholds in ((warm, warm_thresholds), (cold, cold_thresholds)):
        exited[rows], _ = uncertainty.simulate(
            scores[:, rows], confidence[:, rows], thresholds, trend=config.trend, heads_from=int(depth_zero is not None)
        )
    return Calibration(
        tuple(temperatures),
        ExitPolicy((warm_thresholds, cold_thresholds), config.measure, config.trend),
        {
            name: evaluation.fit_platt(known.labels, log_odds(values))
            for name, values in (("early_exit", exited), ("full_depth", scores[-1]))
        },
        scales,
        depth_zero,
    )


def check_promise(labels: np.ndarray, users: np.ndarray, config: OptiRAGConfig) -> None:
    """Refuse a promise for which there are too few users: one half of them is calibrated on, the other half lays out
    policies and tests them, and either half needs both labels. It can be called before there are any scores.

    Args:
        labels, users: of the validation requests, ``[N]``, in any order.
        config: ``max_disagreement`` and ``seed``; without a promise nothing is refused.

    Raises:
        ValueError: fewer than four users, or a half of one label.

    >>> check_promise(np.array([0, 1, 1]), np.array([0, 1, 2]), OptiRAGConfig(max_disagreement=0.1))
    Traceback (most recent call last):
    ValueError: validation: expected at least 4 users for max_disagreement=0.1; got 3
    """
    if config.max_disagreement is None:
        return
    count = len(np.unique(users))
    if count < 4:
        raise ValueError(
            f"validation: expected at least 4 users for max_disagreement={config.max_disagreement}; got {count}"
        )
    chosen = _half_of_users(users, np.random.default_rng((config.seed, 1)))
    if not _both_labels(labels, np.isin(users, chosen)):
        having = [len(np.unique(users[labels == label])) for label in (0, 1)]
        raise ValueError(
            f"validation: expected both labels in both halves of the users, for "
            f"max_disagreement={config.max_disagreement}; got {count} users, of whom {having[0]} have label 0 and "
            f"{having[1]} have label 1"
        )


def _half_of_users(users: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One half of the users, at random."""
    unique = np.unique(users)
    # Not in the order in which the requests' users were drawn: those of the unrated ones came first there.
    return generator.permutation(unique)[: max(len(unique) // 2, 1)]


def _halves(
    known: ExitScores, unrated: ExitScores | None, config: OptiRAGConfig
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Which of the requests, and of those shown as unrated, train depth 0; bool ``[N]`` each. None where a label is too
    rare to be in both halves: then all requests do both."""
    generator = np.random.default_rng((config.seed, 1))
    chosen = _half_of_users(known.users, generator)
    mask = np.isin(known.users, chosen)
    if _both_labels(known.labels, mask):
        return mask, None if unrated is None else np.isin(unrated.users, chosen)
    # Not reached with a promise (check_promise): requests of one user would be on both sides of its test.
    mask = np.zeros(len(known.labels), dtype=bool)
    for label in (0, 1):
        of_label = generator.permutation(np.flatnonzero(known.labels == label))
        mask[of_label[: len(of_label) // 2]] = True
    if not _both_labels(known.labels, mask):
        return None, None
    return mask, None if unrated is None else generator.permutation(len(unrated.labels)) % 2 == 0


def _both_labels(labels: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the requests of the mask have both labels, and the others too."""
    return all(len(np.unique(labels[part])) == 2 for part in (mask, ~mask))


def residual_scale(scores: ExitScores, head: int) -> float:
    """The share of a head's residual that is added to the logit of depth 0: that, of 0, 0.05, ..., 1, with the largest
    GAUC among those whose AUC is not below that of the logit alone.

    A head trained to rank within users also shifts all scores of a user, at the cost of the pooled AUC.
    """
    assert scores.offset is not None
    offset = scores.offset.astype(np.float64)
    residual = scores.logits[head].mean(1) - offset
    least, best = evaluation.auc(scores.labels, offset), (-np.inf, 0.0)
    for share in np.linspace(0, 1, 21).tolist():
        values = offset + share * residual
        auc, gauc = evaluation.auc(scores.labels, values), evaluation.gauc(scores.labels, values, scores.users)
        if auc >= least:
            best = max(best, (auc if np.isnan(gauc) else gauc, share))
    return best[1]


def _fit_depth_zero(parts: Sequence[ExitScores], temperatures: Sequence[float], config: OptiRAGConfig) -> DepthZero:
    """Fit depth 0 on requests as they are and with their items shown as unrated."""
    features, offset = (np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "offset"))
    deep = np.concatenate([probabilities(part.logits, temperatures)[-1] for part in parts])
    return DepthZero.fit(features, offset.astype(np.float64), log_odds(deep), seed=config.seed)


def exit_statistics(
    scores: ExitScores, temperatures: Sequence[float], depth_zero: DepthZero | None, measure: Measure
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of yes and confidence at every exit, depth 0 included, ``[E, N]`` each. The confidence of depth 0
    is minus the predicted gain of reading on."""
    probability = probabilities(scores.logits, temperatures)
    confidence = confidence_of(probability, measure)
    if depth_zero is None or scores.offset is None or scores.features is None:
        return probability, confidence
    shallow = 1 / (1 + np.exp(-depth_zero.logits(scores.features, scores.offset)))
    return np.vstack([shallow, probability]), np.vstack([-depth_zero.gain(scores.features), confidence])


def _thresholds(
    scores: np.ndarray,
    confidence: np.ndarray,
    depths: Sequence[int],
    limits: Sequence[uncertainty.Limit],
    users: np.ndarray,
    delta: float,
    config: OptiRAGConfig,
) -> tuple[float, ...]:
    """Thresholds of one stratum: with a promise over users that fails with probability ``delta`` at most, else the
    least depth within the limits. Without requests, or users to test a promise on, nobody leaves early."""
    if not scores.shape[1] or (config.max_disagreement is not None and not _can_be_tested(users)):
        return tuple(float("inf") for _ in depths[:-1])
    heads_from = int(depths[0] == 0)
    if config.max_disagreement is None:
        return uncertainty.choose_thresholds(
            scores, confidence, depths, limits, trend=config.trend, heads_from=heads_from
        )
    return uncertainty.guarantee_thresholds(
        disagreement(scores, scores[-1]), confidence, depths, alpha=config.max_disagreement, delta=delta,
        trend=config.trend, groups=users, heads_from=heads_from,
    ).thresholds  # fmt: skip


def _can_be_tested(users: np.ndarray) -> bool:
    """Whether a stratum has the two users that lay out policies and test them."""
    return len(np.unique(users)) > 1


def confidence_of(probability: np.ndarray, measure: Measure) -> np.ndarray:
    """The confidence that ``exit_confidence`` gives a probability of yes, in the same shape.

    >>> confidence_of(np.array([0.5, 0.9]), "margin").round(2).tolist()
    [0.0, 0.8]
    """
    return logit_confidence(log_odds(probability), measure)


def log_odds(probability: np.ndarray) -> np.ndarray:
    """``log(p / (1 - p))``, finite at 0 and 1.

    >>> log_odds(np.array([0.5])).tolist()
    [0.0]
    """
    bounded = np.clip(np.asarray(probability, dtype=np.float64), 1e-9, 1 - 1e-9)
    return np.log(bounded) - np.log1p(-bounded)


def probabilities(logits: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """Mean probability of yes over the ensemble members, ``[E, N]``."""
    return (1 / (1 + np.exp(-logits / np.array(temperatures)[:, None, None]))).mean(2)


def _limits(scores: ExitScores, config: OptiRAGConfig) -> list[tuple[Callable[[np.ndarray], float], float]]:
    """Metrics, and how much of each may be lost; GAUC where some user has both labels."""
    labels, users = scores.labels, scores.users

    def auc(values: np.ndarray) -> float:
        return evaluation.auc(labels, values)

    def gauc(values: np.ndarray) -> float:
        return evaluation.gauc(labels, values, users)

    limits: list[tuple[Callable[[np.ndarray], float], float]] = [(auc, config.max_auc_loss)]
    if not np.isnan(gauc(labels.astype(np.float64))):
        limits.append((gauc, config.max_gauc_loss))
    return limits
