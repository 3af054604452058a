"""The tools of a stack: models and users' functions that score all items, each fitted, called and saved alike."""

from __future__ import annotations

import copy
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.models.classical.rows import digest_of_rows
from reasonrec_fast.models.registry import CLASSICAL, class_of
from reasonrec_fast.models.registry import load as load_model
from reasonrec_fast.settings import settings_from
from reasonrec_fast.training.progress import Progress, named_part

_logger = logging.getLogger("reasonrec_fast")

DEFAULT_TOOLS = ("SASRec", "DirectedItemKNN", "ItemKNN", "EASE", "AttributeKNN", "TextKNN")
"""Tools of a stack that names none; those that the data cannot carry are left out."""
_WITHOUT_EVENTS = ("AttributeKNN", "TextKNN")  # learn nothing from them: fitted again they are the same


class ScoresItems(Protocol):
    """An object that scores all items for histories."""

    def scores(self, histories: Histories) -> Any:
        """Scores ``[B, I]`` of ``B`` histories, larger is likelier; a row of NaN for those it knows nothing about."""


Function: TypeAlias = "Callable[[Histories], Any] | ScoresItems"


@dataclass(frozen=True)
class ToolSpec:
    """A model that is a tool.

    Attributes:
        kind: of the model, a name of :data:`~reasonrec_fast.models.registry.CLASSICAL`.
        name: of the tool, of its features and its folder.
        settings: fields of the model's configuration.
        refit: whether it is fitted again on all training events for serving. A tool that is not reads the longer
            histories with what it learnt without each user's last event. By default closed forms that learn from events
            are.
        last_item: whether its scores by the last item alone are features too. By default those of closed forms are.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    refit: bool
    last_item: bool

    @classmethod
    def parse(cls, entry: str | Mapping[str, Any]) -> ToolSpec:
        """From a name, or from a table of a TOML file: ``kind``, ``name``, ``refit``, ``last_item`` and settings.

        Raises:
            ValueError: a model that cannot be a tool, or settings that it does not have.

        >>> ToolSpec.parse({"kind": "ItemKNN", "neighbours": 20}).settings
        {'neighbours': 20}
        """
        table: dict[str, Any] = {"kind": entry} if isinstance(entry, str) else dict(entry)
        kind = table.pop("kind", None)
        names = [name for name in CLASSICAL if name not in ("Stack", "RecBole")]
        if kind not in names:
            raise ValueError(f"tools: expected one of {', '.join(names)}; got {kind!r}")
        architecture = class_of(kind)
        closed_form = issubclass(architecture, ClosedFormRecommender)
        name, refit = table.pop("name", kind), table.pop("refit", closed_form and kind not in _WITHOUT_EVENTS)
        last_item = table.pop("last_item", closed_form and kind not in ("Popularity", "Bias"))
        if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"tools: {kind}: name: expected letters, digits, - and _; got {name!r}")
        for key, value in {"refit": refit, "last_item": last_item}.items():
            if not isinstance(value, bool):
                raise ValueError(f"tools: {name}: {key}: expected true or false; got {value!r}")
        settings_from(architecture.config_type, table, f"tools: {name}")  # refused now rather than in fit
        return cls(kind, name, table, refit, last_item)

    def make(self, seed: int, device: torch.device) -> ClassicalRecommender:
        """The model, not fitted; it has the seed of the stack unless its settings have one."""
        architecture = class_of(self.kind)
        config: Any = settings_from(architecture.config_type, self.settings, f"tools: {self.name}")
        if hasattr(config, "seed") and "seed" not in self.settings:
            config = replace(config, seed=seed)
        model: ClassicalRecommender = architecture(config, device=device)
        return model


class Answer(NamedTuple):
    """Scores of the views of a tool, float32 ``[B, I]`` each; none, and the reason, where it failed."""

    scores: list[torch.Tensor]
    reason: str = ""


class Turn:
    """One call of a tool at a time, each of limited time. Copies and pickles of it are free."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = self._late = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Turn, ()

    def take(self, call: Callable[[], Answer], seconds: float) -> Answer:
        """Wait ``seconds`` at most for the call before to end, and as long for this one.

        Once a call has taken longer, nobody waits until it has ended.
        """
        results: list[Answer] = []

        def run() -> None:
            try:
                results.append(call())
            finally:
                with self._changed:
                    self._busy = self._late = False
                    self._changed.notify_all()

        with self._changed:
            self._changed.wait_for(lambda: self._late or not self._busy, seconds)
            if self._busy:
                return Answer([], "its previous call has not ended")
            threading.Thread(target=run, daemon=True, name="tool of a stack").start()
            self._busy = True
            self._changed.wait_for(lambda: results, seconds)
            if not results:
                self._late = True
                self._changed.notify_all()
                return Answer([], f"no answer within {seconds} s")
        return results[0]


class Tool(ABC):
    """A fitted tool. Every *view* of it is a column of scores: by all items of a history, and by the last alone."""

    def __init__(self, name: str, views: tuple[str, ...]) -> None:
        self.name, self.views = name, views
        self._turn = Turn()

    @abstractmethod
    def set_histories(self, histories: Histories) -> None:
        """The histories that it scores by from here on."""

    @abstractmethod
    def scores(self, users: np.ndarray) -> list[torch.Tensor]:
        """Scores of all items of every view, ``[B, I]``; a row of NaN for a user whom the tool cannot score."""

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:  # noqa: B027  most have no tensors
        """Move its tensors to another device."""

    def answer(self, users: np.ndarray, items: int, seconds: float | None) -> Answer:
        """Its scores, or why there are none: it failed, or it took longer than ``seconds``.

        With ``seconds`` callers take turns: one waits for its turn as long, at most. A call that is late goes on in its
        thread, since a thread cannot be stopped; until it has ended nobody waits for the tool.
        """
        if seconds is None:
            return self._called(users, items)
        return self._turn.take(lambda: self._called(users, items), seconds)

    def _called(self, users: np.ndarray, items: int) -> Answer:
        try:
            with torch.inference_mode():
                scores = [part.float() for part in self.scores(users)]
            for part in scores:
                if part.shape != (len(users), items):
                    raise DataError(f"expected scores [{len(users)}, {items}]; got {list(part.shape)}")
            return Answer(scores)
        except Exception as error:  # whatever a user's function raises: the others answer without it
            return Answer([], f"{type(error).__name__}: {error}")


class ModelTool(Tool):
    """A fitted model.

    Args:
        spec: of the tool.
        model: fitted.
    """

    def __init__(self, spec: ToolSpec, model: ClassicalRecommender) -> None:
        super().__init__(spec.name, (spec.name, f"{spec.name}/last") if spec.last_item else (spec.name,))
        self.spec, self.model = spec, model

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.model._apply(function)
        self.set_histories(self.model.histories)

    def set_histories(self, histories: Histories) -> None:
        # A view shares the tensors of its model and has histories of its own.
        self._by_view = [self.model.set_histories(histories), copy.copy(self.model)][: len(self.views)]
        for view in self._by_view[1:]:
            ends = histories.indptr[1:]
            view.set_histories(histories.spans(np.maximum(ends - 1, histories.indptr[:-1]), ends))

    def scores(self, users: np.ndarray) -> list[torch.Tensor]:
        # A model of vectors of training knows its own users alone; the others' rows do not fail with them.
        model = self.model
        known = users < (model.histories.num_users if model.serves_new_users else model.sizes["users"])
        result = []
        for view in self._by_view:
            scores = torch.full((len(users), model.sizes["items"]), torch.nan, device=model.device)
            if known.any():
                scores[torch.from_numpy(np.flatnonzero(known)).to(model.device)] = view.scores(users[known]).float()
            result.append(scores)
        return result

    def item_vectors(self) -> torch.Tensor | None:
        """Vectors of all items ``[I, D]`` of a model that compares texts; None for others."""
        vectors = getattr(self.model, "vectors", None) if self.spec.kind == "TextKNN" else None
        return vectors if isinstance(vectors, torch.Tensor) else None


class FunctionTool(Tool):
    """A user's function or object.

    Args:
        name: of its features.
        function: from histories to scores ``[B, I]``: a tensor, an array, or what numpy makes one of.
    """

    def __init__(self, name: str, function: Function) -> None:
        super().__init__(name, (name,))
        self._call: Callable[[Histories], Any] = function.scores if hasattr(function, "scores") else function
        if not callable(self._call):
            raise TypeError(f"tool {name}: expected a function or an object with scores; got {type(function).__name__}")
        self._histories = Histories.from_lists([])

    def set_histories(self, histories: Histories) -> None:
        self._histories = histories

    def scores(self, users: np.ndarray) -> list[torch.Tensor]:
        return [torch.as_tensor(self._call(self._histories.select(users)))]


class MissingTool(Tool):
    """Stands for a function that a loaded stack has not been given yet."""

    def set_histories(self, histories: Histories) -> None:
        pass

    def scores(self, users: np.ndarray) -> list[torch.Tensor]:
        raise DataError("a function is not saved with the stack; give it to add_tool")


def fit_tool(
    spec: ToolSpec,
    data: Interactions,
    rows: np.ndarray,
    validation: np.ndarray | None,
    *,
    seed: int,
    device: torch.device,
    folder: Path | None,
    progress: Progress | None,
) -> ModelTool:
    """Fit a model on rows, or take it from a folder where a fit that was killed had left it.

    Args:
        spec: what to fit.
        data, rows, validation: as of :meth:`~reasonrec_fast.models.classical.base.ClassicalRecommender.fit`.
        seed, device: of the model.
        folder: where it is kept; None to keep nothing.
        progress: its part is the tool's name.

    Raises:
        DataError: rows that the model cannot be fitted on.
        ValueError: the folder holds a model of another configuration or other events.
    """
    model = spec.make(seed, device)
    if folder is not None and (folder / "config.json").is_file():
        kept: ClassicalRecommender = load_model(folder, architectures=(spec.kind,), device=device)
        same = asdict(kept.config) == asdict(model.config)
        if not same or (not model.learns_labels and kept.training_digest != digest_of_rows(data, rows, validation)):
            raise ValueError(
                f"{folder}: expected a tool of this configuration and these events; it is of another run. Give another "
                "checkpoint, or remove the folder to start again"
            )
        _logger.info("tool %s: taken from %s", spec.name, folder)
        return ModelTool(spec, kept)
    state = None if folder is None else folder.with_name(f"{folder.name}.safetensors")
    model.fit(data, rows, validation, checkpoint=state, progress=named_part(progress, spec.name))
    model.eval()
    if folder is not None and state is not None:
        model.save_pretrained(folder)
        state.unlink(missing_ok=True)
    return ModelTool(spec, model)


def write_tools(folder: Path, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Write each model into a folder of its name; functions are not written.

    Returns:
        what :func:`read_tools` needs to know.
    """
    stored = []
    for tool in tools:
        if isinstance(tool, ModelTool):
            tool.model.save_pretrained(folder / tool.name)
            stored.append({"name": tool.name, "spec": {**asdict(tool.spec)}})
        else:
            stored.append({"name": tool.name})
    return stored


def read_tools(folder: Path, stored: Sequence[Mapping[str, Any]], device: torch.device) -> list[Tool]:
    """Read what :func:`write_tools` wrote; a function is missing until it is given again.

    Raises:
        ValueError: an entry that no tool has, such as a name that leads out of the folder.
    """
    tools: list[Tool] = []
    for entry in stored:
        if "spec" in entry:
            table = dict(entry["spec"])
            spec = ToolSpec.parse({**table.pop("settings"), **table})
            tools.append(ModelTool(spec, load_model(folder / spec.name, architectures=(spec.kind,), device=device)))
        else:
            tools.append(MissingTool(entry["name"], (entry["name"],)))
    return tools


def check_functions(tools: Sequence[Tool], histories: Histories, num_items: int) -> None:
    """Refuse a function that fails on the first users."""
    users = np.arange(min(histories.num_users, 2))
    for tool in tools:
        tool.set_histories(histories)
        answer = tool.answer(users, num_items, None)
        if answer.reason:
            raise DataError(f"tools: expected scores from {tool.name}; got {answer.reason}")
