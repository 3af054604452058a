"""Devices: resolving names, copying arrays, and random number generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

# CUDA stages smaller host-to-device copies itself, without waiting; for larger ones it may wait for the stream.
_MAX_STAGED_BYTES = 64 << 10
_OnDevice = TypeVar("_OnDevice", torch.Tensor, torch.Tensor | None)


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """The device with its index; None is the current GPU if there is one, else the CPU.

    Args:
        device: ``"cpu"``, ``"cuda"`` (the current GPU), ``"cuda:N"``, or None. ``"meta"`` gives shapes without values.

    Raises:
        ValueError: any other value, or a GPU that does not exist.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N'; got {device!r}") from error
    if resolved.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N'; got {str(resolved)!r}")
    if resolved.type != "cuda":
        return torch.device(resolved.type)
    if not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise ValueError(f"device: expected 'cpu', since {why}; got {str(resolved)!r}")
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if resolved.index is None else resolved.index
    if index >= count:
        available = "'cuda:0' alone" if count == 1 else f"one of 'cuda:0' to 'cuda:{count - 1}'"
        raise ValueError(f"device: expected {available}; got {str(resolved)!r}")
    return torch.device("cuda", index)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device: without a copy on the CPU, else by :func:`to_device`.

    The tensor shares the array's memory on the CPU. On a GPU the array may be changed or freed once this returns.

    Raises:
        RuntimeError: a CUDA graph is being captured, and the device is a GPU.
    """
    return to_device(torch.from_numpy(array), device)


def to_device(tensor: _OnDevice, device: torch.device) -> _OnDevice:
    """Copy a tensor to a device; None stays None.

    Host to GPU: the host does not wait for the work queued on the GPU, as ``tensor.to(device)`` does. CUDA reads
    pageable memory before the call returns, but for a large copy it may wait for the stream to do so. Above 64 KiB the
    tensor is therefore first copied into pinned memory; torch's allocator reuses that memory only after the GPU has
    read it.
    GPU to host: complete when this returns. An asynchronous copy would return memory that is not written yet.

    Raises:
        RuntimeError: host to GPU while a CUDA graph is being captured: CUDA refuses the copy, or records the address
            of memory that is freed before the replay.
    """
    if tensor is None:
        return None
    if tensor.device.type == "cpu" and device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"a copy of {list(tensor.shape)} to {device}: expected before the CUDA graph is captured; got during "
                "the capture"
            )
        if tensor.nbytes > _MAX_STAGED_BYTES:
            tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def device_name(device: torch.device) -> dict[str, str]:
    """A description of a device for records of results: its name and, for a GPU, the product and torch's CUDA version.

    >>> device_name(torch.device("cpu"))
    {'device': 'cpu'}
    """
    if device.type != "cuda":
        return {"device": str(device)}
    return {"device": str(device), "gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda or ""}


@contextmanager
def fork_rng(device: torch.device) -> Iterator[None]:
    """Restore the state of the CPU's and the device's global generators when the block ends."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


_SEED_MODULUS = 2**63  # seeds that a generator accepts; the sum of a large seed and a step may exceed it


def seeded_generator(seed: int) -> torch.Generator:
    """A CPU generator for any integer seed."""
    return torch.Generator().manual_seed(seed % _SEED_MODULUS)


def seed_rng(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of ``device``; ``torch.manual_seed`` would seed every GPU."""
    seed %= _SEED_MODULUS
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def explain_out_of_memory(description: str, device: torch.device) -> Iterator[None]:
    """Add a description of the work to an out-of-memory error.

    Args:
        description: of what is computed, such as a batch.
        device: the device whose memory it needs.

    >>> with explain_out_of_memory("a batch of 8 rows", torch.device("cuda")):
    ...     raise torch.OutOfMemoryError("tried to allocate 2 GiB")
    Traceback (most recent call last):
    torch.OutOfMemoryError: a batch of 8 rows did not fit into the memory of cuda: tried to allocate 2 GiB
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{description} did not fit into the memory of {device}: {error}") from error
