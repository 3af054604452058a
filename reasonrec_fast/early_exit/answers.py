"""Answers of one token or of several, and the log-probabilities of whole answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from reasonrec_fast.devices import on_device
from reasonrec_fast.early_exit.batching import batches_of
from reasonrec_fast.early_exit.heads import MAX_ANSWERS
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.inputs import joined
from reasonrec_fast.lm.layout import PackedLayout, TokenGroup, preceding_positions, ranges, text_groups
from reasonrec_fast.lm.output import OutputHead
from reasonrec_fast.lm.packed_batch import PackedBatch

Reading = Literal["first_token", "sum", "mean"]
READINGS: tuple[Reading, ...] = ("first_token", "sum", "mean")


@dataclass(frozen=True)
class Answers:
    """What a model may answer.

    Attributes:
        names: the answers as text, ``L`` of them; the last one is the positive answer.
        token_ids: of each, as they follow the prompt.
        reading: how an answer is scored at full depth: ``"first_token"`` by the probability of its first token alone,
            ``"sum"`` by that of all of its tokens (the sum of their log-probabilities), ``"mean"`` by the mean of their
            log-probabilities, so that long answers are not the less likely. Scores are a softmax over the answers.
    """

    names: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    reading: Reading

    def __post_init__(self) -> None:
        if len(self.names) != len(self.token_ids):
            raise ValueError(f"token_ids: expected those of {len(self.names)} answers; got {len(self.token_ids)}")
        if not 2 <= len(self.names) <= MAX_ANSWERS:
            raise ValueError(f"answers: expected 2 to {MAX_ANSWERS}; got {len(self.names)}")
        if self.reading not in READINGS:
            raise ValueError(f"reading: expected one of {READINGS}; got {self.reading!r}")
        for index, ids in enumerate(self.token_ids):
            if not ids:
                raise ValueError(f"answers: expected at least one token in each; got none in {self.names[index]!r}")
            if ids in self.token_ids[:index]:
                raise ValueError(f"answers: expected different ones; got the tokens of {self.names[index]!r} twice")
        first = [ids[0] for ids in self.token_ids]
        if self.reading == "first_token" and len(set(first)) < len(first):
            raise ValueError(
                f"answers: expected words that begin with different tokens, or reading 'sum' or 'mean'; got"
                f" {self.names}"
            )

    @classmethod
    def of(cls, tokenizer: Any, names: Sequence[str], reading: Reading | None = None) -> Answers:
        """Answers as a tokenizer writes them.

        Args:
            tokenizer: of the model.
            names: the answers, as they follow the prompt (mind a space in front).
            reading: by default ``"first_token"`` where these differ, else ``"sum"``.

        Raises:
            TypeError: a single text, texts in no order, or an answer that is no text.
            ValueError: fewer than 2 answers or more than 64, an answer without tokens, or two that are the same.
        """
        listed = isinstance(names, Iterable) and not isinstance(names, str | Set | Mapping)
        if not listed or not all(isinstance(name, str) for name in names):
            raise TypeError(f"answers: expected several texts in order, the positive one last; got {names!r}")
        token_ids = tuple(tuple(tokenizer(name, add_special_tokens=False)["input_ids"]) for name in names)
        if reading is None:
            first = [ids[:1] for ids in token_ids]
            reading = "first_token" if len(set(first)) == len(first) else "sum"
        return cls(tuple(names), token_ids, reading)

    @property
    def whole(self) -> bool:
        """Whether all tokens of an answer count at full depth."""
        return self.reading != "first_token"

    def check_vocabulary(self, size: int) -> None:
        """Refuse tokens of another model; on a GPU such an id would end all work of the process.

        Raises:
            ValueError: an id outside ``[0, size)``, and whose.
        """
        for name, ids in zip(self.names, self.token_ids, strict=True):
            for token in ids:
                if not 0 <= token < size:
                    raise ValueError(f"answers: expected token ids in [0, {size}); got {token} in {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"names": list(self.names), "token_ids": [list(ids) for ids in self.token_ids], "reading": self.reading}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Answers:
        """What :meth:`to_dict` made."""
        return cls(tuple(values["names"]), tuple(map(tuple, values["token_ids"])), values["reading"])


@torch.inference_mode()
def answer_scores(
    decoder: Decoder, output: OutputHead, groups: Sequence[TokenGroup], answers: Answers, max_tokens: int
) -> torch.Tensor:
    """Log-scores of whole answers behind each row's text at full depth, before the softmax, float32 ``[R, L]``.

    A prefix is computed once for its rows. A row's own tokens are computed once for all of its answers where that is
    cheaper than once for each: a text then is a prefix, and the answers are its rows.

    Args:
        decoder: the layers.
        output: the final norm and LM head.
        groups: prefixes and suffixes, ``R`` rows.
        answers: with :attr:`Answers.whole`.
        max_tokens: of a batch, answers included (one answer of one row at least).
    """
    lengths = np.array([len(ids) for ids in answers.token_ids])
    expanded: list[TokenGroup] = []
    for prefix, suffixes in text_groups(groups):
        own = sum(map(len, suffixes))
        if len(prefix) * (len(suffixes) - 1) > own * (len(lengths) - 1):  # answers repeat the suffixes
            rows = [joined(suffix, ids) for suffix in suffixes for ids in answers.token_ids]
            expanded.append((prefix, rows))
        else:
            expanded += [(joined(prefix, suffix), list(answers.token_ids)) for suffix in suffixes]
    sums = [
        _answer_logprobs(decoder, output, batch, answers, rows % len(lengths))
        for batch, rows in batches_of(expanded, max_tokens)
    ]
    return torch.cat(sums).view(-1, len(lengths))


def _answer_logprobs(
    decoder: Decoder, output: OutputHead, groups: Sequence[TokenGroup], answers: Answers, chosen: np.ndarray
) -> torch.Tensor:
    """Sums or means of the log-probabilities of the answers at the end of rows, float32 ``[R]``.

    Args:
        decoder, output, answers: of :func:`answer_scores`.
        groups: prefixes and suffixes, ``R`` rows that end with an answer.
        chosen: index of that answer, int64 ``[R]``.
    """
    layout = PackedLayout.of(groups)
    count = np.array([len(ids) for ids in answers.token_ids])[chosen]
    cells = ranges(np.cumsum(layout.suffix) - count, count)
    tokens = np.concatenate([np.array(answers.token_ids[index]) for index in chosen.tolist()])
    batch = PackedBatch(decoder, groups)
    for depth in range(1, decoder.num_layers + 1):
        batch.layer(depth)
    before = on_device(preceding_positions(layout)[cells], decoder.device)
    logprobs, _ = output.statistics(output.normalize(batch.hidden[before]), on_device(tokens, decoder.device))
    # A row of a matrix is summed in one order; sums by index_add would have any on a GPU.
    table = logprobs.new_zeros(len(count), int(count.max()))
    rows, columns = np.repeat(np.arange(len(count)), count), ranges(np.zeros_like(count), count)
    table[on_device(rows, table.device), on_device(columns, table.device)] = logprobs
    sums = table.sum(-1)
    return sums / on_device(count.astype(np.float32), table.device) if answers.reading == "mean" else sums
