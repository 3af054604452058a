"""Converts array-like arguments to numpy arrays and tensors, by position, and checks their contents.

The index of a pandas object is dropped. Arrays with negative strides, foreign byte order or read-only memory are
copied, since torch supports none of these. Errors name the argument, the row, what was expected and what was given.
"""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
import torch


def as_array(values: Any, name: str) -> np.ndarray:
    """The values by position, as a numpy array of any dtype; a numpy array is not copied.

    Args:
        values: a numpy array, torch tensor, pandas object, sequence, or anything that numpy accepts.
        name: of the argument, for messages.

    Raises:
        ValueError: rows of different lengths, or a masked value.

    >>> import pandas
    >>> as_array(pandas.Series([3, 4], index=[1, 0]), "items").tolist()
    [3, 4]
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        row = int(np.argwhere(np.ma.getmaskarray(values))[0][0]) if values.ndim else 0
        raise ValueError(f"{name}: expected a value in every row; got a masked one in row {row}")
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: expected an array; got {_type_name(values)} ({error})") from error


def as_index(
    values: Any, name: str, count: int | None = None, *, least: int = 0, dims: int = 1, error: type = ValueError
) -> np.ndarray:
    """Integers as an int64 array without negative strides.

    Args:
        values: the argument's value.
        name: of the argument, for messages.
        count: exclusive upper bound.
        least: inclusive lower bound.
        dims: number of dimensions; 1 for a vector.
        error: the exception class to raise; a subclass of :class:`ValueError`.

    Raises:
        ValueError: another number of dimensions, values that are not integers (floats and bools are not), or one out of
            range; the message names the row.

    >>> as_index([0, 7], "items", 5)
    Traceback (most recent call last):
    ValueError: items: expected indices in [0, 5); got 7 in row 1
    """
    array = _shaped(values, name, dims, "whole numbers", error)
    if array.dtype.kind == "O":
        wrong = [not isinstance(value, int | np.integer) or isinstance(value, bool) for value in array.ravel()]
        _refuse(np.array(wrong, dtype=bool).reshape(array.shape), array, name, "whole numbers", error)
        _refuse(np.array(abs(array) > _LARGEST, dtype=bool), array, name, _range(least, count), error)
    elif array.dtype.kind not in "iu" and array.size:
        raise error(f"{name}: expected whole numbers; got {array.dtype} {_sample(array)}")
    if array.size:
        low, high = array.min(), array.max()
        if low < least or high > (_LARGEST if count is None else count - 1):
            outside = (array < least) | (array > (_LARGEST if count is None else count - 1))
            _refuse(outside, array, name, _range(least, count), error)
    array = array.astype(np.int64, copy=False)
    return np.ascontiguousarray(array) if any(stride < 0 for stride in array.strides) else array


def as_numbers(
    values: Any, name: str, *, dims: int = 1, nan: bool = False, infinite: bool = False, error: type = ValueError
) -> np.ndarray:
    """Numbers as a float64 array.

    Args:
        values: the argument's value.
        name: of the argument, for messages.
        dims: number of dimensions; 1 for a vector.
        nan, infinite: whether such values are allowed.
        error: the exception class to raise; a subclass of :class:`ValueError`.

    Raises:
        ValueError: another number of dimensions, text, or a value that is not finite; the message names the row.

    >>> as_numbers([0.5, float("nan")], "scores")
    Traceback (most recent call last):
    ValueError: scores: expected finite numbers; got nan in row 1
    """
    array = _shaped(values, name, dims, "numbers", error)
    if array.dtype.kind not in "biufO" and array.size:
        raise error(f"{name}: expected numbers; got {array.dtype} {_sample(array)}")
    if array.dtype.kind == "O":
        wrong = [isinstance(value, complex) or not isinstance(value, Number) for value in array.ravel()]
        wrong = [bad and not _is_missing(value) for bad, value in zip(wrong, array.ravel(), strict=True)]
        _refuse(np.array(wrong, dtype=bool).reshape(array.shape), array, name, "numbers", error)
        missing = np.array([_is_missing(value) for value in array.ravel()], dtype=bool).reshape(array.shape)
        array = np.where(missing, np.nan, array)
    try:
        array = array.astype(np.float64)
    except OverflowError as problem:
        raise error(f"{name}: expected numbers that float64 holds; got one of hundreds of digits") from problem
    if not nan:
        _refuse(np.isnan(array), array, name, "numbers" if infinite else "finite numbers", error)
    if not infinite:
        _refuse(np.isinf(array), array, name, "finite numbers", error)
    return array


def as_labels(values: Any, name: str = "labels") -> np.ndarray:
    """Binary labels of events, int64 ``[N]``.

    Raises:
        ValueError: a label that is neither 0 nor 1. Leave events without a label out: they cannot be scored.

    >>> as_labels([True, 0, 1.0]).tolist()
    [1, 0, 1]
    """
    array = as_numbers(values, name, nan=True, infinite=True)
    _refuse((array != 0) & (array != 1), array, name, "0 or 1", ValueError)
    return array.astype(np.int64)


def as_keys(values: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct identifiers, and the index of each row's identifier among them, int64 ``[N]``.

    Args:
        values: identifiers of any kind, such as numbers or text.
        name: of the argument, for messages.

    Raises:
        ValueError: not a vector, or a missing identifier; the message names the row.

    >>> keys, indices = as_keys(["b", "a", "b"], "users")
    >>> keys[indices].tolist(), indices.tolist()
    (['b', 'a', 'b'], [1, 0, 1])
    """
    import pandas as pd  # here, since it takes longer to import than all of this package

    array = _shaped(values, name, 1, "identifiers", ValueError)
    if isinstance(values, list | tuple) and array.dtype.kind in "USf":
        # Keep the objects: numpy would convert numbers and NaN beside text to text, and large integers to floats.
        array = np.fromiter(values, dtype=object, count=len(values))
    _refuse(np.asarray(pd.isna(array)), array, name, "identifiers", ValueError)
    if array.dtype.kind != "O":
        keys, indices = np.unique(array, return_inverse=True)
        return keys, indices.astype(np.int64)
    indices, keys = pd.factorize(array)  # hashes, since objects of mixed types may have no order
    try:
        order = np.argsort(keys, kind="stable")
    except TypeError:
        return keys, indices.astype(np.int64)
    return keys[order], np.argsort(order)[indices]


def as_rows(values: Any, name: str, count: int, *, error: type = ValueError) -> np.ndarray:
    """Row indices of a table, int64, in ascending order.

    Args:
        values: row indices in any order.
        name: of the argument, for messages.
        count: number of rows of the table.
        error: the exception class to raise; a subclass of :class:`ValueError`.

    Raises:
        ValueError: not integers (a boolean mask is not accepted), out of range, or a duplicate row.

    >>> as_rows([4, 1], "train", 5).tolist()
    [1, 4]
    """
    rows = as_index(values, name, count, error=error)
    if (rows[1:] > rows[:-1]).all():
        return rows
    rows = np.sort(rows)
    twice = np.flatnonzero(rows[1:] == rows[:-1])
    if len(twice):
        raise error(f"{name}: expected every row once; got row {rows[twice[0]]} twice")
    return rows


def same_length(error: type = ValueError, **columns: Any) -> None:
    """Raise an error if a column has another length than the first.

    >>> same_length(labels=np.zeros(3), scores=np.zeros(2))
    Traceback (most recent call last):
    ValueError: scores: expected a vector like labels, of 3 rows; got 2
    """
    (first, reference), *others = columns.items()
    for name, column in others:
        if len(column) != len(reference):
            raise error(f"{name}: expected a vector like {first}, of {len(reference)} rows; got {len(column)}")


def as_count(value: Any, name: str, least: int = 0, *, error: type = ValueError) -> int:
    """An integer of at least ``least``; bools and floats are refused.

    >>> as_count(np.int64(3), "k")
    3
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__") or int(value) < least:
        raise error(f"{name}: expected a whole number of at least {least}; got {value!r}")
    return int(value)


def as_tensor(values: Any, name: str) -> torch.Tensor:
    """Numbers as a tensor on their own device, copied only where torch cannot share the memory.

    Args:
        values: a numpy or cupy array, anything with DLPack, a pandas object, or a sequence; Python floats become
            torch's default dtype.
        name: of the argument, for messages.

    Raises:
        ValueError: not numbers.

    >>> as_tensor(np.arange(3)[::-1], "items").tolist()
    [2, 1, 0]
    """
    if isinstance(values, torch.Tensor):
        return values
    if hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
        converted = _from_dlpack(values, name)
        if isinstance(converted, torch.Tensor):
            return converted
        values = converted
    array = as_array(values, name)
    untyped = isinstance(values, list | tuple) or array.dtype.kind == "O"
    if array.dtype.kind == "O" and array.size:
        array = (
            as_numbers(array, name, dims=array.ndim, nan=True, infinite=True)
            if _has_floats(array)
            else as_index(array, name, least=-_LARGEST - 1, dims=array.ndim)
        )
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(f"{name}: expected numbers; got {array.dtype} {_sample(array)}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = as_index(array, name, dims=array.ndim)
    if untyped and array.dtype == np.float64:
        return torch.from_numpy(array).to(torch.get_default_dtype())
    if not array.flags.writeable or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


_LARGEST = np.iinfo(np.int64).max


def _from_dlpack(values: Any, name: str) -> torch.Tensor | np.ndarray:
    """Host arrays go through numpy, which supports negative strides: torch would abort the process."""
    if any(stride < 0 for stride in getattr(values, "strides", None) or ()):
        values = values.copy()
    try:
        if values.__dlpack_device__()[0] == 1:
            return np.from_dlpack(values)
    except (BufferError, RuntimeError, TypeError, ValueError):
        pass  # dtypes that numpy lacks, such as bfloat16
    try:
        return torch.from_dlpack(values)
    except (BufferError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: expected numbers; got {_type_name(values)} ({error})") from error


def _shaped(values: Any, name: str, dims: int, elements: str, error: type) -> np.ndarray:
    try:
        array = as_array(values, name)
    except ValueError as problem:
        raise error(str(problem)) from problem
    if array.ndim != dims:
        kind = {1: "a vector", 2: "a matrix"}.get(dims, f"{dims} dimensions")
        raise error(f"{name}: expected {kind} of {elements}; got {_type_name(values)} of shape {list(array.shape)}")
    return array


def _refuse(wrong: np.ndarray, array: np.ndarray, name: str, expected: str, error: type) -> None:
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0].tolist())
        value = array[index]
        shown = repr(value.item() if isinstance(value, np.generic) else value)
        row = f"row {index[0]}" + "".join(f", column {column}" for column in index[1:])
        raise error(f"{name}: expected {expected}; got {shown} in {row}")


def _range(least: int, count: int | None) -> str:
    return f"indices of at least {least}" if count is None else f"indices in [{least}, {count})"


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # of pandas


def _has_floats(array: np.ndarray) -> bool:
    return any(isinstance(value, float | np.floating) or _is_missing(value) for value in array.ravel())


def _sample(array: np.ndarray) -> str:
    return repr(array.ravel()[:1].tolist()[0]) if array.size else "nothing"


def _type_name(values: Any) -> str:
    return type(values).__name__
