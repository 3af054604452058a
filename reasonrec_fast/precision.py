"""The type that a machine multiplies matrices fastest in."""

from __future__ import annotations

import functools

import torch


@functools.cache
def fast_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16 where a device multiplies matrices faster in it, else float32.

    A CPU without bfloat16 instructions emulates them, several times slower than float32.

    Args:
        device: by default a GPU where there is one.

    >>> fast_dtype("cpu") in (torch.bfloat16, torch.float32)
    True
    """
    kind = torch.device(device).type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capability = torch.cpu.get_capabilities()
    fast = any(capability.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32
