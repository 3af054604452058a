"""The classical models by their names: of a class, as a user writes it, and of a saved model."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from reasonrec_fast.files import read_json
from reasonrec_fast.models.classical.base import Recommender
from reasonrec_fast.models.classical.bias import Bias
from reasonrec_fast.models.classical.bpr import BPR
from reasonrec_fast.models.classical.dcn import DCNv2
from reasonrec_fast.models.classical.fm import FM
from reasonrec_fast.models.classical.item_to_item import EASE, ItemKNN
from reasonrec_fast.models.classical.lightgcn import LightGCN
from reasonrec_fast.models.classical.popularity import Popularity
from reasonrec_fast.models.classical.recbole import RecBole
from reasonrec_fast.models.classical.sasrec import SASRec

RECOMMENDERS: dict[str, type[Recommender]] = {
    kind.__name__: kind for kind in (BPR, Bias, DCNv2, EASE, FM, ItemKNN, LightGCN, Popularity, RecBole, SASRec)
}
"""Every classical model, by the name of its class."""


def recommender_named(name: str) -> type[Recommender]:
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


def load_recommender(folder: str | Path, *, device: torch.device | str | None = None) -> Recommender:
    """Read a model that any classical model saved; the folder says which it is.

    Args:
        folder: what ``save_pretrained`` wrote.
        device: where it lives from now on; by default the GPU where there is one.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: the folder holds something else, or a device that is not there.

    >>> import tempfile
    >>> from reasonrec_fast.data import Interactions
    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "y"], [1, 1, 1], [1, 2, 3])
    >>> with tempfile.TemporaryDirectory() as place:
    ...     Popularity().fit(data).save_pretrained(place)
    ...     load_recommender(place).recommend(["b"], 1).items.tolist()
    [['x']]
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"folder: expected a saved model with config.json; there is none in {folder}")
    stored = read_json(path)
    name = stored.get("architecture") if isinstance(stored, dict) else None
    if not isinstance(name, str) or name not in RECOMMENDERS:
        raise ValueError(f"folder: expected a saved {', '.join(RECOMMENDERS)}; {folder} holds {name!r}")
    return RECOMMENDERS[name].from_pretrained(folder, device=device)
