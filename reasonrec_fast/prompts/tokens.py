"""Token ids of texts that users wrote."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from reasonrec_fast.lm.chat import literal_tokenizer

_TEXTS = 1 << 17  # whose token ids are kept


class TokenIds:
    """Token ids of texts, those of late kept; any number of threads may ask.

    A text such as ``<|im_end|>`` is read as the characters that it is made of: a title cannot end a turn.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Attributes:
        start: what a prompt begins with: the token of the beginning, where the tokenizer has one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.start: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        literal = literal_tokenizer(tokenizer)
        self.of = lru_cache(_TEXTS)(lambda text: tuple(literal(text, add_special_tokens=False)["input_ids"]))
