"""Trackers of training metrics: accelerate's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def tensorboard_tracker(folder: str | Path, run: str) -> Any:
    """A tracker that writes TensorBoard's event files to ``folder/run``.

    Any other ``accelerate.tracking.GeneralTracker`` (Weights & Biases, MLflow, custom) can be given to training in
    the same way: training calls ``log(values, step=)``, and the caller ``finish()``.

    Args:
        folder: of all runs; created if it does not exist.
        run: name of this run.

    Returns:
        an ``accelerate.tracking.TensorBoardTracker`` that is ready to write; call it in the main process alone.

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
