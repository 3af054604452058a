"""A gradient-boosted classifier over evidence as of the moment and the logits of cheap tools: clicks without a language
model, and the exit at depth 0 of OptiRAG-Rec."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from reasonrec_fast.arrays import as_rows
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import UNLABELLED, Catalog, Interactions, joined
from reasonrec_fast.data.tables import TableLike, as_interactions
from reasonrec_fast.devices import resolve_device
from reasonrec_fast.files import read_tensors, write_tensors
from reasonrec_fast.models.classical.stack_tools import ModelTool, ToolSpec, fit_tool, read_tools, write_tools
from reasonrec_fast.models.item_texts import item_vectors
from reasonrec_fast.models.optirag.boosted import BoostedEvidence
from reasonrec_fast.models.optirag.evidence import Evidence
from reasonrec_fast.models.optirag.evidence_source import EvidenceSource, TrainingEvidence
from reasonrec_fast.models.optirag.item_tastes import ItemTastes
from reasonrec_fast.models.optirag.knowledge import KNOWLEDGE_FILES, Knowledge
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.rows import check_learnable, fit_rows, request_rows, user_chunks
from reasonrec_fast.models.optirag.stack_config import CTRStackConfig
from reasonrec_fast.models.optirag.stack_state import FitState
from reasonrec_fast.models.optirag.stack_tools import (
    Learnt,
    RequestFunction,
    function_logits,
    model_logits,
    prequential_logits,
    time_blocks,
    training_function_logits,
)
from reasonrec_fast.models.optirag.template import AUTO, template_for
from reasonrec_fast.pretrained import PushToHub, load_folder, save_folder
from reasonrec_fast.settings import settings_from
from reasonrec_fast.training.progress import NO_METRICS, Progress

_logger = logging.getLogger("reasonrec_fast")

ARCHITECTURE, FORMAT = "CTRStack", 1
_TREES, _FITTED_EVENTS, _TOOLS = "booster.txt", "fitted_events.safetensors", "tools"


class CTRStack(PushToHub):
    """Boosted trees on evidence of what happened strictly before a request, and on logits of tools.

    A tool's logit of a training request comes from a model that was fitted on earlier blocks of time alone; for other
    requests it is fitted on all training events. Validation stops the trees, and nothing else reads it.

    Args:
        config: settings.
        device: of the retriever and the tools while they train; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not available.

    >>> from reasonrec_fast.data import split_by_time
    >>> from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
    >>> users = [f"u{number}" for number in range(20) for _ in range(10)]
    >>> items = [f"i{(number * (step + 1)) % 7}" for number in range(20) for step in range(10)]
    >>> labels = [(number + step) % 3 > 0 for number in range(20) for step in range(10)]
    >>> data = Interactions.from_columns(users, items, labels, range(200))
    >>> split = split_by_time(data)
    >>> retriever = EmbeddingConfig(dim=4, steps=2, batch=32)
    >>> config = CTRStackConfig(tools=("Bias",), folds=2, retriever=retriever)
    >>> stack = CTRStack(config).fit(data, split.train, split.validation)
    >>> stack.score_events(data, split.test).shape
    (40,)
    """

    config_type: ClassVar[type] = CTRStackConfig

    def __init__(self, config: CTRStackConfig | None = None, *, device: torch.device | str | None = None) -> None:
        self.config = CTRStackConfig() if config is None else config
        if not isinstance(self.config, CTRStackConfig):
            raise TypeError(f"config: expected a CTRStackConfig; got {type(self.config).__name__}")
        self.device = resolve_device(device)
        self.knowledge: Knowledge | None = None
        self.booster: BoostedEvidence | None = None
        self.fitted_events = np.zeros(0, dtype=np.uint64)
        self.attribute = self.config.attribute
        self._models: list[ModelTool] = []
        self._functions: dict[str, RequestFunction | None] = {}
        self._tastes: tuple[Knowledge, ItemTastes] | None = None
        self._learnt_by: tuple[list[ModelTool], list[Learnt]] | None = None

    # Tools

    def add_tool(self, name: str, function: RequestFunction) -> CTRStack:
        """Add a tool before the stack is fitted, or give a loaded stack the function it was fitted with.

        Args:
            name: of the tool.
            function: from ``N`` requests (a table in time order without labels) and the items that the user of each
                liked strictly before it (:class:`~reasonrec_fast.data.Histories`) to finite logits ``[N]``. It must not
                have learnt from the training events or later ones: the blocks of time cannot take from it what it
                knows. Each logit is of its own request alone, and always the same.

        Raises:
            TypeError: not callable, or a name that is no text.
            ValueError: a name that another tool has, or, of a stack that is fitted, one that it was not fitted with.
        """
        if not isinstance(name, str):
            raise TypeError(f"name: expected text; got {name!r}")
        if not callable(function):
            raise TypeError(f"tool {name}: expected a function; got {type(function).__name__}")
        if self.booster is None and (name in self._functions or name in [spec.name for spec in self.config.specs]):
            raise ValueError(f"name: expected one that no other tool has; got {name!r}")
        if self.booster is not None and name not in self._functions:
            names = ", ".join(self._functions) or "none"
            raise ValueError(f"name: expected a function that the stack was fitted with ({names}); got {name!r}")
        self._functions[name] = function
        return self

    def _given_functions(self) -> list[tuple[str, RequestFunction]]:
        given = []
        for name, function in self._functions.items():
            if function is None:
                raise DataError(f"tools: {name}: a function is not saved with the stack; give it to add_tool")
            given.append((name, function))
        return given

    # Fitting

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        """Refuse, before any work, training rows that the model can learn nothing from.

        Raises:
            ValueError: dislikes alone, or no labels.
            DataError: events that a tool cannot be fitted on.
        """
        check_learnable(data, train)
        self._carried(data, train)

    def _carried(self, data: Interactions, train: np.ndarray) -> list[ToolSpec]:
        """The models that the data can carry."""
        specs = []
        for spec in self.config.specs:
            try:
                spec.make(self.config.seed, self.device).check_events(data, train)
            except DataError as error:
                if self.config.tools is not None:
                    raise DataError(f"tools: {spec.name}: {error}") from error
                _logger.info("tool %s is left out, as the data cannot carry it: %s", spec.name, error)
            else:
                specs.append(spec)
        return specs

    def fit(
        self,
        data: Interactions | TableLike,
        train: np.ndarray | None = None,
        validation: np.ndarray | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> CTRStack:
        """Fit the retriever, the tools and the trees on the training part; validation stops the trees.

        Where all events are likes, as many items that their users have not had by the end of the same part are drawn
        and count as not liked.

        Args:
            data: every event, or a DataFrame or a file of them.
            train, validation: rows; by default the parts of :func:`~reasonrec_fast.data.split_by_time`.
            checkpoint: beside it a folder ``<checkpoint>.tools`` keeps what is ready until the fit has ended; a fit
                that was killed goes on from it.
            progress: called for every part: ``"retriever"``, ``"evidence"``, each tool, ``"trees"``.

        Raises:
            TypeError: a split in place of rows.
            ValueError: as of :meth:`OptiRAG.fit <reasonrec_fast.models.optirag.OptiRAG.fit>`, or a checkpoint of
                another run.
            DataError: a tool that fails, or a function whose logits depend on other requests.
        """
        interactions = as_interactions(data)
        rows = fit_rows(interactions, train, validation, self.config.seed)
        self.check_events(interactions, rows.train)
        if rows.implicit:
            _logger.info("events are likes alone: %d items that their users have not had are drawn as dislikes",
                         len(rows.train_negatives) + len(rows.validation_negatives))  # fmt: skip
        for name, function in self._given_functions():  # before what takes minutes
            function_logits(name, function, interactions, rows.train[:2])
        state = FitState(
            checkpoint,
            {"config": asdict(self.config), "events": interactions.digest(), "functions": list(self._functions),
             "rows": [interactions.take(part).digest() for part in (rows.train, rows.validation)]},
        )  # fmt: skip

        def tell(part: str) -> None:
            if progress is not None:
                progress(0, 1, NO_METRICS, part)

        tell("retriever")
        self.booster, self.attribute = None, self.config.attribute
        self.train_retriever(interactions, rows.train)
        # Negatives of validation have no label in the table, so that they are in nobody's history.
        table, (event_rows, negative_rows) = joined(interactions, rows.validation_negatives)
        held_out = np.sort(np.concatenate([event_rows[rows.validation], negative_rows]))
        tell("evidence")
        source = self._source(table)
        training = source.training_evidence(rows.train_negatives if rows.implicit else None, keep=state.keep)
        columns = self._fit_tools(training.table, state, progress)
        tell("trees")
        self.grow_trees(
            replace(training, evidence=training.evidence.with_columns(columns)),
            self._visible(source, held_out),
            np.maximum(table.labels[held_out], 0),
        )
        self.fitted_events = interactions.keys(np.concatenate([rows.train, rows.validation]))
        state.close()
        return self

    def train_retriever(self, interactions: Interactions, train_rows: np.ndarray) -> None:
        """Remember the training events, and train the retriever on them."""
        events = interactions.take(as_rows(train_rows, "train_rows", len(interactions), error=DataError))
        vectors = self.item_vectors(events.catalog)
        retriever = Retriever.train(events, np.arange(len(events)), self.config.retriever, vectors, device=self.device)
        self.knowledge = Knowledge(events, retriever)

    def _fit_tools(self, table: Interactions, state: FitState, progress: Progress | None) -> np.ndarray:
        """Fit the models for serving, and give the logits of the training requests ``[N, T]``."""
        config, blocks = self.config, time_blocks(table, self.config.blocks, self.config.block_time)
        columns, self._models = [np.zeros((len(table), 0), dtype=np.float32)], []
        for name, function in self._given_functions():
            columns.append(training_function_logits(name, function, table)[:, None])
        labelled = np.flatnonzero(table.labels != UNLABELLED)
        for spec in self._carried(table, labelled):
            options: dict[str, Any] = {"seed": config.seed, "device": self.device, "progress": progress}
            columns.append(prequential_logits(spec, table, blocks, folder=state.folder, **options)[:, None])
            folder = None if state.folder is None else state.folder / spec.name
            self._models.append(fit_tool(spec, table, labelled, None, folder=folder, **options))
        return np.concatenate(columns, axis=1)

    def grow_trees(
        self,
        training: TrainingEvidence,
        validation: Evidence | None = None,
        validation_labels: np.ndarray | None = None,
        *,
        num_trees: int | None = None,
    ) -> BoostedEvidence:
        """Grow the trees; see :meth:`~reasonrec_fast.models.optirag.boosted.BoostedEvidence.fit`."""
        self.booster = BoostedEvidence.fit(
            training.evidence, training.labels, validation, validation_labels, num_trees=num_trees,
            seed=self.config.seed, ensemble_size=self.config.ensemble_size,
        )  # fmt: skip
        return self.booster

    # Scoring

    def request_source(self, interactions: Interactions) -> tuple[EvidenceSource, np.ndarray]:
        """What :meth:`score_events` prepares once for a table: where evidence comes from, and the index of each row in
        its table, int64 ``[N]``; for :meth:`score_requests`."""
        return self._matched_source(interactions, np.arange(len(interactions)))

    def score_requests(self, source: EvidenceSource, rows: np.ndarray) -> np.ndarray:
        """Logits of a like, float64 ``[N]``, of rows of a source's table.

        Raises:
            RuntimeError: the stack is not fitted.
            DataError: a function that fails, or that a loaded stack was not given.
        """
        return self._fitted_booster().logits(self._visible(source, rows))

    def score_events(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """Logits of a like, float64 ``[N]`` in the order of ``rows``, each as of its own moment.

        Users and items are matched with those of training by their identifiers, and may be new: tools have no logit of
        these.

        Args:
            data: requests and what their users did before.
            rows: of the requests.

        Raises:
            RuntimeError: the stack is not fitted.
            DataError: no rows of the table, or a function that fails or that a loaded stack was not given.
        """
        self._fitted_booster()
        rows = request_rows(data, rows)
        logits = np.empty(len(rows))
        for chunk in user_chunks(data.users[rows], whole_users=False):
            logits[chunk] = self.score_requests(*self._matched_source(data, rows[chunk]))
        return logits

    def predict_rows(self, interactions: Interactions, rows: np.ndarray | None = None) -> np.ndarray:
        """Probabilities of a like, float32 ``[N]``; of all rows without a label by default (:meth:`score_events`)."""
        logits = self.score_events(interactions, request_rows(interactions, rows))
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def _visible(self, source: EvidenceSource, rows: np.ndarray) -> Evidence:
        """Evidence of requests with the tools' logits."""
        evidence, table = source.visible_evidence(rows), source.interactions
        columns = [function_logits(name, function, table, rows) for name, function in self._given_functions()]
        users, items = table.users[rows], table.items[rows]
        columns += [
            model_logits(tool, learnt, users, items) for tool, learnt in zip(self._models, self._learnt, strict=True)
        ]
        return evidence.with_columns(np.stack(columns, axis=1)) if columns else evidence

    def _matched_source(self, data: Interactions, rows: np.ndarray) -> tuple[EvidenceSource, np.ndarray]:
        matched = self.fitted_knowledge().match(data, rows)
        return self._source(matched.table, matched.ticks), matched.rows

    def _source(self, table: Interactions, ticks: int = 1) -> EvidenceSource:
        knowledge = self.fitted_knowledge()
        if self.attribute is None:
            self.attribute = template_for(AUTO, knowledge.events).taste_attribute
        return EvidenceSource(
            table, knowledge.index(self.attribute), self.config, lambda: self.item_vectors(knowledge.events.catalog),
            device=self.device, ticks=ticks, tastes=self.tastes,
        )  # fmt: skip

    @property
    def _learnt(self) -> list[Learnt]:
        """What each model learnt of, counted once."""
        if self._learnt_by is None or self._learnt_by[0] is not self._models:
            self._learnt_by = self._models, [Learnt.by(tool) for tool in self._models]
        return self._learnt_by[1]

    @property
    def tastes(self) -> ItemTastes | None:
        """What the trees read beside the evidence, made once for the training events; None without
        ``config.tastes``."""
        knowledge = self.fitted_knowledge()
        if self.config.tastes and (self._tastes is None or self._tastes[0] is not knowledge):
            index = knowledge.index(self.attribute or "")
            self._tastes = knowledge, ItemTastes(index, np.arange(len(knowledge.events)))
        return None if self._tastes is None else self._tastes[1]

    def item_vectors(self, catalog: Catalog) -> torch.Tensor | None:
        """Embeddings of the items' texts, for retrieval by text."""
        return item_vectors(catalog, device=self.device) if self.config.retrieval == "text" else None

    def fitted_knowledge(self) -> Knowledge:
        """The training events and the retriever.

        Raises:
            RuntimeError: there are none yet.
        """
        if self.knowledge is None:
            raise RuntimeError("the model has no retriever yet; call fit or refit_retriever")
        return self.knowledge

    def _fitted_booster(self) -> BoostedEvidence:
        if self.booster is None:
            raise RuntimeError("the stack is not fitted yet; call fit")
        return self.booster

    # Storing

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the stack: events, retriever and tools as safetensors and JSON, the trees as text. Functions are not
        saved.

        Raises:
            RuntimeError: the stack is not fitted; nothing is written.
        """
        self._fitted_booster()
        files = (*KNOWLEDGE_FILES, _TREES, _FITTED_EVENTS, _TOOLS)
        save_folder(folder, ARCHITECTURE, FORMAT, files, self._write)

    def _write(self, folder: Path) -> dict[str, Any]:
        self.fitted_knowledge().save(folder)
        write_tensors(folder / _FITTED_EVENTS, {"keys": torch.from_numpy(self.fitted_events.view(np.int64))})
        return {
            "config": asdict(self.config),
            "attribute": self.attribute,
            "trees": self._fitted_booster().save(folder / _TREES),
            "tools": write_tools(folder / _TOOLS, self._models),
            "functions": list(self._functions),
        }

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> CTRStack:
        """Read what :meth:`save_pretrained` wrote; give functions again to :meth:`add_tool`.

        Args:
            folder: the stack, or a repository of the Hugging Face hub (``"user/repository"``).
            device: of the tools; by default the GPU where there is one.
            revision, token: of the repository.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else, or a part of another model; a device that is not available.
        """

        def read(folder: Path, stored: Mapping[str, Any]) -> CTRStack:
            stack = cls(settings_from(CTRStackConfig, stored["config"], str(folder)), device=device)
            stack.booster = BoostedEvidence.load(folder / _TREES, stored["trees"])
            stack.knowledge = Knowledge.load(folder)
            stack.attribute = stored["attribute"]
            tools = read_tools(folder / _TOOLS, stored["tools"], stack.device)
            stack._models = [tool for tool in tools if isinstance(tool, ModelTool)]
            stack._functions = dict.fromkeys(stored["functions"])
            stack.fitted_events = read_tensors(folder / _FITTED_EVENTS)["keys"].numpy().view(np.uint64)
            return stack

        return load_folder(folder, ARCHITECTURE, FORMAT, read, revision=revision, token=token)
