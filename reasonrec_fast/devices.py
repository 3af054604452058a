"""Where models live: which device is meant, how arrays get there, and its random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

# Up to here CUDA stages a copy by itself, without waiting; above, its driver may wait for the stream.
_STAGED_BYTES = 64 << 10
_Moved = TypeVar("_Moved", torch.Tensor, torch.Tensor | None)


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """The device that is meant, with its index; None means the present GPU where there is one, else the CPU.

    Args:
        device: ``"cpu"``, ``"cuda"`` (the present GPU), ``"cuda:N"``, or None. ``"meta"`` gives shapes without values.

    Raises:
        ValueError: another word, or a GPU that is not there.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N'; got {device!r}") from error
    if found.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N'; got {str(found)!r}")
    if found.type != "cuda":
        return torch.device(found.type)
    if not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise ValueError(f"device: expected 'cpu', since {why}; got {str(found)!r}")
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= count:
        there = "'cuda:0' alone" if count == 1 else f"one of 'cuda:0' to 'cuda:{count - 1}'"
        raise ValueError(f"device: expected {there}; got {str(found)!r}")
    return torch.device("cuda", index)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device: without a copy on the CPU, and as :func:`moved` does it on a GPU.

    Once this returns the array may change or go away, unless the device is the CPU, whose tensor shares its memory.

    Raises:
        RuntimeError: a CUDA graph is being captured, and the device is a GPU.
    """
    return moved(torch.from_numpy(array), device)


def moved(tensor: _Moved, device: torch.device) -> _Moved:
    """A tensor on a device; None stays None.

    Host to GPU: the host does not wait until the GPU has done all that was asked of it, as it does in
    ``tensor.to(device)``. CUDA reads pageable memory before the call returns, but may wait for the stream to do so
    where the copy is large: above 64 KiB the tensor is first copied into pinned memory. Torch keeps that for later
    copies, and gives it to none before the GPU has read it.
    GPU to host: complete when this returns. An asynchronous copy would return memory that is still to be written.

    Raises:
        RuntimeError: host to GPU while a CUDA graph is being captured: CUDA refuses the copy, or records the address
            of memory that is gone at the replay.
    """
    if tensor is None:
        return None
    if tensor.device.type == "cpu" and device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"a copy of {list(tensor.shape)} to {device}: expected before the CUDA graph is captured; got during "
                "the capture"
            )
        if tensor.nbytes > _STAGED_BYTES:
            tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def device_name(device: torch.device) -> dict[str, str]:
    """A device in words, for records of results: its name and, of a GPU, the product and torch's CUDA.

    >>> device_name(torch.device("cpu"))
    {'device': 'cpu'}
    """
    if device.type != "cuda":
        return {"device": str(device)}
    return {"device": str(device), "gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda or ""}


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the caller's random numbers, of the CPU and of ``device``, as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


_SEEDS = 2**63  # that a generator takes; what is made of a large one and a step may be larger


def seeded_generator(seed: int) -> torch.Generator:
    """Random numbers of the CPU, of any seed."""
    return torch.Generator().manual_seed(seed % _SEEDS)


def seed_random_numbers(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of ``device``; ``torch.manual_seed`` would seed every GPU's."""
    seed %= _SEEDS
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def naming_what_did_not_fit(what: str, device: torch.device) -> Iterator[None]:
    """Say in an out-of-memory error what was being computed.

    Args:
        what: the batch, in words.
        device: where.

    >>> with naming_what_did_not_fit("a batch of 8 rows", torch.device("cuda")):
    ...     raise torch.OutOfMemoryError("tried to allocate 2 GiB")
    Traceback (most recent call last):
    torch.OutOfMemoryError: a batch of 8 rows did not fit into the memory of cuda: tried to allocate 2 GiB
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{what} did not fit into the memory of {device}: {error}") from error
