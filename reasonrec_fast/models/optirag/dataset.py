"""From interactions to requests: evidence and prompts of any rows, out of fold for training rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from reasonrec_fast.data.interactions import Interactions, joined
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.evidence import NUMBERS, Evidence, EvidenceBuilder
from reasonrec_fast.models.optirag.index import EventIndex
from reasonrec_fast.models.optirag.prompt import PromptBuilder, Slate, TokenIds
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.template import Template, template_for


@dataclass(frozen=True)
class Requests:
    """Requests with their evidence and prompts.

    Attributes:
        rows: rows of the interactions, ``[N]``.
        labels: int64 ``[N]``.
        numbers: float32 ``[N, F]``, not standardised.
        cold: whether nobody had rated the item, bool ``[N]``.
        slates: prompts; a slate's ``rows`` are places in ``rows``.
    """

    rows: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    cold: np.ndarray
    slates: list[Slate]

    def batch(
        self, slates: Sequence[Slate], mean: np.ndarray, scale: np.ndarray
    ) -> tuple[list[TokenGroup], torch.Tensor, torch.Tensor]:
        """Token groups, standardised numbers ``[R, F]`` and labels ``[R]`` of some slates."""
        places = np.concatenate([slate.rows for slate in slates])
        numbers = torch.from_numpy(((self.numbers[places] - mean) / scale).astype(np.float32))
        return [(s.prefix, s.suffixes) for s in slates], numbers, torch.from_numpy(self.labels[places])


class RequestBuilder:
    """Makes requests from rows of one table.

    Args:
        interactions: the table: requests and what their users did.
        train_rows: the rows that others may learn from; None where ``index`` is given.
        retriever: trained on those rows.
        tokenizer: of the backbone, or its :class:`~reasonrec_fast.models.optirag.prompt.TokenIds`.
        config: settings.
        item_vectors: makes embeddings of the items' texts, for retrieval by text.
        device: where retrievers train that know only part of the users.
        index: of the training events, where it was made before.
        ticks: see :class:`~reasonrec_fast.models.optirag.evidence.EvidenceBuilder`.
        template: wording of the prompts; by default what the settings say for the training events.
    """

    def __init__(
        self,
        interactions: Interactions,
        train_rows: np.ndarray | None,
        retriever: Retriever,
        tokenizer: Any,
        config: OptiRAGConfig,
        item_vectors: Callable[[], torch.Tensor | None] | None = None,
        *,
        device: torch.device | str = "cpu",
        index: EventIndex | None = None,
        ticks: int = 1,
        template: Template | None = None,
    ) -> None:
        self._device = device
        self.interactions, self.config = interactions, config
        self._item_vectors = item_vectors
        self._ids = tokenizer if isinstance(tokenizer, TokenIds) else TokenIds(tokenizer)
        if index is not None:
            events = index.events
        elif train_rows is not None:
            events = interactions.take(train_rows)
        else:
            raise ValueError("train_rows: expected rows, or an index; got neither")
        self._template = template or template_for(config.template, events)
        if index is None:
            index = EventIndex(events, retriever, self._template.taste_attribute)
        self.index = index
        self.evidence = EvidenceBuilder(interactions, index, config.num_neighbours, ticks)
        self.prompts = self._prompts(self.evidence)

    def _prompts(self, evidence: EvidenceBuilder) -> PromptBuilder:
        return PromptBuilder(
            evidence,
            self._template,
            self._ids,
            prefix_tokens=self.config.prefix_tokens,
            suffix_tokens=suffix_tokens(self.config, self._template),
            slate_size=self.config.slate_size,
            tell_similar=self.config.retrieval != "none",
        )

    @property
    def training_labels(self) -> np.ndarray:
        """Of the training events, int64 ``[E]``, in time order."""
        return self.index.events.labels

    def requests(self, rows: np.ndarray, *, unrated: bool = False, alone: bool = False) -> Requests:
        """Requests of rows outside the training part.

        Args:
            rows: rows of the interactions.
            unrated: show their items as if nobody had rated them.
            alone: see :meth:`~reasonrec_fast.models.optirag.prompt.PromptBuilder.slates`.
        """
        evidence = self.evidence.build(rows)
        if unrated:
            _forget_items(self.evidence, evidence, rows, np.ones(len(rows), dtype=bool))
        return self._with_prompts(self.prompts, rows, evidence, alone=alone)

    def training_requests(self, drawn: Interactions | None = None) -> Requests:
        """Requests of the training events. No evidence knows its own edge: a user's evidence comes from a retriever
        that was trained without that user, who is folded in from what they did before.

        A share of the requests shows its item as if nobody had rated it, so that the model learns to read the text.

        Args:
            drawn: further requests of the same users and items, without labels, that count as not liked: negatives for
                events that are all likes.
        """
        table = self.index.events if drawn is None else joined(self.index.events, drawn)[0]
        rows = np.arange(len(table))
        builder, evidence = self._out_of_fold(table)
        cold = np.random.default_rng(self.config.seed).random(len(rows)) < self.config.cold_share
        _forget_items(builder, evidence, rows, cold)
        found = self._with_prompts(self._prompts(builder), rows, evidence)
        return replace(found, labels=np.maximum(found.labels, 0))

    def out_of_fold_evidence(self) -> Evidence:
        """Evidence of the training events, each user's from a retriever that was trained without them."""
        return self._out_of_fold(self.index.events)[1]

    def _out_of_fold(self, table: Interactions) -> tuple[EvidenceBuilder, Evidence]:
        events, config = self.index.events, self.config
        fold = np.random.default_rng(config.seed).permutation(events.num_users) % config.folds
        parts: dict[str, np.ndarray] = {}
        vectors = None if self._item_vectors is None else self._item_vectors()
        for number in range(config.folds):
            inside = fold[table.users] == number
            others = np.flatnonzero(fold[events.users] != number)
            retriever = Retriever.train(events, others, config.retriever, vectors, device=self._device)
            index = EventIndex(events, retriever, self.index.attribute)
            builder = EvidenceBuilder(table, index, config.num_neighbours)
            built = builder.build(np.flatnonzero(inside))
            for name, values in vars(built).items():
                whole = parts.setdefault(name, np.zeros((len(table), *values.shape[1:]), dtype=values.dtype))
                whole[inside] = values
        return builder, Evidence(**parts)

    def _with_prompts(
        self, prompts: PromptBuilder, rows: np.ndarray, evidence: Evidence, *, alone: bool = False
    ) -> Requests:
        if self.config.retrieval == "none":
            EvidenceBuilder.forget_retrieved(evidence.numbers)
        cold = evidence.numbers[:, NUMBERS.index("item_events")] <= 0
        slates = prompts.slates(rows, evidence, alone=alone)
        return Requests(rows, prompts.interactions.labels[rows], evidence.numbers, cold, slates)


def _forget_items(builder: EvidenceBuilder, evidence: Evidence, rows: np.ndarray, which: np.ndarray) -> None:
    hidden = evidence.numbers[which]
    builder.forget_items(hidden, rows[which])
    evidence.numbers[which] = hidden
    evidence.votes[which] = 0


def suffix_tokens(config: OptiRAGConfig, template: Template) -> int:
    """The budget of a suffix: what the settings say, else by what the template tells of the target."""
    return config.suffix_tokens or (40 if template.target_attributes else 24)
