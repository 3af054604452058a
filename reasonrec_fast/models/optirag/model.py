"""OptiRAG-Rec (ACL 2025 long 1283, arXiv 2501.02173): a GCN retrieves, a language model reads, and stops when sure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from reasonrec_fast import evaluation
from reasonrec_fast.arrays import as_rows
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Interactions, joined
from reasonrec_fast.data.negatives import draw_negatives
from reasonrec_fast.data.tables import TableLike, as_interactions
from reasonrec_fast.models.optirag import storage
from reasonrec_fast.models.optirag.boosted import BoostedEvidence
from reasonrec_fast.models.optirag.calibration import check_promise, log_odds
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import RequestBuilder, Requests, log_template_fields
from reasonrec_fast.models.optirag.evidence_source import EvidenceConfig, TrainingEvidence
from reasonrec_fast.models.optirag.knowledge import Knowledge, MatchedRequests
from reasonrec_fast.models.optirag.rows import (
    FitRows,
    check_learnable,
    evaluation_rows,
    fit_rows,
    request_rows,
    sample_with_both_labels,
    user_chunks,
)
from reasonrec_fast.models.optirag.scorer import Predictions, RequestScorer
from reasonrec_fast.models.optirag.stack import CTRStack, CTRStackConfig
from reasonrec_fast.models.optirag.template import AUTO, Template, template_for
from reasonrec_fast.pretrained import PushToHub
from reasonrec_fast.prompts.tokens import TokenIds
from reasonrec_fast.training.progress import NO_METRICS, Progress, named_part

_logger = logging.getLogger("reasonrec_fast")


def _ignore(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
    """Stands for a ``progress`` of None."""


class OptiRAG(RequestScorer, PushToHub):
    """CTR prediction by retrieved evidence, a language model and early exit.

    Make one with ``OptiRAG(config).fit(events, split.train, split.validation)`` or :meth:`from_pretrained`.

    The language model computes in the dtype that its device is fastest in. The retriever trains on the device too;
    retrieval, evidence and prompts are computed on the host.

    Args:
        config: settings.
        device: where the model lives; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not available.
    """

    config_type: ClassVar[type] = OptiRAGConfig

    def __init__(self, config: OptiRAGConfig | None = None, *, device: torch.device | str | None = None) -> None:
        super().__init__(config, device=device)
        self.num_trees: int | None = None
        settings = {field.name: getattr(self.config, field.name) for field in fields(EvidenceConfig)}
        self._stack = CTRStack(CTRStackConfig(tools=(), tastes=False, **settings), device=self.device)
        self._ids = TokenIds(self.tokenizer)
        self.template = None if self.config.template == AUTO else Template.load(self.config.template)
        self.fitted_events = np.zeros(0, dtype=np.uint64)

    @property
    def stack(self) -> CTRStack:
        """What answers at depth 0: the stack without tools and tastes, with the training events, the retriever and the
        trees."""
        self._stack.device = self.device
        if self.template is not None:
            self._stack.attribute = self.template.taste_attribute
        return self._stack

    @property
    def knowledge(self) -> Knowledge | None:
        """The training events and the retriever."""
        return self._stack.knowledge

    @knowledge.setter
    def knowledge(self, knowledge: Knowledge | None) -> None:
        self._stack.knowledge = knowledge

    @property
    def booster(self) -> BoostedEvidence | None:
        """The boosted trees that the exits stand on."""
        return self._stack.booster

    @booster.setter
    def booster(self, booster: BoostedEvidence | None) -> None:
        self._stack.booster = booster

    # Fitting

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        """Refuse, before any work, training rows that the model can learn nothing from.

        Raises:
            ValueError: dislikes alone, or no labels.
        """
        check_learnable(data, train)

    def fit(
        self,
        data: Interactions | TableLike,
        train: np.ndarray | None = None,
        validation: np.ndarray | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> OptiRAG:
        """Train the retriever, the adapters and the heads on the training part; calibrate on validation.

        Where all events are likes (purchases, plays), as many items that their users have not had by the end of the
        same part are drawn and count as not liked; no prompt mentions them.

        Args:
            data: every event, or a DataFrame or a file of them.
            train, validation: rows; by default the parts of :func:`~reasonrec_fast.data.split_by_time`, by each user's
                time.
            checkpoint: file of the training state; a run that was killed goes on from it.
            progress: called for every part: ``"retriever"``, ``"requests"`` (evidence and prompts), ``"training"``
                (every step and its loss) and ``"calibration"``.

        Raises:
            TypeError: a split in place of rows.
            ValueError: one of the two parts alone, a part without events, or with one class alone while the other has
                both, or too few users in validation for ``config.max_disagreement`` (see
                :func:`~reasonrec_fast.models.optirag.calibration.check_promise`).
        """
        interactions = as_interactions(data)
        rows = fit_rows(interactions, train, validation, self.config.seed)
        if rows.implicit:
            _logger.info("events are likes alone: %d items that their users have not had are drawn as dislikes",
                         len(rows.train_negatives) + len(rows.validation_negatives))  # fmt: skip
        self.template = template_for(self.config.template, interactions.take(rows.train))
        log_template_fields(self.template, interactions.catalog)
        report = progress or _ignore
        report(0, 1, NO_METRICS, "retriever")
        self.stack.train_retriever(interactions, rows.train)
        report(0, 1, NO_METRICS, "requests")
        builder, held_out, calibration_rows = self._validation_builder(interactions, rows)
        training = builder.training_evidence(rows.train_negatives if rows.implicit else None)
        if self.config.stands_on_trees:
            labels = np.maximum(builder.interactions.labels[held_out], 0)
            builder.booster = self.stack.grow_trees(training, builder.visible_evidence(held_out), labels)
            self.num_trees = builder.booster.num_trees
        fingerprint = {"events": interactions.digest(), "train": self._fitted_knowledge().events.digest()}
        requests = builder.training_requests(training)
        self.train_requests(requests, fingerprint, checkpoint, named_part(progress, "training"))
        report(0, 1, NO_METRICS, "calibration")
        size = max(self.config.calibration_requests // 2, 1)
        unrated_rows = sample_with_both_labels(builder.interactions, calibration_rows, size, self.config.seed)
        known = builder.validation_requests(calibration_rows)
        unrated = builder.validation_requests(unrated_rows, unrated=True)
        self.calibrate(known, unrated, progress=named_part(progress, "calibration"))
        self.fitted_events = interactions.keys(np.concatenate([rows.train, rows.validation]))
        return self

    def _validation_builder(
        self, interactions: Interactions, rows: FitRows
    ) -> tuple[RequestBuilder, np.ndarray, np.ndarray]:
        """A builder over the events and the negatives of validation; in its table, all rows of validation and those
        that calibrate.

        Raises:
            ValueError: too few users for ``config.max_disagreement``.
        """
        # Negatives of validation have no label in the table, so that they are in nobody's history.
        table, (event_rows, negative_rows) = joined(interactions, rows.validation_negatives)
        builder = self._builder(table, event_rows[rows.train])
        held_out = np.sort(np.concatenate([event_rows[rows.validation], negative_rows]))
        # One half of the users trains depth 0, and calibrates the heads that a promise is made about.
        halved = self.config.stands_on_trees or self.config.max_disagreement is not None
        size = self.config.calibration_requests * (2 if halved else 1)
        chosen = sample_with_both_labels(table, held_out, size, self.config.seed)
        check_promise(np.maximum(table.labels[chosen], 0), table.users[chosen], self.config)
        return builder, held_out, chosen

    def refit_retriever(self, interactions: Interactions, train_rows: np.ndarray) -> None:
        """Train the retriever and grow the boosted trees, as many as the model was trained with (a minute); remember
        the training events. Adapters, heads and thresholds stay as they are.

        Raises:
            RuntimeError: the model was never trained, so that the number of trees is unknown.
        """
        if self.config.stands_on_trees and self.num_trees is None:
            raise RuntimeError("the model was not trained yet: nothing tells how many trees to grow; call fit")
        self.grow_trees(self.train_retriever(interactions, train_rows))

    def train_retriever(self, interactions: Interactions, train_rows: np.ndarray) -> TrainingEvidence:
        """The first part of :meth:`refit_retriever`.

        Returns:
            the evidence of the training events, which the trees are grown on.
        """
        self.booster = None
        rows = as_rows(train_rows, "train_rows", len(interactions), error=DataError)
        self.stack.train_retriever(interactions, rows)
        self.fitted_events = np.union1d(self.fitted_events, interactions.keys(rows))
        labels = np.unique(interactions.labels[rows])
        drawn = None
        if labels.tolist() == [1]:
            drawn = draw_negatives(interactions, rows, rows, self.config.seed)
        return self._builder(interactions, rows).training_evidence(drawn)

    def grow_trees(self, training: TrainingEvidence) -> None:
        """The second part of :meth:`refit_retriever`; nothing where the exits do not stand on trees."""
        if self.config.stands_on_trees:
            self.stack.grow_trees(training, num_trees=self.num_trees)

    def _builder(self, table: Interactions, train_rows: np.ndarray) -> RequestBuilder:
        """A builder over a table that holds the training events themselves."""
        knowledge = self._fitted_knowledge()
        self.template = self.template or template_for(self.config.template, knowledge.events)
        return RequestBuilder(
            table, train_rows, knowledge.retriever, self._ids, self.config,
            lambda: self.stack.item_vectors(table.catalog), device=self.device, template=self.template,
            booster=self.booster,
        )  # fmt: skip

    # Predicting

    def requests(self, interactions: Interactions, rows: np.ndarray | None = None, *, alone: bool = True) -> Requests:
        """Evidence and prompts of requests.

        Args:
            interactions: requests and what the users did before them; users and items are matched with those of
                training by their identifiers, and may be new.
            rows: which rows are requests; all unlabelled ones by default.
            alone: requests of one user at one moment share a prompt prefix, and no score depends on another request.
                False: all requests of one user share a prefix, as in training; it holds what was known before the
                first of them, and is computed once.
        """
        rows = request_rows(interactions, rows)
        matched = self._fitted_knowledge().match(interactions, rows)
        return self._request_builder(matched).requests(matched.rows, alone=alone)

    def request_builder(self, interactions: Interactions) -> tuple[RequestBuilder, np.ndarray]:
        """What :meth:`requests` prepares once for a table: a builder, and the index of each row in its table,
        int64 ``[N]``.

        Raises:
            RuntimeError: the model has no retriever yet, or no trees.
        """
        matched = self._fitted_knowledge().match(interactions, np.arange(len(interactions)))
        return self._request_builder(matched), matched.rows

    def _request_builder(self, matched: MatchedRequests) -> RequestBuilder:
        knowledge = self._fitted_knowledge()
        if self.config.stands_on_trees and self.booster is None:
            raise RuntimeError("the model has no boosted trees yet; call fit, refit_retriever or grow_trees")
        template = self.template = self.template or template_for(self.config.template, knowledge.events)
        return RequestBuilder(
            matched.table, None, knowledge.retriever, self._ids, self.config,
            lambda: self.stack.item_vectors(knowledge.events.catalog), device=self.device,
            index=knowledge.index(template.taste_attribute), ticks=matched.ticks, template=template,
            booster=self.booster,
        )  # fmt: skip

    def predict_rows(
        self,
        interactions: Interactions,
        rows: np.ndarray | None = None,
        *,
        early_exit: bool = True,
        alone: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """:meth:`requests` and :meth:`predict` in chunks, so that memory does not grow with the number of requests;
        those of a user are in one chunk where they share a prompt prefix.

        Args:
            interactions, rows, alone: as in :meth:`requests`.
            early_exit, progress: as in :meth:`predict`.

        Returns:
            predictions in the order of ``rows``.
        """
        rows = request_rows(interactions, rows)
        probability = np.empty(len(rows), dtype=np.float32)
        depth = np.empty(len(rows), dtype=np.int64)
        for chunk in user_chunks(interactions.users[rows], whole_users=not alone):
            requests = self.requests(interactions, rows[chunk], alone=alone)
            predictions = self.predict(requests, early_exit=early_exit, progress=progress)
            probability[chunk], depth[chunk] = predictions.probability, predictions.depth
        return Predictions(probability, depth)

    def score_events(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """Logits of events as of their own moments, float64 ``[N]`` in the order of ``rows``,
        with early exit."""
        return log_odds(self.predict_rows(data, rows).probability.astype(np.float64))

    def like_of(self, columns: Container[str], given: float | None = None) -> float | None:
        """The rating from which rows of a table with these columns are likes: as given, else as in training; None where
        the table needs none.

        Raises:
            ValueError: a table of ratings, where the model was trained on labels and no threshold is given.
        """
        like = None if self.knowledge is None else self.knowledge.events.like
        if given is not None or "label" in columns or "rating" not in columns:
            return given
        if like is None:
            raise ValueError(
                "like: expected a threshold (--like), as the model was trained on labels and the table has ratings"
            )
        return like

    def evaluate(self, interactions: Interactions, rows: np.ndarray, *, early_exit: bool = True) -> dict[str, float]:
        """AUC, GAUC (all, and on items without a training rating) and mean depth on labelled rows.

        All requests of a user share a prompt prefix (see :meth:`requests`), as in training. Where the rows and the
        training events are likes alone, a negative is drawn for each row (see :meth:`fit`).

        Raises:
            DataError: no rows of the table, or one without a label.
        """
        events = self._fitted_knowledge().events
        table, table_rows = evaluation_rows(interactions, rows, events, self.config.seed + 2)
        predictions = self.predict_rows(table, table_rows, early_exit=early_exit, alone=False)
        labels, users = np.maximum(table.labels[table_rows], 0), table.users[table_rows]
        rated_ids = {events.catalog.ids[item] for item in np.unique(events.items)}
        unrated = np.array([table.catalog.ids[item] not in rated_ids for item in table.items[table_rows]], dtype=bool)
        return {
            "auc": evaluation.auc(labels, predictions.probability),
            "gauc": evaluation.gauc(labels, predictions.probability, users),
            "gauc_unrated": evaluation.gauc(labels[unrated], predictions.probability[unrated], users[unrated]),
            "mean_depth": predictions.mean_depth,
        }

    # Storing

    def save_pretrained(self, folder: str | Path, *, knowledge: bool = True) -> None:
        """Write the model as safetensors and JSON.

        Args:
            folder: created where it does not exist.
            knowledge: False leaves out the training events and the retriever; the model then needs
                :meth:`refit_retriever` before it can predict.
        """
        self._stored(knowledge).save(Path(folder))

    def _stored(self, knowledge: bool) -> storage.Stored:
        return storage.Stored(
            config=self.config,
            adapter={name: value for name, value in self.peft.named_parameters() if "lora_" in name},
            heads=self.ranker.model.heads.state_dict(),
            mean=self.mean,
            scale=self.scale,
            policy=self.policy,
            platt=self.platt,
            num_trees=self.num_trees,
            depth_zero=self.depth_zero,
            booster=self.booster if knowledge else None,
            knowledge=self.knowledge if knowledge else None,
            template=self.template,
            fitted_events=self.fitted_events,
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        backbone: str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> OptiRAG:
        """Read what :meth:`save_pretrained` wrote, whatever device the model was on.

        Args:
            folder: the model, or a repository of the Hugging Face hub (``"user/repository"``).
            backbone: the language model, where it is not at the configuration's name or path.
            device: where the model lives; by default the GPU where there is one.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: the folder holds another architecture, weights that do not fit the backbone, or a device that is
                not available.
        """

        def read(stored: storage.Stored) -> OptiRAG:
            config = stored.config if backbone is None else replace(stored.config, backbone=backbone)
            model = cls(config, device=device)
            storage.copy_weights(dict(model.peft.named_parameters()), stored.adapter, "adapter")
            storage.copy_weights(model.ranker.model.heads.state_dict(), stored.heads, "heads")
            model.mean, model.scale, model.platt = stored.mean, stored.scale, dict(stored.platt)
            model.ranker.policy, model.depth_zero = stored.policy, stored.depth_zero
            model.num_trees, model.booster, model.knowledge = stored.num_trees, stored.booster, stored.knowledge
            model.template, model.fitted_events = stored.template or model.template, stored.fitted_events
            return model

        return storage.load(folder, read, revision=revision, token=token)

    def _fitted_knowledge(self) -> Knowledge:
        if self.knowledge is None:
            raise RuntimeError("the model has no retriever yet; call fit or refit_retriever")
        return self.knowledge
