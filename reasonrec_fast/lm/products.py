"""Matrix products of a step of decoding: few rows, each with the same bits whatever lies beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from reasonrec_fast.lm.decoder import Call, call


class StepProducts(TorchFunctionMode):
    """While it is active in a thread, float32 products on a CPU are ``csrc/cpu/linear.cpp``'s, without gradients.

    Whoever calls ``torch.nn.functional.linear`` is reached: layers of every family, adapters, heads. Products of other
    dtypes, and of tensors that are not plain ones, stay what they are. At eight rows it takes about half of the time of
    MKL's product, which reads a weight of 49,152 rows at less than half the rate of the memory
    (docs/performance.md); at 64 rows it is no slower.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs:
            return _product(*args)
        return func(*args, **(kwargs or {}))


def step_call(hidden: torch.Tensor) -> Call:
    """How modules read the rows of a step: through :class:`StepProducts` where these have anything to do."""
    return _call if hidden.dtype == torch.float32 and hidden.is_cpu else call


def _call(module: Any, x: torch.Tensor) -> torch.Tensor:
    if is_plain_linear(module):
        return _product(x, module.weight, module.bias)  # a mode costs some microseconds a call
    with StepProducts():
        return module(x)


def is_plain_linear(module: Any) -> bool:
    """Whether a module is its weight and bias alone: no adapter, no hook, no other ``forward`` (accelerate)."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks)


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    fits = weight.dim() == 2 and rows.dim() and rows.shape[-1] == weight.shape[1]
    if torch.is_grad_enabled() or not (fits and _plain(rows) and _plain(weight) and _plain(bias)):
        return functional.linear(rows, weight, bias)
    added = weight.new_empty(0) if bias is None else bias
    if rows.dim() == 2:
        return torch.ops.reasonrec_fast.linear.default(rows, weight, added)
    product = torch.ops.reasonrec_fast.linear.default(rows.reshape(-1, weight.shape[1]), weight, added)
    return product.view(*rows.shape[:-1], len(weight))


def _plain(x: Any) -> bool:
    return x is None or (type(x) in (torch.Tensor, torch.nn.Parameter) and x.dtype == torch.float32 and x.is_cpu)
