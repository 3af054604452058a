"""Group-relative policy optimisation: GRPO, DAPO's and Dr. GRPO's losses on completions that the model samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from reasonrec_fast import ops
from reasonrec_fast.devices import seed_rng
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.layout import within
from reasonrec_fast.ops.policy_loss import Kind
from reasonrec_fast.settings import Count, NotNegative, Positive, Share, Whole, check_settings
from reasonrec_fast.training.loop import StepLoop
from reasonrec_fast.training.packed import OutputWeights, check_token_ids
from reasonrec_fast.training.policy import PolicyBatch, PolicyGroup, packed_policy_loss
from reasonrec_fast.training.processes import gathered
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.schedules import warmup_cosine

if TYPE_CHECKING:
    from accelerate import Accelerator


class Rollout(Protocol):
    """A completion that was sampled; ``lm.generate.Generation`` is one."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The new tokens, the stop token included. May be empty."""

    @property
    def logprobs(self) -> Sequence[float] | None:
        """Of each token under the policy that sampled it, at :attr:`GRPOTraining.temperature` and before any
        truncation of the distribution (``top_p``); if None, they are computed before the weights change."""


Generate = Callable[[Sequence[Sequence[int]], Sequence[int]], Sequence[Sequence[Rollout]]]
"""Called with prompts (token ids) and a seed for each; returns the completions of each prompt, at least two."""
Reward = Callable[[int, Sequence[Rollout]], Sequence[float]]
"""Called with the index of a prompt and its completions; returns their rewards, which must be finite."""
TokenMask = Callable[[int, Rollout], Sequence[bool]]
"""Called with the index of a prompt and a completion; returns which of its tokens count."""


@dataclass(frozen=True)
class GRPOTraining:
    """Settings of policy optimisation.

    Attributes:
        iterations: number of times that completions are sampled.
        prompts_per_iteration: taken from seeded permutations of all prompts.
        updates: optimiser steps on the completions of an iteration (GRPO's mu).
        kind: loss and advantages: ``"grpo"`` (arXiv 2402.03300), ``"dapo"`` (arXiv 2503.14476; its clip is
            ``(0.2, 0.28)``), ``"dr_grpo"`` (arXiv 2503.20783; its sum is divided by the number of all completions of
            the iteration times ``max_completion_tokens``).
        clip_below, clip_above: the ratio is clipped to ``[1 - clip_below, 1 + clip_above]``.
        beta: weight of the divergence from the reference; 0 computes no reference.
        temperature: divides the logits; must be that of the sampling.
        max_completion_tokens: only for ``"dr_grpo"``; longer completions are refused.
        max_tokens: of a micro-batch, which bounds memory; a longer group (a prompt and its completions) is a
            micro-batch of its own.
        learning_rate, weight_decay: of AdamW; the rate grows over ``warmup`` (a share of the steps), then falls as a
            cosine to a twentieth.
        gradient_clip: maximum norm of the gradient; 0 for none.
        seed: of the order of prompts and of sampling.
    """

    iterations: Count
    prompts_per_iteration: Count = 8
    updates: Count = 1
    kind: Kind = "grpo"
    clip_below: NotNegative = 0.2
    clip_above: NotNegative = 0.2
    beta: NotNegative = 0.0
    temperature: Positive = 1.0
    max_completion_tokens: Count | None = None
    max_tokens: Count = 4096
    learning_rate: NotNegative = 1e-5
    weight_decay: NotNegative = 0.0
    warmup: Share = 0.06
    gradient_clip: NotNegative = 1.0
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.kind == "dr_grpo") != (self.max_completion_tokens is not None):
            raise ValueError(
                f"max_completion_tokens: expected a number for 'dr_grpo' and None otherwise; got "
                f"{self.max_completion_tokens} for {self.kind!r}"
            )


def train_grpo(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    generate: Generate,
    reward: Reward,
    settings: GRPOTraining,
    *,
    token_mask: TokenMask | None = None,
    reference: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    checkpoint_every: int | None = None,
    progress: Progress | None = None,
    trackers: Sequence[Any] = (),
    accelerator: Accelerator | None = None,
) -> None:
    """Train the parameters of a causal model that require gradients on rewards of its own completions.

    An iteration samples completions of some prompts, turns the rewards of each prompt's completions into advantages
    (``ops.group_advantages``) and takes ``updates`` steps of ``ops.policy_loss`` on them, on a
    :class:`~reasonrec_fast.training.loop.StepLoop`. Prompts are computed once for all of their completions, and no
    logits are stored. The model is in evaluation mode throughout: dropout would make the ratio of current to old
    probabilities random.

    Completions without a gradient are skipped and counted. A prompt whose completions all have the same reward (its
    advantages are 0) is skipped, as in DAPO; the means of the loss are over the others, and no replacement is
    sampled. A completion without tokens, or without tokens that count, contributes to its group's advantages, but not
    to the means over tokens. An iteration in which all prompts are skipped takes no step, but counts for the schedule.

    Checkpoints are saved between iterations: a run that was killed repeats its last iteration. The result is that of an
    uninterrupted run if ``generate`` and ``reward`` depend on the weights and their arguments alone (torch's global
    generators are seeded before each call of ``generate``).

    On several processes each samples for its share of the prompts; ``generate`` and ``reward`` are called in each.

    Args:
        model: as in :func:`~reasonrec_fast.training.sft.supervised_loss`, without a cap on its logits.
        prompts: token ids, at least one each.
        generate: samples with the current weights, for example::

                generator = TextGenerator(model, tokenizer)

                def generate(prompts, seeds):
                    params = [SamplingParams(num_samples=8, max_new_tokens=64, seed=seed) for seed in seeds]
                    return generator.generate([((), [prompt]) for prompt in prompts], params)

        reward: larger is better.
        settings: of the training.
        token_mask: which tokens of a completion count; all by default.
        reference: of the divergence, if ``beta > 0``: a frozen model on the same device; None for ``model`` without its
            adapters.
        checkpoint: file of the training state. Settings and prompts are part of its identity.
        fingerprint: further identity of the run (the base model, the reward).
        checkpoint_every: iterations between two checkpoints; by default they are a minute apart.
        progress: called after every iteration with ``reward`` (mean), ``reward_std`` (mean over prompts of the
            deviation within a prompt), ``zero_variance`` and ``empty`` (shares of prompts that were skipped, and of
            completions without tokens), ``completion_tokens`` (mean) and, if steps were taken, ``loss``, ``entropy``,
            ``ratio``, ``ratio_max``, ``clipped`` (share of tokens) and, with a reference, ``kl``, of the last step.
        trackers, accelerator: as in :class:`~reasonrec_fast.training.loop.StepLoop`.

    Raises:
        TypeError: a model that cannot be trained, or ``beta > 0`` without adapters and without ``reference``.
        ValueError: prompts or completions that do not fit, fewer than two completions of a prompt, rewards or
            log-probabilities that are not finite (with prompt and completion), or a checkpoint of another run.
    """
    decoder = Decoder(model)
    OutputWeights.of(model.eval()).check_uncapped()
    checked = [check_token_ids(prompt, f"prompts[{i}]", decoder.vocabulary) for i, prompt in enumerate(prompts)]
    if not checked or not all(map(len, checked)):
        raise ValueError("prompts: expected at least one, of at least one token each; got an empty one or none")
    if settings.beta and reference is None:
        if not hasattr(model, "disable_adapter"):
            raise TypeError(
                f"reference: expected a model since beta is {settings.beta} and there are no adapters to disable; "
                "got None"
            )
        reference = model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.iterations * settings.updates
    digest = hashlib.blake2b(repr([prompt.tolist() for prompt in checked]).encode(), digest_size=16).hexdigest()
    loop = StepLoop(
        model, optimizer, seed=settings.seed, clip=settings.gradient_clip,
        schedule=warmup_cosine(steps, settings.warmup), checkpoint=checkpoint,
        fingerprint={"settings": asdict(settings), "prompts": digest, **(fingerprint or {})},
        progress=progress, trackers=trackers, accelerator=accelerator,
    )  # fmt: skip
    loop.restore()
    sampler = _Sampler(checked, generate, reward, token_mask, decoder, settings, loop)
    with loop.fork_rng():
        while loop.steps_done < steps:
            iteration = loop.steps_done // settings.updates
            sampled = sampler.sample(iteration)
            metrics = sampled.metrics
            if sampled.groups:
                metrics |= _update(model, sampled, settings, loop, reference if settings.beta else None)
            else:
                loop.skip(settings.updates)
            if loop.steps_done == steps:
                loop.save()
            else:
                loop.save_if_due(every=None if checkpoint_every is None else checkpoint_every * settings.updates)
            loop.report(iteration + 1, settings.iterations, metrics)


@dataclass(frozen=True)
class _Sampled:
    """The completions of an iteration: the groups that were not skipped, the number of all completions, and metrics."""

    groups: list[PolicyGroup]
    num_completions: int
    metrics: dict[str, float]


def _update(
    model: nn.Module, sampled: _Sampled, settings: GRPOTraining, loop: StepLoop, reference: nn.Module | None
) -> dict[str, float]:
    """Take the steps of an iteration; returns the metrics of the last step."""
    parts = within([group.num_tokens for group in sampled.groups], settings.max_tokens)
    batches = [PolicyBatch(sampled.groups[part.start : part.stop]) for part in parts]
    batches = [batch for batch in batches if batch.num_chosen_sequences]
    weights = [batch.weight(settings.kind) for batch in batches]
    for index in range(loop.process, len(batches), loop.processes):
        with loop.autocast():  # in the precision of the loss
            batches[index].set_logprobs(model, settings.temperature, reference)
    read: list[tuple[float, dict[str, torch.Tensor]]] = []

    def loss(index: int) -> torch.Tensor:
        batch = batches[index]
        normalizer = None
        if settings.max_completion_tokens is not None:
            # The mean by weight then is the sum over all batches, divided by num_completions * max_completion_tokens.
            share = weights[index] / sum(weights)
            normalizer = share * sampled.num_completions * settings.max_completion_tokens
        value, statistics = packed_policy_loss(
            model, batch, kind=settings.kind, clip=(settings.clip_below, settings.clip_above), beta=settings.beta,
            temperature=settings.temperature, normalizer=normalizer,
        )  # fmt: skip
        metrics = {"entropy": statistics.entropy, "ratio": statistics.ratio_mean, "ratio_max": statistics.ratio_max,
                   "clipped": statistics.clipped_share}  # fmt: skip
        if reference is not None:
            metrics["kl"] = statistics.kl
        read.append((float(len(batch.sequence_ids)), metrics))
        return value

    for _ in range(settings.updates):
        read.clear()
        value = loop.step(range(len(batches)), loss, weights=weights)
    return {"loss": float(value), **loop.mean_metrics(read)}


class _Sampler:
    """The completions of an iteration, with their advantages."""

    def __init__(
        self, prompts: list[np.ndarray], generate: Generate, reward: Reward, token_mask: TokenMask | None,
        decoder: Decoder, settings: GRPOTraining, loop: StepLoop,
    ) -> None:  # fmt: skip
        self.prompts, self.generate, self.reward, self.token_mask = prompts, generate, reward, token_mask
        self.decoder, self.settings, self.loop = decoder, settings, loop

    def sample(self, iteration: int) -> _Sampled:
        indices = self._indices(iteration)
        mine = range(self.loop.process, len(indices), self.loop.processes)
        gathered_groups = gathered(self._completions(iteration, [(i, indices[i]) for i in mine]), self.loop.accelerator)
        by_position = dict(pair for of_process in gathered_groups for pair in of_process)
        completions = [by_position[position] for position in range(len(indices))]
        rewards = torch.tensor([value for _, values in completions for value in values], dtype=torch.float64)
        sizes = [len(values) for _, values in completions]
        owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        advantages = ops.group_advantages(rewards, owners, kind=self.settings.kind).numpy()
        groups, skipped, start = [], 0, 0
        for index, (rows, values) in zip(indices, completions, strict=True):
            own, start = advantages[start : start + len(values)], start + len(values)
            if min(values) == max(values):
                skipped += 1
                continue
            kept = [i for i, row in enumerate(rows) if len(row[0])]
            group = PolicyGroup(
                self.prompts[index], [rows[i][0] for i in kept], [rows[i][2] for i in kept], own[kept],
                None if any(rows[i][1] is None for i in kept) else [rows[i][1] for i in kept],
            )  # fmt: skip
            if any(chosen.any() for chosen in group.chosen):
                groups.append(group)
        lengths = [len(row[0]) for rows, _ in completions for row in rows]
        deviations = [float(np.std(values, ddof=1)) for _, values in completions]
        metrics = {
            "reward": float(rewards.mean()),
            "reward_std": float(np.mean(deviations)),
            "zero_variance": skipped / len(indices),
            "empty": float(np.mean([length == 0 for length in lengths])),
            "completion_tokens": float(np.mean(lengths)),
        }
        return _Sampled(groups, len(lengths), metrics)

    def _indices(self, iteration: int) -> list[int]:
        """Prompts of an iteration, from consecutive permutations of all prompts."""
        count, size = len(self.prompts), self.settings.prompts_per_iteration
        positions = range(iteration * size, (iteration + 1) * size)
        orders = {
            epoch: np.random.default_rng((self.settings.seed, epoch)).permutation(count)
            for epoch in {position // count for position in positions}
        }
        return [int(orders[position // count][position % count]) for position in positions]

    def _completions(self, iteration: int, wanted: list[tuple[int, int]]) -> list[tuple[int, tuple[list, list[float]]]]:
        """For each position in the iteration: (token ids, log-probabilities, chosen) of each completion, and
        rewards."""
        if not wanted:
            return []
        seeds = [
            int(np.random.default_rng((self.settings.seed, iteration, position)).integers(2**62))
            for position, _ in wanted
        ]
        seed_rng(seeds[0], self.loop.device)
        sampled = self.generate([self.prompts[index].tolist() for _, index in wanted], seeds)
        if len(sampled) != len(wanted):
            raise ValueError(f"generate: expected completions of {len(wanted)} prompts; got {len(sampled)}")
        completions = []
        for (position, index), rollouts in zip(wanted, sampled, strict=True):
            if len(rollouts) < 2:
                raise ValueError(
                    f"generate: expected at least 2 completions a prompt, whose rewards are compared; got "
                    f"{len(rollouts)} of prompt {index}"
                )
            rewards = [float(value) for value in self.reward(index, rollouts)]
            wrong = [value for value in rewards if not np.isfinite(value)]
            if len(rewards) != len(rollouts) or wrong:
                raise ValueError(
                    f"reward: expected {len(rollouts)} finite numbers for prompt {index}; got {wrong or rewards}"
                )
            rows = [self._row(index, number, rollout) for number, rollout in enumerate(rollouts)]
            completions.append((position, (rows, rewards)))
        return completions

    def _row(self, index: int, number: int, rollout: Rollout) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        name = f"completion {number} of prompt {index}"
        tokens = check_token_ids(rollout.token_ids, name, self.decoder.vocabulary)
        self.decoder.check_length(len(self.prompts[index]) + len(tokens), name)
        longest = self.settings.max_completion_tokens
        if longest is not None and len(tokens) > longest:
            raise ValueError(f"{name}: expected at most max_completion_tokens = {longest} tokens; got {len(tokens)}")
        logprobs = None
        if rollout.logprobs is not None:
            logprobs = np.asarray(rollout.logprobs, dtype=np.float32)
            if logprobs.shape != tokens.shape or not np.isfinite(logprobs).all():
                raise ValueError(f"{name}: expected {len(tokens)} finite log-probabilities; got {rollout.logprobs}")
        chosen = np.ones(len(tokens), dtype=bool)
        if self.token_mask is not None:
            chosen = np.asarray(self.token_mask(index, rollout), dtype=bool)
            if chosen.shape != tokens.shape:
                raise ValueError(f"token_mask: expected {len(tokens)} values for {name}; got {list(chosen.shape)}")
        return tokens, logprobs, chosen
