"""Incremental detokenization: whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

_INCOMPLETE = "�"  # what a tokenizer writes for bytes that are no whole character yet


class Detokenizer:
    """Turns tokens into text piece by piece.

    The text depends on the tokens alone, not on how they are divided into steps. It equals
    ``tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)`` up to the first stop
    string.

    A token's text may depend on the previous token (a space, bytes of one character). Therefore the last tokens whose
    text was returned are decoded together with the new tokens, and the additional characters are the new text. Text is
    held back while it ends within a character, or may be the beginning of a stop string.

    Args:
        tokenizer: of transformers.
        stop: strings at which the text ends, none empty.
        special: tokens without text; from :func:`special_tokens`, which takes longer than a step of a small model.

    Attributes:
        stopped: whether a stop string has occurred.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), special: Set[int] = frozenset()) -> None:
        self._tokenizer, self._stop, self._special = tokenizer, stop, special
        self._context: list[int] = []  # the last tokens whose text is known, and that text
        self._context_text = ""
        self._new: list[int] = []  # tokens behind them
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is complete after this token; empty after a stop string."""
        if self.stopped or token in self._special:
            return ""
        self._new.append(token)
        text = self._decode(self._context + self._new)
        if text.endswith(_INCOMPLETE) or len(text) <= len(self._context_text):
            return ""
        new = text[len(self._context_text) :]
        self._context, self._new = self._new, []
        self._context_text = self._decode(self._context)
        return self._released(new)

    def end(self) -> str:
        """The rest of the text, at the end of the sequence."""
        if self.stopped:
            return ""
        rest = self._decode(self._context + self._new)[len(self._context_text) :] if self._new else ""
        released = self._released(rest)
        if not self.stopped:
            released, self._held = released + self._held, ""
        return released

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _released(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        begins = [begin for begin in (text.find(stop) for stop in self._stop) if begin >= 0]
        if begins:
            self.stopped, self._held = True, ""
            return text[: min(begins)]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that ``skip_special_tokens`` leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {token for token, text in added.items() if text.special}


def _overlap(text: str, stop: str) -> int:
    """Characters of the longest end of ``text`` with which ``stop`` begins, less than all of it.

    >>> _overlap("the en", "end"), _overlap("an end", "end")
    (2, 0)
    """
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
