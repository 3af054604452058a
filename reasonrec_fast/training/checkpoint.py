"""Training state that survives a kill at any moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from reasonrec_fast.files import replacing


class Checkpoint:
    """One safetensors file with the trainable parameters, the optimiser's state and a little JSON.

    The file is replaced as a whole, so it always holds one complete step.

    Args:
        path: where the file lies.
        module: its parameters that require gradients are stored.
        optimizer: over those parameters.
        fingerprint: what the run is (configuration, data); another run's file is refused.
    """

    def __init__(
        self, path: str | Path, module: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: dict[str, Any]
    ) -> None:
        self.path = Path(path)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = optimizer
        self.fingerprint = json.dumps(fingerprint, sort_keys=True)
        self.more: dict[str, torch.Tensor] = {}

    def save(self, step: int) -> None:
        """Store the state after ``step`` steps, with the tensors of ``more``."""
        tensors = {f"more/{name}": value for name, value in self.more.items()}
        tensors |= {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        metadata = {"step": str(step), "fingerprint": self.fingerprint}
        with replacing(self.path) as temporary:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata)

    def restore(self) -> int:
        """Load what :meth:`save` stored, ``more`` too, and return its step; 0 where there is no file.

        Raises:
            ValueError: the file belongs to a run with another configuration, data or architecture.
        """
        if not self.path.is_file():
            return 0
        with safe_open(self.path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("fingerprint") != self.fingerprint:
                raise ValueError(
                    f"{self.path}: expected a checkpoint of this configuration and data; it is of another run. "
                    "Give another folder, or remove the file to start anew"
                )
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(stored.get_tensor(f"parameter/{name}"))
            keys = list(stored.keys())
            self.more = {k.removeprefix("more/"): stored.get_tensor(k) for k in keys if k.startswith("more/")}
            for name, parameter in self.parameters.items():
                state = {
                    key.split("/", 2)[1]: stored.get_tensor(key)
                    for key in keys
                    if key.startswith("optimizer/") and key.split("/", 2)[2] == name
                }
                if state:
                    self.optimizer.state[parameter] = state
        return int(metadata["step"])
