"""Prompts that fit a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from reasonrec_fast.lm.inputs import Embeddings, Text, text_of

Rule = Literal["keep", "drop", "drop_first", "drop_last", "cut_start", "cut_end"]


@dataclass(frozen=True)
class Section:
    """A part of a prompt that is shortened by one rule.

    Attributes:
        name: in errors and in what is told of the rest.
        parts: token ids or :class:`~reasonrec_fast.lm.inputs.Embeddings` (an image counts its vectors), in order.
        rule: ``"keep"`` all of it; ``"drop"`` all of it; ``"drop_first"`` or ``"drop_last"``, part by part;
            ``"cut_start"`` or ``"cut_end"``, token by token (embeddings whole).
        priority: sections of the lowest are shortened first, of one priority the last one first.
    """

    name: str
    parts: Sequence[Sequence[int] | Embeddings]
    rule: Rule = "keep"
    priority: int = 0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule: expected one of {', '.join(get_args(Rule))}; got {self.rule!r} in {self.name!r}")


@dataclass(frozen=True)
class Fitted:
    """A prompt within its budget.

    Attributes:
        text: token ids, or a text with embeddings among them.
        dropped: tokens that each section lost, by name; sections that lost none are left out.
    """

    text: list[int] | Text
    dropped: dict[str, int]


def fit_budget(sections: Sequence[Section], budget: int) -> Fitted:
    """The sections one after the other, shortened until they have at most ``budget`` tokens.

    As little is dropped as the rules allow: a section is shortened only after all of lower priority have nothing left
    to lose, and no further than is needed. The result is that of writing what is left alone.

    Args:
        sections: in the order of the prompt, with different names.
        budget: tokens, at least 0.

    Raises:
        ValueError: a negative budget, a name twice, or sections that are kept and have more tokens than that.

    >>> history = Section("history", [[1, 2], [3, 4], [5]], "drop_first")
    >>> fit_budget([history, Section("question", [[9]])], 4)
    Fitted(text=[3, 4, 5, 9], dropped={'history': 2})
    """
    if budget < 0:
        raise ValueError(f"budget: expected at least 0 tokens; got {budget}")
    names = [section.name for section in sections]
    if len(set(names)) < len(names):
        raise ValueError(f"sections: expected different names; got {names}")
    parts = [list(section.parts) for section in sections]
    excess = sum(len(part) for some in parts for part in some) - budget
    dropped: dict[str, int] = {}
    for index in sorted(range(len(sections)), key=lambda index: (sections[index].priority, -index)):
        if excess <= 0:
            break
        before = sum(map(len, parts[index]))
        _shorten(parts[index], sections[index].rule, excess)
        lost = before - sum(map(len, parts[index]))
        excess -= lost
        if lost:
            dropped[names[index]] = lost
    if excess > 0:
        kept = ", ".join(section.name for section in sections if section.rule == "keep")
        raise ValueError(f"budget: expected at least {budget + excess} tokens for {kept}; got {budget}")
    flat: list[Any] = [part for some in parts for part in some if len(part)]
    if any(isinstance(part, Embeddings) for part in flat):
        text = text_of(flat, "sections")
        assert isinstance(text, Text)
        return Fitted(text, dropped)
    return Fitted([token for part in flat for token in part], dropped)


def _shorten(parts: list[Any], rule: Rule, excess: int) -> None:
    """Drop at least ``excess`` tokens of a section, if its rule allows it."""
    if rule == "drop":
        parts.clear()
    while parts and excess > 0 and rule != "keep":
        end = 0 if rule in ("drop_first", "cut_start") else -1
        part = parts[end]
        if rule in ("cut_start", "cut_end") and not isinstance(part, Embeddings) and len(part) > excess:
            parts[end] = part[excess:] if end == 0 else part[: len(part) - excess]
            return
        excess -= len(parts.pop(end))
