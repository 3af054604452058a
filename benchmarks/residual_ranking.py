"""``python -m benchmarks.residual_ranking``: what the users that an agent learns from are worth without an agent.

An agent of ReasonRec learns its corrections from validation events, which the stack's trees have not learnt. Here a
linear correction on the stack's own features learns from the same users, is trusted as far as the same other users
allow, and is measured on the same test users as ``reasonrec-fast evaluate`` measures the agent.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer

from reasonrec_fast import evaluation
from reasonrec_fast.data import Histories, Interactions, split_by_time
from reasonrec_fast.experiments.config import load_experiment
from reasonrec_fast.experiments.reasonrec import COLD_EVENTS
from reasonrec_fast.experiments.runner import machine, revision, versions
from reasonrec_fast.files import write_json
from reasonrec_fast.models.classical import Stack
from reasonrec_fast.models.classical.stack_config import StackConfig, StackRanking
from reasonrec_fast.models.classical.stack_folds import first_positives
from reasonrec_fast.models.reasonrec import ReasonRecConfig
from reasonrec_fast.models.reasonrec.agent_base import Agent, Slate
from reasonrec_fast.models.reasonrec.learning import positions_of
from reasonrec_fast.models.reasonrec.title_agent import residual_weights
from reasonrec_fast.settings import settings_from

PENALTIES = (1.0, 10.0, 100.0, 1000.0)


def main(
    data: Annotated[Path, typer.Option(help="folder of the data sets")],
    output: Annotated[Path, typer.Option("--json", help="where to write the figures")],
    config: Annotated[str, typer.Option(help="experiment whose data set and Stack are taken")] = "beauty-stack",
    stack: Annotated[Path | None, typer.Option(help="a saved Stack of it; by default it is fitted")] = None,
    candidates: Annotated[int, typer.Option(help="of the stack's best, whose order is corrected")] = 20,
) -> None:
    """Learn, measure, print and write."""
    experiment = load_experiment(config)
    (model, *_), (dataset, *_) = experiment.models, experiment.datasets
    events = dataset.load(data)
    split = split_by_time(events, dataset.split)
    if stack is None:
        ranker = Stack(settings_from(StackConfig, model.settings, config)).fit(events, split.train, split.validation)
    else:
        ranker = Stack.from_pretrained(stack)
    rows = first_positives(events, split.validation)
    ranking, position = _ranked(ranker, events, split.train, rows, candidates)
    learning = np.zeros(len(rows), dtype=bool)
    share = ReasonRecConfig().agent_share
    learning[np.random.default_rng(0).permutation(len(rows))[: round(share * len(rows))]] = True
    scale = Standard(ranking.features[learning])
    known = {
        part: np.flatnonzero(chosen & (position >= 0) & (ranking.candidates > 1))
        for part, chosen in (("learning", learning), ("others", ~learning))
    }
    slates = {part: [_slate(ranking, row, position[row]) for row in rows_of] for part, rows_of in known.items()}
    features = {part: [scale(ranking, row) for row in rows_of] for part, rows_of in known.items()}
    tried = []
    for penalty in PENALTIES:
        weights = residual_weights(slates["learning"], features["learning"], penalty)
        trust = _trust(slates["others"], features["others"], weights)
        tried.append((_loss(slates["others"], features["others"], trust * weights), penalty, trust, weights))
    before = _loss(slates["others"], features["others"], np.zeros(len(tried[0][3])))
    loss, penalty, trust, weights = min(tried, key=lambda entry: entry[0])

    earlier = np.sort(np.concatenate([split.train, split.validation]))
    seen = Histories.seen(events, earlier)
    test = split.test[events.labels[split.test] == 1]
    test = test[[events.items[row] not in seen.of_user(events.users[row]) for row in test]]
    ranking, position = _ranked(ranker, events, earlier, test, candidates)
    corrected = [
        _slate(ranking, row, position[row]).offset + trust * (scale(ranking, row) @ weights) for row in range(len(test))
    ]
    plain = [ranking.logits[row, : len(values)] for row, values in enumerate(corrected)]
    ours, theirs = (_metrics(values, position) for values in (corrected, plain))
    counts = np.bincount(events.items[split.train][events.labels[split.train] == 1], minlength=events.num_items)
    groups = {"all users": np.ones(len(test), dtype=bool)}
    groups[f"targets with at most {COLD_EVENTS} events"] = counts[events.items[test]] <= COLD_EVENTS
    report: dict[str, Any] = {
        "config": config, "users": len(test), "learnt from": len(known["learning"]), "penalty": penalty, "trust": trust,
        "nats on others": {"stack": before, "corrected": loss}, "machine": machine("cpu"), "versions": versions(),
        "revision": revision(), "stack": {name: float(values.mean()) for name, values in theirs.items()},
        "differences": {
            group: {name: _interval(ours[name][chosen], theirs[name][chosen]) for name in ours}
            for group, chosen in groups.items()
            if chosen.any()
        },
    }  # fmt: skip
    write_json(output, report)
    print({name: report[name] for name in ("penalty", "trust", "nats on others", "stack", "differences")})


class Standard:
    """The stack's features without missing values, in units of their deviation over some candidates."""

    def __init__(self, features: np.ndarray) -> None:
        rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
        self.mean, self.deviation = np.nanmean(rows, 0), np.maximum(np.nanstd(rows, 0), 1e-6)

    def __call__(self, ranking: StackRanking, row: int) -> np.ndarray:
        """Of a user's candidates, float64 ``[C, F]``."""
        features = ranking.features[row][ranking.items[row] >= 0].astype(np.float64)
        return np.nan_to_num((features - self.mean) / self.deviation)


def _ranked(
    stack: Stack, events: Interactions, history: np.ndarray, rows: np.ndarray, candidates: int
) -> tuple[StackRanking, np.ndarray]:
    stack.set_histories_from(events, history)
    ranking = stack.rank(events.users[rows], candidates, strict=True)
    return ranking, positions_of(ranking, events.items[rows])


def _slate(ranking: StackRanking, row: int, target: int) -> Slate:
    logits = ranking.logits[row][ranking.items[row] >= 0]
    return Slate(([], []), logits - np.logaddexp.reduce(logits), int(target))


def _trust(slates: list[Slate], features: list[np.ndarray], weights: np.ndarray) -> float:
    corrected = [slate.offset + part @ weights for slate, part in zip(slates, features, strict=True)]
    holder: Any = SimpleNamespace()
    return Agent.calibrate(holder, slates, corrected)


def _loss(slates: list[Slate], features: list[np.ndarray], weights: np.ndarray) -> float:
    values = (slate.offset + part @ weights for slate, part in zip(slates, features, strict=True))
    return float(np.mean([np.logaddexp.reduce(v) - v[s.target] for s, v in zip(slates, values, strict=True)]))


def _metrics(logits: list[np.ndarray], position: np.ndarray) -> dict[str, np.ndarray]:
    """Hits and NDCG of each user; of equal logits the stack's better one comes first."""
    rank = np.full(len(logits), 10**6)
    for row in np.flatnonzero(position >= 0):
        rank[row] = int(np.flatnonzero(np.argsort(-logits[row], kind="stable") == position[row])[0])
    result = {f"hr@{k}": (rank < k).astype(float) for k in (5, 10)}
    return result | {f"ndcg@{k}": np.where(rank < k, 1 / np.log2(rank + 2.0), 0.0) for k in (5, 10)}


def _interval(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    found = evaluation.paired_means(ours, theirs)
    return [float(found.value), float(found.low), float(found.high)]


if __name__ == "__main__":
    typer.run(main)
