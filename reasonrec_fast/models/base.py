"""What a system must offer, by what it does: recommend, explain, or judge.

A class is made by ``kind(config, device=None)``, with a ``config_type`` as its configuration (experiments set the
``seed`` in it), and has the classmethod ``from_pretrained(folder, *, device=None, revision=None, token=None)``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from reasonrec_fast.data.explanations import Explanation, ExplanationQuery
from reasonrec_fast.data.histories import Histories
from reasonrec_fast.data.images import ImageSource
from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.data.opinions import Opinions
from reasonrec_fast.training.progress import Progress


@runtime_checkable
class System(Protocol):
    """What all of them offer.

    Attributes:
        config_type: a dataclass of settings.
    """

    config_type: ClassVar[type]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder, whole or not at all."""


@runtime_checkable
class Recommender(System, Protocol):
    """Scores events, and so ranks given candidates: tasks ``"ctr"`` and ``"ranking"`` with ``negatives``.

    Attributes:
        fitted_events: keys (:meth:`~reasonrec_fast.data.Interactions.keys`) of the events that it was fitted on, by
            which an evaluation finds that it measures memory.
    """

    fitted_events: np.ndarray

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        """Refuse, before any work, training rows that the model can learn nothing from."""

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


@runtime_checkable
class CatalogRecommender(Recommender, Protocol):
    """Ranks all items for a user by histories that it is given, whatever the moment: task ``"ranking"``."""

    def set_histories(self, histories: Histories, *, seen: Histories | None = None) -> Any:
        """Set what each user liked, and the items that they have had."""

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of pairs of indices, ``[N]``; larger is likelier."""

    def scores(self, users: np.ndarray) -> Any:
        """Scores of all items for users, a tensor ``[B, I]``."""

    def recommend(self, users: np.ndarray, k: int, *, exclude: Histories | None = None) -> Any:
        """The top ``k`` items of users without those to exclude: its ``items`` are int64 ``[B, k]``, best first, -1 for
        no more."""


@runtime_checkable
class Explainer(System, Protocol):
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


@runtime_checkable
class Judge(System, Protocol):
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
