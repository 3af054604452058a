"""Evidence of any rows of a table, out of fold for training rows: what OptiRAG-Rec and :class:`CTRStack` learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch

from reasonrec_fast.data.interactions import Interactions, joined
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.models.optirag.evidence import Evidence, EvidenceBuilder
from reasonrec_fast.models.optirag.index import EventIndex
from reasonrec_fast.models.optirag.item_tastes import ItemTastes
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.settings import Bound, Count, Whole, check_settings

Retrieval = Literal["gcn", "text", "none"]
AtLeastTwo = Annotated[int, Bound("of at least 2", lambda value: value >= 2)]


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """Settings of the evidence.

    Attributes:
        retrieval: how similar users are retrieved: ``"gcn"`` (the paper's), ``"text"`` (embeddings of the texts of
            liked items; a baseline) or ``"none"`` (no evidence from similar users).
        num_neighbours: similar users who vote.
        folds: parts of the users whose evidence comes from a retriever that never saw them.
        seed: of everything random.
        retriever: LightGCN's settings.
    """

    retrieval: Retrieval = "gcn"
    num_neighbours: Count = 100
    folds: AtLeastTwo = 5
    seed: Whole = 0
    retriever: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(weight_decay=1e-3))

    def __post_init__(self) -> None:
        check_settings(self)


Arrays = dict[str, np.ndarray]
Make = Callable[[], Arrays]
Keep = Callable[[str, Make], Arrays]


def made(name: str, make: Make) -> Arrays:
    """Stands for a ``keep`` that keeps nothing."""
    return make()


@dataclass(frozen=True)
class TrainingEvidence:
    """Evidence of the training requests, each user's from a retriever that was trained without them.

    Attributes:
        table: the requests: the training events, and with them negatives that were drawn.
        labels: 0 or 1, int64 ``[N]``.
        folds: of each request, int64 ``[N]``: all requests of a user have the same.
        evidence: of each request.
        builder: of the histories in the prompts.
    """

    table: Interactions
    labels: np.ndarray
    folds: np.ndarray
    evidence: Evidence
    builder: EvidenceBuilder


class EvidenceSource:
    """Makes evidence of rows of one table.

    Args:
        interactions: the table: requests and events of their users.
        index: of the training events.
        config: settings.
        item_vectors: makes embeddings of the items' texts, for retrieval by text.
        device: where retrievers train that know only part of the users.
        ticks: see :class:`~reasonrec_fast.models.optirag.evidence.EvidenceBuilder`.
        tastes: makes further columns of the evidence; None for none.
    """

    def __init__(
        self,
        interactions: Interactions,
        index: EventIndex,
        config: EvidenceConfig,
        item_vectors: Callable[[], torch.Tensor | None] | None = None,
        *,
        device: torch.device | str = "cpu",
        ticks: int = 1,
        tastes: ItemTastes | None = None,
    ) -> None:
        self.tastes = tastes
        self.interactions, self.index, self.evidence_config = interactions, index, config
        self._item_vectors, self._device = item_vectors, device
        self.evidence = EvidenceBuilder(interactions, index, config.num_neighbours, ticks)

    def visible_evidence(self, rows: np.ndarray) -> Evidence:
        """Evidence of rows outside the training part, as far as the settings let the model see it."""
        evidence = self._visible(self.evidence.build(rows))
        return evidence if self.tastes is None else evidence.with_columns(self.tastes.build(self.evidence, rows))

    def training_evidence(self, drawn: Interactions | None = None, *, keep: Keep = made) -> TrainingEvidence:
        """Evidence of the training events, out of fold.

        Args:
            drawn: further requests of the same users and items, without labels, that count as not liked: negatives for
                events that are all likes.
            keep: gives the evidence of a fold, by its name, where it is kept, and makes it otherwise.
        """
        table = self.index.events if drawn is None else joined(self.index.events, drawn)[0]
        events, config = self.index.events, self.evidence_config
        fold = np.random.default_rng(config.seed).permutation(events.num_users) % config.folds
        parts: Arrays = {}
        vectors = None if self._item_vectors is None else self._item_vectors()
        builders: list[EvidenceBuilder] = []
        for number in range(config.folds):
            inside = fold[table.users] == number

            def of_fold(number: int = number, inside: np.ndarray = inside) -> Arrays:
                others = np.flatnonzero(fold[events.users] != number)
                retriever = Retriever.train(events, others, config.retriever, vectors, device=self._device)
                index = EventIndex(events, retriever, self.index.attribute)
                builders.append(EvidenceBuilder(table, index, config.num_neighbours))
                rows = np.flatnonzero(inside)
                built = builders[-1].build(rows)
                if self.tastes is not None:
                    built = built.with_columns(ItemTastes(index, others).build(builders[-1], rows))
                return vars(built)

            for name, values in keep(f"evidence.fold.{number}", of_fold).items():
                whole = parts.setdefault(name, np.zeros((len(table), *values.shape[1:]), dtype=values.dtype))
                whole[inside] = values
        builder = builders[-1] if builders else EvidenceBuilder(table, self.index, config.num_neighbours)
        evidence = self._visible(Evidence(**parts))
        return TrainingEvidence(table, np.maximum(table.labels, 0), fold[table.users], evidence, builder)

    def _visible(self, evidence: Evidence) -> Evidence:
        """Without evidence from similar users, where the settings exclude it."""
        if self.evidence_config.retrieval == "none":
            EvidenceBuilder.forget_retrieved(evidence.dense_features)
            evidence.votes[:] = 0
            evidence.taste[:, :, 1] = np.nan
        return evidence
