"""Base of the models that are fitted in closed form: popularity, biases, item-kNN, EASE."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np

from reasonrec_fast.data import Interactions
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.training.progress import Progress


class ClosedFormRecommender(ClassicalRecommender):
    """A model without epochs: ``validation``, ``checkpoint`` and ``progress`` of :meth:`fit` are unused."""

    @abstractmethod
    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        """Build the model and fill it from rows ``train``."""

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.fit_closed_form(data, train)
        self.set_histories_from(data, train)
