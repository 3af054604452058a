"""A model as a folder of safetensors and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from reasonrec_fast.early_exit.depth_zero import FILES, DepthZero
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.files import read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.models.optirag.boosted import BoostedEvidence
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.knowledge import KNOWLEDGE_FILES, Knowledge
from reasonrec_fast.models.optirag.template import Template
from reasonrec_fast.pretrained import checked_settings, load_folder, save_folder

ARCHITECTURE, FORMAT = "optirag", 2
OLDER = {1: "its exits do not stand on boosted trees; train it again"}
_TEMPLATE = "template.json"
_ADAPTER, _HEADS = "adapter.safetensors", "heads.safetensors"
_BOOSTER = "booster.txt"
_FITTED_EVENTS = "fitted_events.safetensors"
Model = TypeVar("Model")


@dataclass(frozen=True)
class Stored:
    """The parts of a saved model.

    Attributes:
        config: settings.
        adapter: weights of the adapters by name.
        heads: weights of the heads by name.
        mean, scale: of the dense features.
        policy: when requests exit.
        platt: slope and intercept by kind of score.
        num_trees: of the boosted trees.
        depth_zero: decides which requests go on from the boosted trees.
        booster, knowledge: of the training events; None where these are not kept.
        template: wording of the prompts.
        fitted_events: keys of the events that the model was fitted on, uint64 ``[E]``; kept with the training events.
    """

    config: OptiRAGConfig
    adapter: Mapping[str, torch.Tensor]
    heads: Mapping[str, torch.Tensor]
    mean: np.ndarray
    scale: np.ndarray
    policy: ExitPolicy | None
    platt: Mapping[str, tuple[float, float]]
    num_trees: int | None
    depth_zero: DepthZero | None
    booster: BoostedEvidence | None
    knowledge: Knowledge | None
    template: Template | None
    fitted_events: np.ndarray

    def save(self, folder: Path) -> None:
        """Write adapters (bfloat16), heads, settings and training events; an older model in the folder is
        replaced as a whole."""
        files = (_ADAPTER, _HEADS, *KNOWLEDGE_FILES, _TEMPLATE, _BOOSTER, _FITTED_EVENTS, *FILES.values())
        save_folder(folder, ARCHITECTURE, FORMAT, files, self._write)

    def _write(self, folder: Path) -> dict[str, Any]:
        write_tensors(folder / _ADAPTER, {name: value.detach().bfloat16() for name, value in self.adapter.items()})
        scaling = {"numbers.mean": torch.from_numpy(self.mean), "numbers.scale": torch.from_numpy(self.scale)}
        write_tensors(folder / _HEADS, {**self.heads, **scaling})
        trees = {} if self.depth_zero is None else self.depth_zero.save(folder)
        if self.knowledge is not None:
            self.knowledge.save(folder)
            write_tensors(folder / _FITTED_EVENTS, {"keys": torch.from_numpy(self.fitted_events.view(np.int64))})
            if self.booster is not None:  # it belongs to the training events, as the retriever does
                trees["booster"] = self.booster.save(folder / _BOOSTER)
        if self.template is not None:
            write_json(folder / _TEMPLATE, self.template.to_dict())
        return {
            "config": self.config.to_dict(),
            "policy": None if self.policy is None else self.policy.to_dict(),
            "platt": self.platt,
            "num_trees": self.num_trees,
            "trees": trees,
        }

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Stored:
        """What :meth:`save` wrote into a folder with these settings."""
        heads, trees = read_tensors(folder / _HEADS), settings["trees"]
        mean, scale = heads.pop("numbers.mean").numpy(), heads.pop("numbers.scale").numpy()
        template = folder / _TEMPLATE
        knowledge = Knowledge.load(folder) if (folder / "events.safetensors").is_file() else None
        return cls(
            config=OptiRAGConfig.from_dict(settings["config"]),
            adapter=read_tensors(folder / _ADAPTER),
            heads=heads,
            mean=mean,
            scale=scale,
            policy=None if settings["policy"] is None else ExitPolicy.from_dict(settings["policy"]),
            platt={name: tuple(values) for name, values in settings["platt"].items()},
            num_trees=settings["num_trees"],
            depth_zero=DepthZero.load(folder, trees) if set(FILES) <= set(trees) else None,
            booster=BoostedEvidence.load(folder / _BOOSTER, trees["booster"]) if "booster" in trees else None,
            knowledge=knowledge,
            template=Template.from_dict(read_json(template), str(template)) if template.is_file() else None,
            fitted_events=_fitted_events(folder, knowledge),
        )


def _fitted_events(folder: Path, knowledge: Knowledge | None) -> np.ndarray:
    """The stored keys; of models without them those of their training events, if they have these."""
    if (folder / _FITTED_EVENTS).is_file():
        return read_tensors(folder / _FITTED_EVENTS)["keys"].numpy().view(np.uint64)
    return np.zeros(0, dtype=np.uint64) if knowledge is None else knowledge.events.keys()


def load(name: str | Path, read: Callable[[Stored], Model], **repository: Any) -> Model:
    """The model that ``read`` makes of what was saved in a folder or a repository (``revision``, ``token``)."""

    def read_folder(folder: Path, settings: dict[str, Any]) -> Model:
        return read(Stored.load(folder, settings))

    return load_folder(name, ARCHITECTURE, FORMAT, read_folder, older=OLDER, **repository)


def require_model(folder: Path) -> None:
    """Refuse a folder without a model, before any work.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: the folder holds something else.
    """
    checked_settings(folder, ARCHITECTURE, FORMAT, older=OLDER)


def saved_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the adapters of a saved model, by name.

    Raises:
        FileNotFoundError: there are none in the folder.
    """
    if not (folder / _ADAPTER).is_file():
        raise FileNotFoundError(f"adapters: expected a saved model with {_ADAPTER}; there is none in {folder}")
    return read_tensors(folder / _ADAPTER)


def copy_weights(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor], what: str) -> None:
    """Write stored weights into those of a model.

    Raises:
        ValueError: a name or a shape that the model does not have.
    """
    for name, value in source.items():
        if name not in target or target[name].shape != value.shape:
            raise ValueError(
                f"{what}: expected weights of this backbone; {name} {list(value.shape)} does not fit "
                f"{list(target[name].shape) if name in target else 'any parameter'}"
            )
        with torch.no_grad():
            target[name].copy_(value)
