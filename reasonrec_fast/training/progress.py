"""How work that takes long tells of its progress: one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

NO_METRICS: Mapping[str, float] = {}


class Progress(Protocol):
    """A callable that is told how far a piece of work has come.

    Everything that trains calls it, in the thread that trains, after each step or epoch. Raising an exception in it
    ends the training; a checkpoint is written before, never in between.

    Training calls it with three positional arguments, so that a plain function of three is enough::

        def progress(done, total, metrics):
            print(f"{done} of {total}, loss {metrics['loss']:.4f}")
    """

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
        """
        Args:
            done: steps or epochs that are done, from 1.
            total: how many there are at most; early stopping may end before.
            metrics: what was measured since the last call, such as ``loss``; values are read back from the device for
                it, once a call.
            part: which piece of work, where there are several (the name of a model or of a phase).
        """


def named_part(progress: Progress | None, name: str) -> Progress | None:
    """The same progress, told under the name of a part; None stays None.

    >>> named_part(lambda *values: print(values), "BPR")(1, 2, {"loss": 0.5})
    (1, 2, {'loss': 0.5}, 'BPR')
    """
    if progress is None:
        return None

    def update(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
        progress(done, total, metrics, part or name)

    return update


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Metrics in words.

    >>> metrics_text({"loss": 0.25, "validation": 0.5})
    'loss 0.2500, validation 0.5000'
    """
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
