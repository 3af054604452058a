"""Joint training of adapters and exit heads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn

from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.prompt import Slate
from reasonrec_fast.training.checkpoint import Checkpoint

Progress = Callable[[int, int, float], None]
"""Called with the step, the number of steps and the loss."""


def exit_weights(exits: tuple[int, ...]) -> torch.Tensor:
    """Weight of each exit's loss: proportional to its depth, with sum 1.

    >>> exit_weights((10, 30)).tolist()
    [0.25, 0.75]
    """
    depth = torch.tensor(exits, dtype=torch.float32)
    return depth / depth.sum()


def warm_start(
    model: EarlyExitModel, numbers: torch.Tensor, labels: torch.Tensor, steps: int, seed: int, batch: int = 2048
) -> None:
    """Teach the heads the numbers alone (the hidden state is held at zero); takes seconds.

    Args:
        model: whose heads are trained.
        numbers: standardised, float32 ``[N, F]``.
        labels: int64 ``[N]``.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.heads.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=max(steps, 2))
    nothing = torch.zeros(batch, model.backbone.hidden_size)
    for _ in range(steps):
        places = torch.randint(len(labels), (batch,), generator=generator)
        found = [head(nothing, numbers[places], targets=labels[places]) for head in model.heads]
        loss = -sum(statistics.target_logprob.mean() for statistics in found)
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
    checkpoint_every: int = 25,
    progress: Progress | None = None,
) -> None:
    """Train the adapters and the heads on slates drawn in a seeded order.

    The loss of every exit, weighted by depth, is the cross-entropy and a pairwise loss within slates. With a checkpoint
    path the state is stored every few steps, and a run that was killed goes on from there to the same result.

    Args:
        model: adapters and heads require gradients, nothing else does.
        requests: training requests.
        mean, scale: of the numbers.
        config: settings.
        checkpoint: file of the training state.
        fingerprint: what identifies the run besides the configuration.
        progress: is told of every step.
    """
    batches = _batches(requests, config)
    optimizer = _optimizer(model, config)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    state = None
    start = 0
    if checkpoint is not None:
        identity = {"config": config.to_dict(), **(fingerprint or {})}
        state = Checkpoint(checkpoint, model, optimizer, identity)
        start = state.restore()
    weights = exit_weights(model.exits)
    model.train()
    for step in range(start, len(batches)):
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * _schedule(step, len(batches))
        groups, numbers, labels = requests.batch(batches[step], mean, scale)
        with _adapters_in_backbone_dtype(model):
            found = model.all_exits(groups, numbers, labels)
        pairs = _pairs([slate.rows for slate in batches[step]], labels)
        losses = [
            -statistics.target_logprob.mean()
            + config.pairwise_weight * _pairwise_loss(statistics.positive_probability, pairs)
            for statistics in found
        ]
        loss = (weights * torch.stack(losses)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        if state is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == len(batches)):
            state.save(step + 1)
        if progress is not None:
            progress(step + 1, len(batches), float(loss.detach()))
    model.eval()


def _pairs(slates: Sequence[np.ndarray], labels: torch.Tensor) -> torch.Tensor:
    """Places of a liked and a disliked request of the same slate, int64 ``[P, 2]``."""
    slate = torch.repeat_interleave(torch.tensor([len(rows) for rows in slates]))
    same = slate[:, None] == slate[None, :]
    return (same & (labels[:, None] == 1) & (labels[None, :] == 0)).nonzero()


def _pairwise_loss(probability: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid of the difference of the log-odds (BPR, arXiv 1205.2618); 0 without pairs.

    Cross-entropy learns most from how much a user likes in general, which is the same for all their candidates; this
    learns from what tells the candidates apart.
    """
    if not len(pairs):
        return probability.sum() * 0.0
    odds = torch.logit(probability, eps=1e-6)
    return nn.functional.softplus(odds[pairs[:, 1]] - odds[pairs[:, 0]]).mean()


@contextmanager
def _adapters_in_backbone_dtype(model: EarlyExitModel) -> Iterator[None]:
    """Multiply the float32 adapters in the backbone's type; peft by itself widens every input to theirs (a sixth of
    a step's time on a CPU)."""
    dtype, device = model.backbone.dtype, model.backbone.device.type
    with disable_input_dtype_casting(model), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        yield


def _batches(requests: Requests, config: OptiRAGConfig) -> list[list[Slate]]:
    """Slates in a seeded order until ``config.samples`` requests are drawn."""

    def endless() -> Iterator[Slate]:
        generator = np.random.default_rng(config.seed)
        while requests.slates:
            for place in generator.permutation(len(requests.slates)):
                yield requests.slates[place]

    drawn, count = [], 0
    for slate in endless():
        if count >= config.samples:
            break
        drawn.append(slate)
        count += len(slate.rows)
    return [drawn[i : i + config.batch_slates] for i in range(0, len(drawn), config.batch_slates)]


def _optimizer(model: EarlyExitModel, config: OptiRAGConfig) -> torch.optim.Optimizer:
    """AdamW with one group a layer: the rate falls with the distance from the last layer."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer is None:
            rate = config.head_learning_rate
        else:
            below = model.backbone.num_layers - 1 - int(layer.group(1))
            rate = config.learning_rate * config.depth_decay**below
        groups.setdefault(rate, []).append(parameter)
    return torch.optim.AdamW([{"params": p, "lr": rate} for rate, p in groups.items()], weight_decay=0.01)


def _schedule(step: int, steps: int, warmup: float = 0.06) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < warmup * steps:
        return (step + 1) / (warmup * steps + 1)
    place = (step - warmup * steps) / max((1 - warmup) * steps, 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * place))
