"""A pretended device: it computes on the CPU, and counts the synchronisations of a GPU.

Tensors of the device ``"meta"`` have values while a :class:`PretendedDevice` is entered, so that whole fits and
rankings run on it and their results can be compared. As with a GPU, operators refuse to mix tensors of the CPU and of
the device; values that are read back, and synchronous copies to the device, are counted by the calling function of this
package.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import reasonrec_fast

DEVICE = torch.device("meta")
_PACKAGE = str(Path(reasonrec_fast.__file__).parent)
# Whose results have a size, or are a Python value, that depends on values.
_SYNCHRONISING = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
_WITH_HOST_ARGUMENTS = {"reasonrec_fast::packed_attention"}  # its segments


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; ``value`` holds what it is worth."""

    value: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> OnDevice:
        result = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
            device=DEVICE,
        )  # fmt: skip
        result.value = value
        return result

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} of a tensor whose pretended device was left")

    def tolist(self) -> Any:
        return self.cpu().tolist()


class PretendedDevice(TorchDispatchMode):
    """See above. Attributes: ``reads`` and ``waits``, counted as ``"module.function"``."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def forget(self) -> None:
        self.reads.clear()
        self.waits.clear()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with self:  # in inference mode compositions come undivided
            result = function.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        name = function._schema.name
        short = name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        pretended = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        if any(other.device == DEVICE for other in others):
            raise AssertionError(f"{name}: torch.tensor(..., device=...) makes a host array and waits for its copy")
        requested = kwargs.get("device")
        to_pretended = bool(pretended) if requested is None else torch.device(requested) == DEVICE
        if requested is not None and to_pretended:
            kwargs["device"] = "cpu"
        if short in ("_to_copy", "copy_"):
            to_pretended = isinstance(args[0], OnDevice) if short == "copy_" else to_pretended
            asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if pretended and not to_pretended:
                if asynchronous:
                    raise AssertionError(f"{name}: an asynchronous copy to the CPU, unfinished on return, {_caller()}")
                self.reads[_caller()] += 1
            elif others and to_pretended and others[0].dim() and others[0].numel() and not asynchronous:
                self.waits[_caller()] += 1
        elif pretended:
            mixed = [other for other in others if other.dim()]
            if mixed and name not in _WITH_HOST_ARGUMENTS:
                raise AssertionError(f"{name}: tensors of the CPU and of the device, in {_caller()}")
            masked = short in ("index", "index_put", "index_put_") and any(
                index is not None and index.dtype == torch.bool for index in args[1]
            )
            sized = short == "repeat_interleave" and kwargs.get("output_size") is not None
            if masked or (short in _SYNCHRONISING and not sized):
                self.reads[_caller()] += 1
        same: dict[int, OnDevice] = {}

        def value_of(leaf: Any) -> Any:
            if isinstance(leaf, OnDevice):
                same[id(leaf.value)] = leaf
                return leaf.value
            return leaf

        def on_device(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or not to_pretended:
                return leaf
            if id(leaf) in same:
                return same[id(leaf)]
            with torch.inference_mode(False):  # a view of a weight is none that belongs to inference alone
                return OnDevice(leaf)

        result = function(*tree_map(value_of, args), **tree_map(value_of, kwargs))
        if short == "_to_copy" and to_pretended and others:  # a real copy: the host's array may change afterwards
            result = result.clone()
        return tree_map(on_device, result)


def _caller() -> str:
    """The innermost function of this package that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        name = f"{Path(code.co_filename).stem}.{code.co_name}"
        inside = code.co_filename.startswith(_PACKAGE) and not code.co_name.startswith("<")
        if inside and name not in ("devices.on_device", "devices.to_device"):
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


@contextlib.contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """Enter a pretended device. Autocast, which does not support it, is off inside."""
    autocast, enabled = torch.autocast, torch.is_autocast_enabled

    def no_autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == DEVICE.type else autocast(device_type, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, PretendedDevice() as device:
        patch.setattr(torch, "autocast", no_autocast)
        patch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != (DEVICE.type,) and enabled(*kind))
        # What torch has fused optimisers for; they run on the values.
        adam = sys.modules[torch.optim.Adam.__module__]  # torch hides the module behind its class
        patch.setattr(adam, "_device_dtype_check_for_fused", lambda *arguments, **named: None)
        yield device


def all_on_device(module: torch.nn.Module) -> bool:
    """Whether all parameters and buffers are on the pretended device."""
    return all(isinstance(tensor, OnDevice) for tensor in (*module.parameters(), *module.buffers()))
