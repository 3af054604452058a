"""Where models live: which device is meant, how arrays get there, and its random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
    """An array as a tensor on a device: without a copy on the CPU, without waiting for a GPU.

    ``tensor.to(device)`` waits until the GPU has done all that was asked of it. An asynchronous copy from pageable
    memory reads the array before it returns, so that the array may change or go away afterwards.
    """
    return torch.from_numpy(array).to(device, non_blocking=True)


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


def seed_random_numbers(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of ``device``; ``torch.manual_seed`` would seed every GPU's."""
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
