"""OptiRAG-Rec's training of exits: slates in a seeded order, and heads that start from the dense features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.devices import seeded_generator
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.prompt import Slate
from reasonrec_fast.training.exits import Batch, ExitTraining, Progress, train_exits


def warm_start(
    model: EarlyExitModel, dense_features: torch.Tensor, labels: torch.Tensor, steps: int, seed: int, batch: int = 2048
) -> None:
    """Train the heads on the dense features alone (the hidden state is held at zero); takes seconds.

    Args:
        model: whose heads are trained.
        dense_features: standardised, float32 ``[N, F]``.
        labels: int64 ``[N]``.
        steps, batch: of the training; the batches are drawn on the CPU, alike for every device.
        seed: of the batches.
    """
    device = model.backbone.device
    dense_features, labels = dense_features.to(device), labels.to(device)
    generator = seeded_generator(seed)
    # Not on the step loop: OneCycleLR moves the momentum with the rate, which the loop's schedules do not.
    optimizer = torch.optim.AdamW(model.heads.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=max(steps, 2))
    zeros = torch.zeros(batch, model.backbone.hidden_size, device=device)
    for _ in range(steps):
        indices = torch.randint(len(labels), (batch,), generator=generator).to(device, non_blocking=True)
        results = [head(zeros, dense_features[indices], targets=labels[indices]) for head in model.heads]
        loss = -sum(statistics.target_logprob.mean() for statistics in results)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def train(
    model: EarlyExitModel,
    requests: Requests,
    mean: np.ndarray,
    scale: np.ndarray,
    config: OptiRAGConfig,
    *,
    checkpoint: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the adapters and the heads (:func:`reasonrec_fast.training.exits.train_exits`) on slates.

    Args:
        model: adapters and heads require gradients, nothing else does.
        requests: training requests.
        mean, scale: of the dense features.
        config: settings.
        checkpoint: file of the training state.
        fingerprint: what identifies the run besides the configuration.
        progress: called after every step.
    """

    def load(slates: list[Slate]) -> Batch:
        batch = requests.batch(slates, mean, scale)
        return Batch(batch.groups, batch.labels, batch.inputs.features, offset=batch.inputs.offset)

    settings = ExitTraining(
        mode=config.exit_training,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        depth_decay=config.depth_decay,
        layer_dropout=config.layer_dropout,
        pairwise_weight=config.pairwise_weight,
        seed=config.seed,
    )
    identity = {"config": config.to_dict(), **(fingerprint or {})}
    batches = _batches(requests, config)
    train_exits(model, batches, load, settings, checkpoint=checkpoint, fingerprint=identity, progress=progress)


def _batches(requests: Requests, config: OptiRAGConfig) -> list[list[Slate]]:
    """Slates in a seeded order until ``config.samples`` requests are drawn, by default as many as there are."""
    samples = len(requests.rows) if config.samples is None else config.samples

    def endless() -> Iterator[Slate]:
        generator = np.random.default_rng(config.seed)
        while requests.slates:
            for index in generator.permutation(len(requests.slates)):
                yield requests.slates[index]

    drawn, count = [], 0
    for slate in endless():
        if count >= samples:
            break
        drawn.append(slate)
        count += len(slate.rows)
    return [drawn[i : i + config.batch_slates] for i in range(0, len(drawn), config.batch_slates)]
