"""A model as a folder of safetensors and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reasonrec_fast.early_exit.depth_zero import FILES, DepthZero
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.files import read_json, read_tensors, read_whole, replacing_folder, write_json, write_tensors
from reasonrec_fast.models.optirag.boosted import BoostedEvidence
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.knowledge import KNOWLEDGE_FILES, Knowledge
from reasonrec_fast.models.optirag.template import Template

if TYPE_CHECKING:
    from reasonrec_fast.models.optirag.model import OptiRAG

_ARCHITECTURE = "optirag"
_FORMAT = 2
_TEMPLATE = "template.json"
_WEIGHTS = ("adapter.safetensors", "heads.safetensors")
_BOOSTER = "booster.txt"


def save(model: OptiRAG, folder: Path, *, knowledge: bool) -> None:
    """Write adapters (bfloat16), heads, settings and, where wanted, what the model knows; a model that is there already
    is replaced as a whole."""
    with replacing_folder(
        folder, ("config.json", *_WEIGHTS, *KNOWLEDGE_FILES, _TEMPLATE, _BOOSTER, *FILES.values())
    ) as temporary:
        _write(model, temporary, knowledge=knowledge)


def _write(model: OptiRAG, folder: Path, *, knowledge: bool) -> None:
    adapter = {name: p.detach().bfloat16() for name, p in model.peft.named_parameters() if "lora_" in name}
    write_tensors(folder / "adapter.safetensors", adapter)
    heads = dict(model.ranker.model.heads.state_dict())
    heads["numbers.mean"], heads["numbers.scale"] = torch.from_numpy(model.mean), torch.from_numpy(model.scale)
    write_tensors(folder / "heads.safetensors", heads)
    trees = {} if model.depth_zero is None else model.depth_zero.save(folder)
    if knowledge and model.knowledge is not None:
        model.knowledge.save(folder)
        if model.booster is not None:  # it belongs to the training events, as the retriever does
            trees["booster"] = model.booster.save(folder / _BOOSTER)
    if model.template is not None:
        write_json(folder / _TEMPLATE, model.template.to_dict())
    write_json(
        folder / "config.json",
        {
            "architecture": _ARCHITECTURE,
            "format": _FORMAT,
            "config": model.config.to_dict(),
            "policy": None if model.policy is None else model.policy.to_dict(),
            "platt": model.platt,
            "num_trees": model.num_trees,
            "trees": trees,
        },
    )


def load(
    kind: type[OptiRAG], folder: Path, *, backbone: str | None, device: torch.device | str | None = None
) -> OptiRAG:
    """Read what :func:`save` wrote."""
    return read_whole(folder, lambda: _read(kind, folder, backbone, device))


def _read(kind: type[OptiRAG], folder: Path, backbone: str | None, device: torch.device | str | None) -> OptiRAG:
    stored = stored_settings(folder)
    values = dict(stored["config"])
    if backbone is not None:
        values["backbone"] = backbone
    model = kind(OptiRAGConfig.from_dict(values), device=device)
    _copy_weights(dict(model.peft.named_parameters()), read_tensors(folder / "adapter.safetensors"), "adapter")
    heads = read_tensors(folder / "heads.safetensors")
    model.mean, model.scale = heads.pop("numbers.mean").numpy(), heads.pop("numbers.scale").numpy()
    _copy_weights(model.ranker.model.heads.state_dict(), heads, "heads")
    if stored["policy"] is not None:
        model.ranker.policy = ExitPolicy.from_dict(stored["policy"])
    model.num_trees = stored["num_trees"]
    if set(FILES) <= set(stored["trees"]):
        model.depth_zero = DepthZero.load(folder, stored["trees"])
    if "booster" in stored["trees"]:
        model.booster = BoostedEvidence.load(folder / _BOOSTER, stored["trees"]["booster"])
    model.platt = {name: tuple(values) for name, values in stored["platt"].items()}
    if (folder / _TEMPLATE).is_file():
        model.template = Template.from_dict(read_json(folder / _TEMPLATE), str(folder / _TEMPLATE))
    if (folder / "events.safetensors").is_file():
        model.knowledge = Knowledge.load(folder)
    return model


def stored_settings(folder: Path) -> dict[str, Any]:
    """The settings of a model's folder.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: the folder holds something else.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"folder: expected a saved model with config.json; there is none in {folder}")
    stored = read_json(folder / "config.json")
    stored = stored if isinstance(stored, dict) else {}
    if stored.get("architecture") != _ARCHITECTURE or stored.get("format") != _FORMAT:
        older = stored.get("architecture") == _ARCHITECTURE and stored.get("format") == 1
        raise ValueError(
            f"folder: expected an {_ARCHITECTURE} model of format {_FORMAT}; {folder} holds "
            f"{stored.get('architecture', stored.get('model_type'))!r} of format {stored.get('format')}"
            + (" (its exits do not stand on boosted trees; train it again)" if older else "")
        )
    return dict(stored)


def load_adapters(model: OptiRAG, folder: Path) -> None:
    """Give a model the adapters of another one that was saved; heads and settings stay.

    Raises:
        FileNotFoundError: there are none in the folder.
        ValueError: they do not fit.
    """
    if not (folder / "adapter.safetensors").is_file():
        raise FileNotFoundError(f"adapters: expected a saved model with adapter.safetensors; there is none in {folder}")
    model.unmerge()
    _copy_weights(dict(model.peft.named_parameters()), read_tensors(folder / "adapter.safetensors"), "adapters")


def _copy_weights(target: dict[str, torch.Tensor], source: dict[str, torch.Tensor], what: str) -> None:
    for name, value in source.items():
        if name not in target or target[name].shape != value.shape:
            raise ValueError(
                f"{what}: expected weights of this backbone; {name} {list(value.shape)} does not fit "
                f"{list(target[name].shape) if name in target else 'any parameter'}"
            )
        with torch.no_grad():
            target[name].copy_(value)
