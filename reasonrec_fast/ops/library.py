"""What operators share: arrays as tensors, and how an operator finds its implementation on a GPU."""

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
_AS_THEY_ARE: set[type] = {torch.Tensor, torch.nn.Parameter, type(None), str, bool, int, float}  # one look-up a value
_PARTS = ("exclude", "clip")  # arguments of several parts, in a tuple or a list; an x may be a tuple of two


class ArgumentError(ValueError, RuntimeError):
    """An argument that a native operator refuses: a ``ValueError``, and the ``RuntimeError`` that torch makes of it."""


def takes_arrays(function: Function) -> Function:
    """Let an operator take numpy and cupy arrays and anything else with DLPack, without a copy, and pandas objects and
    sequences of numbers; it returns tensors.

    What native code refuses becomes an :class:`ArgumentError`. Whether arguments that are to be tensors are some is
    asked where a call has failed: tensors pay nothing for it.
    """
    signature = inspect.signature(function)
    names = tuple(signature.parameters)

    @wraps(function)
    def with_tensors(*arguments: Any, **named: Any) -> Any:
        for value in arguments:
            if type(value) not in _AS_THEY_ARE:
                arguments = tuple([_as_tensor(each, *names[i : i + 1]) for i, each in enumerate(arguments)])
                break
        for name, value in named.items():
            if type(value) not in _AS_THEY_ARE:
                named[name] = _as_tensor(value, name)
        try:
            return function(*arguments, **named)
        except RuntimeError as error:
            told = _NATIVE.match(str(error))
            if told is None:
                raise
            raise ArgumentError(told[1]) from error
        except (AttributeError, TypeError):
            _check_tensors(signature, arguments, named)
            raise

    return with_tensors  # type: ignore[return-value]


def is_no_array(kind: type) -> None:
    """Let operators take values of a type of this package as they are."""
    _AS_THEY_ARE.add(kind)


def _check_tensors(signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse what is no tensor where the annotations ask for one."""
    try:
        given = signature.bind(*arguments, **named).arguments
    except TypeError:  # an argument is missing or unknown, as the caller is told already
        return
    for name, parameter in signature.parameters.items():
        if parameter.annotation == "torch.Tensor" or (name in given and parameter.annotation == "torch.Tensor | None"):
            check_tensor(given[name], name, parameter.default is None)


_NATIVE = re.compile(r"(?:\w+, \S+\.(?:cpp|h|cu|cuh):\d+, )?(\w+(?:, \w+)*: expected .*)")
"""What a native check says, behind the names of its function and file."""


def _as_tensor(value: Any, name: str = "array") -> Any:
    if isinstance(value, _PLAIN):
        return value
    if type(value) is tuple if name == "x" else name in _PARTS and isinstance(value, (tuple, list)):
        return tuple([part if isinstance(part, _PLAIN) else as_tensor(part, name) for part in value])
    if isinstance(value, np.generic):
        return value.item()
    if (
        isinstance(value, list | range)
        or type(value) is tuple
        or hasattr(value, "__dlpack__")
        or hasattr(value, "__array__")
    ):
        found = as_tensor(value, name)
        if name == "out" and not _shares(found, value):
            raise ValueError("out: expected an array that can be written to, of positive strides; got one that cannot")
        return found
    return value


def _shares(tensor: torch.Tensor, array: Any) -> bool:
    """Whether a tensor is the memory of what it was made of."""
    if isinstance(array, np.ndarray):
        return tensor.data_ptr() == array.ctypes.data
    return hasattr(array, "__dlpack__")


def check_tensor(value: Any, name: str, optional: bool = False) -> None:
    """Refuse what is not an array, nor None where it is ``optional``."""
    if not isinstance(value, torch.Tensor) and not (optional and value is None):
        raise ValueError(f"{name}: expected an array; got {type(value).__name__}")


def check_count(value: Any, name: str, least: int = 0) -> None:
    """Refuse what is not a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, _WHOLE) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}; got {value!r}")


def is_integer(tensor: torch.Tensor) -> bool:
    """Whether a tensor has whole numbers; bools are not."""
    return tensor.dtype in _INTEGERS


def scalar(value: float | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A 0-d tensor, made on the device: a copy from the host would not do inside a CUDA graph."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype=dtype, device=device)
    return torch.full((), value, dtype=dtype, device=device)


def setting(value: float | torch.Tensor, device: torch.device, keep: bool) -> torch.Tensor:
    """A 0-d float64 tensor of a setting that is mostly the same, such as a temperature. Nobody may write to it.

    Args:
        value: the setting.
        device: where the operator runs.
        keep: what :func:`may_keep` said; then it is made once and read by many calls: a launch less on a GPU.

    Raises:
        ValueError: not one positive number. Of a tensor on a GPU the shape alone is checked: its value is not read.
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
    _check_temperature(value)  # of a value that was kept there is nothing to check
    with torch.inference_mode(False):  # as in _kept
        return torch.full((), value, dtype=torch.float64, device=device)


def _check_temperature(value: Any) -> None:
    if not isinstance(value, _REAL) or not 0 < value < math.inf:
        raise ValueError(f"temperature: expected a positive number; got {value!r}")


def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device, keep: bool) -> torch.Tensor:
    """A vector of a setting that is mostly the same, all but the last entry alike; ``keep`` as in :func:`setting`."""
    return _kept_vector(values, dtype, device, _stream(device)) if keep else _vector(values, dtype, device)


def _vector(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Made on the device: a copy from the host would not do inside a CUDA graph."""
    found = torch.full((len(values),), values[0], dtype=dtype, device=device)
    if values[-1] != values[0]:
        found[-1:].fill_(values[-1])
    return found


@lru_cache(maxsize=64)
def _kept_vector(values: tuple[float, ...], dtype: torch.dtype, device: torch.device, stream: int) -> torch.Tensor:
    with torch.inference_mode(False):  # as in _kept
        return _vector(values, dtype, device)


def nothing(dtype: torch.dtype, device: torch.device, keep: bool) -> torch.Tensor:
    """An empty vector, for an argument that is not given; ``keep`` as in :func:`setting`. Nobody may resize it."""
    return _kept(None, dtype, device, 0) if keep else torch.empty(0, dtype=dtype, device=device)


def call(operator: Callable[..., Any], keep: bool, *arguments: Any) -> Any:
    """Call a registered operator; past its layer of autograd, which is Python's, where nobody asks for gradients.

    That layer takes a third of the host's time of a small call. ``keep`` is what :func:`may_keep` said: under a
    compiler, a mode or a transform every layer has its turn.
    """
    if not keep or (torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in arguments)):
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def may_keep(device: torch.device) -> bool:
    """Whether a tensor made now may be read by later calls.

    Not while a compiler, a fake mode or a transform stands between us and the memory, and not while a CUDA graph is
    recorded: what is made then holds its value only after a replay.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_current_stream_capturing())


def _stream(device: torch.device) -> int:
    """The stream that writes the tensor, and on which alone it may be read without waiting."""
    return 0 if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream


@lru_cache(maxsize=256)
def _kept(value: float | None, dtype: torch.dtype, device: torch.device, stream: int) -> torch.Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be saved for a backward pass
        if value is None:
            return torch.empty(0, dtype=dtype, device=device)
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
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        dtype = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        in_kernel = dtype not in reference_dtypes and fits(*arguments)
        kernel = triton_kernel(module or name, name) if in_kernel else None
        with device_of(name, tensors):
            return (kernel or reference)(*arguments)

    register_on_gpu(name, on_gpu)


ON_GPU: dict[str, Callable[..., Any]] = {}
"""What runs for CUDA tensors, by operator."""


def register_on_gpu(name: str, function: Callable[..., Any]) -> None:
    """Register what runs for CUDA tensors."""
    ON_GPU[name] = function
    torch.library.impl(f"reasonrec_fast::{name}", "CUDA", function)


def device_of(name: str, tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
    """Make the device of an operator's tensors the current one: Triton launches there, whatever lies elsewhere.

    Args:
        name: of the operator, for the message.
        tensors: its arguments; empty ones may lie anywhere.

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
    """The function of a kernel module; None, and one line, where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        _logger.warning("%s: triton is not installed; plain torch runs instead (slower)", name)
        return None
    return getattr(importlib.import_module(f"reasonrec_fast.kernels.{module}"), name)
