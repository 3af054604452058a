"""Columns of any source as text or numbers. Types are never guessed, and errors name the row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
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


def exact_below(kind: np.dtype) -> int:
    """The bound below which a floating-point dtype represents every integer exactly."""
    return int(2 ** (min(np.finfo(kind).nmant, 52) + 1))


_BOOLEANS = {"True": 1.0, "False": 0.0, "true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Source:
    """The source of a table, for error messages.

    Attributes:
        path: of a file; None if the caller passed the columns.
        names: of all columns in the source.
    """

    path: str | None = None
    names: tuple[str, ...] = ()

    def wrong(self, column: str, row: int, expected: str, got: object) -> DataError:
        """An error about a row: ``row`` counts from 0, the message counts from 1, without the header.

        >>> str(Source("a.csv").wrong("user", 0, "a value", None))
        'a.csv, row 1: user: expected a value; got None'
        """
        got = got.as_py() if isinstance(got, pa.Scalar) else got.item() if isinstance(got, np.generic) else got
        if self.path is None:
            return DataError(f"{column}: expected {expected}; got {got!r} in row {row + 1}")
        return DataError(f"{self.path}, row {row + 1}: {column}: expected {expected}; got {got!r}")


Column: TypeAlias = "pa.Array | list[Any]"
"""A typed column, or a list of Python objects."""


def as_column(values: Any, name: str = "values") -> Column:
    """A column as an Arrow array if its values have one type, else as a list; pandas objects are read by position.

    Args:
        values: of pandas, numpy, torch or Arrow, or any one-dimensional sequence or iterable.
        name: of the argument, for errors.

    Raises:
        DataError: it is not one-dimensional.

    >>> as_column(range(2)), as_column(np.array([1, 2])).type
    ([0, 1], DataType(int64))
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # combine_chunks keeps no chunks, or more text than one array can hold
        values = pa.concat_arrays(values.cast(_large(values.type)).chunks) if values.num_chunks else pa.array([])
    if isinstance(values, pa.Array):
        return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if isinstance(values, pd.Series | pd.Index):
        if isinstance(values.dtype, pd.SparseDtype):
            return as_column(np.asarray(values), name)
        if values.dtype == object or isinstance(values.dtype, pd.PeriodDtype):
            return list(values)
        converted = pa.Array.from_pandas(pd.Series(values).reset_index(drop=True))
        return as_column(converted, name)
    if hasattr(values, "detach"):
        values = as_array(values, name)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise DataError(f"{name}: expected one dimension; got {values.ndim}")
        if isinstance(values, np.ma.MaskedArray):
            return values.tolist()  # None for masked values
        if values.dtype.kind == "M" and np.datetime_data(values.dtype)[0] not in ("D", "s", "ms", "us", "ns"):
            values = values.astype("M8[s]")
        if values.dtype.kind in "iufM":
            if values.dtype.itemsize > 8:
                return list(values)
            return pa.array(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
        return list(values) if values.dtype == object else values.tolist()
    unordered = isinstance(values, Mapping | Set)  # has no order of rows
    if unordered or isinstance(values, str | bytes | pd.DataFrame) or not hasattr(values, "__iter__"):
        raise DataError(f"{name}: expected a column of values; got {values!r:.80}")
    return list(values)


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind


def is_missing(value: object) -> bool:
    """Whether a value is None, an empty string, NaN or NaT. Words such as "NA" are values.

    >>> [is_missing(value) for value in (None, "", float("nan"), "NA", "None", 0)]
    [True, True, True, False, False, False]
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return (isinstance(value, str) and value == "") or (_is_float(value) and bool(value != value))


def text_of(value: Any) -> str | None:
    """One value as text: text unchanged, whole numbers without ``.0``; None if it is missing.

    Raises:
        ValueError: a value that is neither text nor a number, or a number beyond the exact range of its dtype. The
            message is the expected value.

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
        if abs(number) >= exact_below(kind):
            raise ValueError(f"text or a number that {kind} holds exactly")
        return str(int(number))
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError("text or a finite number")
        return str(int(value)) if value == value.to_integral_value() else f"{value:f}".rstrip("0")
    raise ValueError("text or a whole number")


def identifiers(values: Any, source: Source, name: str) -> pa.DictionaryArray:
    """Text of every row, dictionary-encoded; the dictionary is in order of first appearance.

    Raises:
        DataError: a row has no value, or one that cannot be an identifier (bool, dates, lists …).

    >>> identifiers([1, "b", 1.0], Source(), "users").indices.to_pylist()
    [0, 1, 0]
    """
    encoded = isinstance(values, pa.ChunkedArray | pa.Array) and pa.types.is_dictionary(values.type)
    if encoded and pa.types.is_string(values.type.value_type):
        if isinstance(values, pa.ChunkedArray):
            values = _combined(values)
        dictionary = values
        if not _is_in_order_of_appearance(dictionary) or pc.any(pc.equal(dictionary.dictionary, "")).as_py():
            dictionary = texts(dictionary.dictionary_decode(), source, name).dictionary_encode()
    else:
        dictionary = texts(as_column(values, name), source, name).dictionary_encode()
    if dictionary.null_count:
        row = int(np.flatnonzero(dictionary.is_null().to_numpy(zero_copy_only=False))[0])
        raise source.wrong(name, row, "a value", None)
    return dictionary


def _is_in_order_of_appearance(values: pa.DictionaryArray) -> bool:
    """Whether a dictionary has exactly the values of the rows, once each, in order of first appearance."""
    if values.dictionary.null_count or len(values.dictionary.unique()) < len(values.dictionary):
        return False
    used = values.indices.drop_null().unique().to_numpy(zero_copy_only=False)
    return len(used) == len(values.dictionary) and bool((used == np.arange(len(used))).all())


def _combined(values: pa.ChunkedArray) -> pa.DictionaryArray:
    values = values.unify_dictionaries().combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], pa.string()).dictionary_encode()
    return values


def texts(column: Column, source: Source, name: str) -> pa.Array:
    """Text of every row, null where it is missing.

    Raises:
        DataError: a value that is neither text nor a number (the message names the row).
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
        whole = np.isfinite(values) & (np.floor(values) == values) & (np.abs(values) < exact_below(values.dtype))
        if whole.all():
            return pa.array(values.astype(np.int64)).cast(pa.string())
        return _text_by_value(list(values), source, name)
    return _text_by_value(column.to_pylist(), source, name)


def _text_by_value(values: Sequence[Any], source: Source, name: str) -> pa.Array:
    converted = []
    for row, value in enumerate(values):
        try:
            converted.append(value or None if type(value) is str else text_of(value))
        except ValueError as error:
            raise source.wrong(name, row, str(error), value) from None
    try:
        return pa.array(converted, pa.string())
    except UnicodeEncodeError:
        row = next(row for row, text in enumerate(converted) if text and not _is_utf8(text))
        raise source.wrong(name, row, "text that UTF-8 can hold", values[row]) from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def numbers(values: Any, source: Source, name: str) -> np.ndarray:
    """Finite numbers, float64 ``[N]``; NaN for a missing value.

    Raises:
        DataError: text that is not a number, or a number that is not finite (the message names the row).

    >>> numbers(["4.5", "", 1, True], Source(), "rating").tolist()
    [4.5, nan, 1.0, 1.0]
    """
    column = as_column(values, name)
    parsed = _as_float64(column)
    infinite = np.isinf(parsed)
    if infinite.any():
        row = int(infinite.argmax())
        raise source.wrong(name, row, "a number", column[row])
    return parsed


def distinct_numbers(values: Any, source: Source, name: str) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`numbers`, as codes ``[N]``, the index of each row's number among the distinct ones, and the latter.

    >>> [part.tolist() for part in distinct_numbers(["5", "4", "5"], Source(), "rating")]
    [[1, 0, 1], [4.0, 5.0]]
    """
    if isinstance(values, pa.ChunkedArray) and pa.types.is_dictionary(values.type):
        values = _combined(values)
    if not (isinstance(values, pa.Array) and pa.types.is_dictionary(values.type)):
        parsed = numbers(values, source, name)
        distinct, codes = np.unique(parsed, return_inverse=True)
        return codes, distinct
    distinct = _as_float64(as_column(values.dictionary))
    codes = values.indices.cast(pa.int64()).fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    infinite = np.flatnonzero(np.isinf(distinct))
    for code in infinite:
        if (codes == code).any():
            raise source.wrong(name, int((codes == code).argmax()), "a number", values.dictionary[int(code)])
    return codes, np.append(distinct, np.nan)


def _as_float64(column: Column) -> np.ndarray:
    if isinstance(column, list):
        return _map_to_float64(column, _number)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return _map_to_float64(column, _number)


def _map_to_float64(values: Any, function: Callable[[Any], float]) -> np.ndarray:
    values = values.to_pylist() if isinstance(values, pa.Array) else values
    return np.fromiter((function(value) for value in values), np.float64, len(values))


def _number(value: Any) -> float:
    """One number; NaN if it is missing, infinity if the value is not a number."""
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) else _BOOLEANS.get(value, np.inf) if value else np.nan
    if is_missing(value):
        return np.nan
    if not isinstance(value, int | float | Decimal | np.number | np.bool_):
        return np.inf
    try:
        return float(value)
    except OverflowError:  # an int too large for float
        return np.inf


def values_of(value: Any) -> tuple[str, ...]:
    """The distinct values of an attribute: the elements of a list, or the parts of a text separated by ``|``.

    Raises:
        ValueError: an invalid value; the message is the expected value.

    >>> values_of("Crime|Drama"), values_of(["a|b", 3.0, None]), values_of(None), values_of(True)
    (('Crime', 'Drama'), ('a|b', '3'), (), ('true',))
    """
    if isinstance(value, set | frozenset):
        return tuple(sorted(text for text in map(_attribute_text, value) if text))  # a set has no order of its own
    if isinstance(value, list | tuple | np.ndarray | pd.Series):
        return tuple(dict.fromkeys(text for text in map(_attribute_text, value) if text))
    text = _attribute_text(value)
    return tuple(dict.fromkeys(part for part in text.split("|") if part)) if text else ()


def _attribute_text(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, date) and value is not pd.NaT:
        return value.isoformat()
    return text_of(value)


def _is_float(value: object) -> bool:
    return isinstance(value, float | np.floating)


def check_distinct_names(names: Sequence[str], source: Source) -> None:
    """Refuse duplicate column names; unnamed columns may occur several times.

    Raises:
        DataError: a name that occurs twice.
    """
    duplicates = sorted({name for name in names if name and list(names).count(name) > 1})
    if duplicates:
        raise DataError(f"{source.path or 'table'}: expected columns of different names; got {duplicates[0]!r} twice")
