"""The demo: OptiRAG-Rec and its baselines on held-out MovieLens requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from reasonrec_fast import evaluation
from reasonrec_fast.data import Interactions, Split, load_movielens_small, sample_of_users, split_by_time
from reasonrec_fast.devices import resolve_device
from reasonrec_fast.experiments.evidence import evidence_regression
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.classical import FM, Bias, Popularity
from reasonrec_fast.models.optirag import CTRStack, OptiRAG
from reasonrec_fast.models.optirag.calibration import log_odds
from reasonrec_fast.models.optirag.dataset import RequestBuilder
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig, GraphEmbeddings
from reasonrec_fast.models.optirag.evidence_source import TrainingEvidence
from reasonrec_fast.models.optirag.full_depth import full_depth_scores
from reasonrec_fast.models.optirag.packaged import MOVIELENS, MOVIELENS_FULL_DEPTH

SYSTEMS = ("popularity", "bias", "lightgcn", "fm", "evidence_only", "evidence_gbm", "llm_full_depth", "optirag")
Say = Callable[[str], None]


@dataclass(frozen=True)
class SystemRecord:
    """One line of the report; figures that do not apply are None.

    Attributes:
        system: one of :data:`SYSTEMS`.
        auc, gauc, gauc_unrated: on the scored requests; ``gauc_unrated`` on films without a training rating.
        logloss: after Platt scaling on validation.
        requests_per_s, p50_ms, p95_ms: from ids to scores, including evidence; a request's latency is its batch's.
        mean_depth, mean_depth_rated, mean_depth_cold: layers that were run; of all requests, and by whether anyone had
            rated the film before.
        requests, timed_requests: number of scored and of timed requests.
    """

    system: str
    auc: float
    gauc: float
    gauc_unrated: float | None
    logloss: float
    requests_per_s: float
    p50_ms: float
    p95_ms: float
    mean_depth: float | None
    mean_depth_rated: float | None
    mean_depth_cold: float | None
    requests: int
    timed_requests: int


@dataclass(frozen=True)
class Comparison:
    """The results of the demo.

    Attributes:
        records: of the systems.
        rows: the scored requests, as rows of the interactions.
        scores: of every system on the requests, ``[N]`` each.
        unrated: whether nobody in training rated the film, bool ``[N]``.
        interactions: the data.
    """

    records: list[SystemRecord]
    rows: np.ndarray
    scores: dict[str, np.ndarray]
    unrated: np.ndarray
    interactions: Interactions

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(record) for record in self.records]


class _Timer:
    """Times batches; a request's latency is that of its batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.sizes: list[int] = []

    def run(self, batch: np.ndarray, score: Callable[[np.ndarray], Any]) -> Any:
        begin = time.perf_counter()
        result = score(batch)
        self.seconds.append(time.perf_counter() - begin)
        self.sizes.append(len(batch))
        return result

    def extend(self, other: _Timer) -> None:
        self.seconds += other.seconds
        self.sizes += other.sizes

    def figures(self) -> dict[str, Any]:
        latencies = np.repeat(self.seconds, self.sizes) * 1000
        return {
            "requests_per_s": sum(self.sizes) / sum(self.seconds),
            "p50_ms": float(np.percentile(latencies, 50)),
            "p95_ms": float(np.percentile(latencies, 95)),
            "timed_requests": sum(self.sizes),
        }


def run_demo(
    *,
    sample: int | None = 2000,
    timed: int = 192,
    device: torch.device | str | None = None,
    say: Say = print,
) -> Comparison:
    """Train the retriever and the baselines, then score test requests with every system.

    Args:
        sample: minimum number of test requests to score, of whole users drawn with a fixed seed; None for all.
        timed: requests on which the two language models are timed, in turns.
        device: of all models; by default the GPU if there is one.
        say: called with each line of progress.

    Raises:
        ValueError: a device that does not exist.
    """
    device = resolve_device(device)
    interactions = load_movielens_small()
    split = split_by_time(interactions)
    rows = split.test if sample is None else sample_of_users(interactions, split.test, sample)
    say(f"MovieLens latest-small: {len(split.train)} training events, {len(rows)} test requests")
    exiting, full = OptiRAG.from_pretrained(MOVIELENS, device=device), None
    if MOVIELENS_FULL_DEPTH.is_dir():
        full = OptiRAG.from_pretrained(MOVIELENS_FULL_DEPTH, device=device)
    else:
        say("llm_full_depth is left out: its adapters are not in this checkout (make train-demo makes them)")
    say("Training the retriever and growing the trees")
    training = exiting.train_retriever(interactions, split.train)
    exiting.grow_trees(training)
    bench = _Bench(interactions, split, rows, device)
    say("Training the baselines")
    bench.classical()
    say("Evidence without the language model")
    builder, builder_rows = exiting.request_builder(interactions)
    bench.evidence_only(exiting.stack, builder, builder_rows, training)
    say("Language models")
    bench.language_models(exiting, full, builder, builder_rows, timed, say)
    records = [bench.records[name] for name in SYSTEMS if name in bench.records]
    return Comparison(records, rows, bench.scores, bench.unrated, interactions)


class _Bench:
    """Scores and records of the systems on one set of requests."""

    def __init__(self, interactions: Interactions, split: Split, rows: np.ndarray, device: torch.device) -> None:
        self.data, self.split, self.rows, self.device = interactions, split, rows, device
        self.labels, self.users = interactions.labels[rows], interactions.users[rows]
        rated = np.isin(interactions.items, interactions.items[split.train])
        self.unrated = ~rated[rows]
        self.records: dict[str, SystemRecord] = {}
        self.scores: dict[str, np.ndarray] = {}

    def classical(self) -> None:
        data, split, device = self.data, self.split, self.device
        lightgcn = self._lightgcn()
        models: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
            "popularity": Popularity(device=device).fit(data, split.train).score,
            "bias": Bias(device=device).fit(data, split.train).score,
            "lightgcn": lambda users, items: lightgcn.score(*map(torch.from_numpy, (users, items))).cpu().numpy(),
            "fm": FM(device=device).fit(data, split.train, split.validation).score,
        }
        for name, model in models.items():
            self.batched(name, partial(_score_rows, model, data))

    def _lightgcn(self) -> GraphEmbeddings:
        data, train = self.data, self.split.train
        graphs = [
            InteractionGraph.from_edges(
                data.users[rows], data.items[rows], num_users=data.num_users, num_items=data.num_items
            )
            for rows in (train[data.labels[train] == label] for label in (1, 0))
        ]
        return GraphEmbeddings(graphs[0].to(self.device), EmbeddingConfig(weight_decay=1e-3)).fit(graphs[1])

    def evidence_only(
        self, stack: CTRStack, builder: RequestBuilder, builder_rows: np.ndarray, training: TrainingEvidence
    ) -> None:
        """Evidence without a language model: a logistic regression on the features that the language models' heads
        read, and the stack whose logits OptiRAG's heads correct."""
        linear = evidence_regression(training.evidence.dense_features, training.labels)
        evidence_of = builder.visible_evidence
        self.batched(
            "evidence_only", lambda rows: linear.decision_function(evidence_of(builder_rows[rows]).dense_features)
        )
        self.batched("evidence_gbm", lambda rows: stack.score_requests(builder, builder_rows[rows]))

    def batched(self, name: str, score: Callable[[np.ndarray], np.ndarray]) -> None:
        """Time a system that scores rows in batches, and calibrate it on the validation part."""
        timer = _Timer()
        scores = np.concatenate([timer.run(batch, score) for batch in _batches(self.rows)])
        validation = self.split.validation
        self.add(name, scores, evaluation.fit_platt(self.data.labels[validation], score(validation)), timer)

    def language_models(
        self,
        exiting: OptiRAG,
        full: OptiRAG | None,
        builder: RequestBuilder,
        builder_rows: np.ndarray,
        timed: int,
        say: Say,
    ) -> None:
        """Early exit is timed on every batch, and full depth through plain transformers on some of the same batches,
        alternating. Its scores on the other batches are those of the packed engine without exits."""
        full_builder = builder
        if full is not None:
            full.knowledge = exiting.knowledge
            full_builder, _ = full.request_builder(self.data)
        size = len(self.rows)
        probability, full_scores = np.empty(size), np.empty(size)
        depth, cold = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
        exit_timer, turns_timer, full_timer = _Timer(), _Timer(), _Timer()
        batches = _batches(np.lexsort((self.rows, self.users)))
        builder.requests(builder_rows[self.rows[batches[0]]])  # warms the tokenizer's cache and the thread pool
        worst = 0.0
        for index in np.random.default_rng(0).permutation(len(batches)):
            at = batches[index]
            rows = builder_rows[self.rows[at]]
            in_turns = full is not None and sum(full_timer.sizes) < timed
            timer = turns_timer if in_turns else exit_timer
            predictions = timer.run(rows, lambda rows: exiting.predict(builder.requests(rows)))
            probability[at], depth[at] = predictions.probability, predictions.depth
            requests = full_builder.requests(rows)
            cold[at] = requests.cold
            if full is not None:
                full_scores[at] = full.predict(requests, early_exit=False).probability
                if in_turns:
                    plain = full_timer.run(rows, partial(_plain_scores, full, full_builder))
                    worst = max(worst, float(np.abs(plain - full_scores[at]).max()))
        depths = (depth.mean(), *(depth[cold == s].mean() if (cold == s).any() else None for s in (0, 1)))
        exit_timer.extend(turns_timer)
        self.add("optirag", log_odds(probability), exiting.platt["early_exit"], exit_timer, depths)
        if full is not None:
            layers = float(full.ranker.model.backbone.num_layers)
            self.add("llm_full_depth", log_odds(full_scores), full.platt["full_depth"], full_timer, (layers,) * 3)
            ratio = turns_timer.figures()["requests_per_s"] / full_timer.figures()["requests_per_s"]
            say(
                f"In turns on {sum(full_timer.sizes)} requests: early exit {ratio:.1f} times the requests per second "
                f"of full depth through transformers, whose scores differ from the packed engine's by {worst:.4f}"
            )

    def add(
        self,
        name: str,
        scores: np.ndarray,
        platt: tuple[float, float],
        timer: _Timer,
        depths: tuple[float | None, ...] = (None, None, None),
    ) -> None:
        scores = np.asarray(scores, dtype=np.float64)
        unrated = self.unrated
        gauc_unrated = evaluation.gauc(self.labels[unrated], scores[unrated], self.users[unrated])
        self.scores[name] = scores
        self.records[name] = SystemRecord(
            system=name,
            auc=evaluation.auc(self.labels, scores),
            gauc=evaluation.gauc(self.labels, scores, self.users),
            gauc_unrated=None if np.isnan(gauc_unrated) else gauc_unrated,
            logloss=evaluation.platt_log_loss(self.labels, scores, platt),
            mean_depth=depths[0],
            mean_depth_rated=depths[1],
            mean_depth_cold=depths[2],
            requests=len(scores),
            **timer.figures(),
        )


def _plain_scores(model: OptiRAG, builder: RequestBuilder, rows: np.ndarray) -> np.ndarray:
    return full_depth_scores(model, builder.requests(rows))


def _score_rows(
    model: Callable[[np.ndarray, np.ndarray], np.ndarray], data: Interactions, rows: np.ndarray
) -> np.ndarray:
    return model(data.users[rows], data.items[rows])


def _batches(rows: np.ndarray, size: int = 32) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
