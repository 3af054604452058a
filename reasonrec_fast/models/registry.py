"""Every architecture by its name, imported when needed: loading, experiments and the command line share it."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch

from reasonrec_fast.pretrained import local_folder, read_settings

_CLASSICAL = {
    "AttributeKNN": "attribute_knn",
    "BPR": "bpr",
    "BSARec": "bsarec",
    "Bias": "bias",
    "DCNv2": "dcn",
    "DirectedItemKNN": "directed_knn",
    "EASE": "item_to_item",
    "FM": "fm",
    "HybridKNN": "hybrid_knn",
    "ItemKNN": "item_to_item",
    "LightGCN": "lightgcn",
    "Popularity": "popularity",
    "RecBole": "recbole",
    "SASRec": "sasrec",
    "Stack": "stack",
    "SVD": "svd",
    "TextKNN": "text_knn",
    "TextTower": "text_tower",
}
CLASSICAL = tuple(_CLASSICAL)
"""Models that recommend without a language model."""

_WRITERS = {
    "ConstantText": "explanation",
    "ProfileText": "explanation",
    "NearestText": "explanation",
    "MinimumRiskText": "minimum_risk",
}

ARCHITECTURES: dict[str, tuple[str, str]] = {
    **{name: (f"reasonrec_fast.models.classical.{module}", name) for name, module in _CLASSICAL.items()},
    **{name: (f"reasonrec_fast.models.classical.{module}", name) for name, module in _WRITERS.items()},
    "FeatureJudge": ("reasonrec_fast.models.classical.judge", "FeatureJudge"),
    "CTRStack": ("reasonrec_fast.models.optirag", "CTRStack"),
    "optirag": ("reasonrec_fast.models.optirag", "OptiRAG"),
    "ReasonRec": ("reasonrec_fast.models.reasonrec", "ReasonRec"),
    "ExplanationWriter": ("reasonrec_fast.models.reasonrec.explanation", "ExplanationWriter"),
}
"""Module and class, by what ``config.json`` of a saved model and a TOML experiment call it."""

TaskName = Literal["ranking", "ctr", "agent", "explanation", "judge"]

TASKS: dict[TaskName, tuple[str, ...]] = {
    "ranking": (*CLASSICAL, "CTRStack", "optirag", "ReasonRec"),
    "ctr": (*CLASSICAL, "CTRStack", "optirag", "ReasonRec"),
    "agent": ("ReasonRec",),
    "explanation": (*_WRITERS, "ExplanationWriter"),
    "judge": ("FeatureJudge",),
}
"""Which architectures do a task; the protocols are those of :mod:`reasonrec_fast.models.base`."""


def tasks_of(architecture: str) -> tuple[TaskName, ...]:
    """The tasks that an architecture does.

    >>> tasks_of("EASE")
    ('ranking', 'ctr')
    """
    return tuple(task for task, names in TASKS.items() if architecture in names)


def class_of(architecture: str) -> Any:
    """The class of an architecture; its module is imported now.

    >>> class_of("EASE").__name__
    'EASE'
    """
    module, name = ARCHITECTURES[architecture]
    return getattr(importlib.import_module(module), name)


def load(
    name: str | Path,
    *,
    architectures: Collection[str] = tuple(ARCHITECTURES),
    device: torch.device | str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Any:
    """Read a saved model of any architecture; its ``config.json`` says which it is.

    Args:
        name: what ``save_pretrained`` wrote: a folder, or a repository of the Hugging Face hub (``"user/repository"``).
        architectures: those that it may be.
        device: where it lives from now on; by default the GPU where there is one.
        revision, token: of the repository.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: the folder holds something else, or a device that is not there.

    >>> import tempfile
    >>> from reasonrec_fast import Interactions, Popularity
    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "y"], [1, 1, 1], [1, 2, 3])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Popularity().fit(data).save_pretrained(folder)
    ...     load(folder).recommend(["b"], 1).items.tolist()
    [['x']]
    """
    folder = local_folder(name, revision=revision, token=token)
    architecture = read_settings(folder).get("architecture")
    if not isinstance(architecture, str) or architecture not in architectures:
        raise ValueError(f"folder: expected a saved {', '.join(architectures)}; {folder} holds {architecture!r}")
    return class_of(architecture).from_pretrained(folder, device=device)
