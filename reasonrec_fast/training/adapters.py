"""Precision of LoRA adapters during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn


@contextmanager
def adapters_in_dtype(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Multiply float32 adapters in the type of the backbone; peft would convert every input to float32 (a sixth of a
    step's time on a CPU).

    Args:
        module: with or without adapters.
        dtype: of the backbone. If it has 16 bits, products are computed under autocast.
    """
    device = next(module.parameters()).device.type
    with disable_input_dtype_casting(module), torch.autocast(device, dtype, enabled=dtype.itemsize == 2):
        yield
