"""Shared by all operators: conversion of array arguments to tensors, and registration of GPU implementations."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache, wraps
from typing import Any, TypeVar

import numpy as np
import torch

from reasonrec_fast.arrays import as_tensor
from reasonrec_fast.ops import native  # noqa: F401  loads the native libraries

_logger = logging.getLogger("reasonrec_fast")

Function = TypeVar("Function", bound=Callable[..., Any])


_INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
_WHOLE, _REAL = (int, torch.SymInt), (int, float, torch.SymFloat)
_PLAIN = (torch.Tensor, type(None), str, int, float)
_PASSED_THROUGH: set[type] = {
    torch.Tensor,
    torch.nn.Parameter,
    type(None),
    str,
    bool,
    int,
    float,
}  # one set look-up per value
_TUPLE_ARGUMENTS = ("exclude", "clip")  # arguments that are a tuple or list of parts; only a tuple `x` is


class ArgumentError(ValueError, RuntimeError):
    """A native operator refused an argument. A ``ValueError``, and also the ``RuntimeError`` that torch raises then."""


def takes_arrays(function: Function) -> Function:
    """Decorate an operator so that it accepts arrays and returns tensors.

    Numpy and cupy arrays and anything else with DLPack are taken without a copy; pandas objects and sequences of
    numbers are converted. Errors of native argument checks become an :class:`ArgumentError`. Argument types are checked
    only after a call has failed, so that calls with tensors pay nothing for the check.
    """
    signature = inspect.signature(function)
    names = tuple(signature.parameters)

    @wraps(function)
    def with_tensors(*arguments: Any, **named: Any) -> Any:
        for value in arguments:
            if type(value) not in _PASSED_THROUGH:
                arguments = tuple([_as_tensor(each, *names[i : i + 1]) for i, each in enumerate(arguments)])
                break
        for name, value in named.items():
            if type(value) not in _PASSED_THROUGH:
                named[name] = _as_tensor(value, name)
        try:
            return function(*arguments, **named)
        except RuntimeError as error:
            match = _NATIVE_MESSAGE.match(str(error))
            if match is None:
                raise
            raise ArgumentError(match[1]) from error
        except (AttributeError, TypeError):
            _check_tensors(signature, arguments, named)
            raise

    return with_tensors  # type: ignore[return-value]


def pass_through(kind: type) -> None:
    """Register a type of this package that :func:`takes_arrays` passes to operators unchanged."""
    _PASSED_THROUGH.add(kind)


def _check_tensors(signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raise for an argument that is annotated as a tensor and is not one."""
    try:
        given = signature.bind(*arguments, **named).arguments
    except TypeError:  # a missing or unknown argument; the original error names it
        return
    for name, parameter in signature.parameters.items():
        if parameter.annotation == "torch.Tensor" or (name in given and parameter.annotation == "torch.Tensor | None"):
            check_tensor(given[name], name, parameter.default is None)


_NATIVE_MESSAGE = re.compile(r"(?:\w+, \S+\.(?:cpp|h|cu|cuh):\d+, )?(\w+(?:, \w+)*: expected .*)")
"""The message of a native check, without the function and file names that torch puts before it."""


def _as_tensor(value: Any, name: str = "array") -> Any:
    if isinstance(value, _PLAIN):
        return value
    if type(value) is tuple if name == "x" else name in _TUPLE_ARGUMENTS and isinstance(value, (tuple, list)):
        return tuple([part if isinstance(part, _PLAIN) else as_tensor(part, name) for part in value])
    if isinstance(value, np.generic):
        return value.item()
    if (
        isinstance(value, list | range)
        or type(value) is tuple
        or hasattr(value, "__dlpack__")
        or hasattr(value, "__array__")
    ):
        tensor = as_tensor(value, name)
        if name == "out" and not _shares(tensor, value):
            raise ValueError("out: expected an array that can be written to, of positive strides; got one that cannot")
        return tensor
    return value


def _shares(tensor: torch.Tensor, array: Any) -> bool:
    """Whether a tensor shares memory with the array that it was converted from."""
    if isinstance(array, np.ndarray):
        return tensor.data_ptr() == array.ctypes.data
    return hasattr(array, "__dlpack__")


def check_tensor(value: Any, name: str, optional: bool = False) -> None:
    """Raise ``ValueError`` unless the value is a tensor, or None where ``optional``."""
    if not isinstance(value, torch.Tensor) and not (optional and value is None):
        raise ValueError(f"{name}: expected an array; got {type(value).__name__}")


def check_count(value: Any, name: str, least: int = 0) -> None:
    """Raise ``ValueError`` unless the value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, _WHOLE) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}; got {value!r}")


def is_integer(tensor: torch.Tensor) -> bool:
    """Whether a tensor has an integer dtype; bool is not one."""
    return tensor.dtype in _INTEGERS


def scalar(value: float | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A 0-d tensor, created on the device: a CUDA graph cannot capture a copy from pageable host memory."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype=dtype, device=device)
    return torch.full((), value, dtype=dtype, device=device)


def setting(value: float | torch.Tensor, device: torch.device, keep: bool) -> torch.Tensor:
    """A 0-d float64 tensor of a temperature. The tensor may be shared between calls: read-only.

    Args:
        value: the temperature.
        device: where the operator runs.
        keep: the result of :func:`may_keep`. If true the tensor is cached by value, which saves a kernel launch per
            call on a GPU.

    Raises:
        ValueError: not one positive number. Only the shape of a GPU tensor is checked: reading its value would
            synchronise.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"temperature: expected a float or a 0-d tensor; got {list(value.shape)}")
        if keep and value.device.type == "cpu":
            _check_temperature(float(value))
        return (value.reshape(()) if value.dim() else value).to(dtype=torch.float64, device=device)
    if keep:
        return _kept_setting(value, device, _stream(device))
    _check_temperature(value)
    return torch.full((), value, dtype=torch.float64, device=device)


@lru_cache(maxsize=256)
def _kept_setting(value: float, device: torch.device, stream: int) -> torch.Tensor:
    _check_temperature(value)  # a cached value was checked when it entered the cache
    with torch.inference_mode(False):  # as in _kept
        return torch.full((), value, dtype=torch.float64, device=device)


def _check_temperature(value: Any) -> None:
    if not isinstance(value, _REAL) or not 0 < value < math.inf:
        raise ValueError(f"temperature: expected a positive number; got {value!r}")


def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device, keep: bool) -> torch.Tensor:
    """A read-only vector whose entries are equal except possibly the last; ``keep`` as in :func:`setting`."""
    return _kept_vector(values, dtype, device, _stream(device)) if keep else _vector(values, dtype, device)


def _vector(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Filled on the device: a CUDA graph cannot capture a copy from pageable host memory."""
    vector = torch.full((len(values),), values[0], dtype=dtype, device=device)
    if values[-1] != values[0]:
        vector[-1:].fill_(values[-1])
    return vector


@lru_cache(maxsize=64)
def _kept_vector(values: tuple[float, ...], dtype: torch.dtype, device: torch.device, stream: int) -> torch.Tensor:
    with torch.inference_mode(False):  # as in _kept
        return _vector(values, dtype, device)


def nothing(dtype: torch.dtype, device: torch.device, keep: bool) -> torch.Tensor:
    """An empty vector that stands for an absent argument; ``keep`` as in :func:`setting`. It must not be resized."""
    return _kept(None, dtype, device, 0) if keep else torch.empty(0, dtype=dtype, device=device)


def call(operator: Callable[..., Any], keep: bool, *arguments: Any) -> Any:
    """Call a registered operator, without its Python autograd layer where no gradient is required.

    That layer takes a third of the host time of a small call. ``keep`` is the result of :func:`may_keep`: under a
    compiler, a dispatch mode or a transform no layer may be skipped.
    """
    if not keep or (torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in arguments)):
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def may_keep(device: torch.device) -> bool:
    """Whether a tensor created now may be cached for later calls.

    Not under a compiler, a fake mode or a transform, whose tensors have no memory of their own, and not while a CUDA
    graph is captured: a tensor created then holds its value only after a replay.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_current_stream_capturing())


def _stream(device: torch.device) -> int:
    """The current stream, part of cache keys: only the stream that writes a tensor may read it without waiting."""
    return 0 if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream


@lru_cache(maxsize=256)
def _kept(value: float | None, dtype: torch.dtype, device: torch.device, stream: int) -> torch.Tensor:
    with torch.inference_mode(False):  # autograd cannot save an inference tensor for the backward pass
        if value is None:
            return torch.empty(0, dtype=dtype, device=device)
        return torch.full((), value, dtype=dtype, device=device)


def batch_rows(name: str, rows: tuple[int, ...]) -> None:
    """Register a ``torch.vmap`` rule for an operator whose rows are independent: the batch is folded into the rows.

    Args:
        name: of the operator.
        rows: indices of the arguments that have one entry per row. Only these may be batched; an empty one stays empty.
    """
    operator = getattr(torch.ops.reasonrec_fast, name)

    def folded(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        batched = [index for index, dim in enumerate(in_dims) if dim is not None]
        if not set(batched) <= set(rows):
            raise ValueError(f"{name}: vmap expects batches of arguments {rows} alone; got one of {batched}")
        given = list(arguments)
        for index in rows:
            dim, value = in_dims[index], arguments[index]
            if dim is None and value.numel() == 0:
                continue
            whole = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            given[index] = whole.flatten(0, 1)
        results = operator(*given)
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in results), (0,) * len(results)

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
        reference: runs for dtypes that the kernel does not support, and always where Triton is not installed.
        reference_dtypes: dtypes of the first floating-point argument for which the reference runs.
        module: name of the kernel module, if it differs from ``name``.
        fits: whether the kernel supports these arguments; otherwise the reference runs.
    """

    def on_gpu(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        dtype = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        in_kernel = dtype not in reference_dtypes and fits(*arguments)
        kernel = triton_kernel(module or name, name) if in_kernel else None
        with device_of(name, tensors):
            return (kernel or reference)(*arguments)

    register_on_gpu(name, on_gpu)


ON_GPU: dict[str, Callable[..., Any]] = {}
"""The implementation for CUDA tensors, by operator name."""


def register_on_gpu(name: str, function: Callable[..., Any]) -> None:
    """Register an operator's implementation for CUDA tensors."""
    ON_GPU[name] = function
    torch.library.impl(f"reasonrec_fast::{name}", "CUDA", function)


def device_of(name: str, tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
    """A context in which the device of an operator's tensors is current: Triton launches on the current device.

    Args:
        name: of the operator, for the message.
        tensors: its arguments; empty ones may be on any device.

    Raises:
        ValueError: tensors on more than one device.
    """
    devices = {tensor.device for tensor in tensors if tensor.numel()}
    if len(devices) > 1:
        raise ValueError(f"{name}: expected all tensors on one device; got {sorted(map(str, devices))}")
    device = devices.pop() if devices else tensors[0].device
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


@cache
def triton_kernel(module: str, name: str) -> Callable[..., Any] | None:
    """The function of a kernel module; None, with one logged warning, where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        _logger.warning("%s: triton is not installed; plain torch runs instead (slower)", name)
        return None
    return getattr(importlib.import_module(f"reasonrec_fast.kernels.{module}"), name)
