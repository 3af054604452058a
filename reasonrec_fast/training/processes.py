"""Communication between the processes of a training run; unused by a single process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse settings that a step loop does not support.

    Raises:
        ValueError: sharded models (FSDP, DeepSpeed, Megatron), a gradient scaler (fp16, fp8), or gradient accumulation,
            for which the loop has micro-batches.
    """
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ValueError(
            f"accelerator: expected one process, or several that each hold the whole model ('MULTI_CPU', 'MULTI_GPU'); "
            f"got {kind!r}"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"accelerator: expected mixed_precision 'no' or 'bf16', which need no gradient scaler; got "
            f"{accelerator.mixed_precision!r}"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"accelerator: expected gradient_accumulation_steps 1, as a step is given its micro-batches; got "
            f"{accelerator.gradient_accumulation_steps}"
        )


def broadcast_parameters(parameters: Sequence[nn.Parameter]) -> None:
    """Copy the main process's values to every process."""
    from accelerate.utils import broadcast

    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(broadcast(parameter.detach().clone()))


def sum_gradients(parameters: Sequence[nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Sum gradients and the loss over all processes, in one message for each type.

    DistributedDataParallel overlaps this with the backward pass, but supports only models that are called through
    ``forward``, and no processes without a micro-batch. A parameter without a gradient in any process keeps none, so
    that the optimiser skips it as in a single process.

    Returns:
        the sum of the losses, float32, 0-d.
    """
    from accelerate.utils import reduce

    device = loss.device
    packed = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32).to(device)
    packed = reduce(torch.cat([packed, loss.detach().float().reshape(1)]), "sum")
    present = packed[:-1].cpu() > 0
    used = [parameter for parameter, has in zip(parameters, present.tolist(), strict=True) if has]
    for dtype in dict.fromkeys(parameter.dtype for parameter in used):
        same = [parameter for parameter in used if parameter.dtype is dtype]
        flat = torch.cat([(p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1)) for p in same])
        parts = reduce(flat, "sum").split([parameter.numel() for parameter in same])
        for parameter, part in zip(same, parts, strict=True):
            parameter.grad = part.view_as(parameter)
    return packed[-1]


def gathered(value: Any, accelerator: Accelerator | None) -> list[Any]:
    """A small object of every process, in the order of the processes; the same list in each."""
    if accelerator is None or accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def of_main_process(value: Any, accelerator: Accelerator | None) -> Any:
    """The main process's value, in every process: for common decisions."""
    return gathered(value, accelerator)[0]
