"""Parses timestamps of any format into integers of one unit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from reasonrec_fast.data.columns import NUMBER, Column, Source, as_column, exact_below, is_missing
from reasonrec_fast.data.errors import DataError

_logger = logging.getLogger("reasonrec_fast")

TimeUnit = Literal["s", "ms", "us", "ns", "count"]
"""Seconds to nanoseconds since 1970 (UTC), or a plain counter."""

UNITS: tuple[TimeUnit, ...] = get_args(TimeUnit)
_CLOCKS = UNITS[:4]
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FIRST_SECOND, _LAST_SECOND = 10**8, 4_102_444_800  # seconds: March 1973 and the year 2100
_ISO = r"^\d{4}[-/]\d{2}[-/]\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?)? ?(Z|z|[+-]\d{2}:?\d{2}|[+-]\d{2})?$"
_EXPECTED = "a number or a date"


@dataclass(frozen=True)
class Moments:
    """Attributes: ``values``, int64 ``[N]``; ``unit``, the coarsest clock unit that represents all of them exactly, so
    that the same moments give the same integers in whichever unit or format they were written."""

    values: np.ndarray
    unit: TimeUnit

    @property
    def finest(self) -> np.ndarray:
        """In nanoseconds; a counter's values are unchanged."""
        return self.values * (1 if self.unit == "count" else _PER_SECOND["ns"] // _PER_SECOND[self.unit])


def moments(
    column: Any, source: Source, name: str = "timestamp", *, unit: str | None = None, form: str | None = None
) -> Moments:
    """Read a column of times.

    The unit of numbers is detected from their magnitude: seconds, milliseconds, microseconds or nanoseconds since 1970
    (March 1973 to 2099), or, if all are below 10⁸, a counter that is kept unchanged. Dates are datetimes or ISO 8601
    text; without a zone they are UTC.

    Args:
        column: of numbers, datetimes or text.
        source, name: for errors.
        unit: of numbers, instead of the detected one.
        form: format of text dates, as for ``datetime.strptime``.

    Raises:
        DataError: a missing value, numbers of several units, an ambiguous date format, or an option that does not
            apply to the column.

    >>> moments(["2020-09-13 12:26:40", "2020-09-13T14:26:40.5+02:00"], Source())
    Moments(values=array([1600000000000, 1600000000500]), unit='ms')
    >>> moments([1600000000000], Source())
    Moments(values=array([1600000000]), unit='s')
    """
    if unit is not None and unit not in UNITS:
        raise DataError(f"time_unit: expected one of {', '.join(UNITS)}; got {unit!r}")
    column = as_column(column, name)
    if isinstance(column, list):
        column = _as_typed_column(column, source, name)
    elif pa.types.is_large_string(column.type) or column.type == pa.string_view():
        column = column.cast(pa.string())
    if not isinstance(column, list) and column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise source.wrong(name, row, _EXPECTED, None)
    kind = None if isinstance(column, list) else column.type
    if kind is not None and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        _refuse_option("time_unit", unit, "dates", source, name)
        _refuse_option("time_format", form, "datetimes", source, name)
        return _of_dates(column)
    if kind is not None and pa.types.is_string(kind):
        if form is not None:
            _refuse_option("time_unit", unit, "dates", source, name)
            return _by_format(column, form, source, name)
        if not _all_numbers(column):
            if pc.all(pc.match_substring_regex(column, _ISO)).as_py():
                _refuse_option("time_unit", unit, "dates", source, name)
                return _of_iso(column, source, name)
            raise _parse_error(column, source, name)
        column = _numbers_of_text(column)
    _refuse_option("time_format", form, "numbers", source, name)
    if kind is not None and not isinstance(column, list):
        _check_numbers(column, source, name)
    return _of_numbers(column, unit, source, name)


def common(first: Moments, second: Moments, description: str) -> tuple[np.ndarray, np.ndarray, TimeUnit]:
    """The values of both, converted to the finer of their units, and that unit.

    Raises:
        DataError: one is a clock and the other a counter.

    >>> common(Moments(np.array([2]), "s"), Moments(np.array([5]), "ms"), "timestamps")
    (array([2000]), array([5]), 'ms')
    """
    if len(second.values) == 0 or first.unit == second.unit:
        return first.values, second.values, first.unit
    if len(first.values) == 0:
        return first.values, second.values, second.unit
    if "count" in (first.unit, second.unit):
        raise DataError(f"{description}: expected times of one kind; got {_kind(first)} and {_kind(second)}")
    unit = max(first.unit, second.unit, key=_CLOCKS.index)
    return _in_unit(first, unit), _in_unit(second, unit), unit


def detect_unit(values: np.ndarray) -> TimeUnit:
    """The unit of integers by their magnitude; a counter if their magnitudes fit several units."""
    if len(values) == 0:
        return "s"
    first, last = _units(np.array([values.min(), values.max()]))
    return UNITS[first] if first == last < len(UNITS) else "count"


def coarsest(values: np.ndarray, unit: TimeUnit) -> Moments:
    """The same moments in the coarsest unit that represents them exactly.

    >>> coarsest(np.array([5_000_000, 7_000_000]), "us")
    Moments(values=array([5, 7]), unit='s')
    """
    while unit in _CLOCKS[1:] and not (values % 1000).any():
        values, unit = values // 1000, UNITS[UNITS.index(unit) - 1]
    return Moments(values, unit)


def _in_unit(moments: Moments, unit: TimeUnit) -> np.ndarray:
    factor = _PER_SECOND[unit] // _PER_SECOND[moments.unit]
    if len(moments.values) and np.abs(moments.values).max() > np.iinfo(np.int64).max // factor:
        raise DataError(f"timestamps: expected times that int64 holds in {_WORDS[unit]}; got {moments.values.max()} s")
    return moments.values * factor


def _kind(moments: Moments) -> str:
    return "a plain counter" if moments.unit == "count" else "a clock"


def _refuse_option(option: str, value: str | None, contents: str, source: Source, name: str) -> None:
    if value is not None:
        raise DataError(f"{source.path or name}: {name}: expected no {option}, as it holds {contents}; got {value!r}")


def _as_typed_column(values: list[Any], source: Source, name: str) -> Column:
    """A list of objects as one typed column of text, datetimes or integers; other numbers stay a list."""
    kinds = set()
    for row, value in enumerate(values):
        if isinstance(value, bool | np.bool_) or is_missing(value):
            raise source.wrong(name, row, _EXPECTED, value)
        kind = next(
            (kind for kind, types in (("text", str), ("numbers", int | float | Decimal | np.number),
                                   ("dates", date | np.datetime64)) if isinstance(value, types)), None,
        )  # fmt: skip
        if kind is None:
            raise source.wrong(name, row, _EXPECTED, value)
        kinds.add(kind)
        if len(kinds) > 1:
            if "dates" not in kinds and isinstance(value, str) and not NUMBER.fullmatch(value):
                raise source.wrong(name, row, _EXPECTED, value)
            raise source.wrong(name, row, "a number, or text, or a date, as in the rows before", value)
    if kinds == {"text"}:
        return pa.array(values, pa.string())
    if kinds == {"numbers"}:
        for row, value in enumerate(values):
            is_narrow_float = isinstance(value, np.floating) and not isinstance(value, float)
            if is_narrow_float and abs(value) >= exact_below(value.dtype):
                raise source.wrong(name, row, f"a number that {value.dtype} holds exactly", value)
    if kinds == {"dates"}:
        stamps = [pd.Timestamp(value) for value in values]
        utc = [stamp.tz_convert("UTC").tz_localize(None) if stamp.tz else stamp for stamp in stamps]
        unit = "us" if any(stamp.year > 2261 or stamp.year < 1678 for stamp in utc) else "ns"
        return pa.array(np.array([stamp.to_datetime64() for stamp in utc], dtype=f"datetime64[{unit}]"))
    try:
        if all(isinstance(value, int | np.integer) for value in values):
            return pa.array(np.array(values, dtype=np.int64)) if values else pa.array([], pa.int64())
    except OverflowError:
        row = next(row for row, value in enumerate(values) if not -(2**63) <= int(value) < 2**63)
        raise source.wrong(name, row, "a number that a clock shows", values[row]) from None
    return values


def _check_numbers(column: pa.Array, source: Source, name: str) -> None:
    kind = column.type
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        values = column.to_numpy(zero_copy_only=False)
        rounded = np.abs(values) >= exact_below(values.dtype)
        if rounded.any():
            row = int(rounded.argmax())
            raise source.wrong(name, row, f"a number that {kind} holds exactly", column[row])
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)) and len(column):
        raise source.wrong(name, 0, _EXPECTED, column[0])


def _of_dates(column: pa.Array) -> Moments:
    unit: TimeUnit = column.type.unit if pa.types.is_timestamp(column.type) else "s"
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    return coarsest(column.cast(pa.int64()).to_numpy(zero_copy_only=False), unit)


def _all_numbers(column: pa.Array) -> bool:
    return bool(pc.all(pc.match_substring_regex(column, f"^({NUMBER.pattern})$"), min_count=0).as_py())


def _numbers_of_text(column: pa.Array) -> Column:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return [Decimal(value) for value in column.to_pylist()]


def _parse_error(column: pa.Array, source: Source, name: str) -> DataError:
    values = column.to_pylist()
    numeric = [bool(NUMBER.fullmatch(value)) for value in values]
    dated = pc.match_substring_regex(column, _ISO).to_pylist()
    for row, value in enumerate(values):
        if not numeric[row] and not dated[row]:
            hint = "; --time-format (time_format=) tells how, such as '%d/%m/%Y %H:%M'" if _digits(value) else ""
            return DataError(f"{source.wrong(name, row, _EXPECTED, value)}{hint}")
    row = next(row for row, number in enumerate(numeric) if number != numeric[0])
    return source.wrong(name, row, "a number" if numeric[0] else "a date", values[row])


def _digits(value: str) -> bool:
    return sum(map(str.isdigit, value)) > 1


def _of_iso(column: pa.Array, source: Source, name: str) -> Moments:
    text = pc.replace_substring(pc.replace_substring(column, "/", "-"), ",", ".")
    text = pc.replace_substring_regex(text, r"(\d) (Z|z|[+-])", r"\1\2")
    zone = r"(Z|z|[+-]\d{2}:?\d{2}|[+-]\d{2})$"
    # Only text with a time can have a zone: the end of a plain date, such as "2020-01-02", also matches `zone`.
    zoned = pc.and_(pc.match_substring(text, ":"), pc.match_substring_regex(text, zone))
    text = pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", ""))
    text = pc.replace_substring_regex(text, r"^(\d{4}-\d{2}-\d{2})Z$", r"\1 00:00Z")
    text = pc.replace_substring(text, "z", "Z")
    for unit in ("ns", "us"):  # int64 nanoseconds end in the year 2262
        try:
            parsed = text.cast(pa.timestamp(unit, "UTC"))
        except pa.ArrowInvalid:
            continue
        if unit == "us" or not _exceeds_nanosecond_range(text):
            return _of_dates(parsed)
    row = next(row for row, value in enumerate(text.to_pylist()) if not _is_date(value))
    raise source.wrong(name, row, "a date that the calendar has", column[row])


def _exceeds_nanosecond_range(text: pa.Array) -> bool:
    years = pc.utf8_slice_codeunits(text, 0, 4)
    return bool(pc.any(pc.or_(pc.greater(years, "2261"), pc.less(years, "1678"))).as_py())


def _is_date(value: str) -> bool:
    try:
        pa.array([value]).cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        return False
    return True


def _by_format(column: pa.Array, form: str, source: Source, name: str) -> Moments:
    if "%" not in form:  # pandas accepts words such as "mixed", with which it guesses the format
        raise DataError(f"time_format: expected a form such as '%d/%m/%Y %H:%M'; got {form!r}")
    try:
        parsed = pd.to_datetime(pd.Series(column.to_pylist()), format=form, errors="coerce", utc=True)
    except ValueError as error:
        raise DataError(f"time_format: expected a form such as '%d/%m/%Y %H:%M'; got {form!r}: {error}") from error
    dated = pc.match_substring_regex(column, r"\d")  # pandas accepts "today" and "now" with any format
    wrong = parsed.isna().to_numpy() | ~dated.to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(wrong.argmax())
        raise source.wrong(name, row, f"a date of the form {form}", column[row])
    return _of_dates(pa.Array.from_pandas(parsed))


def _of_numbers(column: Column, unit: str | None, source: Source, name: str) -> Moments:
    if not isinstance(column, list) and pa.types.is_signed_integer(column.type):
        values = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    else:
        values = np.array([float(value) for value in column]) if isinstance(column, list) else _float64(column)
    if not np.isfinite(values[:1] if values.dtype == np.int64 else values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise source.wrong(name, row, _EXPECTED, column[row])
    if len(values) == 0:
        return Moments(values.astype(np.int64), "s")
    if unit is None:
        unit = _detect_unit(values, column, source, name)
        if unit != "count":
            first, last = (_day(value, unit) for value in (values.min(), values.max()))
            _logger.info("%s: %s: numbers taken as %s since 1970 (%s to %s)", source.path or "table", name,
                         _WORDS[unit], first, last)  # fmt: skip
    whole = np.ones(1, dtype=bool) if values.dtype == np.int64 else values == np.floor(values)
    if unit == "count" and not whole.all():
        row = int(whole.argmin())
        raise source.wrong(name, row, "a whole number (of a counter), or a date", column[row])
    if whole.all():
        integers = _int64(column, values, source, name)
        return coarsest(integers, unit)  # type: ignore[arg-type]
    factor = _PER_SECOND["ns"] // _PER_SECOND[unit]
    exact = [Decimal(str(value)) for value in _objects(column)]
    nanoseconds = [int((value * factor).to_integral_value()) for value in exact]
    wrong = [row for row, value in enumerate(nanoseconds) if not -(2**63) <= value < 2**63]
    if wrong:
        raise source.wrong(name, wrong[0], "a time that int64 holds in nanoseconds", column[wrong[0]])
    return coarsest(np.array(nanoseconds, dtype=np.int64), "ns")


def _objects(column: Column) -> list[Any]:
    return column if isinstance(column, list) else column.to_pylist()


def _float64(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _int64(column: Column, values: np.ndarray, source: Source, name: str) -> np.ndarray:
    if values.dtype == np.int64:
        return values
    integers = [int(value) for value in _objects(column)]
    for row, value in enumerate(integers):
        if not -(2**63) <= value < 2**63:
            raise source.wrong(name, row, "a number that a clock shows", column[row])
    return np.array(integers, dtype=np.int64)


def _units(values: np.ndarray) -> np.ndarray:
    """Index in :data:`UNITS` of each number's unit by its magnitude; ``len(UNITS)`` if it fits none."""
    unit_index = np.full(len(values), len(UNITS), dtype=np.int64)
    unit_index[(values > -_FIRST_SECOND) & (values < _FIRST_SECOND)] = UNITS.index("count")
    for index, unit in enumerate(_CLOCKS):
        inside = (values >= _FIRST_SECOND * _PER_SECOND[unit]) & (values < _LAST_SECOND * _PER_SECOND[unit])
        unit_index[inside] = index
    return unit_index


def _detect_unit(values: np.ndarray, column: Column, source: Source, name: str) -> TimeUnit:
    ends = _units(np.array([values.min(), values.max()]))
    if ends[0] == ends[1] < len(UNITS):  # each unit is an interval: if both ends are in it, all values are
        return UNITS[ends[0]]
    units = _units(values)
    options = f"--time-unit (time_unit=) tells: one of {', '.join(UNITS)}"
    if (units == len(UNITS)).any():
        row = int((units == len(UNITS)).argmax())
        problem = source.wrong(name, row, "a number that a clock shows between 1973 and 2100", column[row])
        raise DataError(f"{problem}; {options}")
    other = units != units[0]
    if other.any():
        row = int(other.argmax())
        first_unit, row_unit = (UNITS[units[index]] for index in (0, row))
        words = {unit: _WORDS.get(unit, "a counter") for unit in (first_unit, row_unit)}
        problem = source.wrong(name, row, f"{words[first_unit]} as in row 1", column[row])
        raise DataError(f"{problem}, {words[row_unit]} by its size; {options}")
    return UNITS[units[0]]


def _day(value: float, unit: str) -> str:
    return datetime.fromtimestamp(value / _PER_SECOND[unit], timezone.utc).date().isoformat()
