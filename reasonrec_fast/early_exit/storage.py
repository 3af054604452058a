"""A ranker's heads and settings as a folder of safetensors and JSON; the backbone is its owner's to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reasonrec_fast.early_exit.answers import Answers
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.files import read_tensors, write_tensors
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.pretrained import load_folder, save_folder

_ARCHITECTURE, _FORMAT = "early-exit-ranker", 1
_HEADS = "heads.safetensors"
Stored = tuple[EarlyExitModel, ExitPolicy | None, Answers | None, dict[str, int]]


def save(
    folder: str | Path,
    model: EarlyExitModel,
    policy: ExitPolicy | None,
    answers: Answers | None = None,
    *,
    max_tokens: int,
    prefix_cache_bytes: int,
) -> None:
    """Write heads, policy, answers and bounds; the backbone is not written. A ranker that is there already is
    replaced as a whole."""
    head = model.heads[0]

    def write(temporary: Path) -> dict[str, Any]:
        write_tensors(temporary / _HEADS, model.heads.state_dict())
        return {
            "backbone": shape_of(model.backbone),
            "exits": list(model.exits),
            "members": len(head.weight),
            "num_features": 0 if head.units is None else head.units.in_features,
            "offset": model.offset,
            "num_answers": model.num_answers,
            "answers": None if answers is None else answers.to_dict(),
            "norm_eps": head.norm.eps,
            "softcap": head.softcap,
            "policy": None if policy is None else policy.to_dict(),
            "max_tokens": max_tokens,
            "prefix_cache_bytes": prefix_cache_bytes,
        }

    save_folder(folder, _ARCHITECTURE, _FORMAT, (_HEADS,), write)


def load(folder: str | Path, backbone: Decoder, *, revision: str | None = None, token: str | None = None) -> Stored:
    """What :func:`save` wrote, on the backbone given: the model, its policy and answers, and ``max_tokens`` and
    ``prefix_cache_bytes`` by name.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: the folder holds something else, or heads of a backbone of another shape.
    """

    def read(folder: Path, stored: dict[str, Any]) -> Stored:
        if shape_of(backbone) != stored["backbone"]:
            raise ValueError(f"model: expected a backbone of {stored['backbone']}; got {shape_of(backbone)}")
        model = EarlyExitModel(
            backbone,
            stored["exits"],
            num_features=stored.get("num_features", 0),  # rankers of before there were any have neither
            ensemble_size=stored["members"],
            num_answers=stored.get("num_answers", 2),
            offset=stored.get("offset", False),
        )
        model.heads.load_state_dict(read_tensors(folder / _HEADS))
        for head in model.heads:
            head.norm.eps, head.softcap = stored["norm_eps"], stored["softcap"]
        policy = None if stored["policy"] is None else ExitPolicy.from_dict(stored["policy"])
        answers = None if stored.get("answers") is None else Answers.from_dict(stored["answers"])
        return model, policy, answers, {name: stored[name] for name in ("max_tokens", "prefix_cache_bytes")}

    return load_folder(folder, _ARCHITECTURE, _FORMAT, read, what="ranker", revision=revision, token=token)


def shape_of(backbone: Decoder) -> dict[str, int]:
    """What the heads need of a backbone.

    >>> from types import SimpleNamespace
    >>> shape_of(SimpleNamespace(num_layers=30, hidden_size=576))
    {'num_layers': 30, 'hidden_size': 576}
    """
    return {"num_layers": backbone.num_layers, "hidden_size": backbone.hidden_size}
