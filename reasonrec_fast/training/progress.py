"""The protocol of progress callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

NO_METRICS: Mapping[str, float] = {}


class Progress(Protocol):
    """A callable that receives the progress of a piece of work.

    All training calls it after each step or epoch, in the thread of the training. An exception that it raises ends the
    training, after any checkpoint was written.

    Training calls it with three positional arguments, so that a function of three parameters is enough::

        def progress(done, total, metrics):
            print(f"{done} of {total}, loss {metrics['loss']:.4f}")
    """

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
        """
        Args:
            done: number of completed steps or epochs, from 1.
            total: maximum number; early stopping may end before.
            metrics: since the last call, such as ``loss``; read back from the device once for each call.
            part: name of the piece of work if there are several (a model or a phase).
        """


def named_part(progress: Progress | None, name: str) -> Progress | None:
    """The same progress with the name of a part; None stays None.

    >>> named_part(lambda *values: print(values), "BPR")(1, 2, {"loss": 0.5})
    (1, 2, {'loss': 0.5}, 'BPR')
    """
    if progress is None:
        return None

    def update(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
        progress(done, total, metrics, part or name)

    return update


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Metrics as text.

    >>> metrics_text({"loss": 0.25, "validation": 0.5})
    'loss 0.2500, validation 0.5000'
    """
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
