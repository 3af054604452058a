"""Checkpoints of the training state, written atomically."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from reasonrec_fast.files import write_tensors

_logger = logging.getLogger("reasonrec_fast")


class Checkpoint:
    """A safetensors file with the trainable parameters, the optimiser's state and JSON metadata.

    The file is replaced atomically, so it always holds a complete state. It can be restored on any device. Training
    seeds every step by its number, so no generator state is stored: on a device of the same kind a resumed run has the
    same result as an uninterrupted run; another kind has other random numbers and summation orders, of which a log
    message warns.

    Args:
        path: of the file.
        module: its parameters that require gradients are stored; they may be on any device.
        optimizer: over those parameters.
        fingerprint: identity of the run (configuration, data); another run's file is refused.
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
        metadata = {"step": str(step), "fingerprint": self.fingerprint, "device": self._device_type()}
        write_tensors(self.path, tensors, metadata)

    def restore(self) -> int:
        """Load what :meth:`save` stored and return its step; 0 if there is no file.

        Parameters and the optimiser's state are copied to the parameters' devices; ``more`` stays on the CPU.

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
                    "Give another folder, or remove the file to start again"
                )
            written_on = metadata.get("device", self._device_type())
            if written_on != self._device_type():
                _logger.warning(
                    "%s: was written on %s and resumes on %s; the result will differ slightly from that of one device",
                    self.path, written_on, self._device_type(),
                )  # fmt: skip
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(stored.get_tensor(f"parameter/{name}"))
            keys = list(stored.keys())
            self.more = {k.removeprefix("more/"): stored.get_tensor(k) for k in keys if k.startswith("more/")}
            on_device = {
                p for group in self.optimizer.param_groups if _counts_on_device(group) for p in group["params"]
            }
            for name, parameter in self.parameters.items():
                state = {
                    key.split("/", 2)[1]: stored.get_tensor(key)
                    for key in keys
                    if key.startswith("optimizer/") and key.split("/", 2)[2] == name
                }
                if state:
                    self.optimizer.state[parameter] = {
                        key: value if key == "step" and parameter not in on_device else value.to(parameter.device)
                        for key, value in state.items()
                    }
        _logger.info("%s: resumes after step %s", self.path, metadata["step"])
        return int(metadata["step"])

    def _device_type(self) -> str:
        return next((p.device.type for p in self.parameters.values()), "cpu")


def _counts_on_device(group: dict[str, Any]) -> bool:
    """Whether an optimiser of torch keeps the step counts of a group on the parameters' device; otherwise on the
    CPU."""
    return bool(group.get("fused") or group.get("capturable"))
