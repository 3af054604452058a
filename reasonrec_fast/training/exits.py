"""Training of early exits: jointly with the backbone, alone, or by self-distillation from the last exit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from reasonrec_fast.devices import to_device
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.settings import NotNegative, Positive, ShareBelowOne, Whole, check_settings
from reasonrec_fast.training.adapters import adapters_in_dtype
from reasonrec_fast.training.loop import StepLoop
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.schedules import warmup_cosine

if TYPE_CHECKING:
    from accelerate import Accelerator

Mode = Literal["joint", "heads", "distil"]
Loss = Literal["binary", "listwise"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """The training rows of a step.

    Attributes:
        groups: prefixes and suffixes of ``R`` rows.
        labels: index of the correct answer, int64 ``[R]``.
        features: float32 ``[R, F]``, or None for heads without features.
        offset: logits of depth 0, float32 ``[R]`` (``[R, L]`` for more than two answers), for heads that correct them;
            else None.
        slates: rows of the same number are ranked against each other, int64 ``[R]``; by default those of a group.

    Tensors may be on any device; if they are on the CPU, training does not synchronise with the model's device.
    """

    groups: Sequence[TokenGroup]
    labels: torch.Tensor
    features: torch.Tensor | None = None
    slates: torch.Tensor | None = None
    offset: torch.Tensor | None = None


@dataclass(frozen=True)
class ExitTraining:
    """Settings of exit training.

    Attributes:
        mode: ``"joint"`` trains the backbone's parameters that require gradients, and every head, on the labels, with
            losses weighted by depth; ``"heads"`` trains the heads alone; ``"distil"`` is joint, but every exit before
            the last learns the last exit's probabilities instead of the labels (self-distillation, arXiv 1905.08094).
        learning_rate, head_learning_rate: peaks of the schedule, for the backbone's last layer and the heads.
        depth_decay: factor of the backbone's rate for each layer below the last: OptiRAG-Rec's depth-aware schedule;
            1 for none.
        layer_dropout: rate of the last layer but one; it grows exponentially from 0 at the first (LayerSkip, arXiv
            2404.16710). The last layer is never dropped.
        pairwise_weight: of the loss that ranks positive above negative rows within a slate.
        loss: ``"binary"`` is the cross-entropy of each row's answer; ``"listwise"`` that of a softmax over the rows of
            a slate, by their log-odds of the second of two answers (ListNet, Cao et al. 2007): one row a slate has
            label 1. It knows nothing of how likely a row is by itself.
        seed: of layer dropout.
    """

    mode: Mode = "joint"
    learning_rate: NotNegative = 5e-4
    head_learning_rate: NotNegative = 2e-3
    depth_decay: Positive = 0.98
    layer_dropout: ShareBelowOne = 0.0
    pairwise_weight: NotNegative = 1.0
    loss: Loss = "binary"
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.loss == "listwise" and self.mode == "distil":
            raise ValueError("mode: expected 'joint' or 'heads' with loss 'listwise'; got 'distil'")


def exit_weights(exits: tuple[int, ...]) -> torch.Tensor:
    """Weight of each exit's loss: proportional to its depth, with sum 1.

    >>> exit_weights((10, 30)).tolist()
    [0.25, 0.75]
    """
    depth = torch.tensor(exits, dtype=torch.float32)
    return depth / depth.sum()


def train_exits(
    model: EarlyExitModel,
    items: Sequence[Item],
    load: Callable[[Item], Batch],
    settings: ExitTraining | None = None,
    *,
    more: Callable[[Item], torch.Tensor] | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    checkpoint_every: int = 25,
    progress: Progress | None = None,
    trackers: Sequence[Any] = (),
    accelerator: Accelerator | None = None,
) -> None:
    """Train the exits of a model, one step for each item, with a :class:`~reasonrec_fast.training.loop.StepLoop`.

    With a checkpoint the state is saved every few steps, and a run that was killed resumes from there with the same
    result, on a device of the same kind.

    Args:
        model: its parameters that require gradients are trained.
        items: of the steps, in order.
        load: returns the batch of an item.
        settings: of the training.
        more: a loss of the model that is added to that of the exits, 0-d; it depends on the item alone.
        checkpoint: file of the training state.
        fingerprint: identity of the run.
        checkpoint_every: steps between two checkpoints.
        progress: called after every step with its ``loss``, which is read back from the device for it.
        trackers, accelerator: as in :class:`~reasonrec_fast.training.loop.StepLoop`. A step has one micro-batch:
            more processes do not speed it up.

    Raises:
        ValueError: distillation, a pairwise or a listwise loss for more than two answers, or, for the listwise loss, a
            slate without exactly one row of label 1.
    """
    settings = settings or ExitTraining()
    of_two = settings.mode == "distil" or settings.pairwise_weight or settings.loss == "listwise"
    if model.num_answers > 2 and of_two:
        raise ValueError(
            f"settings: expected mode 'joint' or 'heads', pairwise_weight 0 and loss 'binary' for {model.num_answers} "
            f"answers; got {settings.mode!r}, {settings.pairwise_weight} and {settings.loss!r}"
        )
    with _frozen(model.backbone, settings.mode == "heads"):
        loop = StepLoop(
            model, _optimizer(model, settings), seed=settings.seed, clip=1.0, schedule=warmup_cosine(len(items)),
            checkpoint=checkpoint, fingerprint=fingerprint, progress=progress, trackers=trackers,
            accelerator=accelerator,
        )  # fmt: skip
        loop.restore()
        weights = exit_weights(model.exits).to(model.backbone.device)
        model.train(settings.mode != "heads")

        def loss(item: Item) -> torch.Tensor:
            of_exits = (weights * _losses(model, load(item), settings, loop.steps_done)).sum()
            return of_exits if more is None else of_exits + more(item)

        loop.run(len(items), lambda step: [items[step]], loss, save_every=checkpoint_every)
        model.eval()


def _losses(model: EarlyExitModel, batch: Batch, settings: ExitTraining, step: int) -> torch.Tensor:
    """Loss of every exit, ``[E]``."""
    device = model.backbone.device
    labels, features = to_device(batch.labels, device), to_device(batch.features, device)
    skip = dropped_layers(model.backbone.num_layers, settings.layer_dropout, (settings.seed, step))
    with adapters_in_dtype(model, model.backbone.dtype):
        if settings.mode == "distil" or settings.loss == "listwise":
            members = model.all_log_odds(batch.groups, features, skip, batch.offset)
            log_odds = [_of_ensemble(exit) for exit in members]
        else:
            exits = model.all_exits(batch.groups, features, labels, skip, offset=batch.offset)
            log_odds = [torch.logit(exit.positive_probability, eps=1e-6) for exit in exits]
    slates = batch.slates
    if slates is None:
        slates = torch.repeat_interleave(torch.tensor([len(suffixes) for _, suffixes in batch.groups]))
    # On the labels' device, usually the CPU: on a GPU, reading back the number of pairs would synchronise.
    slates = to_device(slates, batch.labels.device)
    pairs = to_device(_pairs(slates, batch.labels), device)
    if settings.loss == "listwise":
        numbers, slates = torch.unique(slates, return_inverse=True)
        counts = torch.zeros_like(numbers).index_add(0, slates, batch.labels)
        if (counts != 1).any():
            raise ValueError(f"labels: expected one row of label 1 in each slate; got {counts.tolist()}")
        slates = to_device(slates, device)
    losses = []
    for index, of_rows in enumerate(log_odds):
        if settings.loss == "listwise":
            loss = _listwise_loss(of_rows, labels, slates, len(numbers))
        elif settings.mode == "distil":
            target = labels.float() if index + 1 == len(log_odds) else torch.sigmoid(log_odds[-1]).detach()
            loss = _soft_cross_entropy(members[index], target)
        else:
            loss = -exits[index].target_logprob.mean()
        losses.append(loss + settings.pairwise_weight * _pairwise_loss(of_rows, pairs))
    return torch.stack(losses)


def dropped_layers(num_layers: int, most: float, seed: tuple[int, int]) -> frozenset[int]:
    """Layers (from 1) that layer dropout leaves out of a step; never the last.

    >>> dropped_layers(30, 0.0, (0, 0))
    frozenset()
    """
    if not most:
        return frozenset()
    depth = np.arange(num_layers - 1)
    share = most * np.expm1(depth * math.log(2) / max(num_layers - 2, 1))
    return frozenset((np.flatnonzero(np.random.default_rng(seed).random(num_layers - 1) < share) + 1).tolist())


def _of_ensemble(log_odds: torch.Tensor) -> torch.Tensor:
    """Log-odds ``[R]`` of the mean of the members' probabilities, from their own ``[R, K]``."""
    sigmoids = nn.functional.logsigmoid
    return torch.logsumexp(sigmoids(log_odds), 1) - torch.logsumexp(sigmoids(-log_odds), 1)


def _soft_cross_entropy(log_odds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of log-odds of yes ``[R, K]`` with probabilities of yes, ``[R]``."""
    return nn.functional.binary_cross_entropy_with_logits(log_odds, target[:, None].expand_as(log_odds))


def _listwise_loss(log_odds: torch.Tensor, labels: torch.Tensor, slates: torch.Tensor, count: int) -> torch.Tensor:
    """Mean over slates of -log softmax of the row of label 1, by log-odds of yes; slates are numbered from 0 to below
    their count, and each has one row of label 1."""
    largest = log_odds.new_full((count,), -torch.inf).scatter_reduce(0, slates, log_odds.detach(), "amax")
    powers = log_odds.new_zeros(count).index_add(0, slates, torch.exp(log_odds - largest[slates]))
    return ((largest + torch.log(powers)).sum() - (log_odds * labels).sum()) / count


def _pairs(slates: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Indices of a positive and a negative row of the same slate, int64 ``[P, 2]``."""
    same = slates[:, None] == slates[None, :]
    return (same & (labels[:, None] == 1) & (labels[None, :] == 0)).nonzero()


def _pairwise_loss(log_odds: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid of the difference of the log-odds (BPR, arXiv 1205.2618); 0 without pairs.

    Cross-entropy mostly fits a user's overall like rate, which is the same for all of their candidates; this loss
    depends on differences between candidates alone.
    """
    if not len(pairs):
        return log_odds.sum() * 0.0
    return nn.functional.softplus(log_odds[pairs[:, 1]] - log_odds[pairs[:, 0]]).mean()


@contextmanager
def _frozen(module: nn.Module, frozen: bool) -> Iterator[None]:
    """Inside, no parameter of a module requires gradients if ``frozen``."""
    held = [p for p in module.parameters() if p.requires_grad] if frozen else []
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def _optimizer(model: EarlyExitModel, settings: ExitTraining) -> torch.optim.Optimizer:
    """AdamW with a parameter group for each layer: the rate falls with the distance from the last layer."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer is None:
            rate = settings.head_learning_rate
        else:
            below = model.backbone.num_layers - 1 - int(layer.group(1))
            rate = settings.learning_rate * settings.depth_decay**below
        groups.setdefault(rate, []).append(parameter)
    return torch.optim.AdamW([{"params": p, "lr": rate} for rate, p in groups.items()], weight_decay=0.01)
