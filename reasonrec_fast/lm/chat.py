"""Pairs of texts as prompts: what a query's documents share, and one document; plain, or as a conversation."""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AddedToken

from reasonrec_fast.lm.detokenizer import special_tokens
from reasonrec_fast.lm.inputs import common_prefix

FIELDS = ("query", "document")
PROBES = (
    ("a", "b"),
    ("", ""),
    (" \n\t a \n\t ", " \n\t b \n\t "),
    ("  a  ", "  b  "),
    ("\n\n\na\n\n\n", "\n\n\nb\n\n\n"),
    ("\u00a0\u3000a", "b\u3000\u00a0"),
    (
        "Üß İ  e\u0301 \u00e9 日本 \U0001f600 A\r\nA",
        '"it\'s" \\ \\n / & &amp; < > <b>c</b> {{ d }} {% e %} {# f #} % $ `',
    ),
    ("<think>a</think>b", "c</think>d<think> /no_think /think"),
    ("<tool_response>a</tool_response>", "<tool_response>b</tool_response>"),
    ("<tool_call>a</tool_call>", "[TOOL_CALLS] [INST] a [/INST] <<SYS>> b <</SYS>>"),
    ("http://a.b/c?d=e&f=g#h", "1.\ta\n2.\tb\n- c\n\n\n\n# d\n    e  \n"),
    ("word " * 400, "x" * 5000),
)
"""Queries and documents for which a :class:`ChatPrompt` must be what the tokenizer's chat template makes of them."""

_MARK = "\ue000"  # of a private area: in no template
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRIPS = ("", "lr", "l", "r", "R")
"""What chat templates take off: blanks on the left or right of the user's turn; ``"R"``: on the right of all up to its
end, as Llama 2's, which puts the system's words in front."""
_AS_IT_STANDS = "tokenizer: expected a chat template that writes the user's turn as it stands"


def literal_tokenizer(tokenizer: Any) -> Any:
    """A copy of a tokenizer for which no text is a control token: ``<|im_end|>`` is the characters that it is made of.

    A copy, because a fast tokenizer keeps the choice in itself from call to call: threads that ask one tokenizer both
    ways get each other's.
    """
    literal = copy.deepcopy(tokenizer)
    literal.split_special_tokens = True
    return literal


def literal_ids(literal: Any, control: frozenset[int], text: str, shown: object) -> list[int]:
    """Token ids of a text, none of which is a control token.

    Unigram, WordPiece and word-level models have control tokens in their own vocabulary, out of which no setting of the
    tokenizer takes them: what they read so is refused.

    Args:
        literal: of :func:`literal_tokenizer`.
        control: ids of the control tokens.
        text: to read.
        shown: of the error, in place of the text.

    Raises:
        ValueError: the tokenizer reads a control token in the text.
    """
    ids: list[int] = literal(text, add_special_tokens=False)["input_ids"]
    if not control.isdisjoint(ids):
        names = literal.convert_ids_to_tokens(sorted(control.intersection(ids)))
        raise ValueError(
            f"text: expected one that this tokenizer can read without control tokens; got {names} in {shown!r}"
        )
    return ids


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the control tokens that no text may become: the special ones, but for that of what is unknown."""
    return special_tokens(tokenizer) - {tokenizer.unk_token_id}


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
        if not isinstance(self.template, str):
            raise TypeError(f"template: expected a text; got {self.template!r}")
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

    Token ids are those of the tokenizer's own ``apply_chat_template``, which is tried with :data:`PROBES`. Only the
    template writes control tokens: a text such as ``<|im_end|>`` within a query or a document is read as the characters
    that it is made of, or refused where the tokenizer cannot do so (:func:`literal_ids`). Control tokens are those that
    the tokenizer marks as special (``<think>`` often is not).

    The template is read once: a date that it writes is that of the moment when the prompt was made.

    Args:
        tokenizer: of transformers, with a chat template.
        template: of the user's turn, as in :class:`PairPrompt`.
        system: what the system says; None for what the template says where there is no system's turn.
        answer: what the model's turn begins with, such as ``"Relevance: "``.

    Raises:
        TypeError: a system or answer that is no text.
        ValueError: a tokenizer without a chat template; a chat template that refuses the conversation, leaves out the
            system's turn, or writes the user's turn otherwise than as it stands, with or without the blanks around it;
            or a tokenizer of which control tokens and texts cannot be told apart.
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
        for name, text in (("system", "" if system is None else system), ("answer", answer)):
            check_unicode(text, name)
        self.pair = PairPrompt(template)
        first, rest = template.split("{query}")
        self._between = first, *rest.split("{document}")
        turns = [] if system is None else [{"role": "system", "content": system}]

        def render(content: str) -> str:
            messages = [*turns, {"role": "user", "content": content}]
            try:
                return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            except (TemplateError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"tokenizer: expected a chat template for {messages}; got {error}") from error

        pieces = render(_MARK).split(_MARK)
        if len(pieces) != 2:
            raise ValueError(f"{_AS_IT_STANDS} once; got it {len(pieces) - 1} times")
        if system is not None and system.strip() not in pieces[0]:
            raise ValueError("system: expected a chat template that writes the system's turn; got one that does not")
        self._begin, self._end = pieces
        before, middle, after = self._between
        written = [render(before + query + middle + document + after) for query, document in PROBES]
        for self._strips in _STRIPS:
            if written == ["".join(self._pieces(*probe)) for probe in PROBES]:
                break
        else:
            raise ValueError(f"{_AS_IT_STANDS}; got one that changes it")
        self._end += answer
        self._prepare(tokenizer)
        for probe, text in zip(PROBES, written, strict=True):
            # The tokenizer itself reads control tokens in texts; and it warns of long ones.
            if len(text) > 1000 or (self._control is not None and any(map(self._control.search, probe))):
                continue
            prefix, suffix = self(*probe)
            if prefix + suffix != list(tokenizer(text + answer, add_special_tokens=False)["input_ids"]):
                raise ValueError(
                    "tokenizer: expected one in which control tokens and texts can be told apart (a fast one, of "
                    f"transformers' tokenizers backend); got {type(tokenizer).__name__}"
                )

    def _prepare(self, tokenizer: Any) -> None:
        """A tokenizer for which no text is a control token, and stand-ins for those that the template writes.

        Stand-ins are tokens of their own in that tokenizer: what lies between control tokens is read as it would be
        between them, blanks that a control token takes and marks of a text's beginning included. Their names are
        drawn at random, so that no text can contain one.
        """
        before, middle, after = self._between
        parts = self._begin + before, middle, after + self._end
        added = {token.content: (index, token) for index, token in tokenizer.added_tokens_decoder.items()}
        special = {content: entry for content, entry in added.items() if entry[1].special}
        names = "|".join(sorted(map(re.escape, special), key=len, reverse=True))
        self._control = re.compile(names) if names else None
        self._literal, nonce = literal_tokenizer(tokenizer), secrets.token_hex(16)
        self._refused = control_ids(tokenizer)  # the template's own have stand-ins
        self._stand_ins: dict[str, str] = {}
        self._control_ids: dict[int, int] = {}
        for content in dict.fromkeys(name for part in parts for name in (re.findall(names, part) if names else ())):
            index, token = special[content]
            stand_in = AddedToken(
                f"{_MARK}{nonce}-{index}{_MARK}",
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
                normalized=False,
            )
            self._literal.add_tokens([stand_in])
            self._stand_ins[content] = stand_in.content
            self._control_ids[self._literal.convert_tokens_to_ids(stand_in.content)] = index

    def __call__(self, query: str, document: str) -> tuple[list[int], list[int]]:
        """Token ids of what the query's documents share, and of the rest of the conversation.

        Raises:
            TypeError: a query or document that is no text.
            ValueError: a text that the tokenizer cannot read without control tokens (see :func:`literal_ids`).
        """
        _check_texts(query, document)
        pieces = self._pieces(query, document)
        whole = self._ids(pieces)
        shared = common_prefix(self._ids(pieces[:3]), whole)
        return whole[:shared], whole[shared:]

    def _pieces(self, query: str, document: str) -> list[str]:
        """The conversation: the first, third and fifth piece are the template's, the others are the texts."""
        before, middle, after = self._between
        pieces = _stripped([before, query, middle, document, after], self._strips)
        pieces[0] = self._begin + pieces[0]
        if "R" in self._strips:
            pieces = _stripped(pieces, "r")
        pieces[4] += self._end
        return pieces

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        """Of the first of :meth:`_pieces`, or all."""
        texts = pieces[1::2]
        if self._control is not None:
            pieces = [
                piece if index % 2 else self._control.sub(lambda match: self._stand_ins[match[0]], piece)
                for index, piece in enumerate(pieces)
            ]
        ids = literal_ids(self._literal, self._refused, "".join(pieces), texts)
        return [self._control_ids.get(token, token) for token in ids]


def _stripped(pieces: Sequence[str], sides: str) -> list[str]:
    """Pieces without the blanks that all of them together begin with (``"l"`` in ``sides``) or end with (``"r"``).

    >>> _stripped([" ", "", "\\n a", " b", " "], "lr")
    ['', '', 'a', ' b', '']
    """
    result = list(pieces)
    if "l" in sides:
        result = _lstripped(result)
    if "r" in sides:
        result = [piece[::-1] for piece in _lstripped([piece[::-1] for piece in reversed(result)])][::-1]
    return result


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


def check_unicode(text: Any, name: str) -> None:
    """Refuse what tokenizers do not read.

    Raises:
        TypeError: no text.
        ValueError: a lone surrogate, half of a character of UTF-16.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a text; got {text!r}")
    if not text.isascii() and (strange := _SURROGATE.search(text)):
        raise ValueError(f"{name}: expected Unicode without lone surrogates; got {strange[0]!r} in {text!r}")


def _check_texts(query: Any, document: Any) -> None:
    for name, text in zip(FIELDS, (query, document), strict=True):
        check_unicode(text, name)
