"""Supervised fine-tuning on packed groups: several continuations of a shared prefix in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.layout import within
from reasonrec_fast.settings import Count, NotNegative, Share, Whole, check_settings
from reasonrec_fast.training.curriculum import CurriculumSampler
from reasonrec_fast.training.loop import StepLoop
from reasonrec_fast.training.packed import OutputWeights, check_token_ids, next_tokens
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.schedules import warmup_cosine

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class SupervisedGroup:
    """A prompt and its target continuations.

    Attributes:
        prefix: token ids of the prompt, without a loss. May be empty.
        continuations: token ids of one or more answers to the prompt, at least one token each.
        chosen: of each continuation, which tokens count in the loss, bool (the reasoning and the answer, say, and not a
            tool's output); None for all. Without a prefix the first token cannot be predicted: None excludes it, and
            choosing it is refused.
    """

    prefix: Sequence[int]
    continuations: Sequence[Sequence[int]]
    chosen: Sequence[Sequence[bool]] | None = None

    def flat_chosen(self) -> np.ndarray:
        """Which tokens count, over the concatenated continuations, bool ``[C]``."""
        if self.chosen is not None:
            return np.concatenate([np.asarray(chosen, dtype=bool) for chosen in self.chosen])
        chosen = [np.ones(len(tokens), dtype=bool) for tokens in self.continuations]
        if not len(self.prefix):
            for row in chosen:
                row[:1] = False
        return np.concatenate(chosen)

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.prefix) + sum(map(len, self.continuations))


@dataclass(frozen=True)
class SupervisedTraining:
    """Settings of supervised fine-tuning.

    Attributes:
        epochs: passes over all groups, each in its own seeded order.
        groups_per_step: groups in a step.
        max_tokens: of a micro-batch, which bounds memory; a longer group is a micro-batch of its own. The division
            does not change a step's loss, which is the mean over all of its chosen tokens.
        learning_rate, weight_decay: of AdamW; the rate grows over ``warmup`` (a share of the steps), then falls as a
            cosine to a twentieth.
        clip: maximum norm of the gradient; 0 for none.
        seed: of the order and of dropout.
    """

    epochs: Count = 1
    groups_per_step: Count = 8
    max_tokens: Count = 4096
    learning_rate: NotNegative = 2e-4
    weight_decay: NotNegative = 0.0
    warmup: Share = 0.06
    clip: NotNegative = 1.0
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)


def supervised_loss(model: nn.Module, groups: Sequence[SupervisedGroup]) -> torch.Tensor:
    """Mean negative log-probability of the chosen tokens, 0-d, differentiable; no logits are stored.

    Equal to the loss of transformers on the padded batch of all prefixes with their continuations, with labels of -100
    for all other tokens; but a prefix is computed once, and nothing is padded.

    Args:
        model: a causal model of transformers of one of :data:`~reasonrec_fast.lm.decoder.FAMILIES`, also as a
            ``PeftModel``.
        groups: with at least one chosen token in all.

    Raises:
        TypeError: an unsupported decoder, or an LM head that is not a single matrix.
        ValueError: no token is chosen, or groups that do not fit the model.
    """
    chosen = np.concatenate([group.flat_chosen() for group in groups])
    if not chosen.any():
        raise ValueError(f"groups: expected at least one chosen token; got none in {len(groups)} groups")
    states = next_tokens(model, [(group.prefix, group.continuations) for group in groups], chosen)
    logprobs, _ = OutputWeights.of(model).statistics(states.hidden, states.tokens)
    return -logprobs.mean()


def train_supervised(
    model: nn.Module,
    groups: Sequence[SupervisedGroup],
    settings: SupervisedTraining | None = None,
    *,
    sampler: CurriculumSampler | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    checkpoint_every: int | None = None,
    progress: Progress | None = None,
    trackers: Sequence[Any] = (),
    accelerator: Accelerator | None = None,
) -> None:
    """Fine-tune the parameters of a model that require gradients, with a
    :class:`~reasonrec_fast.training.loop.StepLoop`.

    Args:
        model: a causal model as in :func:`supervised_loss`; in training mode during the training (with LoRA's dropout),
            and in evaluation mode afterwards.
        groups: the training data; all are checked before the first step.
        settings: of the training.
        sampler: draws the groups of each step in place of the seeded order, a curriculum over as many samples as there
            are groups; its metrics are reported beside the loss.
        checkpoint: file of the training state. The groups and settings are part of its identity.
        fingerprint: further identity of the run (the base model, say).
        checkpoint_every: steps between two checkpoints; by default they are a minute apart.
        progress: called after every step with its ``loss``.
        trackers, accelerator: as in :class:`~reasonrec_fast.training.loop.StepLoop`; micro-batches are divided among
            processes.

    Raises:
        TypeError: as in :func:`supervised_loss`.
        ValueError: an invalid group (its index is named), or a checkpoint of another run.
    """
    settings = settings or SupervisedTraining()
    groups = _checked_groups(groups, Decoder(model))
    if sampler is not None and len(sampler) != len(groups):
        raise ValueError(f"sampler: expected {len(groups)} samples, one a group; got {len(sampler)}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    per_epoch = -(-len(groups) // settings.groups_per_step)
    steps = per_epoch * settings.epochs
    loop = StepLoop(
        model, optimizer, seed=settings.seed, clip=settings.clip, schedule=warmup_cosine(steps, settings.warmup),
        checkpoint=checkpoint,
        fingerprint={
            "settings": asdict(settings), "groups": groups_digest(groups),
            **({} if sampler is None else {"sampler": sampler.identity}), **(fingerprint or {}),
        },
        progress=progress, trackers=trackers, accelerator=accelerator,
    )  # fmt: skip
    loop.restore()

    def micro_batches(step: int) -> list[list[SupervisedGroup]]:
        if sampler is not None:
            drawn = sampler.draw(settings.groups_per_step, step=step, steps=steps, seed=settings.seed)
        else:
            epoch, index = divmod(step, per_epoch)
            order = np.random.default_rng((settings.seed, epoch)).permutation(len(groups))
            drawn = order[index * settings.groups_per_step :][: settings.groups_per_step]
        picked = [groups[i] for i in drawn]
        parts = within([group.num_tokens for group in picked], settings.max_tokens)
        return [picked[part.start : part.stop] for part in parts]

    def weight(batch: list[SupervisedGroup]) -> float:
        return float(sum(group.flat_chosen().sum() for group in batch))

    model.train()
    loop.run(steps, micro_batches, lambda batch: supervised_loss(model, batch), weight=weight,
             save_every=checkpoint_every,
             metrics=None if sampler is None else lambda step: sampler.metrics(step, steps))  # fmt: skip
    model.eval()


def _checked_groups(groups: Sequence[SupervisedGroup], decoder: Decoder) -> list[SupervisedGroup]:
    """The groups with their ids as arrays."""
    if not groups:
        raise ValueError("groups: expected at least one; got none")
    checked = []
    for number, group in enumerate(groups):
        name = f"groups[{number}]"
        prefix = check_token_ids(group.prefix, f"{name}.prefix", decoder.vocabulary)
        rows = [
            check_token_ids(row, f"{name}.continuations[{i}]", decoder.vocabulary)
            for i, row in enumerate(group.continuations)
        ]
        lengths = [len(row) for row in rows]
        if not rows or not all(lengths):
            raise ValueError(f"{name}.continuations: expected at least one, of at least one token each; got {lengths}")
        decoder.check_length(len(prefix) + max(lengths), name)
        if group.chosen is not None and [len(chosen) for chosen in group.chosen] != lengths:
            raise ValueError(
                f"{name}.chosen: expected one value a token, {lengths}; got {[len(chosen) for chosen in group.chosen]}"
            )
        group = SupervisedGroup(prefix, rows, group.chosen)  # type: ignore[arg-type]
        chosen = group.flat_chosen()
        if not chosen.any():
            raise ValueError(f"{name}: expected at least one chosen token, with one before it; got none")
        if not len(prefix) and chosen[np.cumsum(lengths) - lengths].any():
            raise ValueError(f"{name}.chosen: expected no first token of a continuation without a prefix; got one")
        checked.append(group)
    return checked


def groups_digest(groups: Sequence[SupervisedGroup]) -> str:
    """BLAKE2b of prefixes, continuations and which tokens count, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for group in groups:
        for part in map(np.asarray, (group.prefix, *group.continuations, group.flat_chosen())):
            digest.update(f"{len(part)};".encode() + part.tobytes())
        digest.update(b"|")
    return digest.hexdigest()
