"""Trade-off between accuracy and speed: AUC against requests per second over exit thresholds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from reasonrec_fast import evaluation, uncertainty
from reasonrec_fast.data import Interactions, Split, sample_of_users
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.calibration import ExitScores, calibrate, exit_statistics
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.full_depth import full_depth_scores

AUC_LOSSES = (0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""Allowed losses of AUC on validation; the allowed loss of GAUC is two and a half times as large."""


@dataclass(frozen=True)
class Point:
    """Accuracy and speed of one way to score.

    Attributes:
        kind: ``"thresholds"``, ``"one exit"`` (all requests leave at the same layer), ``"full depth"`` (packed) or
            ``"transformers"`` (full depth, every prompt in full).
        label: distinguishes points of a kind.
        auc, gauc: on the test requests.
        depth: mean layers read.
        requests_per_s: median over rounds, from token ids to scores.
    """

    kind: str
    label: str
    auc: float
    gauc: float
    depth: float
    requests_per_s: float


def pareto(
    model: OptiRAG, interactions: Interactions, split: Split, *, sample: int = 6000, timed: int = 512, rounds: int = 7
) -> list[Point]:
    """Points of a model with early exits.

    Args:
        model: with a retriever; its calibration is restored afterwards.
        interactions, split: thresholds come from validation, figures from the test part.
        sample: number of test requests for AUC (whole users).
        timed: number of these that are timed.
        rounds: of timing; each times all points.
    """
    config, before, platt, depth_zero = model.config, model.policy, model.platt, model.depth_zero
    heads = {name: value.clone() for name, value in model.ranker.model.heads.state_dict().items()}
    depths = model.ranker.model.depths
    builder, builder_rows = model.request_builder(interactions)
    validation = [
        sample_of_users(interactions, split.validation, size, config.seed)
        for size in (2 * config.calibration_requests, config.calibration_requests)
    ]
    known, unrated = (
        model.exit_scores(builder.requests(builder_rows[rows], unrated=hidden), interactions.users[rows])
        for rows, hidden in zip(validation, (False, True), strict=True)
    )
    rows = sample_of_users(interactions, split.test, sample)
    test = model.exit_scores(builder.requests(builder_rows[rows]), interactions.users[rows])
    policies: dict[tuple[str, str], ExitPolicy | None] = {("full depth", "packed"): None}
    for loss in AUC_LOSSES:
        limits = replace(config, max_auc_loss=loss, max_gauc_loss=2.5 * loss)
        calibration = calibrate(known, unrated, depths, limits)
        policies["thresholds", f"{loss:.3f}"] = calibration.policy
    model.use(calibration)  # all calibrations are equal except for their thresholds
    if calibration.scales:
        test = test.scaled(calibration.scales)
    for position, layer in enumerate(depths[:-1]):
        everyone = tuple(-np.inf if at == position else np.inf for at in range(len(depths) - 1))
        policies["one exit", str(layer)] = ExitPolicy((everyone, everyone), config.measure)
    requests = builder.requests(builder_rows[rows[:timed]])
    speeds = _speeds(model, requests, policies, rounds)
    points = []
    for (kind, label), policy in policies.items():
        scores, depth = _simulated(model, test, policy)
        points.append(Point(kind, label, *_metrics(test, scores), depth, speeds[kind, label]))
    last, depth = _simulated(model, test, None)
    points.append(
        Point("transformers", "full depth", *_metrics(test, last), depth, speeds["transformers", "full depth"])
    )
    model.ranker.policy, model.platt, model.depth_zero = before, platt, depth_zero
    model.ranker.model.heads.load_state_dict(heads)
    return points


def _simulated(model: OptiRAG, scores: ExitScores, policy: ExitPolicy | None) -> tuple[np.ndarray, float]:
    """Scores and mean depth of requests under a policy, simulated from the scores of all exits."""
    layers = np.array(model.ranker.model.depths)
    temperatures = [float(head.temperature) for head in model.ranker.model.heads]
    at_exits, confidence = exit_statistics(scores, temperatures, model.depth_zero, model.config.measure)
    if policy is None:
        return at_exits[-1], float(layers[-1])
    exited, exits = np.empty_like(at_exits[-1]), np.empty(len(scores.labels), dtype=np.int64)
    for stratum, thresholds in enumerate(policy.thresholds):
        part = scores.cold == bool(stratum)
        exited[part], exits[part] = uncertainty.simulate(
            at_exits[:, part],
            confidence[:, part],
            thresholds,
            trend=policy.trend,
            heads_from=int(model.ranker.model.offset),
        )
    return exited, float(layers[exits].mean())


def _metrics(scores: ExitScores, values: np.ndarray) -> tuple[float, float]:
    return evaluation.auc(scores.labels, values), evaluation.gauc(scores.labels, values, scores.users)


def _speeds(
    model: OptiRAG, requests: Requests, policies: dict[tuple[str, str], ExitPolicy | None], rounds: int
) -> dict[tuple[str, str], float]:
    def by(policy: ExitPolicy | None) -> Callable[[], object]:
        def run() -> object:
            model.ranker.policy = policy
            return model.predict(requests)

        return run

    ways = {name: by(policy) for name, policy in policies.items()}
    ways["transformers", "full depth"] = lambda: full_depth_scores(model, requests)
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: len(requests.rows) / float(np.median(times)) for name, times in seconds.items()}
