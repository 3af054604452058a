"""What goes with requests, held to the rows and the model that it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reasonrec_fast.arrays import as_tensor
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.requests import GroupInputs


def checked_inputs(
    model: EarlyExitModel,
    rows: int,
    features: Any = None,
    offset: Any = None,
    shallow: Any = None,
    confidence: Any = None,
    strata: Any = None,
) -> tuple[GroupInputs, torch.Tensor | None, np.ndarray | None]:
    """The inputs of ``rows`` requests (numbers of any type as float32), the logits of depth 0 and the confidence there.

    An array of one row would be spread over all requests, and a longer one would be read from its beginning: each has
    as many rows as there are requests.

    Args:
        model: heads that read features or not, with an offset or not.
        rows: requests, ``R``.
        features: ``[R, F]``.
        offset: ``[R]``, or ``[R, L]`` for more than two answers.
        shallow: as the offset; by default the offset. NaN may go with whoever does not leave at depth 0.
        confidence: ``[R]``; NaN goes on.
        strata: whole numbers ``[R]``.

    Raises:
        TypeError: strata that are no whole numbers.
        ValueError: no numbers, or what is missing, not wanted, of another shape or not finite (seen on a CPU alone).
    """
    if model.offset != (offset is not None):
        raise ValueError(f"offset: expected {'one a request' if model.offset else 'None'}; got {offset}")
    if offset is None and (shallow is not None or confidence is not None):
        raise ValueError("shallow, confidence: expected None for a model without depth 0; got one of them")
    units = model.heads[0].units
    if (units is not None) != (features is not None):
        wanted = "None, as the heads read none" if units is None else f"[{rows}, {units.in_features}]"
        raise ValueError(f"features: expected {wanted}; got {_shape(features)}")
    logits = [rows] if model.num_answers == 2 else [rows, model.num_answers]
    if features is not None:
        assert units is not None
        features = _checked("features", features, [rows, units.in_features], finite=True).float()
    if offset is not None:
        offset = _checked("offset", offset, logits, finite=True)
        shallow = offset if shallow is None else _checked("shallow", shallow, logits, finite=False)
    if confidence is not None:
        confidence = _checked("confidence", confidence, [rows], finite=False).cpu().double().numpy()
    if strata is not None:
        strata = _by_position("strata", strata, [rows])
        if strata.is_floating_point() or strata.dtype is torch.bool:
            raise TypeError(f"strata: expected whole numbers; got {strata.dtype}")
        strata = strata.long()
    return GroupInputs(features, offset, strata), shallow, confidence


def check_strata(strata: torch.Tensor | None, policy: ExitPolicy | None) -> None:
    """Refuse strata without thresholds; on a GPU such a row would end all work of the process.

    Args:
        strata: int64 ``[R]``, on a CPU; others are not read.
        policy: None: nobody leaves, whatever the stratum.

    Raises:
        ValueError: a row's stratum.
    """
    if strata is None or policy is None or strata.device.type != "cpu" or not len(strata):
        return
    wrong = ((strata < 0) | (strata >= len(policy.thresholds))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"strata: expected rows of the policy's thresholds, [0, {len(policy.thresholds)}); got {int(strata[row])} "
            f"in row {row}"
        )


def check_leaving(shallow: torch.Tensor, leaving: np.ndarray) -> None:
    """Refuse NaN as the answer of rows that leave at depth 0.

    Args:
        shallow: logits of depth 0, ``[R]`` or ``[R, L]``.
        leaving: bool ``[R]``.

    Raises:
        ValueError: the row.
    """
    strange = shallow.detach().cpu().isnan().reshape(len(shallow), -1).any(1).numpy() & leaving
    if strange.any():
        raise ValueError(f"shallow: expected numbers for who leaves at depth 0; got nan in row {int(strange.argmax())}")


def _checked(name: str, values: Any, shape: list[int], *, finite: bool) -> torch.Tensor:
    """Numbers of a shape, as a tensor; with ``finite`` it is float32.

    Raises:
        ValueError: no numbers, another shape, or numbers that are not finite in float32, which heads read.
    """
    array = _by_position(name, values, shape)
    if array.is_complex() or array.dtype is torch.bool:
        raise ValueError(f"{name}: expected numbers; got {array.dtype}")
    array = array.float() if finite else array
    if finite and array.device.type == "cpu":
        strange = (~array.isfinite()).reshape(len(array), -1).any(1).nonzero()
        if len(strange):
            raise ValueError(f"{name}: expected finite numbers; got others in row {int(strange[0])}")
    return array


def _by_position(name: str, values: Any, shape: list[int]) -> torch.Tensor:
    """A tensor of a shape, without gradients; arrays and tables become one.

    Raises:
        ValueError: no numbers, or another shape.
    """
    array = as_tensor(values, name).detach()
    if list(array.shape) != shape:
        raise ValueError(f"{name}: expected {shape}; got {list(array.shape)}")
    return array


def _shape(values: Any) -> str:
    return "None" if values is None else str(list(np.shape(values)))
