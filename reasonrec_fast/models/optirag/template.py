"""The wording of prompts: from a file, or made for the columns that a catalogue has."""

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

AUTO = "auto"
"""Name of the template that is made of the catalogue."""
LEVELS = (-0.08, -0.03, 0.03, 0.08)
"""Where one word of :attr:`Template.levels` ends and the next begins, as differences of like rates."""

_PLACES: Mapping[str, Mapping[str, Any]] = {
    "known_user": {"events": 1, "rate": 100},
    "liked": {"items": ""},
    "disliked": {"items": ""},
    "shared": {"items": ""},
    "target": {"title": "", "attributes": ""},
    "taste": {"values": ""},
    "taste_shared": {"levels": ""},
    "votes": {"likes": 1, "events": 1},
    "overall_shared": {"shared": ""},
    "overall": {"own": ""},
}
"""What is put into each text of a template, as an example."""

_TEMPLATES = Path(__file__).parent / "templates"
_QUANTILES = ("very low", "low", "medium", "high", "very high")
_PAIRS = 20_000  # of likes that are compared
_LONGEST = 40  # letters of a value that a prompt shows
_YEARS = range(1800, 2101)


@dataclass(frozen=True)
class Template:
    """The wording of a prompt; the files in ``templates/`` hold one each.

    Attributes are format strings, except ``taste_attribute`` (for whose values the suffix tells how the user and
    similar users like them, one by one and ``overall``), ``levels`` (five words for it, from far less than usual to far
    more, and one for values that nobody met), ``target_attributes`` (shown with the target, in this order) and
    ``quantiles`` (attribute of numbers to the four bounds between five words for them).
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
    quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> Template:
        """A template by its name in ``templates/``, or a JSON file of the same form.

        Raises:
            ValueError: there is no such template, or its keys are not those of this class.

        >>> Template.load("films").overall
        ' Own {own}'
        """
        path = Path(name) if name.endswith(".json") else _TEMPLATES / f"{name}.json"
        if not path.is_file():
            known = sorted([AUTO, *(file.stem for file in _TEMPLATES.glob("*.json"))])
            raise ValueError(f"template: expected one of {known} or a JSON file; got {name!r}")
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "template") -> Template:
        """The template that :meth:`to_dict` wrote.

        Raises:
            ValueError: its keys are not those of this class, words are missing, or a text asks for what it is not
                given.
        """
        known = {one.name for one in fields(cls)}
        needed = {one.name for one in fields(cls) if one.default_factory is MISSING}
        if not needed <= set(values) <= known:
            raise ValueError(f"{source}: expected the keys {sorted(needed)}; got {sorted(values)}")
        for name in needed - {"levels", "target_attributes"}:
            if not isinstance(values[name], str):
                raise ValueError(f"{source}: {name}: expected a text; got {values[name]!r}")
        for name in ("levels", "target_attributes"):
            if not isinstance(values[name], list | tuple) or not all(isinstance(word, str) for word in values[name]):
                raise ValueError(f"{source}: {name}: expected a list of words; got {values[name]!r}")
        if len(values["levels"]) != len(LEVELS) + 2:
            raise ValueError(f"{source}: levels: expected {len(LEVELS) + 2} words; got {values['levels']}")
        for name, places in _PLACES.items():
            try:
                values[name].format(**places)
                fits = "items" not in places or values[name].count("{items}") == 1
            except (KeyError, IndexError, ValueError, AttributeError):
                fits = False
            if not fits:
                told = " and ".join(f"{{{place}}}" for place in places)
                raise ValueError(f"{source}: {name}: expected a text with {told}; got {values[name]!r}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def words(self, attribute: str, value: str) -> str:
        """A value as a prompt tells it.

        >>> replace(Template.load("items"), quantiles={"price": (1, 2, 3, 4)}).words("price", "2.5")
        'medium price'
        """
        bounds = self.quantiles.get(attribute)
        if bounds is None or not NUMBER.fullmatch(value):
            return value
        return f"{_QUANTILES[int(np.searchsorted(bounds, float(value)))]} {attribute}"

    @property
    def attributes(self) -> list[str]:
        """Those that a prompt reads."""
        return [name for name in (self.taste_attribute, *self.target_attributes) if name]


def template_for(name: str, events: Interactions) -> Template:
    """The template of a name; :data:`AUTO` for the one that is made of a catalogue.

    Raises:
        ValueError: there is no such template.
    """
    return make_template(events) if name == AUTO else Template.load(name)


def make_template(events: Interactions) -> Template:
    """A template for the attributes of a catalogue, the most telling first.

    An attribute tells more, the more often two items that a user likes share a value of it than two that different
    users like. The most telling one whose values repeat is the one whose taste is told; the next ones are shown with
    the target, numbers in words of their quintiles. Free texts, and what is different for every item, are not read.

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
    read = [name for name in columns if name in numeric or _repeats(columns[name])]
    found = {name: _telling(events, columns[name], numeric.get(name)) for name in read}
    order = sorted(read, key=lambda name: (-found[name], list(columns).index(name)))
    taste = next((name for name in order if name not in numeric), "")
    shown = [name for name in order if name != taste][:TARGET_VALUES]
    return replace(
        Template.load("items"), taste_attribute=taste, target_attributes=shown,
        quantiles={name: numeric[name] for name in shown if name in numeric},
    )  # fmt: skip


def _quantiles(column: Sequence[tuple[str, ...]]) -> tuple[float, ...] | None:
    """Bounds of a column of numbers; None for another, and for years, which tell more as they are."""
    values = [entry[0] for entry in column if entry]
    if not values or any(len(entry) > 1 for entry in column) or not all(map(NUMBER.fullmatch, values)):
        return None
    found = np.array(values, dtype=np.float64)
    years = (found == np.floor(found)).all() and _YEARS.start <= found.min() <= found.max() < _YEARS.stop
    if years or len(np.unique(found)) <= len(_QUANTILES) or not np.isfinite(found).all():
        return None
    return tuple(float(bound) for bound in np.quantile(found, np.arange(1, 5) / 5))


def _repeats(column: Sequence[tuple[str, ...]]) -> bool:
    values = [value for entry in column for value in entry]
    return len(values) >= 2 * len(set(values)) > 0 and max(map(len, values)) <= _LONGEST


def _telling(events: Interactions, column: Sequence[tuple[str, ...]], bounds: Sequence[float] | None) -> float:
    """How much more often two likes of one user share a value than two of different users."""
    kept = [
        {str(np.searchsorted(bounds, float(entry[0])))} if bounds is not None and entry else set(entry)
        for entry in column
    ]
    line = Timeline.of_users(events, np.flatnonzero(events.labels == 1))
    users, items = events.users[line.rows], events.items[line.rows]
    pairs = np.flatnonzero((users[1:] == users[:-1]) & (items[1:] != items[:-1]))
    if len(pairs) == 0:
        return -math.inf
    generator = np.random.default_rng(0)
    if len(pairs) > _PAIRS:
        pairs = np.sort(generator.choice(pairs, _PAIRS, replace=False))
    own = np.mean([bool(kept[items[place]] & kept[items[place + 1]]) for place in pairs])
    others = generator.permutation(items[pairs])
    apart = np.mean([bool(kept[one] & kept[other]) for one, other in zip(items[pairs], others, strict=True)])
    return float(own - apart)
