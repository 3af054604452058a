"""The optimiser loop that all training uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from reasonrec_fast.devices import explain_out_of_memory, fork_rng, seed_rng
from reasonrec_fast.training.checkpoint import Checkpoint
from reasonrec_fast.training.processes import broadcast_parameters, check_accelerator, gathered, sum_gradients
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.schedules import Schedule, constant

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = TypeVar("Batch")
Metrics = Mapping[str, "torch.Tensor | float"]

SECONDS_BETWEEN_SAVES = 60.0
_STEP_STRIDE, _PART_STRIDE = 1_000_003, 0x9E3779B97F4A7C15  # of the seeds of steps, and of micro-batches in a step


class StepLoop:
    """Takes optimiser steps; training can be resumed after any step.

    A step minimises the weighted mean of its micro-batches' losses: gradients are accumulated, averaged over processes
    and clipped, and the optimiser takes one step at the schedule's rate. The result of a step depends on the weights,
    its number, the seed and its micro-batches alone: the random generators of the CPU and of the module's device are
    seeded by the seed, the step and the micro-batch. So a run that was killed and resumed from its checkpoint ends with
    the same bits as an uninterrupted run, on a device of the same kind.

    With an accelerator that was launched on ``P`` processes (``accelerate launch``, torchrun) micro-batch ``i`` is
    computed by process ``i mod P``. Every process holds the whole module and is given all micro-batches of the step;
    the result is that of one process, up to the order in which gradients are summed. The main process writes
    checkpoints and trackers and reports progress. All processes must be able to read the checkpoint's folder.

    Args:
        module: whose parameters that require gradients are trained. The caller sets its mode, training or evaluation.
        optimizer: over these parameters; its learning rates are the schedule's peaks.
        seed: of random numbers.
        clip: maximum norm of a step's gradient; 0 for none.
        schedule: of the learning rates.
        checkpoint: file of the training state; None for none.
        fingerprint: identity of the run, for :class:`~reasonrec_fast.training.checkpoint.Checkpoint`.
        progress: called by :meth:`report`.
        trackers: accelerate's trackers (see :mod:`~reasonrec_fast.training.trackers`): each is given the same metrics,
            by the number of the step. A resumed run writes the steps since its checkpoint again.
        accelerator: moves the module to its device, and has the number of processes; None leaves the module where it
            is. Its mixed precision (bf16) applies to the losses, but not within the layers of a language model, which
            compute in the type of their weights (load them in bfloat16).

    Attributes:
        steps_done: number of steps that the weights have taken.
        parameters: the trained parameters, by name.

    Raises:
        ValueError: nothing requires gradients, or an accelerator with unsupported settings.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int = 0,
        clip: float = 0.0,
        schedule: Schedule = constant,
        checkpoint: str | Path | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        trackers: Sequence[Any] = (),
        accelerator: Accelerator | None = None,
    ) -> None:
        if accelerator is not None:
            check_accelerator(accelerator)
            module.to(accelerator.device)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("module: expected parameters that require gradients; got none")
        self.device = next(iter(self.parameters.values())).device
        self.optimizer, self.seed, self.clip, self.schedule = optimizer, seed, clip, schedule
        self.steps_done = 0
        self.accelerator = accelerator
        self.process, self.processes = 0, 1
        if accelerator is not None:
            self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self._trained = list(self.parameters.values())
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]
        self._file = None if checkpoint is None else Checkpoint(checkpoint, module, optimizer, dict(fingerprint or {}))
        self._saved = time.monotonic()
        self._progress, self._trackers = progress, tuple(trackers)
        if self.processes > 1:
            broadcast_parameters(self._trained)

    @property
    def reports(self) -> bool:
        """Whether there is a progress callback or a tracker that :meth:`report` calls."""
        return self._progress is not None or bool(self._trackers)

    def restore(self) -> dict[str, torch.Tensor]:
        """Resume from the checkpoint, if there is one.

        Returns:
            the ``extra`` tensors of :meth:`save`, on the CPU; empty if there is no file.

        Raises:
            ValueError: the file is of another run, or the processes read different files.
        """
        if self._file is None:
            return {}
        self.steps_done = self._file.restore()
        steps = gathered(self.steps_done, self.accelerator)
        if len(set(steps)) > 1:
            raise ValueError(
                f"checkpoint: expected a folder that all processes share; got a file after {steps} steps in processes "
                f"0 to {self.processes - 1}"
            )
        return dict(self._file.more)

    def step(
        self,
        micro_batches: Sequence[Batch],
        loss: Callable[[Batch], torch.Tensor],
        *,
        weights: Sequence[float] | None = None,
        name: str = "",
    ) -> torch.Tensor:
        """Take one step.

        Args:
            micro_batches: at least one; their gradients are computed one after the other, to bound memory.
            loss: of a micro-batch, 0-d; a mean, for example over rows or tokens.
            weights: of the micro-batches, not negative, such as their numbers of rows or tokens: the loss of the step
                is then the mean over all rows or tokens, however they are divided. Equal by default.
            name: of the step, for out-of-memory errors.

        Returns:
            the loss of the step over all processes, 0-d, detached and still on its device.

        Raises:
            ValueError: no micro-batch, or weights that are negative, all 0 or of another number.
            torch.OutOfMemoryError: with the name of the step.
        """
        shares = self._shares(micro_batches, weights)
        factor = self.schedule(self.steps_done)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor
        self.optimizer.zero_grad(set_to_none=True)
        total: torch.Tensor | None = None
        with explain_out_of_memory(name or f"the batch of step {self.steps_done}", self.device):
            for index in range(self.process, len(micro_batches), self.processes):
                seed = self.seed * _STEP_STRIDE + self.steps_done + index * _PART_STRIDE
                seed_rng(seed, self.device)
                with self.autocast():
                    value = loss(micro_batches[index])
                if shares is not None:
                    value = value * shares[index]
                value.backward()
                total = value.detach() if total is None else total + value.detach()
        if self.processes > 1:
            total = sum_gradients(self._trained, torch.zeros((), device=self.device) if total is None else total)
        if self.clip:
            nn.utils.clip_grad_norm_(self._trained, self.clip)
        self.optimizer.step()
        self.steps_done += 1
        assert total is not None  # a single process computes every micro-batch
        return total

    def skip(self, steps: int = 1) -> None:
        """Count steps without an update: the weights stay and the schedule advances."""
        self.steps_done += steps

    def run(
        self,
        steps: int,
        micro_batches: Callable[[int], Sequence[Batch]],
        loss: Callable[[Batch], torch.Tensor],
        *,
        weight: Callable[[Batch], float] | None = None,
        save_every: int | None = None,
        metrics: Callable[[int], Metrics] | None = None,
    ) -> None:
        """Take the remaining steps up to ``steps``; saves and reports.

        Args:
            steps: of the whole run.
            micro_batches: of a step (from 0); they must depend on the step alone.
            loss: as in :meth:`step`.
            weight: of a micro-batch.
            save_every: steps between two saves; by default they are a minute apart. The last step is always saved.
            metrics: of a step (from 0), reported beside its loss.
        """
        with self.fork_rng():
            while self.steps_done < steps:
                batches = micro_batches(self.steps_done)
                more = {} if metrics is None or not self.reports else metrics(self.steps_done)
                value = self.step(batches, loss, weights=None if weight is None else [weight(b) for b in batches])
                if self.steps_done == steps:
                    self.save()
                else:
                    self.save_if_due(every=save_every)
                self.report(self.steps_done, steps, {"loss": value, **more})

    def save(self, extra: Mapping[str, torch.Tensor] | None = None) -> None:
        """Store the state after :attr:`steps_done` steps atomically; does nothing without a checkpoint.

        Args:
            extra: further state of the run; :meth:`restore` returns it.
        """
        if self._file is not None and self.process == 0:
            self._file.more = dict(extra or {})
            self._file.save(self.steps_done)
        self._saved = time.monotonic()

    def save_if_due(
        self,
        extra: Callable[[], Mapping[str, torch.Tensor]] | None = None,
        *,
        every: int | None = None,
        seconds: float = SECONDS_BETWEEN_SAVES,
    ) -> None:
        """:meth:`save` after every ``every`` steps, or by default if ``seconds`` have passed since the last save.

        Args:
            extra: returns further state; called only if the state is saved.
            every: steps.
            seconds: without ``every``.
        """
        if self._file is None:
            return
        due = self.steps_done % every == 0 if every else time.monotonic() - self._saved > seconds
        if due:
            self.save(None if extra is None else extra())

    def report(self, done: int, total: int, metrics: Metrics) -> None:
        """Give metrics to the progress callback and the trackers; tensors are read back in one copy, and only if
        needed.

        On several processes, the metrics must be the same on each; see :meth:`mean_metrics`.
        """
        if not self.reports or self.process:
            return
        values = read_metrics(metrics)
        for tracker in self._trackers:
            tracker.log(values, step=self.steps_done)
        if self._progress is not None:
            self._progress(done, total, values)

    def mean_metrics(self, parts: Sequence[tuple[float, Metrics]]) -> dict[str, float]:
        """Weighted means of the metrics of several micro-batches over all processes.

        Metrics whose names end in ``max`` are maxima. Empty if there are none.
        """
        read = [(weight, read_metrics(metrics)) for weight, metrics in parts]
        everything = [part for of_process in gathered(read, self.accelerator) for part in of_process]
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for _, metrics in everything for name in metrics):
            values = [(weight, metrics[name]) for weight, metrics in everything if name in metrics]
            total = sum(weight for weight, _ in values)
            if name.endswith("max"):
                means[name] = max(value for _, value in values)
            elif total > 0:
                means[name] = sum(weight * value for weight, value in values) / total
        return means

    @contextmanager
    def fork_rng(self) -> Iterator[None]:
        """Restore the caller's random generators afterwards; steps are taken inside."""
        with fork_rng(self.device):
            yield

    def autocast(self) -> Any:
        """The accelerator's mixed precision, in which losses are computed."""
        if self.accelerator is None or self.accelerator.mixed_precision == "no":
            return nullcontext()
        return self.accelerator.autocast()

    def _shares(self, micro_batches: Sequence[Any], weights: Sequence[float] | None) -> list[float] | None:
        """Share of each micro-batch in the loss; None for a single micro-batch."""
        count = len(micro_batches)
        if not count:
            raise ValueError("micro_batches: expected at least one; got none")
        if weights is None:
            return None if count == 1 else [1 / count] * count
        total = float(sum(weights))
        if len(weights) != count or not total > 0 or min(weights) < 0:
            raise ValueError(
                f"weights: expected {count} numbers of at least 0 with a positive sum; got {list(weights)}"
            )
        return None if count == 1 else [weight / total for weight in weights]


def read_metrics(metrics: Metrics) -> dict[str, float]:
    """Metrics as floats, read back in one copy from the device."""
    tensors = {name: value for name, value in metrics.items() if isinstance(value, torch.Tensor)}
    if len(tensors) == 1:
        read = {name: float(value.detach()) for name, value in tensors.items()}
    elif tensors:
        stacked = torch.stack([value.detach().double().reshape(()) for value in tensors.values()])
        read = dict(zip(tensors, stacked.tolist(), strict=True))
    else:
        read = {}
    return {name: read[name] if name in read else float(value) for name, value in metrics.items()}
