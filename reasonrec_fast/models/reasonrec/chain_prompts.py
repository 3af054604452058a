"""Questions and chains of thought as token ids."""

from __future__ import annotations

from typing import Any

from reasonrec_fast.models.reasonrec.instruction import ReasoningSample
from reasonrec_fast.models.reasonrec.questions import Question, ReasoningTask, question_template, reasoning_template
from reasonrec_fast.prompts import PromptEncoder, TokenIds
from reasonrec_fast.training.sft import SupervisedGroup


class ChainPrompts:
    """Writes questions as a language model reads them, and chains as it learns them.

    Args:
        tokenizer: of the language model.
        system: what a conversation's system message says; without it, or for a tokenizer without a chat template, a
            question is plain text.
        budget: most tokens of a question; a longer history loses its oldest items.
        stop: token that ends a chain; None for none.
        chain: most tokens of a chain.
        room: tokens that the language model reads, question and chain together; the question gets what is left.
        wordings: of each task, that are drawn from: the first so many; None for all.

    Raises:
        ValueError: no room for a question.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        system: str | None,
        budget: int,
        stop: int | None,
        chain: int,
        room: int,
        wordings: int | None = None,
    ) -> None:
        if chain >= room:
            raise ValueError(
                f"max_tokens: expected chains of fewer than {room} tokens, which the backbone reads; got {chain}"
            )
        self._tokenizer, self._stop, self._wordings = tokenizer, stop, wordings
        self._budget, self._longest = min(budget, room - chain), chain
        self._system = system if getattr(tokenizer, "chat_template", None) else None
        self._ids = TokenIds(tokenizer)
        self._encoders: dict[ReasoningTask, PromptEncoder] = {}

    def prompt(self, question: Question, seed: int = 0) -> list[int]:
        """Token ids of a question, in the wording that seed and key draw: a conversation up to where the model answers,
        or plain text.

        Raises:
            ValueError: a question that is too long without its history.
        """
        if question.task not in self._encoders:
            template = question_template(question.task, self._system)
            self._encoders[question.task] = PromptEncoder(template, self._tokenizer)
        encoder = self._encoders[question.task]
        wording = encoder.template.draw(seed, question.key, self._wordings)
        encoded = encoder(question.values, wording, budget=self._budget)
        return [*encoded.prefix, *encoded.suffix]

    def group(self, sample: ReasoningSample, seed: int = 0) -> SupervisedGroup:
        """Question and chain, with the loss on the chain and the token that ends it."""
        wording = reasoning_template(sample.task).draw(seed, sample.key, self._wordings)
        chain = self._ids.encode(sample.texts(which=wording)[1])
        stop = [] if self._stop is None else [self._stop]
        return SupervisedGroup(self.prompt(sample.question, seed), [[*chain, *stop]])

    def fits(self, sample: ReasoningSample, seed: int = 0) -> bool:
        """Whether a sample can be learnt: neither its question nor its chain is too long."""
        try:
            group = self.group(sample, seed)
        except ValueError as error:
            if str(error).startswith("budget:"):
                return False
            raise
        return len(group.continuations[0]) <= self._longest
