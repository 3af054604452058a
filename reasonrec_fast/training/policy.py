"""Policy losses of packed groups: prompts with their sampled completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from reasonrec_fast import ops
from reasonrec_fast.devices import on_device, to_device
from reasonrec_fast.ops.policy_loss import Kind, PolicyStatistics
from reasonrec_fast.training.packed import OutputWeights, next_tokens, token_logprobs


@dataclass(frozen=True)
class PolicyGroup:
    """A prompt and completions of at least one token each; the other attributes are in the order of the completions.

    Attributes:
        prompt: token ids, at least one.
        completions: token ids.
        chosen: which tokens count, bool, an array for each completion.
        advantages: float, one for each completion.
        old_logprobs: of every token under the policy that sampled it, an array for each completion.
    """

    prompt: np.ndarray
    completions: Sequence[np.ndarray]
    chosen: Sequence[np.ndarray]
    advantages: np.ndarray
    old_logprobs: Sequence[np.ndarray] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.prompt) + sum(map(len, self.completions))


class PolicyBatch:
    """Groups that are computed together, and the inputs of their policy loss, flat over chosen tokens.

    Args:
        groups: with at least one chosen token in all.
    """

    def __init__(self, groups: Sequence[PolicyGroup]) -> None:
        self.token_groups: Any = [(group.prompt, group.completions) for group in groups]
        self.chosen = np.concatenate([row for group in groups for row in group.chosen])
        self.advantages = np.concatenate([group.advantages for group in groups]).astype(np.float32)
        lengths = [len(row) for group in groups for row in group.completions]
        self.sequence_ids = np.repeat(np.arange(len(lengths)), lengths)[self.chosen]
        self.old_logprobs: torch.Tensor | None = None
        self.reference_logprobs: torch.Tensor | None = None
        if all(group.old_logprobs is not None for group in groups):
            old = np.concatenate([row for group in groups for row in group.old_logprobs or ()])
            self.old_logprobs = torch.from_numpy(old[self.chosen].astype(np.float32))

    @property
    def num_sequences(self) -> int:
        return len(self.advantages)

    @cached_property
    def num_chosen_sequences(self) -> int:
        """Completions with a token that counts."""
        return len(np.unique(self.sequence_ids))

    def weight(self, kind: Kind) -> float:
        """Weight of the batch's loss in a mean over batches: the number of elements that ``kind`` averages over."""
        return float({"grpo": self.num_chosen_sequences, "dapo": len(self.sequence_ids)}.get(kind, self.num_sequences))

    def set_logprobs(self, model: nn.Module, temperature: float, reference: nn.Module | None) -> None:
        """Compute log-probabilities before the weights change: of the old policy, unless the rollouts have them, and of
        the reference."""
        if self.old_logprobs is None:
            self.old_logprobs = token_logprobs(model, self.token_groups, self.chosen, temperature)
        if reference is model:
            with without_adapters(model):
                self.reference_logprobs = token_logprobs(model, self.token_groups, self.chosen, temperature)
        elif reference is not None:
            self.reference_logprobs = token_logprobs(reference, self.token_groups, self.chosen, temperature)


def packed_policy_loss(
    model: nn.Module,
    batch: PolicyBatch,
    *,
    kind: Kind = "grpo",
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.0,
    temperature: float = 1.0,
    normalizer: float | None = None,
) -> tuple[torch.Tensor, PolicyStatistics]:
    """``ops.policy_loss`` of a batch whose prompts are computed once for all of their completions.

    Args:
        model: a causal model of transformers, also as a ``PeftModel``, without dropout (evaluation mode).
        batch: with its log-probabilities (:meth:`PolicyBatch.set_logprobs`).
        kind, clip, beta, temperature, normalizer: of :func:`reasonrec_fast.ops.policy_loss`.

    Returns:
        the loss (0-d, differentiable) and its statistics.

    Raises:
        TypeError: an LM head that is not a single matrix, or with capped logits.
    """
    output = OutputWeights.of(model)
    output.check_uncapped()
    states = next_tokens(model, batch.token_groups, batch.chosen)
    device = states.hidden.device
    assert batch.old_logprobs is not None
    # Advantages are given for each token, since those of completions would be misread if there were as many tokens.
    # Sequence ids are renumbered without gaps, as completions without a chosen token are absent.
    sequence_ids = np.unique(batch.sequence_ids, return_inverse=True)[1].reshape(-1)
    return ops.policy_loss(
        states.hidden,
        output.weight,
        states.tokens,
        on_device(batch.advantages[batch.sequence_ids], device),
        to_device(batch.old_logprobs, device),
        sequence_ids=on_device(sequence_ids, device),
        reference_logprobs=to_device(batch.reference_logprobs, device),
        bias=output.bias,
        temperature=temperature,
        clip=clip,
        beta=beta,
        kind=kind,
        normalizer=normalizer,
    )


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Inside, the adapters of a ``PeftModel`` are disabled.

    Raises:
        TypeError: a model without adapters.
    """
    if not hasattr(model, "disable_adapter"):
        raise TypeError(
            f"reference: expected a model of its own, or a peft model whose base is the reference; got "
            f"{type(model).__name__} without adapters"
        )
    with model.disable_adapter():
        yield
