"""Templates as data: the text of a prompt, in several wordings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any, Literal, get_args

from reasonrec_fast.files import read_json
from reasonrec_fast.prompts.fields import check_fields, field_names, fill_fields, is_field_name, split_optional

FOLDER = Path(__file__).resolve().parent / "templates"
"""The templates of the package."""

Task = Literal["ctr", "sequential", "direct", "explanation", "judge"]
FieldKind = Literal["text", "identifier"]
_KEYS = ("version", "task", "fields", "wordings")
_TEXTS = ("name", "prefix", "suffix", "system")


class Identifier(str):
    """An item's or a user's identifier (a number, an ASIN). Fields of the kind ``"text"`` refuse it.

    >>> load_template("ctr").render({"history": "Alien", "title": Identifier("B000OEXLKE")})
    Traceback (most recent call last):
    ValueError: ctr.json: title: expected a text; got the identifier 'B000OEXLKE', which needs a field of that kind
    """

    __slots__ = ()


@dataclass(frozen=True)
class Wording:
    """One formulation of a prompt.

    Attributes:
        name: of the wording.
        prefix: text that all candidates of a query share, with ``{field}`` placeholders; a part within ``[[`` and
            ``]]`` is left out where one of its fields has no value.
        suffix: text of one candidate, of the same form.
        answers: the texts that a model chooses between, least positive first; empty where it writes freely.
        system: the system message, without placeholders; None where the prompt is no conversation.
    """

    name: str
    prefix: str
    suffix: str
    answers: tuple[str, ...] = ()
    system: str | None = None

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that the wording has placeholders for."""
        return frozenset(field_names(self.prefix) + field_names(self.suffix))

    @property
    def required(self) -> frozenset[str]:
        """Names of the fields that must have a value: those outside ``[[ ]]``.

        >>> sorted(load_template("ctr").wording("plain").required)
        ['history', 'title']
        """
        parts = split_optional(self.prefix, self.name) + split_optional(self.suffix, self.name)
        return frozenset(name for optional, part in parts if not optional for name in field_names(part))


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt in several wordings.

    Attributes:
        task: one of :data:`Task`.
        fields: name to kind: ``"text"`` for titles, attributes and other descriptions, ``"identifier"`` for an
            :class:`Identifier`, which names an item without describing it.
        wordings: the first one is the default.
        version: of the template, at least 1; raised by its author with every change.
        source: name of the file, for errors.

    Raises:
        TypeError: a version that is no whole number.
        ValueError: an unknown task or kind, an unknown or unused field, wordings of the same name or with different
            numbers of answers, or a placeholder or mark of another form.
    """

    task: Task
    fields: Mapping[str, FieldKind]
    wordings: tuple[Wording, ...]
    version: int = 1
    source: str = field(default="template", compare=False)

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"{self.source}: task: expected one of {', '.join(get_args(Task))}; got {self.task!r}")
        if not isinstance(self.version, int) or isinstance(self.version, bool):
            raise TypeError(f"{self.source}: version: expected a whole number; got {self.version!r}")
        if self.version < 1:
            raise ValueError(f"{self.source}: version: expected at least 1; got {self.version}")
        for name, kind in self.fields.items():
            if not is_field_name(name) or kind not in get_args(FieldKind):
                raise ValueError(
                    f"{self.source}: fields: expected small letters and kinds {', '.join(get_args(FieldKind))}; "
                    f"got {name!r}: {kind!r}"
                )
        names = [wording.name for wording in self.wordings]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{self.source}: wordings: expected at least one, of different names; got {names}")
        for wording in self.wordings:
            self._check(wording, f"{self.source}: {wording.name}")
        unused = [name for name in self.fields if not any(name in wording.fields for wording in self.wordings)]
        if unused:
            raise ValueError(f"{self.source}: fields: expected each in a wording; {unused[0]!r} is in none")

    def _check(self, wording: Wording, where: str) -> None:
        for part in ("prefix", "suffix"):
            check_fields(getattr(wording, part), self.fields, f"{where}: {part}")
            split_optional(getattr(wording, part), f"{where}: {part}")
        if wording.system is not None:
            check_fields(wording.system, (), f"{where}: system")
        if len(set(wording.answers)) < len(wording.answers) or "" in wording.answers:
            raise ValueError(f"{where}: answers: expected different ones, none empty; got {wording.answers}")
        count = len(self.wordings[0].answers)
        if len(wording.answers) != count:
            raise ValueError(f"{where}: answers: expected {count}, as in the first wording; got {wording.answers}")

    def wording(self, which: int | str | Wording = 0) -> Wording:
        """A wording by its index or name, or one of the template's own.

        Raises:
            ValueError: there is none, or it is of another template.
        """
        if isinstance(which, Wording) and which in self.wordings:
            return which
        names = [wording.name for wording in self.wordings]
        if isinstance(which, str) and which in names:
            return self.wordings[names.index(which)]
        if isinstance(which, int) and not isinstance(which, bool) and 0 <= which < len(names):
            return self.wordings[which]
        raise ValueError(f"wording: expected one of {', '.join(names)} or its index; got {which!r}")

    def draw(self, seed: int, key: str | int, among: int | None = None) -> Wording:
        """A wording for training, uniformly at random; it depends on the seed and the request's key alone.

        Args:
            seed: of the training run; NumPy's integers count as Python's.
            key: of the request, the same wherever the request stands.
            among: the first so many are drawn from, at least 1; None for all.

        Raises:
            TypeError: a seed that is no whole number, or a key that is neither text nor whole number.

        >>> template = load_template("ctr")
        >>> template.draw(0, "user 3, item 5") is template.draw(0, "user 3, item 5")
        True
        """
        for name, value in (("seed", seed), ("key", key)):
            if not hasattr(value, "__index__") and not (name == "key" and isinstance(value, str)):
                kind = "a whole number" if name == "seed" else "a text or a whole number"
                raise TypeError(f"{name}: expected {kind}; got {value!r}")
        plain = str(key) if isinstance(key, str) else index(key)
        digest = hashlib.blake2b(repr((index(seed), plain)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        count = len(self.wordings) if among is None else min(among, len(self.wordings))
        return self.wordings[int.from_bytes(digest, "little") % count]

    def render(self, values: Mapping[str, str | None], which: int | str | Wording = 0) -> tuple[str, str]:
        """Prefix and suffix of a prompt.

        Args:
            values: by field; None, or no entry, where there is none. They are inserted as they are: braces and brackets
                within them have no meaning. A value whose field the wording has no placeholder for is not used.
            which: the wording, or its index or name.

        Raises:
            TypeError: a value that is no text.
            ValueError: a value of an unknown field, an :class:`Identifier` for a field of another kind, or no value
                for a field outside ``[[ ]]``.

        >>> load_template("ctr").render({"history": "Alien; {title}", "title": "Heat"}, "plain")[1]
        ' Heat?\\nAnswer:'
        """
        wording = self.wording(which)
        check_values(values, self.source)
        for name, value in values.items():
            if name not in self.fields:
                raise ValueError(f"{self.source}: expected values of {', '.join(self.fields)}; got {name!r}")
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{self.source}: {name}: expected a text; got {value!r}")
            if isinstance(value, Identifier) and self.fields[name] != "identifier":
                raise ValueError(
                    f"{self.source}: {name}: expected a text; got the identifier {str(value)!r}, which needs a field "
                    "of that kind"
                )
        present = {name: str(value) for name, value in values.items() if value is not None}
        where = f"{self.source}: {wording.name}"
        return _filled(wording.prefix, present, where), _filled(wording.suffix, present, where)

    @property
    def digest(self) -> str:
        """Of everything but ``source``, 16 hexadecimal digits: part of the identity of a result or a model."""
        return hashlib.blake2b(json.dumps(self.to_dict(), sort_keys=True).encode(), digest_size=8).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The contents of a template's file."""
        wordings = []
        for wording in self.wordings:
            stored = {name: value for name, value in vars(wording).items() if value not in (None, ())}
            wordings.append(stored | ({"answers": list(wording.answers)} if wording.answers else {}))
        return {"version": self.version, "task": self.task, "fields": dict(self.fields), "wordings": wordings}

    @classmethod
    def from_dict(cls, values: Any, source: str = "template") -> PromptTemplate:
        """The template of :meth:`to_dict`, or of a file's contents.

        Raises:
            TypeError: see the class.
            ValueError: another form; see the class, too.
        """
        valid = isinstance(values, dict) and set(values) == set(_KEYS)
        if not valid or not isinstance(values["fields"], dict) or not isinstance(values["wordings"], list):
            form = (
                {name: type(value).__name__ for name, value in values.items()} if isinstance(values, dict) else values
            )
            raise ValueError(f"{source}: expected {', '.join(_KEYS)} (fields by name, a list of wordings); got {form}")
        wordings = tuple(_wording(stored, f"{source}: wording {row}") for row, stored in enumerate(values["wordings"]))
        return cls(values["task"], values["fields"], wordings, values["version"], source)


def check_values(values: Any, source: str) -> None:
    """Refuse what is no mapping of values by field (``TypeError``)."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{source}: values: expected values by field; got {values!r}")


def _filled(text: str, present: Mapping[str, str], where: str) -> str:
    """A text with its values, without the optional parts that miss one. The text is divided before any value is
    inserted, so that brackets within a value are no marks."""
    return "".join(
        fill_fields(part, present, where)
        for optional, part in split_optional(text, where)
        if not optional or all(name in present for name in field_names(part))
    )


def _wording(stored: Any, where: str) -> Wording:
    known = {*_TEXTS, "answers"}
    if not isinstance(stored, dict) or not {"name", "prefix", "suffix"} <= set(stored) <= known:
        raise ValueError(f"{where}: expected name, prefix, suffix, answers, system; got {stored!r}")
    answers = stored.get("answers", [])
    texts = [stored[name] for name in _TEXTS if name != "system" or stored.get(name) is not None]
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in [*texts, *answers]):
        raise ValueError(f"{where}: expected texts; got {stored!r}")
    return Wording(**{**stored, "answers": tuple(answers)})


def load_template(name: str | Path) -> PromptTemplate:
    """Read a template.

    Args:
        name: of a template of the package, or the path of a JSON file.

    Raises:
        FileNotFoundError: neither.
        TypeError, ValueError: contents of another form than :meth:`PromptTemplate.to_dict` has.

    >>> load_template("judge").wording().answers[-1]
    'excellent'
    """
    path = Path(name)
    if path.suffix != ".json":
        path = FOLDER / f"{name}.json"
        if path.parent != FOLDER or not path.is_file():
            known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
            raise FileNotFoundError(f"name: expected a .json file or one of {known}; got {str(name)!r}")
    elif not path.is_file():
        raise FileNotFoundError(f"name: expected a .json file; there is none at {path}")
    return PromptTemplate.from_dict(read_json(path), str(path.name))
