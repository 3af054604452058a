"""Reasoning-aware instruction data (R-VIT): events as questions with a chain of thought, an answer and a confidence.

The paper's form is ``User: image, question <STOP> Assistant: thought -> answer <STOP>`` (arXiv 2606.28357, section on
reasoning-aware visual instruction tuning) with ten wordings a task; what its thoughts say is not public. Here a thought
is written from the data: preference summary, evidence, comparison of candidates, answer, stated confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from reasonrec_fast.data import DataError, Interactions
from reasonrec_fast.data.explanations import Explanation
from reasonrec_fast.data.interactions import UNLABELLED
from reasonrec_fast.models.reasonrec.questions import (
    Question,
    ReasoningTask,
    question_of,
    question_template,
    reasoning_template,
)
from reasonrec_fast.models.reasonrec.rationale import Rationales, listed, stated_confidence
from reasonrec_fast.models.reasonrec.words import EVIDENCE_ITEMS
from reasonrec_fast.prompts import Entries, Wording
from reasonrec_fast.prompts.encoding import Value


@dataclass(frozen=True)
class ReasoningSample:
    """A question and the chain of thought that answers it.

    Attributes:
        task: of the question.
        key: of the event, for the draw of a wording.
        values: by field of the task's template ``reason_TASK``: what question and chain say.
        user, item: indices of the user and of the target, which an image belongs to; -1 where there are none.
        choices, choice_items: as :attr:`~reasonrec_fast.models.reasonrec.questions.Question.choices` and ``items``.
    """

    task: ReasoningTask
    key: str
    values: dict[str, Value]
    user: int = -1
    item: int = -1
    choices: tuple[str, ...] = ()
    choice_items: tuple[int, ...] = ()

    @property
    def question(self) -> Question:
        """The sample without its chain."""
        fields = question_template(self.task).fields
        values = {name: value for name, value in self.values.items() if name in fields}
        return Question(self.task, self.key, values, self.choices, self.choice_items, self.user)

    def texts(self, seed: int = 0, which: int | str | Wording | None = None) -> tuple[str, str]:
        """The question, and the chain with answer and confidence.

        Args:
            seed: of the draw of a wording.
            which: a wording of the template, or its name or index; by default one that is drawn by seed and key.
        """
        template = reasoning_template(self.task)
        wording = template.draw(seed, self.key) if which is None else template.wording(which)
        texts = {
            name: value.kept(len(value.texts)) if isinstance(value, Entries) else value
            for name, value in self.values.items()
        }
        return template.render(texts, wording)


class ReasoningConverter:
    """Makes samples of events; nothing in one is later than its label, and no identifier is in any.

    Args:
        data: the events.
        rows: of the training part: the only events that thoughts are made of.
        timed: as in :class:`~reasonrec_fast.models.reasonrec.rationale.Rationales`.
        history: the most items of a history.
    """

    def __init__(self, data: Interactions, rows: np.ndarray, *, timed: bool, history: int = 10) -> None:
        self.data, self.rationales, self._most = data, Rationales(data, rows, timed=timed), history

    def sequential(
        self, row: int, candidates: Sequence[int] | np.ndarray, probability: float | None = None
    ) -> ReasoningSample | None:
        """Which of some candidates the user chose at an event.

        Args:
            row: of the event, a like.
            candidates: items in the order in which the question names them; the event's item among them.
            probability: of the answer, for the stated confidence; by default the answer's share of the evidence.

        Returns:
            None where the user has no history before the event, or its item has neither title nor attributes.

        Raises:
            DataError: an event that is no like, or candidates without its item.
        """
        return self._choice("sequential", row, candidates, probability)

    def direct(
        self, row: int, candidates: Sequence[int] | np.ndarray, probability: float | None = None
    ) -> ReasoningSample | None:
        """As :meth:`sequential`, of a user who is described by tastes and not by a sequence."""
        return self._choice("direct", row, candidates, probability)

    def ctr(self, row: int, probability: float | None = None) -> ReasoningSample | None:
        """Whether the user liked the item of an event.

        Args:
            row: of the event, labelled.
            probability: of the answer that the event gives, for the stated confidence; by default the share of it among
                those of the named events that have an attribute value of the item.
        """
        user, item, moment = self._event(row)
        label = int(self.data.labels[row])
        if label == UNLABELLED:
            raise DataError(f"row: expected a labelled event; got row {row} without a label")
        facts = self.rationales
        events, title = facts.history(user, moment), facts.title(item)
        known = [r for r in events.tolist() if facts.title(self.data.items[r]) is not None][-self._most :]
        if not known or title is None:
            return None
        liked, values = facts.liked(user, moment), facts.values(item)
        alike = [int(self.data.labels[r]) for r in known if set(values) & set(facts.values(self.data.items[r]))]
        likes = sum(alike)
        share = (likes + 1) / (len(alike) + 2)
        if probability is None:
            probability = share if label else 1 - share
        words = [
            facts.described(
                self.data.items[r], dict.fromkeys(values, 1), "liked" if self.data.labels[r] == 1 else "not liked"
            )
            for r in known
        ]
        compared = (
            f"Of {len(alike)} earlier items like {title}, the user liked {likes}."
            if alike
            else f"Nothing earlier is like {title}."
        )
        return ReasoningSample(
            "ctr",
            self._key(row),
            {
                "history": Entries(words),
                "profile": ", ".join(facts.profile(liked)) or None,
                "title": title,
                "attributes": ", ".join(values) or None,
                "told": facts.told(user, liked, item, moment),
                "summary": facts.taste_in_words(liked),
                "evidence": facts.evidence(user, liked, item, moment),
                "comparison": compared,
                "answer": "yes" if label else "no",
                "confidence": stated_confidence(probability),
            },
            user,
            item,
            ("no", "yes"),
        )

    def _choice(
        self,
        task: Literal["sequential", "direct"],
        row: int,
        candidates: Sequence[int] | np.ndarray,
        probability: float | None,
    ) -> ReasoningSample | None:
        user, item, moment = self._event(row)
        names = [int(candidate) for candidate in candidates]
        if self.data.labels[row] != 1:
            raise DataError(f"row: expected a like; got label {self.data.labels[row]} in row {row}")
        if item not in names:
            raise DataError(f"candidates: expected the item of row {row} among them; got {len(names)} others")
        facts = self.rationales
        history = facts.liked(user, moment)
        question = question_of(
            facts, task, history, names, key=self._key(row), user=user, most=self._most,
            told=lambda name: facts.told(user, history, name, moment),
        )  # fmt: skip
        answer = facts.title(item)
        if question is None or answer is None:
            return None
        sentences = {name: facts.evidence(user, history, name, moment) for name in names}
        if probability is None:
            support = {name: self._support(user, history, name, moment) for name in names}
            probability = (support[item] + 1) / (sum(support.values()) + len(names))
        spoken = [name for name in names if sentences[name] is not None and name != item][:1]
        told = [sentences[name] for name in names if name in (item, *spoken) and sentences[name] is not None]
        compared = [item, *[name for name in names if name != item][:2]]  # the answer, and those of the best rank
        values: dict[str, Value] = {
            **question.values,
            "summary": facts.taste_in_words(history),
            "evidence": " ".join(text for text in told if text is not None) or None,
            "comparison": facts.comparison(history, [name for name in names if name in compared]),
            "answer": answer,
            "confidence": stated_confidence(probability),
        }
        return ReasoningSample(task, question.key, values, user, item, question.choices, question.items)

    def _support(self, user: int, history: np.ndarray, candidate: int, moment: int) -> int:
        items = dict.fromkeys(history[::-1][:EVIDENCE_ITEMS].tolist())
        return sum(self.rationales.support(user, known, candidate, moment)[1] for known in items)

    def _event(self, row: int) -> tuple[int, int, int]:
        if not 0 <= row < len(self.data):
            raise DataError(f"row: expected one in [0, {len(self.data)}); got {row}")
        return int(self.data.users[row]), int(self.data.items[row]), int(self.data.timestamps[row])

    def _key(self, row: int) -> str:
        return str(int(self.data.keys(np.array([row]))[0]))


def explanation_sample(
    line: Explanation, examples: Sequence[str] = (), probability: float | None = None
) -> ReasoningSample:
    """Why a user enjoyed an item, from an explanation that people's reviews gave.

    Args:
        line: the pair and its explanation, which is the answer.
        examples: explanations of other pairs, such as the nearest of the training part.
        probability: for the stated confidence; by default the share of the item's profile's long words that the user's
            profile has too.
    """
    wanted, offered = _long_words(line.user_profile), _long_words(line.item_profile)
    common = [word for word in offered if word in set(wanted)]
    if probability is None:
        probability = len(common) / max(len(offered), 1)
    return ReasoningSample(
        "explanation",
        f"{line.user} {line.item}",
        {
            "user_profile": line.user_profile,
            "title": line.title,
            "item_profile": line.item_profile,
            "examples": Entries(list(examples), "\n", "drop_last") if examples else None,
            "summary": listed(common[:4]) or listed(wanted[:3]) or "something new",
            "evidence": f"{line.title} has {listed(offered[:4])}." if offered else None,
            "answer": line.explanation,
            "confidence": stated_confidence(probability),
        },
    )


_COMMON = ENGLISH_STOP_WORDS | {
    "appreciate", "appreciates", "business", "businesses", "enjoy", "enjoys", "experience", "experiences", "fans",
    "likely", "looking", "lovers", "offer", "offering", "offers", "particularly", "place", "places", "seeking", "user",
    "users", "variety", "various",
}  # fmt: skip
"""Words that profiles of people and places are written with, whatever they describe."""


def _long_words(text: str) -> list[str]:
    """Words of at least four letters that describe something, in their order, each once."""
    words = (word.strip(".,;:!?()'\"").lower() for word in text.split())
    return list(dict.fromkeys(word for word in words if len(word) >= 4 and word not in _COMMON))
