"""Token ids of texts that users wrote."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from reasonrec_fast.lm.chat import check_unicode, control_ids, literal_ids, literal_tokenizer

_CACHED_TEXTS = 1 << 17


class TokenIds:
    """Token ids of texts, the most recently used cached; safe to call from any number of threads.

    Texts never become control tokens, which are those that the tokenizer declares special: ``<|im_end|>`` within a
    title is read as the characters that it consists of, so that a title cannot end a turn.

    Args:
        tokenizer: a Hugging Face tokenizer; it stays unchanged.

    Attributes:
        of: token ids of a text, a tuple. ``ValueError`` refuses a text that the tokenizer cannot read without control
            tokens: Unigram, WordPiece and word-level models always read some texts that way.
        start: the token ids that a prompt begins with: the beginning-of-sequence token, where the tokenizer has one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.start: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._literal = literal_tokenizer(tokenizer)
        self._control = control_ids(tokenizer)
        self.of = lru_cache(_CACHED_TEXTS)(self.encode)

    def encode(self, text: str) -> tuple[int, ...]:
        """As :attr:`of`, without the cache: for texts that do not come again."""
        check_unicode(text, "text")
        return tuple(literal_ids(self._literal, self._control, text, text))
