"""Settings as dataclasses whose annotations say what makes sense: anything else is refused when one is made."""

from __future__ import annotations

import math
import numbers
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


class Bound(NamedTuple):
    """What an annotation adds to a number's type, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]


Whole = Annotated[int, Bound("of at least 0", lambda value: value >= 0)]
Count = Annotated[int, Bound("of at least 1", lambda value: value >= 1)]
NotNegative = Annotated[float, Bound("of at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Bound("above 0", lambda value: value > 0)]
Share = Annotated[float, Bound("in [0, 1]", lambda value: 0 <= value <= 1)]
ShareBelowOne = Annotated[float, Bound("in [0, 1)", lambda value: 0 <= value < 1)]


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass against its annotation; for its ``__post_init__``.

    Whole numbers are no truth values, numbers are finite, and a whole number will do for a number. Numbers of any
    library become Python's, so that they can be written as JSON.

    Raises:
        ValueError: a field that is not as annotated (it is named).

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Training:
    ...     epochs: Count = 3
    ...     dropout: ShareBelowOne = 0.1
    ...     __post_init__ = check_settings
    >>> Training(epochs=0)
    Traceback (most recent call last):
    ValueError: epochs: expected a whole number of at least 1; got 0
    """
    for name, kind in _annotations(type(settings)).items():
        value = _plain(getattr(settings, name))
        object.__setattr__(settings, name, value)
        if not _fits(value, kind):
            expected = _in_words(kind)
            if isinstance(value, list):  # of a file it would be one
                expected = expected.replace("a list", "a tuple")
            raise ValueError(f"{name}: expected {expected}; got {value!r}")


def settings_from(kind: type[Kind], values: Any, place: str) -> Kind:
    """Make settings of what a file holds.

    Args:
        kind: a dataclass that checks itself (:func:`check_settings`).
        values: its fields by name; lists stand for tuples, and mappings for dataclasses within.
        place: where they are from, for errors: a file, or a name in one.

    Raises:
        ValueError: no mapping, an unknown key, or a value that makes no sense.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{place}: expected settings by name; got {values!r}")
    known = _annotations(kind)
    unknown = sorted(set(values) - set(known), key=str)
    if unknown:
        raise ValueError(f"{place}: expected {', '.join(sorted(known))}; got {unknown[0]!r}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in given.items():
        if isinstance(value, Mapping) and is_dataclass(known[name]):
            given[name] = settings_from(known[name], value, f"{place}: {name}")  # type: ignore[arg-type]
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _annotations(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in fields(kind) if one.init}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _is_finite(value):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(value, inner[0]) and all(bound.holds(value) for bound in inner[1:])
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool) and _is_finite(value)
    return kind is Any or isinstance(value, origin or kind)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " ".join([_in_words(inner[0]), *(bound.text for bound in inner[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in inner)
    if origin is Literal:
        *most, last = map(repr, inner)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        return f"a list, each {_in_words(inner[0])}"
    known = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", type(None): "none"}
    return known.get(kind) or f"a {(origin or kind).__name__}"
