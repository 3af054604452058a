"""A ranker's heads and settings as a folder of safetensors and JSON; the backbone is its owner's to keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.files import read_json, read_tensors, read_whole, replacing_folder, write_json, write_tensors
from reasonrec_fast.lm.decoder import Decoder

if TYPE_CHECKING:
    from reasonrec_fast.early_exit.ranker import EarlyExitRanker

_ARCHITECTURE, _FORMAT = "early-exit-ranker", 1
_FILES = ("config.json", "heads.safetensors")


def save(ranker: EarlyExitRanker, folder: Path) -> None:
    """Write heads, policy and bounds; the backbone is not written. A ranker that is there already is replaced as a
    whole."""
    model = ranker.model
    head = model.heads[0]
    settings = {
        "architecture": _ARCHITECTURE,
        "format": _FORMAT,
        "backbone": shape_of(model.backbone),
        "exits": list(model.exits),
        "members": len(head.weight),
        "num_numbers": 0 if head.units is None else head.units.in_features,
        "offset": model.offset,
        "norm_eps": head.norm.eps,
        "softcap": head.softcap,
        "policy": None if ranker.policy is None else ranker.policy.to_dict(),
        "max_tokens": ranker.max_tokens,
        "prefix_cache_bytes": 0 if ranker.cache is None else ranker.cache.max_bytes,
    }
    with replacing_folder(folder, _FILES) as temporary:
        write_tensors(temporary / "heads.safetensors", model.heads.state_dict())
        write_json(temporary / "config.json", settings)


def load(
    kind: type[EarlyExitRanker],
    folder: Path,
    model: torch.nn.Module,
    tokenizer: Any,
    device: torch.device | str | None,
) -> EarlyExitRanker:
    """Read what :func:`save` wrote, for the backbone given."""
    backbone = Decoder(model)
    return read_whole(folder, lambda: _load(kind, folder, backbone, tokenizer, device))


def _load(
    kind: type[EarlyExitRanker],
    folder: Path,
    backbone: Decoder,
    tokenizer: Any,
    device: torch.device | str | None,
) -> EarlyExitRanker:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"folder: expected a saved ranker with config.json; there is none in {folder}")
    stored = read_json(folder / "config.json")
    if (stored.get("architecture"), stored.get("format")) != (_ARCHITECTURE, _FORMAT):
        raise ValueError(
            f"folder: expected an {_ARCHITECTURE} of format {_FORMAT}; {folder} holds "
            f"{stored.get('architecture', stored.get('model_type'))!r} of format {stored.get('format')}"
        )
    if shape_of(backbone) != stored["backbone"]:
        raise ValueError(f"model: expected a backbone of {stored['backbone']}; got {shape_of(backbone)}")
    found = EarlyExitModel(
        backbone,
        stored["exits"],
        num_numbers=stored.get("num_numbers", 0),  # rankers of before there were any have neither
        members=stored["members"],
        offset=stored.get("offset", False),
    )
    found.heads.load_state_dict(read_tensors(folder / "heads.safetensors"))
    for head in found.heads:
        head.norm.eps, head.softcap = stored["norm_eps"], stored["softcap"]
    return kind(
        found,
        tokenizer,
        policy=None if stored["policy"] is None else ExitPolicy.from_dict(stored["policy"]),
        max_tokens=stored["max_tokens"],
        prefix_cache_bytes=stored["prefix_cache_bytes"],
        device=device,
    )


def shape_of(backbone: Decoder) -> dict[str, int]:
    """What the heads need of a backbone.

    >>> from types import SimpleNamespace
    >>> shape_of(SimpleNamespace(num_layers=30, hidden_size=576))
    {'num_layers': 30, 'hidden_size': 576}
    """
    return {"num_layers": backbone.num_layers, "hidden_size": backbone.hidden_size}
