"""Templates as data: what a prompt says, in several wordings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from reasonrec_fast.files import read_json

FOLDER = Path(__file__).resolve().parent / "templates"
"""The templates that come with the package."""

Task = Literal["ctr", "sequential", "direct", "explanation", "judge"]
FieldKind = Literal["text", "identifier"]
_FIELD = re.compile(r"\{([a-z_]+)\}")
_OPTIONAL = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


@dataclass(frozen=True)
class Wording:
    """One way to say it.

    Attributes:
        name: of the wording.
        prefix: what all candidates of a query share, with ``{field}``s; what stands in ``[[`` and ``]]`` is left out
            where a field in it has no value.
        suffix: what one candidate adds.
        answers: what the model may answer; empty where it writes freely.
        system: what a conversation's system turn says.
    """

    name: str
    prefix: str
    suffix: str
    answers: tuple[str, ...] = ()
    system: str | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt in several wordings.

    Attributes:
        task: that it is for.
        fields: name to kind. An ``"identifier"`` says which item it is and nothing of what it is; texts must be read
            from titles, attributes and the like.
        wordings: the first one is the default.
        source: file, for errors.
    """

    task: Task
    fields: Mapping[str, FieldKind]
    wordings: tuple[Wording, ...]
    source: str = field(default="template", compare=False)

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"{self.source}: task: expected one of {', '.join(get_args(Task))}; got {self.task!r}")
        for name, kind in self.fields.items():
            if not _FIELD.fullmatch(f"{{{name}}}") or kind not in get_args(FieldKind):
                raise ValueError(
                    f"{self.source}: fields: expected small letters and kinds {', '.join(get_args(FieldKind))}; "
                    f"got {name!r}: {kind!r}"
                )
        names = [wording.name for wording in self.wordings]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{self.source}: wordings: expected at least one, of different names; got {names}")
        for wording in self.wordings:
            for part in ("prefix", "suffix"):
                self._check(getattr(wording, part), f"{self.source}: {wording.name}: {part}")
            if len(set(wording.answers)) < len(wording.answers):
                raise ValueError(
                    f"{self.source}: {wording.name}: answers: expected different ones; got {wording.answers}"
                )

    def _check(self, text: str, where: str) -> None:
        unknown = [name for name in _FIELD.findall(text) if name not in self.fields]
        if unknown:
            raise ValueError(f"{where}: expected fields {', '.join(self.fields)}; got {unknown[0]!r}")
        rest = _OPTIONAL.sub("", text)
        if "[[" in rest or "]]" in rest or any(not _FIELD.search(inner) for inner in _OPTIONAL.findall(text)):
            raise ValueError(f"{where}: expected [[ and ]] in pairs around a field; got {text!r}")
        if re.sub(_FIELD, "", text).count("{") or re.sub(_FIELD, "", text).count("}"):
            raise ValueError(f"{where}: expected braces around names of fields alone; got {text!r}")

    def wording(self, which: int | str = 0) -> Wording:
        """A wording by its index or name.

        Raises:
            ValueError: there is none.
        """
        names = [wording.name for wording in self.wordings]
        if isinstance(which, str) and which in names:
            return self.wordings[names.index(which)]
        if isinstance(which, int) and not isinstance(which, bool) and 0 <= which < len(names):
            return self.wordings[which]
        raise ValueError(f"wording: expected one of {', '.join(names)} or its index; got {which!r}")

    def draw(self, seed: int, key: str | int) -> Wording:
        """A wording for training, uniformly at random: by the seed and the request's key alone, whatever else is drawn.

        >>> template = load_template("ctr")
        >>> template.draw(0, "user 3, item 5") is template.draw(0, "user 3, item 5")
        True
        """
        digest = hashlib.blake2b(repr((seed, key)).encode(), digest_size=8).digest()
        return self.wordings[int.from_bytes(digest, "little") % len(self.wordings)]

    def render(self, values: Mapping[str, str | None], which: int | str | Wording = 0) -> tuple[str, str]:
        """Prefix and suffix.

        Args:
            values: of the fields; None (or nothing) for no value. What looks like a field within a value stays as it
            is. which: the wording.

        Raises:
            TypeError: a value that is no text.
            ValueError: a value of no field, or a field outside ``[[ ]]`` without a value.

        >>> load_template("ctr").render({"history": "Alien; {title}", "title": "Heat"}, "plain")[1]
        ' Heat?\\nAnswer:'
        """
        wording = which if isinstance(which, Wording) else self.wording(which)
        for name, value in values.items():
            if name not in self.fields:
                raise ValueError(f"{self.source}: expected values of {', '.join(self.fields)}; got {name!r}")
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{self.source}: {name}: expected a text; got {value!r}")
        given = {name: value for name, value in values.items() if value is not None}
        prefix, suffix = (
            self._filled(text, given, f"{self.source}: {wording.name}") for text in (wording.prefix, wording.suffix)
        )
        return prefix, suffix

    def _filled(self, text: str, given: Mapping[str, str], where: str) -> str:
        def optional(match: re.Match[str]) -> str:
            return match[1] if all(name in given for name in _FIELD.findall(match[1])) else ""

        def value(match: re.Match[str]) -> str:
            if match[1] not in given:
                raise ValueError(f"{where}: expected a value of {match[1]!r}; got none")
            return given[match[1]]

        return _FIELD.sub(value, _OPTIONAL.sub(optional, text))

    def to_dict(self) -> dict[str, Any]:
        """As a file holds it."""
        wordings = []
        for wording in self.wordings:
            stored = {name: value for name, value in vars(wording).items() if value not in (None, ())}
            wordings.append(stored | ({"answers": list(wording.answers)} if wording.answers else {}))
        return {"task": self.task, "fields": dict(self.fields), "wordings": wordings}

    @classmethod
    def from_dict(cls, values: Any, source: str = "template") -> PromptTemplate:
        """What :meth:`to_dict` made, or a file's contents.

        Raises:
            ValueError: not of that form.
        """
        known = {"task", "fields", "wordings"}
        if not isinstance(values, dict) or set(values) != known or not isinstance(values["fields"], dict):
            got = sorted(values) if isinstance(values, dict) else values
            raise ValueError(f"{source}: expected {', '.join(sorted(known))}; got {got}")
        wordings = []
        for number, stored in enumerate(values["wordings"]):
            if not isinstance(stored, dict) or not {"name", "prefix", "suffix"} <= set(stored) <= set(_TEXTS) | {
                "answers"
            }:
                raise ValueError(
                    f"{source}: wording {number}: expected name, prefix, suffix, answers, system; got {stored!r}"
                )
            answers = stored.get("answers", [])
            texts = [stored[name] for name in _TEXTS if name != "system" or stored.get(name) is not None]
            if not isinstance(answers, list) or not all(isinstance(text, str) for text in [*texts, *answers]):
                raise ValueError(f"{source}: wording {number}: expected texts; got {stored!r}")
            wordings.append(Wording(**{**stored, "answers": tuple(answers)}))
        return cls(values["task"], values["fields"], tuple(wordings), source)


_TEXTS = ("name", "prefix", "suffix", "system")


def load_template(name: str | Path) -> PromptTemplate:
    """Read a template.

    Args:
        name: of one in the package, or the path of a JSON file.

    Raises:
        FileNotFoundError: neither.
        ValueError: not of the form of :meth:`PromptTemplate.to_dict`.

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
