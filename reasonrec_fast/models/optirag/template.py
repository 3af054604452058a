"""The text of OptiRAG's prompts: from a file, in several wordings, or made for the columns of a catalogue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from reasonrec_fast.data.columns import NUMBER
from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.data.timeline import Timeline
from reasonrec_fast.files import read_json
from reasonrec_fast.models.optirag.taste import TARGET_VALUES
from reasonrec_fast.prompts.fields import check_fields, field_names, fill_fields

AUTO = "auto"
"""Name of the template that is made for the catalogue."""
LEVELS = (-0.08, -0.03, 0.03, 0.08)
"""Bounds between the entries of :attr:`Template.levels`, as differences of like rates."""

_PLACEHOLDERS: Mapping[str, tuple[str, ...]] = {
    "known_user": ("events", "rate"),
    "new_user": (),
    "liked": ("items",),
    "disliked": ("items",),
    "shared": ("items",),
    "separator": (),
    "target": ("title", "attributes"),
    "unknown_target": (),
    "taste": ("values",),
    "taste_shared": ("levels",),
    "votes": ("likes", "events"),
    "no_votes": (),
    "question": (),
    "overall_shared": ("shared",),
    "overall": ("own",),
    "taste_attribute": (),
    "untitled": (),
}
"""The texts of a template and the placeholders that each may have. Lists of items need theirs exactly once."""

_FOLDER = Path(__file__).parent / "templates"
_QUANTILES = ("very low", "low", "medium", "high", "very high")
_MAX_PAIRS = 20_000  # of likes that are compared
_MAX_VALUE_LETTERS = 40  # of a value that a prompt shows
_YEARS = range(1800, 2101)


@dataclass(frozen=True)
class Template:
    """The text of a prompt in one wording; the files in ``templates/`` hold one template each.

    Attributes are texts with placeholders, except:

    - ``taste_attribute``: attribute of the items for whose values the suffix says how much the user and similar users
      like them, value by value and ``overall``; ``""`` for none.
    - ``levels``: five levels of liking, from far less than usual to far more, and one for values without events.
    - ``target_attributes``: attributes that are shown with the target, in this order.
    - ``untitled``: in place of the title of an item that has none. No prompt holds an identifier.
    - ``quantiles``: numeric attribute to the four bounds between five levels.
    - ``version``: of the template, at least 1.
    - ``wordings``: of a file: name of each further wording to the texts and levels in which it differs. A template
      that was loaded in one of them has none.
    """

    known_user: str
    new_user: str
    liked: str
    disliked: str
    shared: str
    separator: str
    target: str
    unknown_target: str
    taste: str
    taste_shared: str
    votes: str
    no_votes: str
    question: str
    overall_shared: str
    overall: str
    taste_attribute: str
    levels: Sequence[str]
    target_attributes: Sequence[str]
    untitled: str = "untitled"
    quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    version: int = 1
    wordings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> Template:
        """Read a template.

        Args:
            name: of a file in ``templates/``, or the path of a JSON file of the same form; behind a colon, the name of
                one of its wordings (``"films:brief"``), by default that of the file itself.

        Raises:
            TypeError, ValueError: there is no such template or wording, or see :meth:`from_dict`.

        >>> Template.load("films").overall, Template.load("films:statement").overall
        (' Own {own}', ' This viewer: {own}')
        """
        base, _, wording = name.rpartition(":")
        if not base or name.endswith(".json"):
            base, wording = name, ""
        path = Path(base) if base.endswith(".json") else _FOLDER / f"{base}.json"
        if not path.is_file():
            known = sorted([AUTO, *(file.stem for file in _FOLDER.glob("*.json"))])
            raise ValueError(f"template: expected one of {known} or a JSON file; got {name!r}")
        template = cls.from_dict(read_json(path), str(path))
        if wording and wording not in template.wordings:
            raise ValueError(
                f"template: expected a wording {', '.join(template.wordings)}; got {wording!r} in {name!r}"
            )
        return replace(template, wordings={}, **template.wordings.get(wording, {}))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "template") -> Template:
        """The template of :meth:`to_dict`, or of a file's contents.

        Raises:
            ValueError: missing or unknown keys, a value of another type, or a text with an unknown placeholder, or
                without one that it needs. The message names file, wording and text.
        """
        known = {attribute.name for attribute in fields(cls)}
        needed = {a.name for a in fields(cls) if a.default is MISSING and a.default_factory is MISSING}
        if not isinstance(values, Mapping) or not needed <= set(values) <= known:
            got = sorted(values) if isinstance(values, Mapping) else values
            raise ValueError(f"{source}: expected the keys {sorted(needed)}; got {got}")
        version = values.get("version", 1)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"{source}: version: expected a whole number of at least 1; got {version!r}")
        _check_texts(values, source)
        _check_quantiles(values.get("quantiles", {}), source)
        wordings = values.get("wordings", {})
        if not isinstance(wordings, Mapping):
            raise ValueError(f"{source}: wordings: expected texts by name; got {wordings!r}")
        variable = {*_PLACEHOLDERS, "levels"} - {"taste_attribute"}
        for name, changes in wordings.items():
            if not isinstance(changes, Mapping) or not set(changes) <= variable:
                got = sorted(changes) if isinstance(changes, Mapping) else changes
                raise ValueError(f"{source}: wordings: {name}: expected some of {sorted(variable)}; got {got}")
            _check_texts({**values, **changes}, f"{source}: wordings: {name}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a template's file."""
        stored = asdict(self)
        return stored if self.wordings else {name: value for name, value in stored.items() if name != "wordings"}

    def fill(self, name: str, **values: object) -> str:
        """One of the texts with its values, which are inserted as they are.

        >>> Template.load("films").fill("target", title="Brazil {own}", attributes="")
        'Film: Brazil {own}.'
        """
        return fill_fields(getattr(self, name), {key: str(value) for key, value in values.items()}, name)

    def value_text(self, attribute: str, value: str) -> str:
        """A value of an attribute as prompts show it.

        >>> replace(Template.load("items"), quantiles={"price": (1, 2, 3, 4)}).value_text("price", "2.5")
        'medium price'
        """
        bounds = self.quantiles.get(attribute)
        if bounds is None or not NUMBER.fullmatch(value):
            return value
        return f"{_QUANTILES[int(np.searchsorted(bounds, float(value)))]} {attribute}"

    @property
    def attributes(self) -> list[str]:
        """The attributes that prompts show."""
        return [name for name in (self.taste_attribute, *self.target_attributes) if name]


def _check_texts(values: Mapping[str, Any], source: str) -> None:
    for name in _PLACEHOLDERS:
        if name in values and not isinstance(values[name], str):
            raise ValueError(f"{source}: {name}: expected a text; got {values[name]!r}")
    for name in ("levels", "target_attributes"):
        if not isinstance(values[name], list | tuple) or not all(isinstance(text, str) for text in values[name]):
            raise ValueError(f"{source}: {name}: expected a list of texts; got {values[name]!r}")
    if len(values["levels"]) != len(LEVELS) + 2:
        raise ValueError(f"{source}: levels: expected {len(LEVELS) + 2} texts; got {values['levels']}")
    for name, allowed in _PLACEHOLDERS.items():
        text = values.get(name, "")
        if name == "taste_attribute":
            continue  # a name of the catalogue
        try:
            check_fields(text, allowed, f"{source}: {name}")
            valid = "items" not in allowed or field_names(text) == ["items"]
        except ValueError:
            valid = False
        if not valid:
            expected = " and ".join(f"{{{field_name}}}" for field_name in allowed) or "no placeholder"
            raise ValueError(f"{source}: {name}: expected a text with {expected}; got {text!r}")


def _check_quantiles(quantiles: Any, source: str) -> None:
    if not isinstance(quantiles, Mapping):
        raise ValueError(f"{source}: quantiles: expected bounds by attribute; got {quantiles!r}")
    for name, bounds in quantiles.items():
        valid = isinstance(bounds, list | tuple) and len(bounds) == len(_QUANTILES) - 1
        valid = valid and all(isinstance(b, int | float) and math.isfinite(b) for b in bounds)
        if not valid or list(bounds) != sorted(bounds):
            raise ValueError(f"{source}: quantiles: {name}: expected four ascending numbers; got {bounds!r}")


def template_for(name: str, events: Interactions) -> Template:
    """The template of a name; for :data:`AUTO`, the one that is made for the catalogue of the training events.

    Raises:
        ValueError: there is no such template.
    """
    return make_template(events) if name == AUTO else Template.load(name)


def make_template(events: Interactions) -> Template:
    """A template for the attributes of a catalogue, the most informative first.

    An attribute is the more informative, the more often two items that one user likes share a value of it than two
    that different users like. The most informative one whose values repeat becomes the ``taste_attribute``; the next
    ones are shown with the target, numbers as the level of their quintile. Free texts, and attributes with another
    value for every item, are left out.

    Args:
        events: the training events.

    >>> events = Interactions.from_columns(
    ...     ["a", "a", "b", "b"], ["1", "2", "3", "4"], [1, 1, 1, 1], [1, 2, 3, 4],
    ...     attributes={"ean": {"1": "0", "2": "1"}, "brand": {"1": "X", "2": "X", "3": "Y", "4": "Y"}},
    ... )
    >>> make_template(events).taste_attribute
    'brand'
    """
    columns = events.catalog.attributes
    numeric = {name: bounds for name in columns if (bounds := _quantiles(columns[name])) is not None}
    usable = [name for name in columns if name in numeric or _repeats(columns[name])]
    information = {name: _information(events, columns[name], numeric.get(name)) for name in usable}
    order = sorted(usable, key=lambda name: (-information[name], list(columns).index(name)))
    taste = next((name for name in order if name not in numeric), "")
    shown = [name for name in order if name != taste][:TARGET_VALUES]
    return replace(
        Template.load("items"), taste_attribute=taste, target_attributes=shown,
        quantiles={name: numeric[name] for name in shown if name in numeric},
    )  # fmt: skip


def _quantiles(column: Sequence[tuple[str, ...]]) -> tuple[float, ...] | None:
    """Bounds of a numeric column; None for another, and for years, which say more as they are."""
    texts = [entry[0] for entry in column if entry]
    if not texts or any(len(entry) > 1 for entry in column) or not all(map(NUMBER.fullmatch, texts)):
        return None
    values = np.array(texts, dtype=np.float64)
    years = (values == np.floor(values)).all() and _YEARS.start <= values.min() <= values.max() < _YEARS.stop
    if years or len(np.unique(values)) <= len(_QUANTILES) or not np.isfinite(values).all():
        return None
    return tuple(float(bound) for bound in np.quantile(values, np.arange(1, 5) / 5))


def _repeats(column: Sequence[tuple[str, ...]]) -> bool:
    values = [value for entry in column for value in entry]
    return len(values) >= 2 * len(set(values)) > 0 and max(map(len, values)) <= _MAX_VALUE_LETTERS


def _information(events: Interactions, column: Sequence[tuple[str, ...]], bounds: Sequence[float] | None) -> float:
    """How much more often two likes of one user share a value than two likes of different users."""
    values = [
        {str(np.searchsorted(bounds, float(entry[0])))} if bounds is not None and entry else set(entry)
        for entry in column
    ]
    line = Timeline.of_users(events, np.flatnonzero(events.labels == 1))
    users, items = events.users[line.rows], events.items[line.rows]
    pairs = np.flatnonzero((users[1:] == users[:-1]) & (items[1:] != items[:-1]))
    if len(pairs) == 0:
        return -math.inf
    generator = np.random.default_rng(0)
    if len(pairs) > _MAX_PAIRS:
        pairs = np.sort(generator.choice(pairs, _MAX_PAIRS, replace=False))
    of_one_user = np.mean([bool(values[items[pair]] & values[items[pair + 1]]) for pair in pairs])
    shuffled = generator.permutation(items[pairs])
    of_different = np.mean([bool(values[a] & values[b]) for a, b in zip(items[pairs], shuffled, strict=True)])
    return float(of_one_user - of_different)
