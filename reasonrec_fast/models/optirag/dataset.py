"""From interactions to requests: evidence and prompts of any rows, out of fold for training rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from reasonrec_fast.data.interactions import Catalog, Interactions
from reasonrec_fast.early_exit.requests import GroupInputs
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.models.optirag.boosted import BoostedEvidence, boosted_features, out_of_fold_logits, take
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.evidence import DENSE_FEATURES, Evidence, EvidenceBuilder
from reasonrec_fast.models.optirag.evidence_source import EvidenceSource, TrainingEvidence
from reasonrec_fast.models.optirag.index import EventIndex
from reasonrec_fast.models.optirag.prompt import PromptBuilder, Slate, TokenIds
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.template import Template, template_for

_logger = logging.getLogger("reasonrec_fast")


@dataclass(frozen=True)
class Requests:
    """Requests with their evidence; prompts are written only for requests that need one, when they need it.

    Attributes:
        rows: rows of the interactions, ``[N]``.
        labels: int64 ``[N]``.
        dense_features: float32 ``[N, F]``, not standardised.
        offset: logit of depth 0, float32 ``[N]``; None without boosted trees.
        features: what boosted trees read, float32 ``[N, P]``; None without them.
        cold: whether the item had no rating, bool ``[N]``.
        prompts: writes slates of some of the requests, from their ascending indices.
    """

    rows: np.ndarray
    labels: np.ndarray
    dense_features: np.ndarray
    offset: np.ndarray | None
    features: np.ndarray | None
    cold: np.ndarray
    prompts: Callable[[np.ndarray], list[Slate]]

    @cached_property
    def slates(self) -> list[Slate]:
        """Prompts of all requests; a slate's ``rows`` are indices into ``rows``."""
        return self.prompts(np.arange(len(self.rows)))

    def batch(self, slates: Sequence[Slate], mean: np.ndarray, scale: np.ndarray) -> SlateBatch:
        """What the ranker reads of some slates."""
        rows = np.concatenate([slate.rows for slate in slates])
        inputs = GroupInputs(
            torch.from_numpy(((self.dense_features[rows] - mean) / scale).astype(np.float32)),
            None if self.offset is None else torch.from_numpy(self.offset[rows]),
            torch.from_numpy(self.cold[rows].astype(np.int64)),
        )
        return SlateBatch([(s.prefix, s.suffixes) for s in slates], inputs, torch.from_numpy(self.labels[rows]))


class SlateBatch(NamedTuple):
    """What the ranker reads of slates with ``R`` requests.

    Attributes:
        groups: prefixes and suffixes.
        inputs: standardised dense features, logits of depth 0, and strata of the thresholds: 1 where the item had no
            rating, else 0.
        labels: int64 ``[R]``.
    """

    groups: list[TokenGroup]
    inputs: GroupInputs
    labels: torch.Tensor


class RequestBuilder(EvidenceSource):
    """Makes requests from rows of one table: their evidence, and their prompts.

    Args:
        interactions: the table: requests and events of their users.
        train_rows: the rows that others may learn from; None where ``index`` is given.
        retriever: trained on those rows.
        tokenizer: of the backbone, or its :class:`~reasonrec_fast.models.optirag.prompt.TokenIds`.
        config: settings.
        item_vectors: makes embeddings of the items' texts, for retrieval by text.
        device: where retrievers train that know only part of the users.
        index: of the training events, where it was made before.
        ticks: see :class:`~reasonrec_fast.models.optirag.evidence.EvidenceBuilder`.
        template: wording of the prompts; by default what the settings say for the training events.
        booster: gives the requests their logit of depth 0; None for models that have none.
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
        booster: BoostedEvidence | None = None,
    ) -> None:
        if index is not None:
            events = index.events
        elif train_rows is not None:
            events = interactions.take(train_rows)
        else:
            raise ValueError("train_rows: expected rows, or an index; got neither")
        self._template = template or template_for(config.template, events)
        if index is None:
            index = EventIndex(events, retriever, self._template.taste_attribute)
        super().__init__(interactions, index, config, item_vectors, device=device, ticks=ticks)
        self.config, self.booster = config, booster
        self._ids = tokenizer if isinstance(tokenizer, TokenIds) else TokenIds(tokenizer)
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
        evidence = self.visible_evidence(rows)
        if unrated:
            _forget_items(self.evidence, evidence, rows, np.ones(len(rows), dtype=bool))
        offset = None if self.booster is None else self.booster.logits(evidence)
        return self._with_prompts(self.prompts, rows, evidence, offset, alone=alone)

    def validation_requests(self, rows: np.ndarray, *, unrated: bool = False) -> tuple[Requests, np.ndarray]:
        """:meth:`requests` to calibrate on, with negatives that were drawn (and have no label) as not liked; and their
        users, ``[N]``."""
        requests = self.requests(rows, unrated=unrated)
        return replace(requests, labels=np.maximum(requests.labels, 0)), self.interactions.users[rows]

    def training_requests(self, training: TrainingEvidence | None = None) -> Requests:
        """Requests of the training events. No evidence depends on its own edge: a user's evidence comes from a
        retriever that was trained without that user, who is folded in from what they did before, and the logit of
        depth 0 from trees that were grown without them.

        A share of the requests shows its item as if nobody had rated it, so that the model learns to read the text.

        Args:
            training: what :meth:`training_evidence` gave, where it is there already.
        """
        training = training or self.training_evidence()
        config, rows = self.config, np.arange(len(training.table))
        shown = take(training.evidence, rows)
        cold = np.random.default_rng(config.seed).random(len(rows)) < config.cold_share
        _forget_items(training.builder, shown, rows, cold)
        offset = None
        if self.booster is not None:
            offset = out_of_fold_logits(
                training.evidence, training.labels, training.folds, shown, training.folds, self.booster.num_trees,
                seed=config.seed,
            )  # fmt: skip
        requests = self._with_prompts(self._prompts(training.builder), rows, shown, offset)
        return replace(requests, labels=training.labels)

    def _with_prompts(
        self,
        prompts: PromptBuilder,
        rows: np.ndarray,
        evidence: Evidence,
        offset: np.ndarray | None,
        *,
        alone: bool = False,
    ) -> Requests:
        cold = evidence.dense_features[:, DENSE_FEATURES.index("item_events")] <= 0
        features = None
        if offset is not None:
            features, offset = boosted_features(evidence), offset.astype(np.float32)

        def write(indices: np.ndarray) -> list[Slate]:
            mask = np.zeros(len(rows), dtype=bool)
            mask[indices] = True
            return prompts.slates(rows, evidence, alone=alone, wanted=mask)

        labels = prompts.interactions.labels[rows]
        return Requests(rows, labels, evidence.dense_features, offset, features, cold, write)


def log_template_fields(template: Template, catalog: Catalog) -> None:
    """Log what prompts read of the items; warn of attributes that they do not read, and of items without titles."""
    read = [name for name in template.attributes if name in catalog.attributes]
    unread = [name for name in catalog.attributes if name not in read]
    _logger.info("prompts tell of an item its title%s", "".join(f", {name}" for name in read))
    if unread:
        _logger.warning("no prompt reads the attributes %s", ", ".join(unread))
    if not any(catalog.has_title(item) for item in range(len(catalog))):
        _logger.warning(
            "no item has a title, so that prompts cannot name items; give a table of the items with a column 'title'"
        )


def _forget_items(builder: EvidenceBuilder, evidence: Evidence, rows: np.ndarray, which: np.ndarray) -> None:
    hidden = evidence.dense_features[which]
    builder.forget_items(hidden, rows[which])
    evidence.dense_features[which] = hidden
    evidence.votes[which] = 0


def suffix_tokens(config: OptiRAGConfig, template: Template) -> int:
    """The token budget of a suffix: that of the settings, else by whether the template has attributes of the target."""
    return config.suffix_tokens or (40 if template.target_attributes else 24)
