"""What operators share: arrays as tensors, and how an operator finds its implementation on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

from reasonrec_fast.ops import native  # noqa: F401  loads the native libraries

_logger = logging.getLogger("reasonrec_fast")

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_arrays(function: Function) -> Function:
    """Let an operator take numpy and cupy arrays and anything else with DLPack, without a copy; it returns tensors."""

    @wraps(function)
    def with_tensors(*arguments: Any, **named: Any) -> Any:
        return function(*map(_as_tensor, arguments), **{name: _as_tensor(value) for name, value in named.items()})

    return with_tensors  # type: ignore[return-value]


def _as_tensor(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_as_tensor, value))
    if isinstance(value, torch.Tensor) or not hasattr(value, "__dlpack__"):
        return value
    return torch.from_dlpack(value)


def scalar(value: float | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A 0-d tensor, made on the device: a copy from the host would not do inside a CUDA graph."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype=dtype, device=device)
    return torch.full((), value, dtype=dtype, device=device)


def batch_rows(name: str, rows: tuple[int, ...]) -> None:
    """Give an operator whose results are independent by row to ``torch.vmap``: batches become more rows.

    Args:
        name: of the operator.
        rows: places of the arguments with a row each; they alone may be batched. An empty one stays empty.
    """
    operator = getattr(torch.ops.reasonrec_fast, name)

    def folded(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        batched = [place for place, dim in enumerate(in_dims) if dim is not None]
        if not set(batched) <= set(rows):
            raise ValueError(f"{name}: vmap expects batches of arguments {rows} alone; got one of {batched}")
        given = list(arguments)
        for place in rows:
            dim, value = in_dims[place], arguments[place]
            if dim is None and value.numel() == 0:
                continue
            whole = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            given[place] = whole.flatten(0, 1)
        found = operator(*given)
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in found), (0,) * len(found)

    torch.library.register_vmap(f"reasonrec_fast::{name}", folded)


def implement_on_gpu(
    name: str,
    reference: Callable[..., Any],
    *,
    reference_dtypes: tuple[torch.dtype, ...],
    module: str | None = None,
    fits: Callable[..., bool] = lambda *arguments: True,
) -> None:
    """Register the Triton kernel of ``reasonrec_fast.kernels.<name>`` for CUDA.

    Args:
        name: of the operator, and of the function in its kernel module.
        reference: runs for the dtypes that the kernel does not have, and for all where Triton is not installed.
        reference_dtypes: dtypes of the first floating-point argument that go to the reference.
        module: kernel module, where its name is another one.
        fits: whether the kernel takes these arguments; else the reference does.
    """

    def on_gpu(*arguments: Any) -> Any:
        dtype = next(a.dtype for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point())
        in_kernel = dtype not in reference_dtypes and fits(*arguments)
        kernel = _triton_kernel(module or name, name) if in_kernel else None
        return (kernel or reference)(*arguments)

    torch.library.impl(f"reasonrec_fast::{name}", "CUDA", on_gpu)


@cache
def _triton_kernel(module: str, name: str) -> Callable[..., Any] | None:
    if importlib.util.find_spec("triton") is None:
        _logger.warning("%s: triton is not installed; plain torch runs instead (slower)", name)
        return None
    return getattr(importlib.import_module(f"reasonrec_fast.kernels.{module}"), name)
