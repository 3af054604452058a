"""Matrix products of a step of decoding: few rows, each with the same bits whatever lies beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from reasonrec_fast.lm.decoder import Call, call, is_plain_linear


class StepProducts(TorchFunctionMode):
    """While it is active in a thread, float32 products on a CPU are ``csrc/cpu/linear.cpp``'s, without gradients.

    Whoever calls ``torch.nn.functional.linear`` is reached: layers of every family, adapters, heads. Products of other
    dtypes, and of tensors that are not plain ones, stay what they are. At eight rows it takes about half of the time of
    MKL's product, which reads a weight of 49,152 rows at less than half the rate of the memory
    (docs/performance.md); at 64 rows it is no slower.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            return _product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def step_call(hidden: torch.Tensor) -> Call:
    """How modules read the rows of a step: through :class:`StepProducts` where these have anything to do."""
    return _call if hidden.dtype == torch.float32 and hidden.is_cpu else call


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
    if not (_plain(input) and _plain(weight) and (bias is None or _plain(bias))):
        return False
    if weight.dim() != 2 or not input.dim() or input.shape[-1] != weight.shape[1]:
        return False
    return bias is None or bias.shape == weight.shape[:1]


def _plain(x: Any) -> bool:
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or x.layout is not torch.strided:
        return False
    return x.dtype == torch.float32 and x.is_cpu
