"""Training in epochs: early stopping on validation, averaged weights, resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from reasonrec_fast.devices import naming_what_did_not_fit, own_random_numbers, seed_random_numbers
from reasonrec_fast.settings import Count, NotNegative, ShareBelowOne, Whole, check_settings
from reasonrec_fast.training.checkpoint import Checkpoint

Batch = TypeVar("Batch")

_SECONDS_BETWEEN_SAVES = 60.0


@dataclass(frozen=True)
class EpochTraining:
    """How to train.

    Attributes:
        epochs: at most.
        patience: stop when validation has not improved for so many epochs.
        learning_rate: of AdamW, after ``warmup`` steps of linear growth.
        weight_decay: of AdamW.
        warmup: steps.
        average: decay of the exponential moving average of the weights, which is what is validated and kept; 0 for the
            weights themselves.
        clip: largest norm of the gradient; 0 for any.
        seed: of every step's random numbers.
    """

    epochs: Whole
    patience: Count
    learning_rate: NotNegative
    weight_decay: NotNegative = 0.0
    warmup: Whole = 0
    average: ShareBelowOne = 0.0
    clip: NotNegative = 0.0
    seed: Whole = 0

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
    progress: Callable[[int, int, str], None] | None = None,
) -> float:
    """Train a module and leave it with the weights of its best epoch.

    A step's random numbers depend on the seed and on its number alone, so that a run that was killed comes to the same
    end as one that was not, on a device of the same kind (see :class:`~reasonrec_fast.training.checkpoint.Checkpoint`).

    Args:
        module: in training mode while it learns, in evaluation mode for ``validate`` and after the end.
        batches: of an epoch, which they must depend on alone.
        loss: of a batch.
        settings: how.
        validate: larger is better; without it every epoch is trained and the last one kept.
        checkpoint: file of the training state, replaced every minute and after every epoch.
        fingerprint: what identifies the run.
        progress: is told of every epoch: which, of how many, and how it went.

    Returns:
        The best validation value; NaN without validation.

    Raises:
        ValueError: the checkpoint is of another run.
    """
    state = _State(module, settings, checkpoint, fingerprint or {})
    state.restore()
    device = state.device
    with own_random_numbers(device):
        while state.epoch < settings.epochs and state.waited < settings.patience:
            module.train()
            total, count = torch.zeros((), device=device), 0  # read back once an epoch
            for number, batch in enumerate(batches(state.epoch)):
                if number < state.batch:
                    continue
                seed_random_numbers(settings.seed * 1_000_003 + state.step, device)
                with naming_what_did_not_fit(f"batch {number} of epoch {state.epoch}", device):
                    value = loss(batch)
                    state.descend(value)
                total, count = total + value.detach().float(), count + 1
            module.eval()
            state.end_epoch(validate)
            if progress is not None:
                said = "" if validate is None else f", validation {state.latest:.4f} (best {state.best:.4f})"
                progress(state.epoch, settings.epochs, f"loss {float(total) / max(count, 1):.4f}{said}")
    state.finish()
    module.eval()
    return state.best


class _State:
    """Weights, their average, the best ones, the optimiser and where in the run they stand."""

    def __init__(
        self, module: nn.Module, settings: EpochTraining, checkpoint: str | Path | None, fingerprint: dict[str, Any]
    ) -> None:
        self.settings = settings
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()} if settings.average else {}
        self.kept: dict[str, torch.Tensor] = {}
        self.epoch = self.batch = self.step = self.waited = 0
        self.best = self.latest = float("nan")
        self._file = None if checkpoint is None else Checkpoint(checkpoint, module, self.optimizer, fingerprint)
        self._saved = time.monotonic()

    def descend(self, loss: torch.Tensor) -> None:
        rate = self.settings.learning_rate * min(1.0, (self.step + 1) / (self.settings.warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.optimizer.step()
        self.step, self.batch = self.step + 1, self.batch + 1
        if self.averages:
            # Early on the average is of all steps so far, not of the first weights.
            decay = min(self.settings.average, self.step / (self.step + 10))
            torch._foreach_lerp_(
                list(self.averages.values()), [p.detach() for p in self.parameters.values()], 1 - decay
            )
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()

    def end_epoch(self, validate: Callable[[], float] | None) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        if validate is None:
            self.save()
            return
        trained = {name: p.detach().clone() for name, p in self.parameters.items()} if self.averages else {}
        self._put(self.averages)
        self.latest, self.waited = validate(), self.waited + 1
        if not self.best >= self.latest:
            self.best, self.waited = self.latest, 0
            self.kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._put(trained)
        self.save()

    def finish(self) -> None:
        self._put(self.kept or self.averages)

    def save(self) -> None:
        if self._file is None:
            return
        self._file.more = {
            "place": torch.tensor([self.epoch, self.batch, self.waited]),
            "best": torch.tensor([self.best, self.latest], dtype=torch.float64),
            **{f"average/{name}": value for name, value in self.averages.items()},
            **{f"kept/{name}": value for name, value in self.kept.items()},
        }
        self._file.save(self.step)
        self._saved = time.monotonic()

    def restore(self) -> None:
        if self._file is None:
            return
        self.step = self._file.restore()
        more = self._file.more
        if not more:
            return
        self.epoch, self.batch, self.waited = more["place"].tolist()
        self.best, self.latest = more["best"].tolist()
        for name, parameter in self.parameters.items():
            if self.averages:
                self.averages[name].copy_(more[f"average/{name}"])
            if f"kept/{name}" in more:
                self.kept[name] = more[f"kept/{name}"].to(parameter.device)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)
