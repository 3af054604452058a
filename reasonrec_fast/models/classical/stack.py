"""A gradient-boosted ranker over the scores of cheap tools, histories and attributes of items."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.arrays import as_count
from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.early_exit.trees import Trees
from reasonrec_fast.files import read_json, write_json
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.classical.identifiers import is_text
from reasonrec_fast.models.classical.retrieval import Recommendations, Retriever
from reasonrec_fast.models.classical.stack_candidates import Groups, Toolbox
from reasonrec_fast.models.classical.stack_config import StackConfig, StackRanking
from reasonrec_fast.models.classical.stack_folds import first_positives, leave_last_out
from reasonrec_fast.models.classical.stack_items import ItemFacts, read_facts, write_facts
from reasonrec_fast.models.classical.stack_tools import (
    DEFAULT_TOOLS,
    Function,
    FunctionTool,
    Tool,
    ToolSpec,
    check_functions,
    fit_tool,
    read_tools,
    write_tools,
)
from reasonrec_fast.models.classical.stack_trees import Calibration, Growth, fit_trees
from reasonrec_fast.training.progress import Progress

_logger = logging.getLogger("reasonrec_fast")

STACK, TREES, FACTS, TOOLS = "stack.json", "trees.txt", "items.safetensors", "tools"
"""What a saved stack has beside the files of every classical model: settings, trees, facts of items, and a folder in
which each model has its own."""

_USERS = 256  # asked about at a time
_CALIBRATED = 5000  # users, about, whose validation events calibrate the probabilities
_VALUES = 1 << 25  # of features in memory at a time


class Stack(ClassicalRecommender):
    """Orders the union of what its tools nominate by boosted trees.

    The tools whose scores the trees learn from are fitted without each user's last training event, and the trees learn
    to find that event. Validation stops and calibrates the trees; neither they nor the tools learn it, but for the
    epochs of tools that stop by it. Tools are then refitted on all training events, or read the longer histories.

    Args:
        config: hyper-parameters.
        device: of the tools; the trees are on the CPU.

    >>> from reasonrec_fast.data import Interactions
    >>> users = [f"u{number}" for number in range(40) for _ in range(3)]
    >>> items = [f"i{(number * (step + 1)) % 7}" for number in range(40) for step in range(3)]
    >>> data = Interactions.from_columns(users, items, [1] * 120, range(120))
    >>> stack = Stack(StackConfig(tools=("ItemKNN", "Popularity"), trees=5)).fit(data)
    >>> stack.rank(np.array([0]), 2).items.shape
    (1, 2)
    """

    config_type = StackConfig
    config: StackConfig

    def __init__(self, config: Any = None, *, device: torch.device | str | None = None) -> None:
        super().__init__(config, device=device)
        self._functions: dict[str, Function] = {}
        self._toolbox: Toolbox | None = None
        self._trees: Trees | None = None
        self.calibration = Calibration()
        self.validation_loss = float("nan")

    def add_tool(self, name: str, function: Function) -> Stack:
        """Add a tool before the stack is fitted, or give a loaded stack the function it was fitted with.

        Args:
            name: of its features.
            function: from histories of ``B`` users to scores of all items ``[B, I]`` (larger is likelier), or an object
                with such a method ``scores``. It must not know later events than those of the histories that it is
                given: the fold plan cannot take from it what it has learnt.

        Raises:
            ValueError: a name that another tool has, or, of a stack that is fitted, one that it was not fitted with.
            TypeError: not callable.
        """
        tool = FunctionTool(name, function)
        if self._toolbox is None:
            models = [spec.name for spec in self.config.specs] or list(DEFAULT_TOOLS)
            if name in (*self._functions, *models):
                raise ValueError(f"name: expected one that no other tool has; got {name!r}")
        else:
            self._toolbox.replace(tool)
        self._functions[name] = function
        return self

    @property
    def functions(self) -> dict[str, Function]:
        """The functions that :meth:`add_tool` was given, by name."""
        return dict(self._functions)

    @property
    def toolbox(self) -> Toolbox:
        """The fitted tools.

        Raises:
            DataError: a stack that is not fitted.
        """
        self._check_fitted()
        assert self._toolbox is not None
        return self._toolbox

    @property
    def trees(self) -> Trees:
        """The fitted trees.

        Raises:
            DataError: a stack that is not fitted.
        """
        self._check_fitted()
        assert self._trees is not None
        return self._trees

    @property
    def feature_names(self) -> list[str]:
        """Of the columns of the features, ``[F]``."""
        return self.toolbox.feature_names

    def build_parameters(self, sizes: dict[str, int]) -> None:
        """It has none of its own: its tools have theirs."""

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        plan = leave_last_out(data, train)
        if not len(plan.targets):
            raise DataError("train: expected a user with at least two positive events, of which the last is learned")
        self._carried(data, plan.earlier)

    def _carried(self, data: Interactions, rows: np.ndarray) -> list[tuple[ToolSpec, str]]:
        """The models that the data can carry: those that are named, or else the default ones, with the reason against
        each (empty where there is none)."""
        result = []
        for spec in self.config.specs or [ToolSpec.parse(name) for name in DEFAULT_TOOLS]:
            reason = ""
            try:
                spec.make(self.config.seed, self.device).check_events(data, rows)
            except DataError as error:
                if self.config.tools:
                    raise DataError(f"tools: {spec.name}: {error}") from error
                reason = str(error)
            result.append((spec, reason))
        if all(reason for _, reason in result) and not self._functions:
            raise DataError(f"tools: expected one that the data can carry; {result[0][0].name}: {result[0][1]}")
        return result

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        config, plan = self.config, leave_last_out(data, train)
        folder = None if checkpoint is None else Path(f"{checkpoint}.tools")
        functions: list[Tool] = [FunctionTool(name, function) for name, function in self._functions.items()]
        earlier, seen = Histories.of(data, plan.earlier), Histories.seen(data, plan.earlier)
        check_functions(functions, earlier, data.num_items)  # before the models are fitted, which takes longer
        specs = []
        for spec, reason in self._carried(data, plan.earlier):
            if reason:
                _logger.info("tool %s is left out, as the data cannot carry it: %s", spec.name, reason)
            else:
                specs.append(spec)

        def fitted(spec: ToolSpec, rows: np.ndarray, part: str) -> Tool:
            return fit_tool(
                spec, data, rows, validation, seed=config.seed, device=self.device,
                folder=None if folder is None else folder / f"{spec.name}-{part}", progress=progress,
            )  # fmt: skip

        models = [fitted(spec, plan.earlier, "earlier") for spec in specs]
        box = Toolbox(
            [*models, *functions], ItemFacts.of(earlier, data.catalog), nominated=config.candidates,
            depth=config.depth, device=self.device,
        )  # fmt: skip
        box.set_histories(earlier)
        examples = self._groups(box, data, plan.targets, seen, learn=True).examples()
        if examples is None:
            raise DataError("train: expected a user whose last event is among the items that tools nominate; got none")

        liked, seen = Histories.of(data, train), Histories.seen(data, train)
        served = [
            fitted(spec, train, "all") if spec.refit else model for spec, model in zip(specs, models, strict=True)
        ]
        box = box.with_events(liked, [*served, *functions])
        held_out = np.zeros(0, dtype=np.int64) if validation is None else first_positives(data, validation)
        groups = None if not len(held_out) else self._groups(box, data, held_out, seen, learn=False)
        growth = Growth(
            config.trees,
            config.patience,
            config.learning_rate,
            config.leaves,
            config.min_leaf,
            config.seed,
            config.ensemble_size,
        )
        self._trees, self.validation_loss = fit_trees(
            examples, None if groups is None else groups.examples(), growth, box.feature_names
        )
        self.calibration = Calibration() if groups is None else Calibration.fit(*groups.logits(self._trees))
        self._toolbox = box
        _logger.info("%d trees on %d users", self._trees.num_trees, len(examples.sizes))
        self.build({"users": data.num_users, "items": data.num_items})
        self.set_histories(liked, seen=seen)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _groups(self, box: Toolbox, data: Interactions, rows: np.ndarray, seen: Histories, *, learn: bool) -> Groups:
        """Candidates of the users of some events before these, with their features; the events are the targets.

        To ``learn`` from, some tools are taken to be missing, and users whose target is no candidate are left out.
        """
        generator = np.random.default_rng(self.config.seed)
        if len(rows) > self.config.users:
            rows = np.sort(generator.choice(rows, self.config.users, replace=False))
        rows = rows[np.argsort(data.users[rows], kind="stable")]
        # Histories of like lengths together: tools that read sequences pad less.
        rows = rows[np.argsort(box.histories.lengths[data.users[rows]], kind="stable")]
        dropped = generator.random((len(rows), len(box.tools))) < self.config.tool_dropout
        groups = Groups(0 if learn else max(-(-len(rows) // _CALIBRATED), 1))
        for first in range(0, len(rows), _USERS):
            part = rows[first : first + _USERS]
            users = data.users[part]
            gone = dropped[first : first + _USERS] if learn else None
            with torch.inference_mode():
                views = box.views(users, seen.select(users), strict=True, dropped=gone)
                items = box.candidates(views)
                groups.add(items, box.features(items, views), data.items[part])
        return groups

    def set_histories(self, histories: Histories, *, seen: Histories | None = None) -> Stack:
        super().set_histories(histories, seen=seen)
        self.toolbox.set_histories(self.histories)
        return self

    def rank(
        self, users: np.ndarray, k: int, *, exclude: Histories | None = None, strict: bool = False
    ) -> StackRanking:
        """The ``k`` best candidates of each user, with what was known of them.

        Args:
            users: indices or identifiers (text), ``[B]``.
            k: how many, at least 0.
            exclude: items to leave out, of all users; ``seen`` by default.
            strict: wait for every tool, whatever ``tool_seconds`` says, and refuse to rank without one: for what is
                learnt from the ranking.

        Raises:
            DataError: a user that the stack does not know (with the row), or, with ``strict``, a tool that fails.
        """
        users, k = self.user_indices(users), as_count(k, "k", error=DataError)
        exclude = self.seen if exclude is None else self._checked(exclude, "exclude")
        exclude.known(users)
        blocks = [users[first : first + _USERS] for first in range(0, max(len(users), 1), _USERS)]
        parts = [self._ranked(block, k, exclude.select(block), strict=strict) for block in blocks]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in StackRanking._fields[:-1]}
        left_out = {name: reason for part in parts for name, reason in part.left_out.items()}
        return StackRanking(**arrays, left_out=left_out)

    @torch.inference_mode()
    def _ranked(self, users: np.ndarray, k: int, exclude: Histories, *, strict: bool = False) -> StackRanking:
        box = self.toolbox
        views = box.views(users, exclude, seconds=None if strict else self.config.tool_seconds, strict=strict)
        items = box.candidates(views)
        features = box.features(items, views)
        logits = self._logits(items, features)
        # Equal logits: what more tools rank high first, and if that is equal too a hash decides.
        agreement = np.nan_to_num(features[:, :, self.feature_names.index("tools:reciprocal rank")])
        ties = box.facts.ties[np.maximum(items, 0)]
        order = np.lexsort((ties, -agreement, -logits), axis=1)[:, :k]
        shares = self.calibration.shares(logits)
        entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)

        def best(values: np.ndarray, empty: float) -> np.ndarray:
            index = order.reshape(*order.shape, *[1] * (values.ndim - 2))
            kept = np.take_along_axis(values, index, 1)
            missing = [(0, 0), (0, k - kept.shape[1]), *[(0, 0)] * (values.ndim - 2)]
            return np.pad(kept, missing, constant_values=empty)

        return StackRanking(
            best(items, -1), best(logits, -np.inf), best(self.calibration.probabilities(logits), 0.0),
            best(features, np.nan), entropy, (items >= 0).sum(1), views.left_out,
        )  # fmt: skip

    def _logits(self, items: np.ndarray, features: np.ndarray) -> np.ndarray:
        logits = np.full(items.shape, -np.inf)
        logits[items >= 0] = self.trees.predict(features[items >= 0])
        return logits

    def recommend(self, users: np.ndarray, k: int, *, exclude: Histories | None = None) -> Recommendations:
        """As of every classical model, of the items that tools nominate: fewer than ``k`` where these are fewer."""
        indices = self.user_indices(users)
        order = np.argsort(self.histories.lengths[indices], kind="stable")  # of like lengths together, as in fit
        scores, items = super().recommend(indices[order], k, exclude=exclude)
        back = np.argsort(order, kind="stable")
        return Recommendations(scores[back], self._items.named(items[back]) if is_text(users) else items[back])

    def _retriever(self) -> Retriever:
        def retrieve(users: np.ndarray, k: int, exclude: Histories) -> tuple[torch.Tensor, torch.Tensor]:
            ranked = self._ranked(users, k, exclude)
            scores = ranked.logits.astype(np.float32)
            for rank in range(1, k):  # equal logits are in an order of their own: that of the scores is the same
                below = np.nextafter(scores[:, rank - 1], np.float32(-np.inf))
                scores[:, rank] = np.minimum(scores[:, rank], below)
            return torch.from_numpy(scores), torch.from_numpy(ranked.items)

        return retrieve

    @property
    def _users_per_block(self) -> int:
        return _USERS

    def scores(self, users: np.ndarray) -> torch.Tensor:
        users, items = self.user_indices(users), np.arange(self.sizes["items"])
        return torch.from_numpy(self._score(users, np.tile(items, (len(users), 1)))).float().to(self.device)

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Logits of pairs, float32 ``[N]``, also of items that are no candidates; larger is likelier.

        Raises:
            DataError: as of :meth:`ClassicalRecommender.score`.
        """
        users, items = self.pairs(users, items)
        distinct, rows = np.unique(users, return_inverse=True)
        order = np.argsort(rows, kind="stable")
        counts = np.bincount(rows, minlength=len(distinct))
        column = np.empty(len(users), dtype=np.int64)
        column[order] = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
        table = np.full((len(distinct), int(counts.max(initial=0))), -1, dtype=np.int64)
        table[rows, column] = items
        return self._score(distinct, table)[rows, column].astype(np.float32)

    @torch.inference_mode()
    def _score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Logits of the items of each user, float64 ``[B, C]``; ``-inf`` for slots without one."""
        box, result = self.toolbox, np.empty(items.shape)
        size = max(min(_USERS, _VALUES // max(items.shape[1] * len(self.feature_names), 1)), 1)
        for first in range(0, len(users), size):
            part = slice(first, first + size)
            views = box.views(users[part], self.seen.select(users[part]), seconds=self.config.tool_seconds)
            result[part] = self._logits(items[part], box.features(items[part], views))
        return result

    def features_of(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Features of pairs of indices, float32 ``[N, F]``, also of items that no tool nominates."""
        box, result = self.toolbox, np.empty((len(users), len(self.feature_names)), dtype=np.float32)
        with torch.inference_mode():
            for first in range(0, len(users), _USERS):
                part = slice(first, first + _USERS)
                views = box.views(users[part], self.seen.select(users[part]), seconds=self.config.tool_seconds)
                result[part] = box.features(items[part, None], views)[:, 0]
        return result

    def tool_ranks(self, features: np.ndarray) -> dict[str, int]:
        """What the features ``[F]`` of a candidate say of it: its rank by each tool that ranks it, from 1, best first;
        without those beyond ``config.depth``."""
        ranks = {}
        for tool in self.toolbox.tools:
            value = features[self.feature_names.index(f"{tool.views[0]}:rank")]
            if not np.isnan(value) and (rank := round(float(np.exp(value)))) <= self.config.depth:
                ranks[tool.name] = rank
        return dict(sorted(ranks.items(), key=lambda pair: pair[1]))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Stack:
        super()._apply(fn, recurse)
        if self._toolbox is not None:
            self._toolbox.move(self.device, fn)
        return self

    def _write_more(self, folder: Path) -> None:
        box = self.toolbox
        write_facts(folder / FACTS, box.facts)
        stored = {
            "tools": write_tools(folder / TOOLS, box.tools),
            "trees": self.trees.save(folder / TREES),
            "calibration": asdict(self.calibration),
            "features": self.feature_names,
        }
        write_json(folder / STACK, stored)

    def _restore(self, folder: Path, sizes: dict[str, int]) -> None:
        stored, config = read_json(folder / STACK), self.config
        self._trees = Trees.load(folder / TREES, stored["trees"])
        self.calibration = Calibration(**stored["calibration"])
        self._toolbox = Toolbox(
            read_tools(folder / TOOLS, stored["tools"], self.device), read_facts(folder / FACTS),
            nominated=config.candidates, depth=config.depth, device=self.device,
        )  # fmt: skip
        if self._toolbox.feature_names != stored["features"]:
            raise ValueError(f"{folder}: expected a stack of these features; it was written by another version")
        self.build(sizes)
