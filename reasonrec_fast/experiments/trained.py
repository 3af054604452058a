"""Models of an experiment: trained once, saved in a folder, and resumed if a run was killed."""

from __future__ import annotations

from pathlib import Path

import torch

from reasonrec_fast.data import Interactions, Split
from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig
from reasonrec_fast.training.progress import Progress


def trained(
    folder: Path,
    config: OptiRAGConfig,
    interactions: Interactions,
    split: Split,
    progress: Progress | None = None,
    *,
    adapters: Path | None = None,
    device: torch.device | str | None = None,
) -> OptiRAG:
    """The model of a folder; it is trained first if it does not exist.

    Args:
        folder: its name is the model's.
        config: of the model.
        interactions, split: the data.
        progress: called after every step.
        adapters: a saved model whose adapters are the initial ones.
        device: of :class:`OptiRAG`.

    Raises:
        ValueError: the folder holds a model of another configuration, or a device that does not exist.
    """
    if (folder / "config.json").is_file():
        model = OptiRAG.from_pretrained(folder, device=device)
        if model.config != config:
            raise ValueError(f"folder: expected models of this configuration; {folder} holds another one")
        model.refit_retriever(interactions, split.train)
        return model

    state = folder / "training.safetensors"
    model = OptiRAG(config, device=device)
    if adapters is not None:
        model.load_adapters(adapters)
    model.fit(interactions, split.train, split.validation, checkpoint=state, progress=progress)
    model.save_pretrained(folder, knowledge=False)
    state.unlink(missing_ok=True)
    return model
