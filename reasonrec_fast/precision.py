"""The dtype in which a device multiplies matrices fastest."""

from __future__ import annotations

import functools

import torch

from reasonrec_fast.devices import resolve_device


def fast_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16 where the device multiplies matrices faster in it, else float32.

    A CPU without bfloat16 instructions emulates them, several times slower than float32; so does a GPU before sm_80.

    Args:
        device: of the weights; by default as in :func:`~reasonrec_fast.devices.resolve_device`.

    Raises:
        ValueError: the device does not exist.

    >>> fast_dtype("cpu") in (torch.bfloat16, torch.float32)
    True
    """
    return _fast_dtype(resolve_device(device))


@functools.cache
def _fast_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    capability = torch.cpu.get_capabilities()
    fast = any(capability.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32
