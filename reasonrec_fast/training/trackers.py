"""Where the metrics of a training run are kept: accelerate's trackers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def tensorboard_tracker(folder: str | Path, run: str) -> Any:
    """A tracker that writes TensorBoard's event files to ``folder/run``.

    Any other ``accelerate.tracking.GeneralTracker`` (Weights & Biases, MLflow, one's own) is given to training in the
    same way: what training calls is ``log(values, step=)``. The caller ends it with ``finish()``.

    Args:
        folder: of all runs; created where it is not there.
        run: name of this one.

    Returns:
        an ``accelerate.tracking.TensorBoardTracker`` that is ready to write, in the main process alone.

    Raises:
        ImportError: neither ``tensorboardX`` nor ``tensorboard`` is installed.
    """
    if not any(importlib.util.find_spec(package) for package in ("tensorboard", "tensorboardX")):
        raise ImportError(
            "tensorboard_tracker: expected the package tensorboardX or tensorboard; got neither. Install one with "
            "'pip install reasonrec-fast[tensorboard]'"
        )
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker(run, folder)
    if not hasattr(tracker, "writer"):  # earlier releases begin in the constructor
        tracker.start()
    return tracker
