"""Columns of any source as text or numbers: no type is guessed, and what cannot be read is named by its row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from reasonrec_fast.arrays import as_array
from reasonrec_fast.data.errors import DataError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _exact(kind: np.dtype) -> int:
    """Whole numbers below it are what they are in a type of floats."""
    return int(2 ** (min(np.finfo(kind).nmant, 52) + 1))


_BOOLEANS = {"True": 1.0, "False": 0.0, "true": 1.0, "false": 0.0}
_EXACT = _exact(np.dtype(np.float64))


@dataclass(frozen=True)
class Source:
    """Where a table comes from, for errors.

    Attributes:
        path: of a file; None where the caller handed over the columns.
        names: of all its columns, as they are called there.
    """

    path: str | None = None
    names: tuple[str, ...] = ()

    def wrong(self, column: str, row: int, expected: str, got: object) -> DataError:
        """What is wrong in a row (counted from 0; told from 1, without a header).

        >>> str(Source("a.csv").wrong("user", 0, "a value", None))
        'a.csv, row 1: user: expected a value; got None'
        """
        if isinstance(got, pa.Scalar | np.generic):
            got = got.as_py() if isinstance(got, pa.Scalar) else got.item()
        if self.path is None:
            return DataError(f"{column}: expected {expected}; got {got!r} in row {row + 1}")
        return DataError(f"{self.path}, row {row + 1}: {column}: expected {expected}; got {got!r}")


Column: TypeAlias = "pa.Array | list[Any]"
"""A typed column, or Python's own objects."""


def as_column(values: Any, name: str = "values") -> Column:
    """A column as Arrow's array where it has one type, else as a list; pandas' objects are read by position.

    Args:
        values: of pandas, numpy, torch or Arrow, or any sequence or iterable of one dimension.
        name: of the argument, for errors.

    Raises:
        DataError: it has not one dimension.

    >>> as_column(range(2)), as_column(np.array([1, 2])).type
    ([0, 1], DataType(int64))
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # of no chunks, or of more text than one array holds
        values = pa.concat_arrays(values.cast(_large(values.type)).chunks) if values.num_chunks else pa.array([])
    if isinstance(values, pa.Array):
        return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if isinstance(values, pd.Series | pd.Index):
        if isinstance(values.dtype, pd.SparseDtype):
            return as_column(np.asarray(values), name)
        if values.dtype == object or isinstance(values.dtype, pd.PeriodDtype):
            return list(values)
        found = pa.Array.from_pandas(pd.Series(values).reset_index(drop=True))
        return as_column(found, name)
    if hasattr(values, "detach"):
        values = as_array(values, name)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise DataError(f"{name}: expected one dimension; got {values.ndim}")
        if isinstance(values, np.ma.MaskedArray):
            return values.tolist()  # None where a value is hidden
        if values.dtype.kind == "M" and np.datetime_data(values.dtype)[0] not in ("D", "s", "ms", "us", "ns"):
            values = values.astype("M8[s]")
        if values.dtype.kind in "iufM":
            if values.dtype.itemsize > 8:
                return list(values)
            return pa.array(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
        return list(values) if values.dtype == object else values.tolist()
    if isinstance(values, str | bytes | Mapping | pd.DataFrame) or not hasattr(values, "__iter__"):
        raise DataError(f"{name}: expected a column of values; got {values!r:.80}")
    return list(values)


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind


def is_missing(value: object) -> bool:
    """None, an empty text, NaN or NaT; any word is a value.

    >>> [is_missing(value) for value in (None, "", float("nan"), "NA", "None", 0)]
    [True, True, True, False, False, False]
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return (isinstance(value, str) and value == "") or (_is_float(value) and bool(value != value))


def text_of(value: Any) -> str | None:
    """One value as text: text as it stands, whole numbers without ``.0``; None where it is missing.

    Raises:
        ValueError: a value that is no text and no number, or a number that its type does not hold exactly.

    >>> text_of("1.0"), text_of(1.0), text_of(1), text_of(2.5), text_of(float("nan"))
    ('1.0', '1', '1', '2.5', None)
    """
    if isinstance(value, str):
        return str(value) or None
    if isinstance(value, bool | np.bool_):
        raise ValueError("text or a whole number")
    if isinstance(value, int | np.integer):
        return str(int(value))
    if is_missing(value):
        return None
    if _is_float(value):
        number = float(value)
        if not number.is_integer():
            if not np.isfinite(number):
                raise ValueError("text or a finite number")
            return str(value) if isinstance(value, float) and type(value) is float else str(value.item())
        kind = value.dtype if isinstance(value, np.floating) else np.dtype(np.float64)
        if abs(number) >= _exact(kind):
            raise ValueError(f"text or a number that {kind} holds exactly")
        return str(int(number))
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError("text or a finite number")
        return str(int(value)) if value == value.to_integral_value() else f"{value:f}".rstrip("0")
    raise ValueError("text or a whole number")


def identifiers(values: Any, source: Source, name: str) -> pa.DictionaryArray:
    """Text of every row, as indices into the distinct ones in the order in which they appear.

    Raises:
        DataError: a row has no value, or one that is no identifier (bool, dates, lists …).

    >>> identifiers([1, "b", 1.0], Source(), "users").indices.to_pylist()
    [0, 1, 0]
    """
    encoded = isinstance(values, pa.ChunkedArray | pa.Array) and pa.types.is_dictionary(values.type)
    if encoded and pa.types.is_string(values.type.value_type):
        if isinstance(values, pa.ChunkedArray):
            values = _joined(values)
        found = values
        if not _by_appearance(found) or pc.any(pc.equal(found.dictionary, "")).as_py():
            found = texts(found.dictionary_decode(), source, name).dictionary_encode()
    else:
        found = texts(as_column(values, name), source, name).dictionary_encode()
    if found.null_count:
        row = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
        raise source.wrong(name, row, "a value", None)
    return found


def _by_appearance(values: pa.DictionaryArray) -> bool:
    """Whether a dictionary holds each value of the rows once, in the order in which they appear, and no other."""
    if values.dictionary.null_count or len(values.dictionary.unique()) < len(values.dictionary):
        return False
    used = values.indices.drop_null().unique().to_numpy(zero_copy_only=False)
    return len(used) == len(values.dictionary) and bool((used == np.arange(len(used))).all())


def _joined(values: pa.ChunkedArray) -> pa.DictionaryArray:
    values = values.unify_dictionaries().combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], pa.string()).dictionary_encode()
    return values


def texts(column: Column, source: Source, name: str) -> pa.Array:
    """Text of every row, null where it is missing.

    Raises:
        DataError: a value that is neither text nor a number (the row is named).
    """
    if isinstance(column, list):
        return _text_by_value(column, source, name)
    kind = column.type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        text = column if pa.types.is_string(kind) else column.cast(pa.large_string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    if pa.types.is_integer(kind):
        return column.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        try:
            return texts(column.cast(pa.string()), source, name)
        except pa.ArrowInvalid as error:
            raise DataError(f"{source.path or name}: {name}: expected text; got bytes that are not UTF-8") from error
    if pa.types.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False)
        whole = np.isfinite(values) & (np.floor(values) == values) & (np.abs(values) < _exact(values.dtype))
        if whole.all():
            return pa.array(values.astype(np.int64)).cast(pa.string())
        return _text_by_value(list(values), source, name)
    return _text_by_value(column.to_pylist(), source, name)


def _text_by_value(values: Sequence[Any], source: Source, name: str) -> pa.Array:
    found = []
    for row, value in enumerate(values):
        try:
            found.append(value or None if type(value) is str else text_of(value))
        except ValueError as error:
            raise source.wrong(name, row, str(error), value) from None
    try:
        return pa.array(found, pa.string())
    except UnicodeEncodeError:
        row = next(row for row, text in enumerate(found) if text and not _is_utf8(text))
        raise source.wrong(name, row, "text that UTF-8 can hold", values[row]) from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def numbers(values: Any, source: Source, name: str) -> np.ndarray:
    """Finite numbers, float64 ``[N]``; NaN where a row has none.

    Raises:
        DataError: text that is no number, or a number that is not finite (the row is named).

    >>> numbers(["4.5", "", 1, True], Source(), "rating").tolist()
    [4.5, nan, 1.0, 1.0]
    """
    column = as_column(values, name)
    found = _plain(column)
    wrong = np.isinf(found)
    if wrong.any():
        row = int(wrong.argmax())
        raise source.wrong(name, row, "a number", column[row])
    return found


def distinct_numbers(values: Any, source: Source, name: str) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`numbers`, as the place of each row among the different ones ``[N]``, and these.

    >>> [part.tolist() for part in distinct_numbers(["5", "4", "5"], Source(), "rating")]
    [[1, 0, 1], [4.0, 5.0]]
    """
    if isinstance(values, pa.ChunkedArray) and pa.types.is_dictionary(values.type):
        values = _joined(values)
    if not (isinstance(values, pa.Array) and pa.types.is_dictionary(values.type)):
        found = numbers(values, source, name)
        distinct, codes = np.unique(found, return_inverse=True)
        return codes, distinct
    distinct = _plain(as_column(values.dictionary))
    codes = values.indices.cast(pa.int64()).fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(np.isinf(distinct))
    for code in wrong:
        if (codes == code).any():
            raise source.wrong(name, int((codes == code).argmax()), "a number", values.dictionary[int(code)])
    return codes, np.append(distinct, np.nan)


def _plain(column: Column) -> np.ndarray:
    if isinstance(column, list):
        return _each(column, _number)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return _each(column, _number)


def _each(values: Any, function: Callable[[Any], float]) -> np.ndarray:
    values = values.to_pylist() if isinstance(values, pa.Array) else values
    return np.fromiter((function(value) for value in values), np.float64, len(values))


def _number(value: Any) -> float:
    """Infinite where it is none."""
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) else _BOOLEANS.get(value, np.inf) if value else np.nan
    if is_missing(value):
        return np.nan
    return float(value) if isinstance(value, int | float | Decimal | np.number | np.bool_) else np.inf


def values_of(value: Any) -> tuple[str, ...]:
    """The different values of an attribute: those of a list; of a text, what stands between ``|``.

    Raises:
        ValueError: what they were expected to be.

    >>> values_of("Crime|Drama"), values_of(["a|b", 3.0, None]), values_of(None), values_of(True)
    (('Crime', 'Drama'), ('a|b', '3'), (), ('true',))
    """
    if isinstance(value, set | frozenset):
        return tuple(sorted(text for text in map(_word, value) if text))  # a set has no order of its own
    if isinstance(value, list | tuple | np.ndarray | pd.Series):
        return tuple(dict.fromkeys(text for text in map(_word, value) if text))
    text = _word(value)
    return tuple(dict.fromkeys(part for part in text.split("|") if part)) if text else ()


def _word(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, date) and value is not pd.NaT:
        return value.isoformat()
    return text_of(value)


def _is_float(value: object) -> bool:
    return isinstance(value, float | np.floating)
