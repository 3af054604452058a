"""What operators share: arrays as tensors, and how an operator finds its implementation on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache, wraps
from typing import Any, TypeVar

import torch

from reasonrec_fast.ops import native  # noqa: F401  loads the native libraries

_logger = logging.getLogger("reasonrec_fast")

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_arrays(function: Function) -> Function:
    """Let an operator take numpy and cupy arrays and anything else with DLPack, without a copy; it returns tensors."""

    @wraps(function)
    def with_tensors(*arguments: Any, **named: Any) -> Any:
        arguments = tuple([_as_tensor(value) for value in arguments])
        for name, value in named.items():
            named[name] = _as_tensor(value)
        return function(*arguments, **named)

    return with_tensors  # type: ignore[return-value]


def _as_tensor(value: Any) -> Any:
    if isinstance(value, torch.Tensor) or value is None or isinstance(value, (str, int, float)):
        return value
    if type(value) is tuple:
        return tuple([_as_tensor(part) for part in value])
    return torch.from_dlpack(value) if hasattr(value, "__dlpack__") else value


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
    """
    if isinstance(value, torch.Tensor):
        return value.to(dtype=torch.float64, device=device)
    if not keep:
        return torch.full((), value, dtype=torch.float64, device=device)
    return _kept(float(value), torch.float64, device, _stream(device))


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
