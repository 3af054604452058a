"""Compares retrieval: OptiRAG-Rec with the GCN retriever, with retrieval by text, and without retrieval."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast import evaluation
from reasonrec_fast.data import Interactions, Split, Timeline, load_movielens_small, sample_of_users, split_by_time
from reasonrec_fast.experiments.evidence import evidence_regression
from reasonrec_fast.experiments.trained import trained
from reasonrec_fast.lm.text_encoder import TextEncoder
from reasonrec_fast.models.optirag import OptiRAGConfig
from reasonrec_fast.models.optirag.evidence_source import Retrieval
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.prompts.items import item_text
from reasonrec_fast.training.progress import Progress

KINDS: tuple[Retrieval, ...] = ("gcn", "text", "none")


@dataclass(frozen=True)
class RetrievalRecord:
    """Results of one kind of retrieval.

    Attributes:
        retrieval: one of :data:`KINDS`.
        auc, gauc, gauc_unrated: of the language model at full depth.
        evidence_auc, evidence_gauc: of a logistic regression on the same features, without the language model.
        gcn_minus_this: differences of the language models with 95 % intervals over users; None for ``"gcn"``.
    """

    retrieval: str
    auc: float
    gauc: float
    gauc_unrated: float
    evidence_auc: float
    evidence_gauc: float
    gcn_minus_this: dict[str, dict[str, float]] | None


def compare_retrieval(
    folder: str | Path,
    config: OptiRAGConfig,
    *,
    sample: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> tuple[list[RetrievalRecord], dict[str, float]]:
    """Train three models that differ in retrieval alone, on the same requests, and score the same test requests.

    Args:
        folder: of the models; existing models are not trained again.
        config: of all three, except for ``retrieval``.
        sample: test requests to score (whole users); None for all.
        device: of the models.
        progress: called after every training step.

    Returns:
        a record for each of :data:`KINDS`, and the retrieval times of :func:`retrieval_times`.
    """
    interactions = load_movielens_small()
    split = split_by_time(interactions)
    rows = split.test if sample is None else sample_of_users(interactions, split.test, sample)
    times = retrieval_times(interactions, split, device=device)
    scores, evidence = {}, {}
    for kind in KINDS:
        settings = replace(config, retrieval=kind)
        model = trained(Path(folder) / kind, settings, interactions, split, progress, device=device)
        builder, builder_rows = model.request_builder(interactions)
        requests = builder.requests(builder_rows[rows])
        scores[kind] = model.predict(requests, early_exit=False).probability
        linear = evidence_regression(builder.training_requests().dense_features, builder.training_labels)
        evidence[kind] = linear.decision_function(requests.dense_features)
    labels, users = interactions.labels[rows], interactions.users[rows]
    unrated = ~np.isin(interactions.items[rows], interactions.items[split.train])
    records = []
    for kind in KINDS:
        gap = None
        if kind != "gcn":
            differences = evaluation.paired_differences(labels, users, scores["gcn"], scores[kind])
            gap = {name: asdict(interval) for name, interval in differences.items()}
        records.append(
            RetrievalRecord(
                kind,
                evaluation.auc(labels, scores[kind]),
                evaluation.gauc(labels, scores[kind], users),
                evaluation.gauc(labels[unrated], scores[kind][unrated], users[unrated]),
                evaluation.auc(labels, evidence[kind]),
                evaluation.gauc(labels, evidence[kind], users),
                gap,
            )
        )
    return records, times


def retrieval_times(
    interactions: Interactions,
    split: Split,
    users: int = 200,
    k: int = 100,
    *,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Median milliseconds to retrieve the ``k`` most similar users of a user, one user at a time, for each method.

    ``gcn`` folds the user in from the items they liked; ``text`` encodes their history at each request (it changes
    with every event) with all-MiniLM-L6-v2; ``text_cached`` averages item vectors that were encoded in advance. The
    text encoder is on ``device``, the search on the CPU.
    """
    train = split.train
    gcn = Retriever.train(interactions, train)
    encoder = TextEncoder(device)
    texts = [item_text(interactions.catalog, item) for item in range(interactions.num_items)]
    vectors = encoder.encode(texts)
    text = Retriever.train(interactions, train, item_vectors=vectors - vectors.mean(0))
    history = Timeline.of_users(interactions, train[interactions.labels[train] == 1])
    liked = [interactions.items[history.all(user)] for user in range(interactions.num_users)]
    passages = encoder.encode([_passage(texts, items) for items in liked])

    def by_text(items: np.ndarray) -> Any:
        return torch.topk(encoder.encode([_passage(texts, items)]) @ passages.T, k)

    methods: dict[str, Callable[[np.ndarray], Any]] = {
        "gcn": lambda items: gcn.similar_users(gcn.fold_in(torch.from_numpy(items))[None], k),
        "text": by_text,
        "text_cached": lambda items: text.similar_users(text.fold_in(torch.from_numpy(items))[None], k),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    chosen = np.random.default_rng(0).permutation([u for u, items in enumerate(liked) if len(items)])[:users]
    with torch.inference_mode():
        for user in chosen:
            for name, method in methods.items():
                begin = time.perf_counter()
                method(liked[user])
                seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(times) * 1000) for name, times in seconds.items()}


def _passage(texts: list[str], items: np.ndarray, most: int = 20) -> str:
    """The texts of the newest items, within the encoder's maximum length."""
    return "; ".join(texts[item] for item in items[-most:])
