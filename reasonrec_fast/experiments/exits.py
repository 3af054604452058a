"""Compares ways to train exits: jointly, the heads alone, by self-distillation, and with layer dropout."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from reasonrec_fast import evaluation
from reasonrec_fast.data import load_movielens_small, sample_of_users, split_by_time
from reasonrec_fast.experiments.trained import trained
from reasonrec_fast.models.optirag import OptiRAGConfig
from reasonrec_fast.training.progress import Progress

LAST = "last exit alone"
KINDS = (LAST, "joint, depth-aware", "joint", "heads alone", "distilled", "layer dropout")


@dataclass(frozen=True)
class ExitRecord:
    """Results of one way to train.

    Attributes:
        kind: one of :data:`KINDS`.
        exits: layers.
        auc, gauc: of all requests, at each exit.
        early_auc, early_gauc, early_depth: with thresholds calibrated on validation; None without early exits.
        seconds: of fitting, including calibration; None if the model existed already.
    """

    kind: str
    exits: tuple[int, ...]
    auc: tuple[float, ...]
    gauc: tuple[float, ...]
    early_auc: float | None
    early_gauc: float | None
    early_depth: float | None
    seconds: float | None


def settings_of(kind: str, config: OptiRAGConfig, layers: int) -> OptiRAGConfig:
    """The configuration of a kind.

    >>> settings_of("joint", OptiRAGConfig(), 30).depth_decay
    1.0
    """
    flat = replace(config, depth_decay=1.0)
    return {
        LAST: replace(config, exits=(layers,)),
        "joint, depth-aware": config,
        "joint": flat,
        "heads alone": replace(config, exit_training="heads"),
        "distilled": replace(config, exit_training="distil"),
        "layer dropout": replace(config, layer_dropout=0.2),
    }[kind]


def compare_exits(
    folder: str | Path,
    config: OptiRAGConfig,
    *,
    layers: int = 30,
    sample: int | None = 2000,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> list[ExitRecord]:
    """Train a model of each kind on the same requests, and score the same test requests at every exit.

    ``"heads alone"`` trains heads on the backbone of the first kind, which is not changed.

    Args:
        folder: of the models; existing models are not trained again.
        config: of all kinds, except for the training of exits.
        layers: of the backbone.
        sample: test requests to score (whole users); None for all.
        device: of :class:`~reasonrec_fast.models.optirag.OptiRAG`.
        progress: called after every training step.
    """
    interactions = load_movielens_small()
    split = split_by_time(interactions)
    rows = split.test if sample is None else sample_of_users(interactions, split.test, sample)
    labels, users = interactions.labels[rows], interactions.users[rows]
    records = []
    for kind in KINDS:
        target = Path(folder) / kind.replace(", ", "-").replace(" ", "-")
        existed, begin = (target / "config.json").is_file(), time.perf_counter()
        adapters = Path(folder) / LAST.replace(" ", "-") if kind == "heads alone" else None
        settings = settings_of(kind, config, layers)
        model = trained(target, settings, interactions, split, progress, adapters=adapters, device=device)
        seconds = None if existed else time.perf_counter() - begin
        requests = model.requests(interactions, rows)
        scores = model.exit_logits(requests).mean(2)
        early: tuple[float | None, float | None, float | None] = (None, None, None)
        if len(model.ranker.model.exits) > 1:
            predictions = model.predict(requests)
            early = (
                evaluation.auc(labels, predictions.probability),
                evaluation.gauc(labels, predictions.probability, users),
                float(np.mean(predictions.depth)),
            )
        records.append(
            ExitRecord(
                kind,
                model.ranker.model.exits,
                tuple(evaluation.auc(labels, of_exit) for of_exit in scores),
                tuple(evaluation.gauc(labels, of_exit, users) for of_exit in scores),
                *early,
                seconds,
            )
        )
    return records
