"""Base of the CTR models: fields, training by cross-entropy on events, early stopping by AUC."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn import functional

from reasonrec_fast.data import Histories, Interactions, Timeline
from reasonrec_fast.devices import on_device
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.classical.fields import FieldEmbeddings
from reasonrec_fast.models.classical.training import GradientConfig, train_by_gradient
from reasonrec_fast.settings import Count, Share, Whole
from reasonrec_fast.training.progress import Progress

Kind = TypeVar("Kind", bound="CTRModel")

_PAIRS = 8192  # scored at a time


@dataclass(frozen=True)
class CTRConfig(GradientConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.training.GradientConfig`.

    Attributes:
        dim: width of a field's vector.
        history: liked items that are pooled, the latest; 0 for no such field.
        hidden: share of training events whose user, and of those whose item, is treated as one without events, so that
            new users and items can be scored.
    """

    dim: Count = 16
    history: Whole = 50
    hidden: Share = 0.05
    epochs: Whole = 30
    patience: Count = 3


class Events(NamedTuple):
    """A batch: ``[N]`` each, ``liked`` with one row an event, ``hidden`` as in :class:`FieldEmbeddings`."""

    users: np.ndarray
    items: np.ndarray
    liked: Histories
    hidden: np.ndarray
    labels: np.ndarray


class CTRModel(ClassicalRecommender):
    """Base of the CTR models.

    In training the history of an event is what its user liked before it; in scoring it is the end of ``histories``.
    Users and items that were not in training are scored by their history and attributes.

    Args:
        config: hyper-parameters.
        device: of the model.
    """

    config: CTRConfig
    learns_labels = True
    fields: FieldEmbeddings

    @abstractmethod
    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Log-odds ``[N]`` of fields' vectors ``[N, F, width]``."""

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.build({"users": data.num_users, **FieldEmbeddings.sizes_of(data.catalog)})
        self.fields.describe(data.catalog, np.unique(data.users[train]), np.unique(data.items[train]))
        self.set_histories_from(data, train)

        train_by_gradient(
            self,
            _Batches(self.config, data, train),
            self._loss,
            validate=None if validation is None else lambda: self.auc(data, validation),
            checkpoint=checkpoint,
            progress=progress,
        )

    def _loss(self, batch: Events) -> torch.Tensor:
        logits = self.logits(self.fields(batch.users, batch.items, batch.liked, hidden=batch.hidden))
        labels = on_device(batch.labels.astype(np.float32), logits.device)
        return functional.binary_cross_entropy_with_logits(logits.float(), labels)

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Log-odds, float32 ``[N]``."""
        return self._logits_of_pairs(*self.pairs(users, items)).cpu().numpy()

    def scores(self, users: np.ndarray) -> torch.Tensor:
        users, items = self.user_indices(users), self.sizes["items"]
        return self._logits_of_pairs(np.repeat(users, items), np.tile(np.arange(items), len(users))).view(
            len(users), items
        )

    @torch.inference_mode()
    def _logits_of_pairs(self, users: np.ndarray, items: np.ndarray) -> torch.Tensor:
        """Log-odds of pairs, float32 ``[N]``."""
        scores = torch.empty(len(users), device=self.device)
        for first in range(0, len(users), _PAIRS):
            rows = slice(first, first + _PAIRS)
            scores[rows] = self.logits(self.fields(users[rows], items[rows], self._liked(users[rows]))).float()
        return scores

    def _liked(self, users: np.ndarray) -> Histories:
        ends = self.histories.indptr[self.histories.known(users) + 1]
        return self.histories.spans(np.maximum(self.histories.indptr[users], ends - self.config.history), ends)


class _Batches:
    """Batches of an epoch."""

    def __init__(self, config: CTRConfig, data: Interactions, train: np.ndarray) -> None:
        self.config, self.data, self.train = config, data, train
        line = Timeline.of_users(data, train[data.labels[train] == 1])
        self.liked = Histories(line.indptr, data.items[line.rows])
        self.ends = line.positions_before(data.users[train], data.timestamps[train])
        self.begins = np.maximum(line.indptr[data.users[train]], self.ends - config.history)

    def __call__(self, epoch: int) -> Iterator[Events]:
        generator = np.random.default_rng((self.config.seed, epoch))
        order = generator.permutation(len(self.train))
        for first in range(0, len(order), self.config.batch):
            batch = order[first : first + self.config.batch]
            rows = self.train[batch]
            hidden = generator.random((2, len(batch))) < self.config.hidden
            liked = self.liked.spans(self.begins[batch], self.ends[batch])
            yield Events(self.data.users[rows], self.data.items[rows], liked, hidden, self.data.labels[rows])
