"""The final norm and LM head of a decoder: from hidden states to statistics of the next token."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from reasonrec_fast import ops
from reasonrec_fast.lm.decoder import causal_parts, is_plain_linear
from reasonrec_fast.lm.products import step_call

CPU_ROWS = 8
"""On a CPU, batches of decoding are padded to multiples of so many rows: for fewer rows, matrix products sum in another
order (MKL's for fewer than four in float32, those of ``exit_confidence`` for at most four), and the bits of a row would
depend on how many rows lie beside it."""


class MostLikely(NamedTuple):
    """The most likely next token of ``B`` rows.

    Attributes:
        tokens: int64 ``[B]``; the lowest of those that are equally likely.
        logprobs: float32 ``[B]``.
        entropies: in nats, float32 ``[B]``.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor


class OutputHead:
    """``lm_head(norm(hidden))`` of a causal model, as the model itself computes it.

    The modules are called, not copied: tied heads, Gemma's norm (one plus its weight), adapters on norm and head (LoRA,
    DoRA, ``modules_to_save``) and the cap on the logits of Gemma 2 and 3 are what they are in the model, whenever they
    change. A head that is one linear layer without a cap (:attr:`fused`) is read by ``ops.exit_confidence`` and
    ``ops.token_logprobs``, whose sums are float32 and which hold no logits; any other head's logits are formed.

    Args:
        model: a causal or image-text-to-text model of transformers that :class:`~reasonrec_fast.lm.decoder.Decoder`
            takes, in peft's wrapping or not.

    Raises:
        TypeError: a model without an LM head, or adapters beside its layers.
    """

    def __init__(self, model: nn.Module) -> None:
        parts = causal_parts(model)
        self._norm: Any = parts.model.norm
        self._lm_head: Any = parts.lm_head
        self.softcap: float | None = getattr(parts.config, "final_logit_softcapping", None)

    @property
    def fused(self) -> bool:
        """Whether the operators read the head as it lies, without logits in memory."""
        return self.softcap is None and is_plain_linear(self._lm_head)

    def to(self, device: torch.device) -> None:
        """Move norm and head, which are the model's own."""
        self._norm.to(device)
        self._lm_head.to(device)

    @property
    def vocab_size(self) -> int:
        """``V``, rows of the head."""
        return self._lm_head.weight.shape[0]

    def normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm of the last layer's output ``[B, D]``; the other methods read what it returns."""
        return self._norm(hidden)

    def logits(self, normalized: torch.Tensor) -> torch.Tensor:
        """Capped logits, float32 ``[B, V]``, rounded as the model rounds them (to its own dtype)."""
        padded = _padded(normalized)
        logits = step_call(padded)(self._lm_head, padded)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits[: len(normalized)].float()

    def most_likely(self, normalized: torch.Tensor, temperature: float = 1.0) -> MostLikely:
        """The token that greedy decoding takes, with its log-probability and the entropy over the vocabulary.

        Args:
            normalized: ``[B, D]``.
            temperature: divides the logits of both statistics.
        """
        if not self.fused:
            logits = self.logits(normalized)
            tokens = logits.argmax(-1)  # of log-probabilities many may be rounded alike
            logprobs = (logits / temperature).log_softmax(-1)
            return MostLikely(tokens, logprobs.gather(1, tokens[:, None])[:, 0], _entropy(logprobs))
        head = self._lm_head
        statistics = ops.exit_confidence(_padded(normalized), head.weight, bias=head.bias, temperature=temperature)
        rows = len(normalized)
        return MostLikely(statistics.prediction[:rows], statistics.probability[:rows].log(), statistics.entropy[:rows])

    def statistics(
        self,
        normalized: torch.Tensor,
        tokens: torch.Tensor,
        temperature: float = 1.0,
        logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of given tokens and entropies over the vocabulary, float32 ``[B]`` each.

        Args:
            normalized: ``[B, D]``.
            tokens: int64 ``[B]``.
            temperature: divides the logits.
            logits: what :meth:`logits` returned for these rows, where it was asked for. They are read in place of the
                head, unless they are rounded to less than float32 and the head is :attr:`fused`.
        """
        if self.fused and (logits is None or normalized.dtype != torch.float32):
            head, rows = self._lm_head, len(normalized)
            statistics = ops.token_logprobs(
                _padded(normalized), head.weight, _padded(tokens), bias=head.bias, temperature=temperature
            )
            return statistics.logprobs[:rows], statistics.entropy[:rows]
        logits = self.logits(normalized) if logits is None else logits
        logprobs = (logits / temperature).log_softmax(-1)
        return logprobs.gather(1, tokens[:, None])[:, 0], _entropy(logprobs)


def padded_rows(rows: int, device: torch.device) -> int:
    """Rows of a batch of decoding with its padding (:data:`CPU_ROWS`).

    >>> padded_rows(9, torch.device("cpu"))
    16
    """
    return -(-rows // CPU_ROWS) * CPU_ROWS if device.type == "cpu" else rows


def _padded(rows: torch.Tensor) -> torch.Tensor:
    missing = padded_rows(len(rows), rows.device) - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows


def _entropy(logprobs: torch.Tensor) -> torch.Tensor:
    # Tokens of probability 0 have a log-probability of -inf, and no share.
    parts = torch.where(logprobs > -torch.inf, logprobs.exp() * logprobs, 0.0)
    # The sum of a single row would be divided among threads, in another order than that of one row of several.
    return -(parts if len(parts) > 1 else parts.expand(2, -1)).sum(-1)[: len(parts)]
