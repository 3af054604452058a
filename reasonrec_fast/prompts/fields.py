"""Placeholders: ``{field}`` in the text of a template, and ``[[ ... ]]`` around what a missing value leaves out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_MARK = re.compile(r"(\[\[|\]\])")


def is_field_name(name: object) -> bool:
    """Whether a placeholder can have this name: small letters, digits and underscores, a letter first."""
    return isinstance(name, str) and _FIELD.fullmatch(f"{{{name}}}") is not None


def field_names(text: str) -> list[str]:
    """Names of the placeholders of a text, in their order.

    >>> field_names("{title}[[ by {author}]]")
    ['title', 'author']
    """
    return _FIELD.findall(text)


def check_fields(text: str, known: Collection[str], where: str) -> None:
    """Refuse a text whose braces are not placeholders of known fields.

    Args:
        text: of a template.
        known: names of the fields.
        where: file, wording and part, which errors begin with.

    Raises:
        ValueError: an unknown field, or a brace outside a placeholder.
    """
    unknown = [name for name in field_names(text) if name not in known]
    if unknown:
        expected = f"fields {', '.join(known)}" if known else "no field"
        raise ValueError(f"{where}: expected {expected}; got {unknown[0]!r}")
    rest = _FIELD.sub("", text)
    if "{" in rest or "}" in rest:
        raise ValueError(f"{where}: expected braces around names of fields alone; got {text!r}")


def split_optional(text: str, where: str) -> list[tuple[bool, str]]:
    """The parts of a text in their order, each with whether it stands within ``[[`` and ``]]``.

    Raises:
        ValueError: marks that are unpaired, nested, beside a third bracket, or around no field.

    >>> split_optional("{title}[[ ({year})]]?", "template")
    [(False, '{title}'), (True, ' ({year})'), (False, '?')]
    """
    parts, inside = [], False
    valid = "[[[" not in text and "]]]" not in text
    for index, part in enumerate(_MARK.split(text)):
        if index % 2:
            valid &= (part == "[[") is not inside
            inside = part == "[["
        elif part or inside:
            valid &= not inside or bool(field_names(part))
            parts.append((inside, part))
    if not valid or inside:
        raise ValueError(f"{where}: expected [[ and ]] in pairs around a field; got {text!r}")
    return parts


def fill_fields(text: str, values: Mapping[str, str], where: str) -> str:
    """A text with the values in place of its placeholders; braces within a value stay as they are.

    Raises:
        ValueError: a placeholder without a value.

    >>> fill_fields("{title} ({year})", {"title": "Brazil {title}", "year": "1985"}, "template")
    'Brazil {title} (1985)'
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"{where}: expected a value of {match[1]!r}; got none")
        return values[match[1]]

    return _FIELD.sub(value, text)
