"""Matrix products of a step of decoding: few rows, each with the same bits whatever lies beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from reasonrec_fast.lm.decoder import Call, call, is_plain_linear
from reasonrec_fast.ops import native  # noqa: F401  loads the operator

_DTYPES = (torch.float32, torch.bfloat16)


class StepProducts(TorchFunctionMode):
    """While it is active in a thread, products on a CPU are ``csrc/cpu/linear.cpp``'s, without gradients.

    Whoever calls ``torch.nn.functional.linear`` is reached: layers of every family, adapters, heads. Products of other
    types than float32 and bfloat16, and of tensors that are not plain ones, stay what they are. For eight rows it takes
    half to three quarters of the time of torch's own product, and for 64 about as much (docs/performance.md).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            return _product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def step_call(hidden: torch.Tensor) -> Call:
    """How modules read the rows of a step: through :class:`StepProducts` where these have anything to do."""
    return _call if hidden.dtype in _DTYPES and hidden.is_cpu else call


def _call(module: Any, x: torch.Tensor) -> torch.Tensor:
    if is_plain_linear(module):
        return _product(x, module.weight, module.bias)  # a mode costs some microseconds a call
    with StepProducts():
        return module(x)


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if torch.is_grad_enabled() or not _fits(input, weight, bias):
        return functional.linear(input, weight, bias)
    added = weight.new_empty(0) if bias is None else bias
    if input.dim() == 2:
        return torch.ops.reasonrec_fast.linear.default(input, weight, added)
    product = torch.ops.reasonrec_fast.linear.default(input.reshape(-1, weight.shape[1]), weight, added)
    return product.view(*input.shape[:-1], len(weight))


def _fits(input: Any, weight: Any, bias: Any) -> bool:
    """Whether the operator computes it: a matrix and a vector of plain tensors, nothing that is spread to a shape."""
    dtype = input.dtype
    if not (_plain(input, dtype) and _plain(weight, dtype) and (bias is None or _plain(bias, dtype))):
        return False
    if weight.dim() != 2 or not input.dim() or input.shape[-1] != weight.shape[1]:
        return False
    return bias is None or bias.shape == weight.shape[:1]


def _plain(x: Any, dtype: torch.dtype) -> bool:
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or x.layout is not torch.strided:
        return False
    return x.is_cpu and x.dtype == dtype and dtype in _DTYPES
