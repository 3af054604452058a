"""Prompts that fit a number of tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from reasonrec_fast.lm.inputs import Embeddings, Text, text_of

Rule = Literal["keep", "drop", "drop_first", "drop_last", "cut_start", "cut_end"]


@dataclass(frozen=True)
class Section:
    """A part of a prompt, and how it is shortened.

    Attributes:
        name: of the section, in errors and in :attr:`Fitted.dropped`.
        parts: token ids or :class:`~reasonrec_fast.lm.inputs.Embeddings` (an image counts its vectors), in order.
        rule: ``"keep"``: never; ``"drop"``: as a whole; ``"drop_first"``, ``"drop_last"``: part by part;
            ``"cut_start"``, ``"cut_end"``: token by token, but embeddings as a whole.
        priority: sections of the lowest priority are shortened first; of the same priority, the last one.

    Raises:
        TypeError: parts of something else than whole numbers or embeddings, such as a text, or another priority than a
            whole number.
        ValueError: an unknown rule, or a negative token id.
    """

    name: str
    parts: Sequence[Sequence[int] | Embeddings]
    rule: Rule = "keep"
    priority: int = 0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule: expected one of {', '.join(get_args(Rule))}; got {self.rule!r} in {self.name!r}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise TypeError(f"priority: expected a whole number; got {self.priority!r} in {self.name!r}")
        if isinstance(self.parts, str | bytes | Embeddings) or not isinstance(self.parts, Iterable):
            raise TypeError(f"parts: expected lists of token ids; got {self.parts!r} in {self.name!r}")
        parts = tuple(_checked_part(part, f"{row} of {self.name!r}") for row, part in enumerate(self.parts))
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True)
class Fitted:
    """A prompt within its budget.

    Attributes:
        text: token ids, or a text with embeddings among them.
        dropped: tokens that each section lost, by name; without the sections that lost none.
    """

    text: list[int] | Text
    dropped: dict[str, int]


def fit_budget(sections: Sequence[Section], budget: int) -> Fitted:
    """The sections one after the other, shortened until they have at most ``budget`` tokens.

    As little is dropped as the rules allow: a section is shortened only after those of lower priority have nothing left
    to lose, and no further than needed. The result equals the remaining parts written one after the other.

    Args:
        sections: in the order of the prompt, with different names.
        budget: tokens, at least 0.

    Raises:
        TypeError: a budget that is no whole number, or something else than sections.
        ValueError: a negative budget, a name twice, or sections of rule ``"keep"`` with more tokens than the budget.

    >>> history = Section("history", [[1, 2], [3, 4], [5]], "drop_first")
    >>> fit_budget([history, Section("question", [[9]])], 4)
    Fitted(text=[3, 4, 5, 9], dropped={'history': 2})
    """
    check_budget(budget)
    for section in sections:
        if not isinstance(section, Section):
            raise TypeError(f"sections: expected Section; got {section!r}")
    names = [section.name for section in sections]
    if len(set(names)) < len(names):
        raise ValueError(f"sections: expected different names; got {names}")
    remaining: list[list[Any]] = [list(section.parts) for section in sections]
    excess = sum(_length(parts) for parts in remaining) - budget
    dropped: dict[str, int] = {}
    for index in sorted(range(len(sections)), key=lambda index: (sections[index].priority, -index)):
        if excess <= 0:
            break
        before = _length(remaining[index])
        remaining[index] = _shortened(remaining[index], sections[index].rule, excess)
        lost = before - _length(remaining[index])
        excess -= lost
        if lost:
            dropped[names[index]] = lost
    if excess > 0:
        kept = ", ".join(section.name for section in sections if section.rule == "keep")
        raise ValueError(f"budget: expected at least {budget + excess} tokens for {kept}; got {budget}")
    flat = [part for parts in remaining for part in parts if len(part)]
    if any(isinstance(part, Embeddings) for part in flat):
        text = text_of(flat, "sections")
        assert isinstance(text, Text)
        return Fitted(text, dropped)
    return Fitted([token for part in flat for token in part], dropped)


def check_budget(budget: Any) -> None:
    """Refuse a budget that is no whole number (``TypeError``), or a negative one (``ValueError``)."""
    if isinstance(budget, bool) or not hasattr(budget, "__index__"):
        raise TypeError(f"budget: expected a whole number of tokens; got {budget!r}")
    if budget < 0:
        raise ValueError(f"budget: expected at least 0 tokens; got {budget}")


def _shortened(parts: list[Any], rule: Rule, excess: int) -> list[Any]:
    """The parts without at least ``excess`` tokens, as far as the rule allows; no further than needed."""
    if rule in ("keep", "drop"):
        return parts if rule == "keep" else []
    from_start = rule in ("drop_first", "cut_start")
    order = list(parts) if from_start else parts[::-1]  # those that are dropped first come first
    for index, part in enumerate(order):
        if excess <= 0:
            order = order[index:]
            break
        if rule in ("cut_start", "cut_end") and not isinstance(part, Embeddings) and len(part) > excess:
            rest = part[excess:] if from_start else part[: len(part) - excess]
            order = [rest, *order[index + 1 :]]
            break
        excess -= len(part)
    else:
        order = []
    return order if from_start else order[::-1]


def _length(parts: Sequence[Any]) -> int:
    return sum(map(len, parts))


def _checked_part(part: Any, where: str) -> Any:
    if isinstance(part, Embeddings):
        return part
    try:
        ids = None if isinstance(part, str | bytes) else list(map(operator.index, part))
    except TypeError:
        ids = None
    if ids is None:
        raise TypeError(f"parts: expected token ids, whole numbers; got {part!r} in part {where}")
    if ids and min(ids) < 0:
        raise ValueError(f"parts: expected token ids of at least 0; got {min(ids)} in part {where}")
    return ids
