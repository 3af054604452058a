"""Prompts of explanations: examples of the nearest training pairs, then the pair in the same pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reasonrec_fast.data.explanations import Explanation, ExplanationQuery
from reasonrec_fast.lm.text_encoder import TextEncoder
from reasonrec_fast.prompts import Entries, PromptEncoder, load_template

_TEMPLATE, _WORDING = "explanation_pattern", "why"

Prompt = tuple[list[int], list[int]]
"""Token ids: what comes before the request to write, and that request."""


class ExplanationPrompts:
    """Writes the prompt of a pair as token ids.

    Examples are training pairs of other users whose item (title and profile) has the largest cosine in
    all-MiniLM-L6-v2, the nearest last; so no prompt of a training pair holds its own explanation. Users are compared by
    identifier; no identifier is written, and equally near pairs stay in the order of the training part.

    Args:
        train: the training pairs.
        tokenizer: of the language model.
        encoder: of the texts whose cosine is taken.
        examples: number of examples in a prompt.
        reads_user: whether the user's profile stands in examples and prompt.
        budget: most tokens of a prompt; examples are dropped where it is longer, the least similar first.

    Attributes:
        digest: of the template's contents.
    """

    def __init__(
        self,
        train: Sequence[Explanation],
        tokenizer: Any,
        encoder: TextEncoder,
        *,
        examples: int,
        reads_user: bool,
        budget: int,
    ) -> None:
        template = load_template(_TEMPLATE)
        self._prompt = PromptEncoder(template, tokenizer)
        self._render, self._encoder = template.render, encoder
        self._examples, self._reads_user, self._budget = examples, reads_user, budget
        self._train = list(train)
        self._users = np.array([line.user for line in train], dtype=np.int64)
        self._vectors = encoder.encode([described_item(line.query) for line in train]).numpy()
        self.digest = template.digest

    def __call__(self, query: ExplanationQuery) -> Prompt:
        """The prompt of a pair.

        Raises:
            ValueError: one that is longer than the budget without any example.
        """
        texts = [
            "".join((*self._render(self._values(line.query), _WORDING), " ", line.explanation))
            for line in self.nearest(query)
        ]
        values = self._values(query) | {"examples": Entries(texts, separator="\n\n") if texts else None}
        prompt = self._prompt(values, _WORDING, budget=self._budget)
        return prompt.prefix, prompt.suffix

    def nearest(self, query: ExplanationQuery) -> list[Explanation]:
        """The examples of a pair, the most similar last."""
        # By itself: in a batch a vector's last bits depend on the other texts.
        similarity = self._vectors @ self._encoder.encode([described_item(query)]).numpy()[0]
        order = np.argsort(-similarity, kind="stable")
        others = order[self._users[order] != query.user][: self._examples]
        return [self._train[row] for row in others[::-1]]

    def _values(self, query: ExplanationQuery) -> dict[str, Any]:
        return {
            "user_profile": query.user_profile if self._reads_user else None,
            "title": query.title,
            "item_profile": query.item_profile,
            "examples": None,
        }


def described_item(query: ExplanationQuery) -> str:
    """What is known of a pair's item, as one text."""
    return f"{query.title}. {query.item_profile}"
