"""Questions that a chain of thought answers, in training and in use written by the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from reasonrec_fast.models.reasonrec.rationale import LEADING, Descriptions, listed
from reasonrec_fast.prompts import Entries, PromptTemplate, load_template
from reasonrec_fast.prompts.encoding import Value

ReasoningTask = Literal["sequential", "direct", "ctr", "explanation"]


@dataclass(frozen=True)
class Question:
    """What a chain is asked for.

    Attributes:
        task: of the question.
        key: for the draw of a wording.
        values: by field of the task's template ``reason_TASK``: those that its questions read.
        choices: texts, one of which is the answer; none where the answer is free.
        items: indices of the items that the choices name, as many; none where they name none.
        user: index of the user; -1 where there is none.
    """

    task: ReasoningTask
    key: str
    values: dict[str, Value]
    choices: tuple[str, ...] = ()
    items: tuple[int, ...] = ()
    user: int = -1

    def item_of(self, answer: str | None) -> int | None:
        """The item of an answer; None where no item, or more than one, has this name."""
        named = {item for name, item in zip(self.choices, self.items, strict=False) if name == answer}
        return named.pop() if len(named) == 1 else None


@cache
def reasoning_template(task: ReasoningTask) -> PromptTemplate:
    """The template of a task, questions and chains. It is read once, not for every sample."""
    return load_template(f"reason_{task}")


@cache
def question_template(task: ReasoningTask, system: str | None = None) -> PromptTemplate:
    """The template of a task without the chains.

    Args:
        task: of the questions.
        system: what a conversation's system message says; None for plain text.

    >>> "answer" in question_template("sequential").fields
    False
    """
    template = reasoning_template(task)
    wordings = tuple(replace(wording, suffix="", system=system) for wording in template.wordings)
    known = {name for wording in wordings for name in wording.fields}
    fields = {name: kind for name, kind in template.fields.items() if name in known}
    return PromptTemplate(template.task, fields, wordings, template.version, template.source)


def question_of(
    words: Descriptions,
    task: Literal["sequential", "direct"],
    history: np.ndarray,
    candidates: Sequence[int],
    *,
    key: str,
    told: Callable[[int], str | None],
    user: int = -1,
    most: int = 10,
) -> Question | None:
    """Which of some candidates a user chooses next.

    Args:
        words: describes the items.
        task: ``"direct"`` describes the user by tastes, and names no history where there are any.
        history: items that the user liked, oldest first.
        candidates: items, in the order in which the question names them; those without words are left out.
        key: for the draw of a wording.
        told: what other users' likes say for a candidate, in a few words; None for nothing.
        user: index, for the caller.
        most: latest items of the history that are named.

    Returns:
        None where no item of the history, or no candidate, has words.
    """
    known = [name for item in history if (name := words.title(item)) is not None]
    tastes = dict(words.tastes(history, LEADING))
    titles = {int(item): words.title(item) for item in candidates}
    named = {item: title for item, title in titles.items() if title is not None}
    if not known or not named:
        return None
    profile = words.profile(history)
    values: dict[str, Value] = {"candidates": listed([words.described(item, tastes, told(item)) for item in named])}
    if task == "sequential":
        values |= {"history": Entries(known[-most:]), "profile": ", ".join(profile) or None}
    else:
        values["profile"] = Entries(profile or known[-most:], rule="drop_last")
    return Question(task, key, values, tuple(named.values()), tuple(named), user)


def mixed_order(words: Descriptions, history: np.ndarray, candidates: Sequence[int] | np.ndarray) -> list[int]:
    """Candidates in an order that tells nothing of their ranks: by a hash of their words and the history's.

    A stack that has learnt the training events ranks their items first; who reads candidates in its order would learn
    to answer the first. Neither numbers nor identifiers of items decide.
    """
    salt = "\n".join(words.title(item) or "" for item in history)

    def digest(item: int) -> bytes:
        text = f"{words.title(item)}\n\n{salt}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return sorted(map(int, candidates), key=digest)
