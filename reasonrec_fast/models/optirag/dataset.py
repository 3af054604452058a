"""From interactions to requests: evidence and prompts of any rows, out of fold for training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.early_exit.layout import TokenGroup
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.evidence import NUMBERS, Evidence, EvidenceBuilder
from reasonrec_fast.models.optirag.prompt import PromptBuilder, Slate, Template
from reasonrec_fast.models.optirag.retriever import Retriever


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
        interactions, train_rows: the table, and the rows that others may learn from.
        retriever: trained on those rows.
        tokenizer: of the backbone.
        config: settings.
        item_vectors: embeddings of the items' texts, for retrieval by text.
        device: where retrievers train that know only part of the users.
    """

    def __init__(
        self,
        interactions: Interactions,
        train_rows: np.ndarray,
        retriever: Retriever,
        tokenizer: Any,
        config: OptiRAGConfig,
        item_vectors: torch.Tensor | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self._device = device
        self.interactions, self.train_rows, self.config = interactions, train_rows, config
        self._item_vectors = item_vectors
        self._template = Template.load(config.template)
        self.evidence = self._evidence(retriever)
        self.prompts = PromptBuilder(
            self.evidence,
            self._template,
            tokenizer,
            prefix_tokens=config.prefix_tokens,
            suffix_tokens=config.suffix_tokens,
            slate_size=config.slate_size,
            tell_similar=config.retrieval != "none",
        )

    def requests(self, rows: np.ndarray, *, unrated: bool = False) -> Requests:
        """Requests of rows outside the training part.

        Args:
            rows: rows of the interactions.
            unrated: show their items as if nobody had rated them.
        """
        evidence = self.evidence.build(rows)
        if unrated:
            self._forget_items(evidence, rows, np.ones(len(rows), dtype=bool))
        return self._with_prompts(rows, evidence)

    def training_requests(self) -> Requests:
        """Requests of the training rows. No evidence knows its own edge: a user's evidence comes from a retriever
        that was trained without that user, who is folded in from what they did before.

        A share of the requests shows its item as if nobody had rated it, so that the model learns to read the text.
        """
        evidence = self.out_of_fold_evidence()
        cold = np.random.default_rng(self.config.seed).random(len(self.train_rows)) < self.config.cold_share
        self._forget_items(evidence, self.train_rows, cold)
        return self._with_prompts(self.train_rows, evidence)

    def out_of_fold_evidence(self) -> Evidence:
        """Evidence of the training rows, each user's from a retriever that was trained without them."""
        data, rows, config = self.interactions, self.train_rows, self.config
        fold = np.random.default_rng(config.seed).permutation(data.num_users) % config.folds
        parts: dict[str, np.ndarray] = {}
        for number in range(config.folds):
            inside = fold[data.users[rows]] == number
            retriever = Retriever.train(data, rows[~inside], config.retriever, self._item_vectors, device=self._device)
            built = self._evidence(retriever).build(rows[inside])
            for name, values in vars(built).items():
                whole = parts.setdefault(name, np.zeros((len(rows), *values.shape[1:]), dtype=values.dtype))
                whole[inside] = values
        return Evidence(**parts)

    def _evidence(self, retriever: Retriever) -> EvidenceBuilder:
        return EvidenceBuilder(
            self.interactions,
            self.train_rows,
            retriever,
            self.config.num_neighbours,
            self._template.taste_attribute,
        )

    def _forget_items(self, evidence: Evidence, rows: np.ndarray, which: np.ndarray) -> None:
        hidden = evidence.numbers[which]
        self.evidence.forget_items(hidden, rows[which])
        evidence.numbers[which] = hidden
        evidence.votes[which] = 0

    def _with_prompts(self, rows: np.ndarray, evidence: Evidence) -> Requests:
        if self.config.retrieval == "none":
            self.evidence.forget_retrieved(evidence.numbers)
        cold = evidence.numbers[:, NUMBERS.index("item_events")] <= 0
        slates = self.prompts.slates(rows, evidence)
        return Requests(rows, self.interactions.labels[rows], evidence.numbers, cold, slates)
