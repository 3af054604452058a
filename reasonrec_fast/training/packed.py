"""A differentiable forward pass of token groups, for supervised fine-tuning and GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from reasonrec_fast import ops
from reasonrec_fast.devices import on_device
from reasonrec_fast.lm.decoder import Decoder, unwrapped
from reasonrec_fast.lm.layout import PackedLayout, TokenGroup, preceding_positions
from reasonrec_fast.lm.packed_batch import PackedBatch
from reasonrec_fast.training.adapters import adapters_in_dtype

_CAPPED_LOGITS = 1 << 24  # the most that are formed at a time if they are capped


@dataclass(frozen=True)
class OutputWeights:
    """The LM head as one matrix, for operators that do not store logits.

    Attributes:
        weight: ``[V, D]``, with LoRA's update where adapters are active; differentiable.
        bias: ``[V]`` or None.
        softcap: logits are ``softcap * tanh(logits / softcap)`` (Gemma 2); None for no cap.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None

    @classmethod
    def of(cls, model: nn.Module) -> OutputWeights:
        """The LM head of a causal model of transformers, also as a ``PeftModel``.

        LoRA's update of the head is added to a copy of its weight.

        Raises:
            TypeError: no LM head, or an LM head that is not a single matrix (for example DoRA, or LoRA with dropout in
                training mode).
        """
        causal: Any = unwrapped(model)
        head: Any = getattr(causal, "lm_head", None)
        if head is None:
            raise TypeError(f"model: expected a causal model with an lm_head; got {type(causal).__name__}")
        softcap = getattr(causal.config, "final_logit_softcapping", None)
        if hasattr(head, "modules_to_save"):  # peft's copy, trained whole
            enabled = not head.disable_adapters and head.active_adapters
            head = head.modules_to_save[head.active_adapters[0]] if enabled else head.original_module
        if type(head) is nn.Linear:
            return cls(head.weight, head.bias, softcap)
        base = getattr(head, "base_layer", None)
        if type(base) is not nn.Linear or not hasattr(head, "lora_A"):
            raise TypeError(f"model: expected an lm_head that is one linear layer, with LoRA or not; got {type(head)}")
        weight = base.weight
        if not head.disable_adapters and not head.merged:
            for name in head.active_adapters:
                if name not in head.lora_A:
                    continue
                if head.use_dora.get(name) or getattr(head, "lora_bias", {}).get(name):
                    raise TypeError(f"model: expected plain LoRA on lm_head; got DoRA or a bias (adapter {name!r})")
                dropout = head.lora_dropout[name]
                if head.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
                    raise TypeError(
                        f"model: expected LoRA on lm_head without dropout, as its update is added to the weight; got "
                        f"{dropout.p} (adapter {name!r})"
                    )
                weight = weight + head.get_delta_weight(name).to(weight.dtype)
        return cls(weight, base.bias, softcap)

    def check_uncapped(self) -> None:
        """Refuse capped logits, which some operators do not support.

        Raises:
            TypeError: there is a cap.
        """
        if self.softcap is not None:
            raise TypeError(
                f"model: expected logits as the LM head gives them; got a cap of {self.softcap} "
                "(final_logit_softcapping)"
            )

    def statistics(
        self, hidden: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of given tokens and entropy, float32 ``[n]`` each, from normed hidden states ``[n, D]``.

        ``ops.token_logprobs`` stores no logits. Capped logits are formed for some rows at a time, and again in the
        backward pass.
        """
        if self.softcap is None:
            statistics = ops.token_logprobs(hidden, self.weight, tokens, bias=self.bias, temperature=temperature)
            return statistics.logprobs, statistics.entropy
        rows = max(_CAPPED_LOGITS // len(self.weight), 1)
        parts = [
            checkpoint(self._capped, hidden[i : i + rows], self.weight, tokens[i : i + rows], temperature,
                       use_reentrant=False)
            for i in range(0, len(hidden), rows)
        ]  # fmt: skip
        logprobs, entropy = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropy)

    def _capped(
        self, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.softcap is not None
        logits = nn.functional.linear(hidden, weight, self.bias)
        logits = (torch.tanh(logits / self.softcap) * self.softcap).float() / temperature
        logprobs = logits.log_softmax(-1)
        return logprobs.gather(1, tokens[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@dataclass(frozen=True)
class NextTokens:
    """Chosen tokens of continuations, and the hidden states that predict them.

    Attributes:
        hidden: output of the final norm at the preceding token, ``[n, D]``.
        tokens: int64 ``[n]``, in the order of the groups, their continuations, and their tokens.
    """

    hidden: torch.Tensor
    tokens: torch.Tensor


def next_tokens(model: nn.Module, groups: Sequence[TokenGroup], chosen: np.ndarray) -> NextTokens:
    """Run groups through all layers, without padding; a prefix is computed once for all of its continuations.

    A continuation attends to its prefix and itself alone.

    Args:
        model: a causal model of transformers, also as a ``PeftModel``. Its mode (training or evaluation) decides on
            dropout.
        groups: prefixes and continuations.
        chosen: which tokens of the continuations, bool ``[C]`` over their concatenation. The first token of a
            continuation without a prefix cannot be predicted, and cannot be chosen.

    Raises:
        ValueError: a first token without a prefix is chosen, or ``chosen`` has another size.
    """
    decoder = Decoder(model)
    decoder.train(model.training)
    layout = PackedLayout.of(groups)
    before = preceding_positions(layout)
    if chosen.shape != before.shape:
        raise ValueError(f"chosen: expected bool [{len(before)}], one a token of the continuations; got {chosen.shape}")
    if (before[chosen] < 0).any():
        index = int(np.flatnonzero(chosen & (before < 0))[0])
        row = int(np.searchsorted(np.cumsum(layout.suffix), index, side="right"))
        raise ValueError(f"chosen: expected tokens with one before them; got the first of row {row}, without a prefix")
    tokens = [np.asarray(row, dtype=np.int64) for _, rows in groups for row in rows]
    with adapters_in_dtype(model, decoder.dtype):
        batch = PackedBatch(decoder, groups)
        for depth in range(1, decoder.num_layers + 1):
            batch.layer(depth)
        hidden = decoder.base.norm(batch.hidden[on_device(before[chosen], decoder.device)])
    return NextTokens(hidden, on_device(np.concatenate(tokens)[chosen], decoder.device))


def token_logprobs(
    model: nn.Module, groups: Sequence[TokenGroup], chosen: np.ndarray, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities of chosen tokens without gradients, float32 ``[n]``, for old policies and references."""
    with torch.no_grad():
        states = next_tokens(model, groups, chosen)
        return OutputWeights.of(model).statistics(states.hidden, states.tokens, temperature)[0]


def check_token_ids(ids: Sequence[int], name: str, vocabulary: int) -> np.ndarray:
    """Token ids as int64 ``[n]``.

    Raises:
        ValueError: another shape, or an id outside the vocabulary.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: expected token ids [n]; got {array.dtype} {list(array.shape)}")
    wrong = np.flatnonzero((array < 0) | (array >= vocabulary))
    if len(wrong):
        raise ValueError(
            f"{name}: expected token ids in [0, {vocabulary}); got {array[wrong[0]]} at position {wrong[0]}"
        )
    return array.astype(np.int64)
