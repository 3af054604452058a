"""Pairs of texts as prompts: what a query's documents share, and one document; plain, or as a conversation."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasonrec_fast.lm.detokenizer import special_tokens
from reasonrec_fast.lm.inputs import common_prefix

FIELDS = ("query", "document")
_QUERY, _DOCUMENT = "\ue000query\ue000", "\ue000document\ue000"  # of a private area: in no text


def literal_tokenizer(tokenizer: Any) -> Any:
    """A copy of a tokenizer for which no text is a control token: ``<|im_end|>`` is the characters that it is made of.

    A copy, because a fast tokenizer keeps the choice in itself from call to call: threads that ask one tokenizer both
    ways get each other's.
    """
    literal = copy.deepcopy(tokenizer)
    literal.split_special_tokens = True
    return literal


@dataclass(frozen=True)
class PairPrompt:
    """How a query and a document become the two texts of a request.

    Attributes:
        template: with ``{query}`` and, behind it, ``{document}`` once each. Braces within a query or a document stay as
            they are.

    >>> PairPrompt("Query: {query}\\nDocument: {document}\\nRelevant:")("tea", "a {pot}")
    ('Query: tea\\nDocument: ', 'a {pot}\\nRelevant:')
    """

    template: str = "{query}{document}"

    def __post_init__(self) -> None:
        fields = re.findall(r"\{(.*?)\}", self.template)
        if tuple(fields) != FIELDS:
            raise ValueError(f"template: expected {{query}}, then {{document}}, once each; got {self.template!r}")

    def __call__(self, query: str, document: str) -> tuple[str, str]:
        """The prefix and the candidate.

        Raises:
            TypeError: a query or document that is no text.
        """
        _check_texts(query, document)
        before, after = self.template.split("{document}")
        return before.replace("{query}", query), document + after


class ChatPrompt:
    """A query and a document as a conversation, by the chat template of a tokenizer, up to where the model answers.

    Token ids are those of the tokenizer's own ``apply_chat_template``. Only the template writes control tokens: a text
    such as ``<|im_end|>`` within a query or a document is read as the characters that it is made of.

    Args:
        tokenizer: of transformers, with a chat template.
        template: of the user's turn, as in :class:`PairPrompt`.
        system: what the system says; None for what the template says where there is no system's turn.
        answer: what the model's turn begins with, such as ``"Relevance: "``.

    Raises:
        ValueError: a tokenizer without a chat template, a template of another form, or one that does not write the
            user's turn as it stands.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "{query}\n\n{document}",
        *,
        system: str | None = None,
        answer: str = "",
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("tokenizer: expected one with a chat template; got none")
        self.pair = PairPrompt(template)
        self._plain, self._literal = copy.deepcopy(tokenizer), literal_tokenizer(tokenizer)
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": "".join(self.pair(_QUERY, _DOCUMENT))})
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + answer
        pieces = re.split(f"({_QUERY}|{_DOCUMENT})", rendered)
        if pieces[1::2] != [_QUERY, _DOCUMENT]:
            raise ValueError("tokenizer: expected a chat template that writes the user's turn as it stands, once")
        head, tail = (self.pair.template.split(f"{{{field}}}")[side] for field, side in (("query", 0), ("document", 1)))
        if not pieces[0].endswith(head) or not pieces[4].startswith(tail):
            raise ValueError("tokenizer: expected a chat template that writes the user's turn as it stands, once")
        self._begin, self._end = pieces[0].removesuffix(head), pieces[4].removeprefix(tail)
        self._between = head, pieces[2], tail
        messages[-1]["content"] = f" \n{_QUERY} \n"
        padded = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        self._strips = f" \n{_QUERY} \n" not in padded  # Llama 3 and others do
        ids = special_tokens(tokenizer)
        self._special = {text: token for text, token in tokenizer.get_vocab().items() if token in ids}
        names = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._control = re.compile("|".join(names)) if names else None

    def __call__(self, query: str, document: str) -> tuple[list[int], list[int]]:
        """Token ids of what the query's documents share, and of the rest of the conversation.

        Raises:
            TypeError: a query or document that is no text.
        """
        _check_texts(query, document)
        head, middle, tail = self._between
        turn = [head, query, middle, document, tail]
        if self._strips:
            turn = _lstripped(turn)
            turn = [piece[::-1] for piece in _lstripped([piece[::-1] for piece in reversed(turn)])][::-1]
        turn[0], turn[4] = self._begin + turn[0], turn[4] + self._end
        whole = self._ids(turn)
        shared = common_prefix(self._ids(turn[:3]), whole)
        return whole[:shared], whole[shared:]

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        """Of pieces of which the first, third and fifth are the template's, and the others are texts."""
        if self._control is None or not any(self._control.search(text) for text in pieces[1::2]):
            return list(self._plain("".join(pieces), add_special_tokens=False)["input_ids"])
        runs: list[str] = [""]  # texts between control tokens, and those tokens, in turns
        for index, piece in enumerate(pieces):
            parts = [piece] if index % 2 else re.split(f"({self._control.pattern})", piece)
            runs[-1] += parts[0]
            runs += parts[1:]
        ids: list[int] = []
        for index, run in enumerate(runs):
            if index % 2:
                ids.append(self._special[run])
            elif run:
                ids += self._literal(run, add_special_tokens=False)["input_ids"]
        return ids


def _lstripped(pieces: Sequence[str]) -> list[str]:
    """Pieces without the blanks that all of them together begin with.

    >>> _lstripped([" ", "", "\\n a", " b"])
    ['', '', 'a', ' b']
    """
    result = list(pieces)
    for index, piece in enumerate(pieces):
        result[index] = piece.lstrip()
        if result[index]:
            break
    return result


def _check_texts(query: Any, document: Any) -> None:
    for name, text in zip(FIELDS, (query, document), strict=True):
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected a text; got {text!r}")
