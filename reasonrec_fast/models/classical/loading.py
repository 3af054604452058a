"""The classical models by name, and loading a saved model of any class."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.registry import CLASSICAL, class_of, load

RECOMMENDERS: dict[str, type[ClassicalRecommender]] = {name: class_of(name) for name in CLASSICAL}
"""Every classical model, by the name of its class."""


def recommender_named(name: str) -> type[ClassicalRecommender]:
    """A model by its name, without regard to case and punctuation.

    Raises:
        ValueError: none of that name.

    >>> recommender_named("item-knn").__name__, recommender_named("DCN v2").__name__
    ('ItemKNN', 'DCNv2')
    """
    for known, kind in RECOMMENDERS.items():
        if _plain(known) == _plain(name):
            return kind
    raise ValueError(f"model: expected one of {', '.join(RECOMMENDERS)}; got {name!r}")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def load_recommender(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> ClassicalRecommender:
    """Read a model that any classical model saved; its ``config.json`` names the class.

    Args:
        folder: what ``save_pretrained`` wrote: a folder, or a repository of the Hugging Face hub.
        device: of the model; by default the GPU where there is one.
        revision, token: of the repository.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: the folder holds something else, or a device that this machine does not have.

    >>> import tempfile
    >>> from reasonrec_fast.data import Interactions
    >>> from reasonrec_fast.models.classical import Popularity
    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "y"], [1, 1, 1], [1, 2, 3])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Popularity().fit(data).save_pretrained(folder)
    ...     load_recommender(folder).recommend(["b"], 1).items.tolist()
    [['x']]
    """
    recommender: ClassicalRecommender = load(
        folder, architectures=CLASSICAL, device=device, revision=revision, token=token
    )
    return recommender
