"""Training in epochs: early stopping on validation, averaged weights, resumable at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from reasonrec_fast.settings import Count, NotNegative, ShareBelowOne, Whole, check_settings
from reasonrec_fast.training.loop import SECONDS_BETWEEN_SAVES, StepLoop
from reasonrec_fast.training.processes import of_main_process
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.schedules import warmup

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = TypeVar("Batch")

_SECONDS_BETWEEN_SAVES = SECONDS_BETWEEN_SAVES


@dataclass(frozen=True)
class EpochTraining:
    """Settings of training in epochs.

    Attributes:
        epochs: maximum number.
        patience: stop if validation has not improved for this many epochs.
        learning_rate: of AdamW, after ``warmup`` steps of linear growth.
        weight_decay: of AdamW.
        warmup: steps.
        average: decay of the exponential moving average of the weights, which is validated and kept; 0 for the weights
            themselves.
        clip: maximum norm of the gradient; 0 for none.
        seed: of every step's random numbers.
        accumulate: batches in a step, whose gradients are averaged; several processes divide them.
    """

    epochs: Whole
    patience: Count
    learning_rate: NotNegative
    weight_decay: NotNegative = 0.0
    warmup: Whole = 0
    average: ShareBelowOne = 0.0
    clip: NotNegative = 0.0
    seed: Whole = 0
    accumulate: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)


def train_epochs(
    module: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    loss: Callable[[Batch], torch.Tensor],
    settings: EpochTraining,
    *,
    validate: Callable[[], float] | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    progress: Progress | None = None,
    trackers: Sequence[Any] = (),
    accelerator: Accelerator | None = None,
) -> float:
    """Train a module and leave it with the weights of its best epoch.

    Early stopping and averaged weights with a :class:`~reasonrec_fast.training.loop.StepLoop`: a run that was killed
    and resumed has the same result as an uninterrupted run.

    Args:
        module: in training mode during epochs, in evaluation mode for ``validate`` and afterwards.
        batches: of an epoch; they must depend on the epoch alone.
        loss: of a batch.
        settings: of the training.
        validate: larger is better; without it all epochs are trained and the last weights are kept. On several
            processes each calls it, and the main process's value is used.
        checkpoint: file of the training state, replaced every minute and after every epoch.
        fingerprint: identity of the run.
        progress: called after every epoch with ``loss`` (mean over its steps) and, with validation, ``validation`` and
            ``best``.
        trackers, accelerator: as in :class:`~reasonrec_fast.training.loop.StepLoop`.

    Returns:
        The best validation value; NaN without validation.

    Raises:
        ValueError: the checkpoint is of another run.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    loop = StepLoop(
        module, optimizer, seed=settings.seed, clip=settings.clip, schedule=warmup(settings.warmup),
        checkpoint=checkpoint, fingerprint=fingerprint, progress=progress, trackers=trackers, accelerator=accelerator,
    )  # fmt: skip
    state = _EpochState(loop, settings)
    state.restore()
    with loop.fork_rng():
        while state.epoch < settings.epochs and state.waited < settings.patience:
            module.train()
            total, count = torch.zeros((), device=loop.device), 0  # read back once an epoch
            for index, step_batches in enumerate(_in_steps(batches(state.epoch), settings.accumulate)):
                if index < state.step_of_epoch:
                    continue
                value = loop.step(step_batches, loss, name=f"step {index} of epoch {state.epoch}")
                state.after_step()
                total, count = total + value.float(), count + 1
            module.eval()
            state.end_epoch(validate)
            if loop.reports:
                metrics = {"loss": float(total) / max(count, 1)}
                if validate is not None:
                    metrics |= {"validation": state.latest, "best": state.best}
                loop.report(state.epoch, settings.epochs, metrics)
    state.finish()
    module.eval()
    return state.best


def _in_steps(batches: Iterator[Batch], accumulate: int) -> Iterator[Sequence[Batch]]:
    """The batches of each step; the last step of an epoch may have fewer."""
    if accumulate == 1:  # without reading ahead
        yield from ((batch,) for batch in batches)
        return
    batches = iter(batches)
    while step := tuple(islice(batches, accumulate)):
        yield step


class _EpochState:
    """Averaged weights, the best weights, and the position in the run."""

    def __init__(self, loop: StepLoop, settings: EpochTraining) -> None:
        self.loop, self.settings, self.parameters = loop, settings, loop.parameters
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()} if settings.average else {}
        self.best_weights: dict[str, torch.Tensor] = {}
        self.epoch = self.step_of_epoch = self.waited = 0
        self.best = self.latest = float("nan")

    def after_step(self) -> None:
        self.step_of_epoch += 1
        if self.averages:
            # A smaller decay at first, so that the initial weights do not dominate.
            decay = min(self.settings.average, self.loop.steps_done / (self.loop.steps_done + 10))
            torch._foreach_lerp_(
                list(self.averages.values()), [p.detach() for p in self.parameters.values()], 1 - decay
            )
        self.loop.save_if_due(self._extra, seconds=_SECONDS_BETWEEN_SAVES)

    def end_epoch(self, validate: Callable[[], float] | None) -> None:
        self.epoch, self.step_of_epoch = self.epoch + 1, 0
        if validate is not None:
            trained = {name: p.detach().clone() for name, p in self.parameters.items()} if self.averages else {}
            self._load(self.averages)
            self.latest, self.waited = of_main_process(validate(), self.loop.accelerator), self.waited + 1
            if math.isnan(self.best) or self.latest > self.best:  # NaN is replaced by any value
                self.best, self.waited = self.latest, 0
                self.best_weights = {name: p.detach().clone() for name, p in self.parameters.items()}
            self._load(trained)
        self.loop.save(self._extra())

    def finish(self) -> None:
        self._load(self.best_weights or self.averages)

    def restore(self) -> None:
        extra = self.loop.restore()
        if not extra:
            return
        self.epoch, self.step_of_epoch, self.waited = extra["place"].tolist()
        self.best, self.latest = extra["best"].tolist()
        for name, parameter in self.parameters.items():
            if self.averages:
                self.averages[name].copy_(extra[f"average/{name}"])
            if f"kept/{name}" in extra:
                self.best_weights[name] = extra[f"kept/{name}"].to(parameter.device)

    def _extra(self) -> dict[str, torch.Tensor]:
        return {
            "place": torch.tensor([self.epoch, self.step_of_epoch, self.waited]),
            "best": torch.tensor([self.best, self.latest], dtype=torch.float64),
            **{f"average/{name}": value for name, value in self.averages.items()},
            **{f"kept/{name}": value for name, value in self.best_weights.items()},
        }

    @torch.no_grad()
    def _load(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)
