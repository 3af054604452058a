"""Settings as dataclasses whose annotations give the valid values; they are checked when an instance is created."""

from __future__ import annotations

import math
import numbers
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


class Bound(NamedTuple):
    """A constraint in an ``Annotated`` type: its text for messages, and its predicate."""

    text: str
    holds: Callable[[Any], bool]


Whole = Annotated[int, Bound("of at least 0", lambda value: value >= 0)]
Count = Annotated[int, Bound("of at least 1", lambda value: value >= 1)]
NotNegative = Annotated[float, Bound("of at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Bound("above 0", lambda value: value > 0)]
Share = Annotated[float, Bound("in [0, 1]", lambda value: 0 <= value <= 1)]
ShareBelowOne = Annotated[float, Bound("in [0, 1)", lambda value: 0 <= value < 1)]


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass against its annotation; to be used as its ``__post_init__``.

    A bool is not accepted as an int, an int is accepted as a float, and floats must be finite. Numbers of other
    libraries, such as numpy, are converted to Python's, so that they can be written as JSON.

    Raises:
        ValueError: a field does not match its annotation (the message names it).

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
            if isinstance(value, list):  # JSON has lists; in Python the field is a tuple
                expected = expected.replace("a list", "a tuple")
            raise ValueError(f"{name}: expected {expected}; got {value!r}")


def settings_from(kind: type[Kind], values: Any, source: str) -> Kind:
    """Create settings from the parsed contents of a file.

    Args:
        kind: a dataclass that checks itself (:func:`check_settings`).
        values: its fields by name; lists become tuples, and mappings become nested dataclasses.
        source: of the values, for errors: a file, or a name in one.

    Raises:
        ValueError: not a mapping, an unknown key, or an invalid value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected settings by name; got {values!r}")
    known = _annotations(kind)
    unknown = sorted(set(values) - set(known), key=str)
    if unknown:
        raise ValueError(f"{source}: expected {', '.join(sorted(known))}; got {unknown[0]!r}")
    fields_by_name = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in fields_by_name.items():
        nested = next((option for option in (known[name], *get_args(known[name])) if is_dataclass(option)), None)
        if isinstance(value, Mapping) and nested is not None:
            fields_by_name[name] = settings_from(nested, value, f"{source}: {name}")  # type: ignore[arg-type]
    try:
        return kind(**fields_by_name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _annotations(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


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
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(option, inner[0]) for option in value)
    if kind in (int, float):
        number_type = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number_type) and not isinstance(value, bool) and _is_finite(value)
    return kind is Any or isinstance(value, origin or kind)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int too large for float
        return False


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " ".join([_in_words(inner[0]), *(bound.text for bound in inner[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(option) for option in inner)
    if origin is Literal:
        *most, last = map(repr, inner)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        return f"a list, each {_in_words(inner[0])}"
    known = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", type(None): "none"}
    return known.get(kind) or f"a {(origin or kind).__name__}"
