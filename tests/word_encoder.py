"""A stand-in of the sentence encoder that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reasonrec_fast.lm.text_encoder import WIDTH


class WordEncoder:
    """A text is the sum of random vectors of its words, at unit length."""

    def __init__(self, device: object = None) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.stack([sum(map(self.of_word, text.split())) for text in texts]))

    @staticmethod
    def of_word(word: str) -> torch.Tensor:
        seed = int.from_bytes(word.encode()[:7], "little")
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
