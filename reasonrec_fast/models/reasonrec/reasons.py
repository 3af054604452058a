"""Reasons for an item, out of the data alone: the user's tastes, what others liked, what each tool says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonrec_fast.data import Catalog
from reasonrec_fast.models.classical.stack import Stack
from reasonrec_fast.models.reasonrec.prompt import CoLikes
from reasonrec_fast.models.reasonrec.rationale import listed
from reasonrec_fast.models.reasonrec.words import ItemWords

_CHARACTERS = 100  # of a title or an attribute value in a sentence


@dataclass(frozen=True)
class Reason:
    """Why an item may suit a user.

    Attributes:
        text: in sentences; long titles and attribute values are cut there.
        tastes: the commonest attribute values of what the user liked, with their counts.
        shared: of these, the ones that the item has.
        evidence: title of something that the user liked, how many others liked it, and how many of these liked the item
            too; None where nobody did.
        tools: rank of the item by each tool that ranks it among its best.
    """

    text: str
    tastes: tuple[tuple[str, int], ...]
    shared: tuple[str, ...]
    evidence: tuple[str, int, int] | None
    tools: dict[str, int]


def reasons_of(stack: Stack, catalog: Catalog, likes: CoLikes, users: np.ndarray, items: np.ndarray) -> list[Reason]:
    """Reasons of pairs.

    Args:
        stack: fitted, with the users' histories.
        catalog: titles and attributes of the items.
        likes: of all users.
        users, items: indices, ``[N]`` both.
    """
    if not len(users):
        return []
    words = ItemWords(catalog)
    features = stack.features_of(users, items)
    results = []
    for user, item, row in zip(users.tolist(), items.tolist(), features, strict=True):
        history = stack.histories.of_user(user).tolist()
        tastes = words.tastes(history, 3)
        known = {value for value, _ in words.tastes(history, 1 << 30)}
        shared = tuple(value for value in words.values(item) if value in known)
        best = likes.best(user, history, item)
        evidence = None if best is None else (words.name(history[len(history) - 1 - best[0]]), best[1], best[2])
        tools = stack.tool_ranks(row)
        text = _sentences(words.name(item), len(history), tastes, shared, evidence, tools)
        results.append(Reason(text, tuple(tastes), shared, evidence, tools))
    return results


def _sentences(
    name: str,
    liked: int,
    tastes: list[tuple[str, int]],
    shared: tuple[str, ...],
    evidence: tuple[str, int, int] | None,
    tools: dict[str, int],
) -> str:
    parts = []
    if tastes:
        parts.append(
            f"Liked so far, {liked} in all: {listed([f'{_short(value)} ({count})' for value, count in tastes])}."
        )
    elif not liked:
        parts.append("Nothing is known of this user yet.")
    if shared:
        parts.append(f"{_short(name)} shares {listed([_short(value) for value in shared[:3]])}.")
    elif tastes:
        parts.append(f"{_short(name)} shares none of these attributes.")
    if evidence is not None:
        known, others, common = evidence
        parts.append(f"Of {others} others who liked {_short(known)}, {common} liked it.")
    if tools:
        parts.append(f"Ranked {listed([f'{rank} by {tool}' for tool, rank in tools.items()])}.")
    return " ".join(parts)


def _short(words: str) -> str:
    """An attribute may be a whole description: what a sentence can hold of it."""
    return words if len(words) <= _CHARACTERS else f"{words[: _CHARACTERS - 1]}…"
