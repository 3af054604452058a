"""OptiRAG-Rec (ACL 2025 long 1283, arXiv 2501.02173): a GCN retrieves, a language model reads, and stops when sure."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from reasonrec_fast import evaluation
from reasonrec_fast.arrays import as_index, as_rows
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.instructions import Instruction
from reasonrec_fast.data.interactions import UNLABELLED, Catalog, Interactions, check_like, joined
from reasonrec_fast.data.negatives import draw_negatives
from reasonrec_fast.data.split import Split, checked_split, sample_of_users, split_by_time
from reasonrec_fast.data.tables import TableLike, as_interactions
from reasonrec_fast.devices import fork_rng, resolve_device, seed_rng
from reasonrec_fast.early_exit.depth_zero import DepthZero
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.ranker import EarlyExitRanker
from reasonrec_fast.lm.adapters import AdapterMerger
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.models.optirag import storage, training
from reasonrec_fast.models.optirag.boosted import BoostedEvidence
from reasonrec_fast.models.optirag.calibration import Calibration, ExitScores, calibrate, check_promise, log_odds
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.dataset import RequestBuilder, Requests, TrainingEvidence
from reasonrec_fast.models.optirag.evidence import DENSE_FEATURES
from reasonrec_fast.models.optirag.instructions import instruction_requests
from reasonrec_fast.models.optirag.knowledge import Asked, Knowledge
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.template import AUTO, Template, template_for
from reasonrec_fast.models.optirag.text_retrieval import item_vectors
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.pretrained import PushToHub
from reasonrec_fast.prompts.tokens import TokenIds
from reasonrec_fast.training.progress import NO_METRICS, Progress, named_part

_logger = logging.getLogger("reasonrec_fast")
_REQUESTS = 4096  # whose prompts are in memory at a time
BATCH_TOKENS = 4096
"""Most tokens of a batch, but for a prefix that is longer with one suffix."""


@dataclass(frozen=True)
class Predictions:
    """Scores of ``N`` requests.

    Attributes:
        probability: of a like, float32 ``[N]``.
        depth: layers read, int64 ``[N]``; 0 where the boosted trees answered.
    """

    probability: np.ndarray
    depth: np.ndarray


def _ignore(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
    """In place of ``progress`` that nobody gave."""


class OptiRAG(PushToHub):
    """CTR prediction by retrieved evidence, a language model and early exit.

    Make one with ``OptiRAG(config).fit(events, split.train, split.validation)`` or :meth:`from_pretrained`.

    The language model computes in the type that its device is fastest in. The retriever trains on the device too; what
    it found, and evidence and prompts, are made on the host.

    Args:
        config: settings.
        device: where the model lives; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not there.
    """

    config_type: ClassVar[type] = OptiRAGConfig
    ranks_all_items: bool = False

    def __init__(self, config: OptiRAGConfig | None = None, *, device: torch.device | str | None = None) -> None:
        self.config = config or OptiRAGConfig()
        device = resolve_device(device)
        # Adapters and heads are drawn on the CPU, alike for every device; then all of it moves.
        language_model, self.tokenizer = load_language_model(self.config.backbone, fast_dtype(device), device="cpu")
        lora = LoraConfig(r=self.config.lora_rank, lora_alpha=self.config.lora_alpha, target_modules="all-linear")
        backbone = Decoder(language_model)
        if self.config.layers is not None:
            backbone.keep_layers(self.config.layers)
        cpu = torch.device("cpu")
        with fork_rng(cpu):
            seed_rng(self.config.seed, cpu)
            with warnings.catch_warnings():
                # peft asks transformers by a name that is being replaced.
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
                self.peft: Any = get_peft_model(language_model, lora)
            seed_rng(self.config.seed, cpu)
            model = EarlyExitModel(
                backbone,
                self.config.exits,
                num_features=len(DENSE_FEATURES) if self.config.read_dense_features else 0,
                ensemble_size=self.config.ensemble_size,
                offset=self.config.stands_on_trees,
            )
        self.peft.to(device)
        self.ranker = EarlyExitRanker(model, self.tokenizer, max_tokens=BATCH_TOKENS, device=device)
        self.mean = np.zeros(len(DENSE_FEATURES), dtype=np.float32)
        self.scale = np.ones(len(DENSE_FEATURES), dtype=np.float32)
        self.booster: BoostedEvidence | None = None
        self.num_trees: int | None = None
        self.depth_zero: DepthZero | None = None
        self.platt: dict[str, tuple[float, float]] = {}
        self.knowledge: Knowledge | None = None
        self._ids = TokenIds(self.tokenizer)
        self.template = None if self.config.template == AUTO else Template.load(self.config.template)
        self.adapters = AdapterMerger(self.peft)
        self.fitted_events = np.zeros(0, dtype=np.uint64)

    @property
    def device(self) -> torch.device:
        return self.ranker.device

    @property
    def policy(self) -> ExitPolicy | None:
        """When requests leave: that of the ranker."""
        return self.ranker.policy

    def to(self, device: torch.device | str) -> OptiRAG:
        """Move the model. The language model's weights take the type that the new device is fastest in: rounded on the
        way to bfloat16, and what was rounded stays so.

        Raises:
            ValueError: a device that is not there.
        """
        device = resolve_device(device)
        old, new = self.ranker.model.backbone.dtype, fast_dtype(device)
        if old != new:  # else they stay as they are: what is taken out again is rounded
            with self.adapters.unmerged():  # adapters are float32, and stay so
                for name, parameter in self.peft.named_parameters():
                    if parameter.dtype == old and "lora_" not in name:
                        parameter.data = parameter.data.to(new)
        self.peft.to(device)
        self.ranker.to(device)
        return self

    # Fitting

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        """Find before any work that rows ``train`` teach the model nothing.

        Raises:
            ValueError: one class alone, and not likes.
        """
        labels = set(np.unique(data.labels[train]).tolist())
        if labels not in ({0, 1}, {1}):
            raise ValueError(f"train: expected events of both labels, or likes alone; got labels {sorted(labels)}")

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
        same part are drawn and taken for not liked; no prompt tells of them.

        Args:
            data: every event, or a DataFrame or a file of them.
            train, validation: rows; by default the parts of :func:`~reasonrec_fast.data.split_by_time`, by each user's
                time.
            checkpoint: file of the training state; a run that was killed goes on from it.
            progress: is told of every part: ``"retriever"``, ``"requests"`` (evidence and prompts), ``"training"``
                (every step and its loss) and ``"calibration"``.

        Raises:
            TypeError: a split in place of rows.
            ValueError: one of the two parts alone, a part without events, or with one class alone while the other has
                both, or too few users in validation for ``config.max_disagreement`` (see
                :func:`~reasonrec_fast.models.optirag.calibration.check_promise`).
        """
        interactions = as_interactions(data)
        split = _split_of(interactions, train, validation)
        parts_of = {"train": split.train, "validation": split.validation}
        labels = {name: set(np.unique(interactions.labels[rows]).tolist()) for name, rows in parts_of.items()}
        implicit = labels == {"train": {1}, "validation": {1}}
        for name in () if implicit else parts_of:
            if labels[name] != {0, 1}:
                raise ValueError(
                    f"{name}: expected both classes, or likes alone in train and validation; got labels "
                    f"{sorted(labels[name])}"
                )
        known_by = {"train": split.train, "validation": np.union1d(split.train, split.validation)}
        drawn = [
            draw_negatives(interactions, rows if implicit else rows[:0], known_by[name], self.config.seed + number)
            for number, (name, rows) in enumerate(parts_of.items())
        ]
        if implicit:
            _logger.info("events are likes alone: %d items that their users have not had are drawn as dislikes",
                         sum(map(len, drawn)))  # fmt: skip
        self.template = template_for(self.config.template, interactions.take(split.train))
        self._tell_what_prompts_read(interactions.catalog)
        report = progress or _ignore
        report(0, 1, NO_METRICS, "retriever")
        self._train_retriever(interactions, split.train)
        known = self._known()
        report(0, 1, NO_METRICS, "requests")
        # What is drawn for validation has no label in the table, so that it is nobody's history.
        table, places = joined(interactions, drawn[1])
        builder = self._builder(table, places[0][split.train])
        held_out = np.sort(np.concatenate([places[0][split.validation], places[1]]))
        # One half of the users trains depth 0, and tempers the heads that a promise is made of.
        promise = self.config.max_disagreement is not None
        size = self.config.calibration_requests * (2 if self.config.stands_on_trees or promise else 1)
        chosen = _of_both_labels(table, held_out, size, self.config.seed)
        check_promise(np.maximum(table.labels[chosen], 0), table.users[chosen], self.config)
        training = builder.training_evidence(drawn[0] if implicit else None)
        if self.config.stands_on_trees:
            self.booster = builder.booster = BoostedEvidence.fit(
                training.evidence, training.labels, builder.visible_evidence(held_out),
                np.maximum(table.labels[held_out], 0), seed=self.config.seed,
            )  # fmt: skip
            self.num_trees = self.booster.num_trees
        identity = {"events": interactions.digest(), "train": known.events.digest()}
        self._train(builder.training_requests(training), identity, checkpoint, named_part(progress, "training"))
        report(0, 1, NO_METRICS, "calibration")
        self.calibrate(*self._calibration_requests(builder, chosen), progress=named_part(progress, "calibration"))
        self.fitted_events = interactions.keys(np.concatenate([split.train, split.validation]))
        return self

    def _calibration_requests(
        self, builder: RequestBuilder, rows: np.ndarray
    ) -> tuple[tuple[Requests, np.ndarray], tuple[Requests, np.ndarray]]:
        """Validation requests as they are, and some as if nobody had rated their items; each with their users."""
        table = builder.interactions
        fewer = _of_both_labels(table, rows, max(self.config.calibration_requests // 2, 1), self.config.seed)
        return (
            (_disliked(builder.requests(rows)), table.users[rows]),
            (_disliked(builder.requests(fewer, unrated=True)), table.users[fewer]),
        )

    def _tell_what_prompts_read(self, catalog: Catalog) -> None:
        assert self.template is not None
        read = [name for name in self.template.attributes if name in catalog.attributes]
        unread = [name for name in catalog.attributes if name not in read]
        _logger.info("prompts tell of an item its title%s", "".join(f", {name}" for name in read))
        if unread:
            _logger.warning("no prompt reads the attributes %s", ", ".join(unread))
        if all(title == item for title, item in zip(catalog.titles, catalog.ids, strict=True)):
            _logger.warning(
                "no item has a title: the language model reads identifiers, which tell it nothing; give a table of the "
                "items with a column 'title'"
            )

    def fit_instructions(
        self,
        records: Sequence[Instruction],
        validation: Sequence[Instruction],
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> OptiRAG:
        """Train the adapters and the heads on instruction records, and calibrate on others.

        Args:
            records, validation: questions answered with yes or no.
            checkpoint, progress: as in :meth:`fit`; there is no retriever.

        Raises:
            ValueError: ``config.read_dense_features`` (records have none), or one class alone.
        """
        if self.config.read_dense_features:
            raise ValueError(
                "config: expected read_dense_features=False for instructions, which have no numbers; got True"
            )
        for name, part in (("records", records), ("validation", validation)):
            classes = sorted({record.label for record in part})
            if len(classes) != 2:
                raise ValueError(f"{name}: expected both answers; got labels {classes}")
        # Each record is a user of its own.
        check_promise(np.array([record.label for record in validation]), np.arange(len(validation)), self.config)
        report = progress or _ignore
        report(0, 1, NO_METRICS, "requests")
        requests = self.instruction_requests(records)
        self._train(requests, {"records": _digest(records)}, checkpoint, named_part(progress, "training"))
        report(0, 1, NO_METRICS, "calibration")
        held_out = self.instruction_requests(validation), np.arange(len(validation))
        self.calibrate(held_out, progress=named_part(progress, "calibration"))
        return self

    def _train(
        self,
        requests: Requests,
        identity: dict[str, Any],
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        deviation = requests.dense_features.std(0)
        self.mean = requests.dense_features.mean(0)
        self.scale = np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
        with self.adapters.unmerged():
            if self.config.read_dense_features and not self.config.stands_on_trees:
                training.warm_start(
                    self.ranker.model,
                    torch.from_numpy((requests.dense_features - self.mean) / self.scale),
                    torch.from_numpy(requests.labels),
                    self.config.warm_start_steps,
                    self.config.seed,
                )
            training.train(
                self.ranker.model, requests, self.mean, self.scale, self.config, checkpoint=checkpoint,
                progress=progress, fingerprint=identity,
            )  # fmt: skip

    def refit_retriever(self, interactions: Interactions, train_rows: np.ndarray) -> None:
        """Train the retriever and grow the boosted trees, as many as the model was trained with (a minute); remember
        the training events. Adapters, heads and thresholds stay as they are.

        Raises:
            RuntimeError: the model was never trained, so that nothing tells how many trees there are.
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
        self._train_retriever(interactions, rows)
        labels = np.unique(interactions.labels[rows])
        drawn = None
        if labels.tolist() == [1]:
            drawn = draw_negatives(interactions, rows, rows, self.config.seed)
        return self._builder(interactions, rows).training_evidence(drawn)

    def grow_trees(self, training: TrainingEvidence) -> None:
        """The second part of :meth:`refit_retriever`; nothing where the exits do not stand on trees."""
        if self.config.stands_on_trees:
            self.booster = BoostedEvidence.fit(
                training.evidence, training.labels, num_trees=self.num_trees, seed=self.config.seed
            )

    def _train_retriever(self, interactions: Interactions, train_rows: np.ndarray) -> None:
        events = interactions.take(as_rows(train_rows, "train_rows", len(interactions), error=DataError))
        vectors = self._item_vectors(events.catalog)
        retriever = Retriever.train(events, np.arange(len(events)), self.config.retriever, vectors, device=self.device)
        self.knowledge = Knowledge(events, retriever)

    def _builder(self, table: Interactions, train_rows: np.ndarray) -> RequestBuilder:
        """Of a table that holds the training events themselves."""
        known = self._known()
        self.template = self.template or template_for(self.config.template, known.events)
        return RequestBuilder(
            table, train_rows, known.retriever, self._ids, self.config, lambda: self._item_vectors(table.catalog),
            device=self.device, template=self.template, booster=self.booster,
        )  # fmt: skip

    def calibrate(
        self,
        known: tuple[Requests, np.ndarray],
        unrated: tuple[Requests, np.ndarray] | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Scale the heads, teach depth 0 and choose the exit thresholds; see :func:`calibration.calibrate`.

        Args:
            known: validation requests, and the user of each ``[N]``.
            unrated: validation requests with their items shown as if nobody had rated them, and the users.
            progress: is told how many requests are scored.
        """
        done, total = 0, len(known[0].rows) + (0 if unrated is None else len(unrated[0].rows))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        scores = self.exit_scores(*known, progress=advance)
        hidden = None if unrated is None else self.exit_scores(*unrated, progress=advance)
        self.use(calibrate(scores, hidden, self.ranker.model.depths, self.config))

    def use(self, calibration: Calibration) -> None:
        """Take temperatures, scales, depth 0, thresholds and Platt scaling of a calibration."""
        self._set_heads(calibration.temperatures, calibration.scales)
        self.depth_zero, self.platt = calibration.depth_zero, calibration.platt
        self.ranker.policy = calibration.policy

    def exit_scores(
        self, requests: Requests, users: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> ExitScores:
        """What calibration reads of requests and their users ``[N]``; temperatures and scales are 1 from here on."""
        self._set_heads()
        return ExitScores(
            self.exit_odds(requests, progress), requests.labels, users, requests.cold, requests.offset,
            requests.features,
        )  # fmt: skip

    def _set_heads(self, temperatures: Sequence[float] = (), scales: Sequence[float] = ()) -> None:
        """Temperatures and scales of the heads; 1 where none are given."""
        for index, head in enumerate(self.ranker.model.heads):
            head.temperature.fill_(temperatures[index] if temperatures else 1.0)
            if head.offset:
                head.scale.fill_(scales[index] if scales else 1.0)

    def exit_odds(self, requests: Requests, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Logits of yes of every ensemble member at every head, float64 ``[E, N, K]``, at the present temperatures."""
        slates = requests.slates
        if not slates:
            return np.empty((len(self.ranker.model.exits), 0, self.config.ensemble_size))
        batch = requests.batch(slates, self.mean, self.scale)
        with self.adapters.merged():
            logits = self.ranker.exit_logits(batch.groups, batch.inputs, progress)
        ordered = np.empty_like(logits)
        ordered[:, np.concatenate([slate.rows for slate in slates])] = logits
        return ordered

    # Predicting

    def requests(self, interactions: Interactions, rows: np.ndarray | None = None, *, alone: bool = True) -> Requests:
        """Evidence and prompts of requests.

        Args:
            interactions: requests and what the users did before them; users and items are matched with those of
                training by their identifiers, and may be new.
            rows: which rows are requests; all unlabelled ones by default.
            alone: requests of one user and one moment share the beginning of their prompt, and no score depends on
                another request. False: those of one user share it, as in training, whatever their moments; it tells
                what was known before the first, and is read once.
        """
        rows = _rows(interactions, rows)
        asked = self._known().asked(interactions, rows)
        return self._asking(asked).requests(asked.rows, alone=alone)

    def request_builder(self, interactions: Interactions) -> tuple[RequestBuilder, np.ndarray]:
        """What :meth:`requests` prepares once for a table: a builder, and the place of each row in its table.

        Raises:
            RuntimeError: the model has no retriever yet, or no trees.
        """
        asked = self._known().asked(interactions, np.arange(len(interactions)))
        return self._asking(asked), asked.rows

    def _asking(self, asked: Asked) -> RequestBuilder:
        known = self._known()
        if self.config.stands_on_trees and self.booster is None:
            raise RuntimeError("the model has no boosted trees yet; call fit, refit_retriever or grow_trees")
        template = self.template = self.template or template_for(self.config.template, known.events)
        return RequestBuilder(
            asked.table, None, known.retriever, self._ids, self.config,
            lambda: self._item_vectors(known.events.catalog), device=self.device,
            index=known.index(template.taste_attribute), ticks=asked.ticks, template=template, booster=self.booster,
        )  # fmt: skip

    def instruction_requests(self, records: Sequence[Instruction]) -> Requests:
        """Prompts of instruction records."""
        return instruction_requests(records, self.tokenizer, self.config)

    def predict(
        self,
        requests: Requests,
        *,
        early_exit: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """Probabilities of a like, in the order of ``requests.rows``. Any number of threads may call it: they share
        batches.

        Args:
            requests: from :meth:`requests`.
            early_exit: False reads every layer.
            progress: is told how many requests were just scored.
        """
        probability = np.empty(len(requests.rows), dtype=np.float32)
        depth = np.zeros(len(requests.rows), dtype=np.int64)
        leaves = self._leaves_at_zero(requests) if early_exit else np.zeros(len(requests.rows), dtype=bool)
        if leaves.any():
            assert self.depth_zero is not None and requests.offset is not None and requests.features is not None
            logits = self.depth_zero.logits(requests.features[leaves], requests.offset[leaves])
            probability[leaves] = 1 / (1 + np.exp(-logits))
        if progress is not None and leaves.any():
            progress(int(leaves.sum()))
        slates = requests.slates if not leaves.any() else requests.prompts(np.flatnonzero(~leaves))
        if slates:
            batch = requests.batch(slates, self.mean, self.scale)
            inputs = batch.inputs if self.config.read_dense_features else replace(batch.inputs, features=None)
            with self.adapters.merged():
                ranked = self.ranker.predict_groups(batch.groups, inputs, early_exit=early_exit, progress=progress)
            rows = np.concatenate([slate.rows for slate in slates])
            probability[rows], depth[rows] = ranked.probability.numpy(), ranked.depth.numpy()
        return Predictions(probability, depth)

    def _leaves_at_zero(self, requests: Requests) -> np.ndarray:
        """Which requests are answered from their features alone, bool ``[N]``: no prompt is written of them."""
        if self.policy is None or self.depth_zero is None or requests.features is None:
            return np.zeros(len(requests.rows), dtype=bool)
        return self.policy.leaves_at_zero(-self.depth_zero.gain(requests.features), requests.cold.astype(np.int64))

    def predict_rows(
        self,
        interactions: Interactions,
        rows: np.ndarray | None = None,
        *,
        early_exit: bool = True,
        alone: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """:meth:`requests` and :meth:`predict` of some requests at a time, so that memory does not grow with them;
        those of a user are scored together where they share the beginning of their prompts.

        Args:
            interactions, rows, alone: as in :meth:`requests`.
            early_exit, progress: as in :meth:`predict`.

        Returns:
            predictions in the order of ``rows``.
        """
        rows = _rows(interactions, rows)
        probability = np.empty(len(rows), dtype=np.float32)
        depth = np.empty(len(rows), dtype=np.int64)
        for places in _some_at_a_time(interactions.users[rows], whole_users=not alone):
            found = self.predict(
                self.requests(interactions, rows[places], alone=alone), early_exit=early_exit, progress=progress
            )
            probability[places], depth[places] = found.probability, found.depth
        return Predictions(probability, depth)

    def score_events(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """Logits of events as of their own moments, float64 ``[N]`` in the order of ``rows``: evidence, and whoever
        goes on through the language model."""
        return log_odds(self.predict_rows(data, rows).probability.astype(np.float64))

    def like_of(self, columns: Container[str], given: float | None = None) -> float | None:
        """From which rating on the rows of a table with some columns are likes: as in training, or as given.

        Raises:
            ValueError: ratings, where the model was trained on labels and nothing is given.
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

        A user's requests share the beginning of their prompts (see :meth:`requests`), as in training.

        Of likes alone, and a model that was trained on likes alone, each has a drawn item beside it (see :meth:`fit`).

        Raises:
            DataError: no rows of the table, or one without a label.
        """
        rows = _rows(interactions, rows)
        unlabelled = np.flatnonzero(interactions.labels[rows] == UNLABELLED)
        if len(unlabelled):
            raise DataError(f"rows: expected events with a label; got {rows[unlabelled[0]]} in row {unlabelled[0]}")
        events = self._known().events
        check_like(interactions, events.like)
        table, asked = interactions, rows
        if len(rows) and (interactions.labels[rows] == 1).all() and (events.labels == 1).all():
            drawn = draw_negatives(interactions, rows, np.arange(len(interactions)), self.config.seed + 2)
            table, places = joined(interactions, drawn)
            asked = np.sort(np.concatenate([places[0][rows], places[1]]))
        found = self.predict_rows(table, asked, early_exit=early_exit, alone=False)
        labels, users = np.maximum(table.labels[asked], 0), table.users[asked]
        rated = set(np.unique(events.items).tolist())
        known = {name: place for place, name in enumerate(events.catalog.ids)}
        unrated = np.array([known.get(table.catalog.ids[item]) not in rated for item in table.items[asked]], dtype=bool)
        return {
            "auc": evaluation.auc(labels, found.probability),
            "gauc": evaluation.gauc(labels, found.probability, users),
            "gauc_unrated": evaluation.gauc(labels[unrated], found.probability[unrated], users[unrated]),
            "mean_depth": _mean(found.depth),
        }

    def evaluate_instructions(self, records: Sequence[Instruction], *, early_exit: bool = True) -> dict[str, float]:
        """AUC and mean depth on instruction records."""
        requests = self.instruction_requests(records)
        found = self.predict(requests, early_exit=early_exit)
        return {"auc": evaluation.auc(requests.labels, found.probability), "mean_depth": _mean(found.depth)}

    # Storing

    def save_pretrained(self, folder: str | Path, *, knowledge: bool = True) -> None:
        """Write the model as safetensors and JSON.

        Args:
            folder: is made where it is not there.
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
        )

    def load_adapters(self, folder: str | Path) -> OptiRAG:
        """Take the adapters of a saved model, to train exits on top of it; heads and settings stay.

        Raises:
            FileNotFoundError: there are none in the folder.
            ValueError: they do not fit this backbone and rank.
        """
        adapter = storage.saved_adapter(Path(folder))
        with self.adapters.unmerged():
            storage.copy_weights(dict(self.peft.named_parameters()), adapter, "adapters")
        return self

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
        """Read what :meth:`save_pretrained` wrote, on whatever device the model was then.

        Args:
            folder: the model, or a repository of the Hugging Face hub (``"user/repository"``).
            backbone: where the language model lies, if not where the configuration says.
            device: where the model lives; by default the GPU where there is one.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: the folder holds another architecture, weights that do not fit the backbone, or a device that is
                not there.
        """

        def read(stored: storage.Stored) -> OptiRAG:
            config = stored.config if backbone is None else replace(stored.config, backbone=backbone)
            model = cls(config, device=device)
            storage.copy_weights(dict(model.peft.named_parameters()), stored.adapter, "adapter")
            storage.copy_weights(model.ranker.model.heads.state_dict(), stored.heads, "heads")
            model.mean, model.scale, model.platt = stored.mean, stored.scale, dict(stored.platt)
            model.ranker.policy, model.depth_zero = stored.policy, stored.depth_zero
            model.num_trees, model.booster, model.knowledge = stored.num_trees, stored.booster, stored.knowledge
            model.template = stored.template or model.template
            return model

        return storage.load(folder, read, revision=revision, token=token)

    def _known(self) -> Knowledge:
        if self.knowledge is None:
            raise RuntimeError("the model has no retriever yet; call fit or refit_retriever")
        return self.knowledge

    def _item_vectors(self, catalog: Catalog) -> torch.Tensor | None:
        return item_vectors(catalog, device=self.device) if self.config.retrieval == "text" else None


def _split_of(interactions: Interactions, train: Any, validation: Any) -> Split:
    """The parts to learn from; of the test part nothing is read."""
    if isinstance(train, Split):
        raise TypeError("train: expected rows; got a Split: give split.train, split.validation")
    if (train is None) != (validation is None):
        missing = "train" if train is None else "validation"
        raise ValueError(f"{missing}: expected rows, as the other part has some; got None")
    if train is None:
        return split_by_time(interactions)
    return checked_split(interactions, Split(train, validation, np.zeros(0, dtype=np.int64)))


def _some_at_a_time(users: np.ndarray, *, whole_users: bool) -> Iterator[np.ndarray]:
    """Places of about :data:`_REQUESTS` requests, by user; all of a user's together where these are wanted whole."""
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(users[order])) + 1 if whole_users else np.arange(_REQUESTS, len(users), _REQUESTS)
    ends = np.append(starts, len(users))
    first = 0
    for end in ends.tolist():
        if end - first >= _REQUESTS or end == len(users):
            if end > first:
                yield order[first:end]
            first = end


def _digest(records: Sequence[Instruction]) -> str:
    """Equal for equal records in the same order alone."""
    told = json.dumps([[record.instruction, record.input, record.label] for record in records])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _rows(interactions: Interactions, rows: np.ndarray | None) -> np.ndarray:
    """Rows of requests, in the order in which they were asked; by default all that are unlabelled."""
    if rows is None:
        return np.flatnonzero(interactions.labels == UNLABELLED)
    return as_index(rows, "rows", len(interactions), error=DataError)


def _of_both_labels(table: Interactions, rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Some of the rows, of whole users; more of them where one label is rare, for scores of one alone scale nothing."""
    while True:
        found = sample_of_users(table, rows, size, seed)
        if len(found) == len(rows) or len(np.unique(np.maximum(table.labels[found], 0))) > 1:
            return found
        size *= 2


def _mean(depth: np.ndarray) -> float:
    return float(depth.mean()) if len(depth) else float("nan")


def _disliked(requests: Requests) -> Requests:
    """With those that have no label as not liked: they were drawn."""
    return replace(requests, labels=np.maximum(requests.labels, 0))
