"""What a ReasonRec model's agent adds to its stack on the test part, by who answers: policies, curves, confidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from reasonrec_fast import evaluation
from reasonrec_fast.arrays import as_count
from reasonrec_fast.data import DataError, Histories, Interactions, Split
from reasonrec_fast.data.split import check_not_learnt
from reasonrec_fast.evaluation import Interval
from reasonrec_fast.models.reasonrec import ReasonRec
from reasonrec_fast.models.reasonrec.config import Policy
from reasonrec_fast.models.reasonrec.routing import AGENT, CONSULT, DESTINATIONS, gain_curve
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.uncertainty import aurc, ece

POLICIES: tuple[Policy, ...] = ("always", "consult", "gain", "budget", "risk")
COLD_SHARE = 0.3
"""Users with the largest evidence horizons that are reported by themselves."""
COLD_EVENTS = 2
"""Targets with at most so many training events are."""


@dataclass(frozen=True)
class PolicyReport:
    """One way to decide who answers, over ``B`` users.

    Attributes:
        shares: of the queries, by who answered.
        metrics: means over all users.
        differences: from the stack alone, with intervals.
    """

    shares: dict[str, float]
    metrics: dict[str, float]
    differences: dict[str, Interval]


@dataclass(frozen=True)
class AgentReport:
    """A ReasonRec model on the test part.

    Attributes:
        users: measured.
        stack: metrics of the stack alone.
        policies: by name; ``"always"`` asks the agent for every query, if it is trusted at all.
        groups: differences of always asking from the stack, for the coldest users and for targets with few events.
        levels: of the risk policy, by who answers: metrics of the queries that it sends there.
        consulting: differences of consulting from answering alone, on the queries that the risk policy sends there.
        room: metrics if every target among the candidates came first: what an agent over these candidates can reach.
        kept: share of the gain of always asking, in NDCG at the model's ``k``, that is kept if 65 % of the queries are
            asked, by predicted gain; NaN where asking gains nothing.
        curve: share of queries, and the mean gain by predicted gain, at random, and by an oracle.
        confidence: AUROC, share of the possible gain in AURC, and expected calibration error of the confidence
            in a hit among the model's ``k`` best.
        milliseconds: a query by itself: of the stack, and with the agent, alone and consulting; undefined where nobody
            asks it (trust 0).
        trust: how far calibration lets the agent correct the stack.
        left_out: tools that gave no answer, and why: the model was measured without them.
    """

    users: int
    stack: dict[str, float]
    policies: dict[str, PolicyReport]
    groups: dict[str, dict[str, Interval]]
    levels: dict[str, dict[str, float]]
    consulting: dict[str, Interval]
    room: dict[str, float]
    kept: float
    curve: dict[str, list[float]]
    confidence: dict[str, float]
    milliseconds: dict[str, float]
    trust: float
    left_out: dict[str, str]

    def metrics(self, policy: str) -> dict[str, float]:
        """For a line of results: metrics under a policy by their names; all else with the part before a slash.

        Args:
            policy: one of :data:`POLICIES`, or ``"never"``.
        """
        flat = dict(self.stack if policy == "never" else self.policies[policy].metrics)
        flat |= {"trust": self.trust, "kept": self.kept} | self.confidence
        flat |= {f"stack/{name}": value for name, value in self.stack.items()}
        flat |= {f"room/{name}": value for name, value in self.room.items()}
        flat |= {f"milliseconds/{name}": value for name, value in self.milliseconds.items()}
        flat |= {f"risk/{who}/{name}": value for who, part in self.levels.items() for name, value in part.items()}
        parts = {f"{name}/": part.differences for name, part in self.policies.items()}
        parts |= {f"always/{name}/": differences for name, differences in self.groups.items()}
        parts |= {"consulting/": self.consulting}
        for name, part in self.policies.items():
            flat |= {f"{name}/share/{who}": share for who, share in part.shares.items()}
            flat |= {f"{name}/{metric}": value for metric, value in part.metrics.items()}
        for name, differences in parts.items():
            for metric, interval in differences.items():
                for end in ("value", "low", "high"):
                    flat[f"{name}{metric}/difference/{end}"] = getattr(interval, end)
        return flat

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file: intervals by name, None for what is undefined."""
        return {name.name: _plain(getattr(self, name.name)) for name in fields(self)}


def evaluate_agent(
    model: ReasonRec,
    data: Interactions,
    split: Split,
    *,
    ks: Sequence[int] = (5, 10, 20),
    budget: float | None = None,
    timed: int = 32,
    progress: Progress | None = None,
) -> AgentReport:
    """Measure a model on the test part, with the events before it as histories.

    The agent reads candidates of those users alone who have a target among them: an order of the candidates changes no
    metric of another user. So all users are measured, at a fifth of the cost. The model's own histories are set again
    at the end.

    Args:
        model: fitted on the training part.
        data: the events, in the model's own indices.
        split: of the events.
        ks: cutoffs, none larger than the number of candidates.
        budget: share of queries for the agent; by default the model's.
        timed: users whose latency is measured.
        progress: called with how many candidates the agent has read.

    Raises:
        DataError: a model without an agent, or one that was fitted on events of the test part, or nothing to measure.
        ValueError: cutoffs beyond the candidates.
    """
    ks = checked_cutoffs(model, ks)
    check_not_learnt(data, split, model.fitted_events, "data")
    earlier = np.sort(np.concatenate([split.train, split.validation]))
    known, seen = Histories.of(data, earlier), Histories.seen(data, earlier)
    rows = split.test[data.labels[split.test] == 1]
    users, user_rows = np.unique(data.users[rows], return_inverse=True)
    relevant = Histories.from_pairs(len(users), user_rows, data.items[rows]).without(seen.select(users))
    some = np.flatnonzero(relevant.lengths)
    if not len(some):
        raise DataError(
            f"split: expected a like in the test part of something that its user has not had before; got none in "
            f"{len(split.test)} events"
        )
    before = model.histories, model.seen
    model.set_histories(known, seen=seen)
    try:
        return _measured(model, data, split, users[some], relevant.select(some), ks, budget, timed, progress)
    finally:
        model.set_histories(before[0], seen=before[1])


def checked_cutoffs(model: ReasonRec, ks: Sequence[int]) -> list[int]:
    """Cutoffs, ascending, that can be measured.

    Raises:
        DataError: a model without an agent.
        ValueError: cutoffs beyond the candidates.
    """
    if model.config.reader is None:
        raise DataError("model: expected one with an agent; got the stack alone")
    depth = model.config.reader.candidates
    ascending = sorted({as_count(k, "ks", 1) for k in ks})
    if ascending[-1] > depth:
        raise ValueError(f"ks: expected at most {depth}, the agent's candidates; got {ascending[-1]}")
    return ascending


def _measured(
    model: ReasonRec,
    data: Interactions,
    split: Split,
    users: np.ndarray,
    relevant: Histories,
    ks: list[int],
    budget: float | None,
    timed: int,
    progress: Progress | None,
) -> AgentReport:
    """The report on users with their targets, by the model's present histories."""
    assert model.agent is not None and model.config.reader is not None
    depth, k = model.config.reader.candidates, model.config.k
    ranking, horizons = model.stack.rank(users, model.candidates), model.horizons(users)
    items = {"stack": ranking.items[:, :depth]}
    reachable = np.flatnonzero(_contains(items["stack"], relevant))
    for name, policy in (("agent", "always"), ("consult", "consult")):
        if name == "consult" and not model.agent.hears_tools:
            items[name] = items["agent"]
            continue
        answered = model.recommend(users[reachable], depth, policy=policy, progress=progress)  # type: ignore[arg-type]
        items[name] = items["stack"].copy()
        items[name][reachable] = answered.items
    # Confidence and gain are of the model's own k, whatever the cutoffs are.
    cutoffs = sorted({*ks, k})
    values = {name: evaluation.ranking_metrics(listed, relevant, cutoffs) for name, listed in items.items()}
    names = [f"{metric}@{k}" for metric in ("hr", "ndcg") for k in ks]

    def mixed(destination: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: np.select(
                [destination == AGENT, destination == CONSULT],
                [values["agent"][name], values["consult"][name]],
                values["stack"][name],
            )
            for name in names
        }

    decisions = {name: model.decide(ranking, horizons, name, budget) for name in POLICIES}
    destinations = {name: decision.destination for name, decision in decisions.items()}
    decision, risk = decisions["always"], destinations["risk"]
    main = f"ndcg@{k}"
    gain = values["agent"][main] - values["stack"][main]
    curve = gain_curve(decision.gain, gain)
    hit = values["stack"][f"hr@{k}"]
    cold_users = horizons >= np.quantile(horizons, 1 - COLD_SHARE)
    counts = np.bincount(data.items[split.train][data.labels[split.train] == 1], minlength=data.num_items)
    rare = counts[relevant.items[relevant.indptr[:-1]]] <= COLD_EVENTS
    return AgentReport(
        users=len(users),
        stack=_means(values["stack"], names),
        policies={
            name: PolicyReport(
                {who: float((destination == number).mean()) for number, who in enumerate(DESTINATIONS)},
                _means(mixed(destination), names),
                _differences(mixed(destination), values["stack"], names),
            )
            for name, destination in destinations.items()
        },
        groups={
            name: _differences(values["agent"], values["stack"], names, chosen)
            for name, chosen in {
                "coldest users": cold_users,
                f"targets with at most {COLD_EVENTS} events": rare,
            }.items()
            if chosen.any()
        },
        levels={
            who: _means({name: value[risk == number] for name, value in mixed(risk).items()}, names)
            for number, who in enumerate(DESTINATIONS)
            if (risk == number).any()
        },
        consulting=_differences(values["consult"], values["agent"], names, risk == CONSULT)
        if (risk == CONSULT).any()
        else {},
        room=_means(evaluation.ranking_metrics(_ideal(items["stack"], relevant), relevant, ks), names),
        kept=curve.kept(0.65),
        curve={name: getattr(curve, name).tolist() for name in curve._fields},
        confidence=_confidence(decision.confidence, hit),
        milliseconds=_milliseconds(model, users[:timed]),
        trust=model.agent.trust,
        left_out=ranking.left_out,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, PolicyReport | Interval):
        return {name.name: _plain(getattr(value, name.name)) for name in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _contains(items: np.ndarray, relevant: Histories) -> np.ndarray:
    return np.asarray(evaluation.hits(items, relevant).any(1))


def _ideal(items: np.ndarray, relevant: Histories) -> np.ndarray:
    hit = evaluation.hits(items, relevant)
    return np.take_along_axis(items, np.argsort(~hit.astype(bool), axis=1, kind="stable"), 1)


def _means(values: dict[str, np.ndarray], names: list[str]) -> dict[str, float]:
    return {name: float(np.nanmean(values[name])) for name in names}


def _differences(
    values: dict[str, np.ndarray], baseline: dict[str, np.ndarray], names: list[str], rows: Any = slice(None)
) -> dict[str, Interval]:
    return {name: evaluation.paired_means(values[name][rows], baseline[name][rows]) for name in names}


def _confidence(confidence: np.ndarray, hit: np.ndarray) -> dict[str, float]:
    """AUROC of hits; the share of the gain in AURC over a random order that a perfect one has; calibration error."""
    labels, losses = (hit > 0).astype(np.int64), 1.0 - hit
    random, best = float(losses.mean()), aurc(-losses, losses)
    possible = random - best
    return {
        "auroc": evaluation.auc(labels, confidence),
        "aurc_gain": (random - aurc(confidence, losses)) / possible if possible > 0 else float("nan"),
        "ece": ece(confidence, labels),
    }


def _milliseconds(model: ReasonRec, users: np.ndarray) -> dict[str, float]:
    """Median milliseconds of a query by itself, of the stack and of the agent, in turns."""
    assert model.agent is not None
    named: dict[str, Policy] = {"stack": "never", "agent": "always", "consult": "consult"}
    asked = list(named.values()) if model.agent.trust > 0 else [named["stack"]]
    took: dict[Policy, list[float]] = {policy: [] for policy in asked}
    for user in users:
        for policy, times in took.items():
            begin = time.perf_counter()
            model.recommend(np.array([user]), model.config.k, policy=policy)
            times.append(time.perf_counter() - begin)
    medians = {policy: 1000 * float(np.median(times)) for policy, times in took.items() if times}
    return {name: medians.get(policy, float("nan")) for name, policy in named.items()}
