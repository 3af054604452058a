"""What a system must offer, by what it does: recommend, explain, or judge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from reasonrec_fast.data.explanations import Explanation, ExplanationQuery
from reasonrec_fast.data.images import ImageSource
from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.data.opinions import Opinions
from reasonrec_fast.training.progress import Progress


@runtime_checkable
class Recommender(Protocol):
    """Scores and ranks items for users: tasks ``"ranking"`` and ``"ctr"``.

    Attributes:
        fitted_events: keys (:meth:`~reasonrec_fast.data.Interactions.keys`) of the events that it was fitted on, by
            which an evaluation finds that it measures memory.
        ranks_all_items: whether it can rank the whole catalogue for a user; else it scores the candidates that it is
            given.
    """

    fitted_events: np.ndarray
    ranks_all_items: bool

    def fit(
        self,
        data: Any,
        train: np.ndarray | None = None,
        validation: np.ndarray | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Train on rows of a table; nothing later than validation is read. Returns the model."""

    def score_events(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """Scores (logits, where the model has probabilities) of events, float64 ``[N]``, in the order of ``rows``: of
        their users for their items at their moments."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder, whole or not at all."""


@runtime_checkable
class Explainer(Protocol):
    """Writes why a user would enjoy an item: task ``"explanation"``."""

    def fit(
        self,
        train: Sequence[Explanation],
        validation: Sequence[Explanation] = (),
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Learn from explanations of other pairs. Returns the model."""

    def explain(self, queries: Sequence[ExplanationQuery]) -> list[str]:
        """A text for each pair; a pair's text depends on that pair alone."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder, whole or not at all."""


@runtime_checkable
class Judge(Protocol):
    """Scores how good images are: task ``"judge"``."""

    def fit(
        self,
        train: Opinions,
        validation: Opinions | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Learn from images with mean opinion scores. Returns the model."""

    def score(self, images: Sequence[ImageSource], *, folder: str | os.PathLike[str] | None = None) -> np.ndarray:
        """Scores, larger is better, float64 ``[N]``; an image's score depends on that image alone.

        Args:
            images: what :func:`~reasonrec_fast.data.images.read_image` takes.
            folder: that relative paths are in, and that they may not leave.
        """

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder, whole or not at all."""
