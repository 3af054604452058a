"""The agent: a language model whose head corrects the stack's logits of its best candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.devices import fork_rng, resolve_device, seed_rng
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.ranker import EarlyExitRanker
from reasonrec_fast.early_exit.requests import GroupInputs
from reasonrec_fast.files import read_tensors, write_tensors
from reasonrec_fast.lm.adapters import AdapterMerger, read_lora, with_lora, write_lora
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.models.reasonrec.agent_base import Agent, Slate, checked, digest_of_weights
from reasonrec_fast.models.reasonrec.config import AgentConfig
from reasonrec_fast.models.reasonrec.observe import SETTINGS, ItemFeatures, Observer
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.training.curriculum import CurriculumSampler
from reasonrec_fast.training.exits import Batch, ExitTraining, train_exits
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.sft import SupervisedGroup, groups_digest, supervised_loss

ADAPTER, HEAD = "adapter.safetensors", "head.safetensors"
_LEAST = -30.0  # of a candidate's logit less the logarithm of the sum over all: beyond, a softmax is 0 anyhow


class ResidualAgent(Agent):
    """A language model with adapters that reads a user and candidates, and a head that starts at zero: an agent that
    has learnt nothing answers what the stack says.

    Args:
        config: settings.
        kinds: features of items that it reads beside their titles.
        device: where the model lives; by default the GPU where there is one.
    """

    def __init__(
        self, config: AgentConfig, kinds: Sequence[ItemFeatures] = (), *, device: torch.device | str | None = None
    ) -> None:
        self.config = config
        device, cpu = resolve_device(device), torch.device("cpu")
        # Drawn on the CPU, so that adapters and head are alike for every device.
        language_model, tokenizer = load_language_model(config.backbone, fast_dtype(device), device="cpu")
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
        backbone = Decoder(language_model)
        if config.layers is not None:
            backbone.keep_layers(config.layers)
        self.backbone_digest = digest_of_weights(backbone)  # now: adapters are merged into the weights later
        self.peft: Any = with_lora(language_model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
        with fork_rng(cpu):
            seed_rng(config.seed, cpu)
            model = EarlyExitModel(backbone, [backbone.num_layers], offset=True)
        if kinds or config.thoughts:
            embeddings: Any = language_model.get_input_embeddings().weight
            self._observe(
                model,
                Observer(kinds, embeddings, soft_tokens=config.soft_tokens, thoughts=config.thoughts, seed=config.seed),
            )
        self.peft.to(device)
        self.ranker = EarlyExitRanker(model, self.tokenizer, device=device)
        self.adapters = AdapterMerger(self.peft)

    def _observe(self, model: EarlyExitModel, observer: Observer) -> None:
        """The observer becomes a part of the model, so that it is trained and moved with it."""
        self.observer = observer
        model.add_module("observer", observer.to(model.backbone.device))

    @property
    def device(self) -> torch.device:
        return self.ranker.device

    def to(self, device: torch.device | str) -> ResidualAgent:
        """Move the agent; its weights take the type that the new device is fastest in.

        Raises:
            ValueError: a device that is not available.
        """
        device = resolve_device(device)
        self.adapters.move(device, self.ranker.model.backbone.dtype, fast_dtype(device))
        self.ranker.to(device)
        return self

    @property
    def trust(self) -> float:
        return float(self.ranker.model.heads[-1].scale)

    @trust.setter
    def trust(self, value: float) -> None:
        self.ranker.model.heads[-1].scale.fill_(value)

    def train(
        self,
        slates: Sequence[Slate],
        sampler: CurriculumSampler | None = None,
        *,
        reasoning: Sequence[SupervisedGroup] = (),
        checkpoint: str | Path | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Learn to find the targets: softmax over each slate's candidates, with the stack's logits as offset.

        Args:
            slates: of users whose next item is known.
            sampler: draws the slates of a step; by default they come in a random order.
            reasoning: questions and chains of thought, of which every step learns some
                (``config.reasoning_weight``, ``config.reasoning_batch``).
            checkpoint: file of the training state; a run that was killed goes on from it.
            fingerprint: identity of the run besides settings and sampler.
            progress: called after every step.

        Raises:
            ValueError: no slate with another candidate beside its target.
        """
        config = self.config
        usable = [number for number, slate in enumerate(slates) if len(slate.offset) > 1]
        if not usable:
            raise ValueError(f"slates: expected some with another candidate beside the target; got {len(slates)}")
        steps = max(round(config.epochs * len(usable) / config.batch_users), 1)
        identity: dict[str, Any] = {"steps": steps, "slates": len(usable), "backbone": self.backbone_digest}
        identity |= {"settings": asdict(config), **(fingerprint or {}), "reasoning": groups_digest(reasoning)}
        if sampler is not None:
            identity["curriculum"] = sampler.identity
        order = np.concatenate([
            np.random.default_rng((config.seed, epoch)).permutation(usable)
            for epoch in range(-(-steps * config.batch_users // len(usable)))
        ])  # fmt: skip

        def load(step: int) -> Batch:
            if sampler is None:
                drawn = order[step * config.batch_users : (step + 1) * config.batch_users]
            else:
                drawn = sampler.draw(config.batch_users, step=step, steps=steps, seed=config.seed)
                drawn = drawn[np.isin(drawn, usable)]
            generator = np.random.default_rng((config.seed, step, 1))
            return self._batch([_fewer(slates[row], config.train_candidates, generator) for row in drawn.tolist()])

        def reason(step: int) -> torch.Tensor:
            drawn = np.random.default_rng((config.seed, step, 4)).permutation(len(reasoning))[: config.reasoning_batch]
            return config.reasoning_weight * supervised_loss(self.peft, [reasoning[row] for row in drawn.tolist()])

        settings = ExitTraining(
            learning_rate=config.learning_rate, head_learning_rate=config.head_learning_rate,
            depth_decay=config.depth_decay, pairwise_weight=0.0, loss="listwise", seed=config.seed,
        )  # fmt: skip
        with self.adapters.unmerged():
            train_exits(
                self.ranker.model, range(steps), load, settings, more=reason if reasoning else None,
                checkpoint=checkpoint, fingerprint=identity, progress=progress,
            )  # fmt: skip

    def logits(self, slates: Sequence[Slate], progress: Progress | None = None) -> list[np.ndarray]:
        slates = list(slates)
        if not slates:
            return []
        done, total = 0, sum(len(slate.offset) for slate in slates)

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            if progress is not None:
                progress(done, total)

        offset = np.concatenate([slate.offset for slate in slates])
        with self.adapters.merged():
            scores = self.ranker.predict_groups(
                self._groups(slates),
                GroupInputs(offset=torch.from_numpy(np.maximum(offset, _LEAST).astype(np.float32))),
                progress=advance,
            )
        probability = scores.probability.double().numpy()
        logits = np.log(np.maximum(probability, 1e-30)) - np.log1p(-np.minimum(probability, 1 - 1e-7))
        return checked(np.split(logits, np.cumsum([len(slate.offset) for slate in slates])[:-1]))

    def _groups(self, slates: Sequence[Slate]) -> list[TokenGroup]:
        """What the language model reads, with soft tokens in place."""
        groups = [slate.group for slate in slates]
        if self.observer is None:
            return groups
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.ranker.model.training):
            return self.observer(groups)  # type: ignore[no-any-return]

    def _batch(self, slates: Sequence[Slate]) -> Batch:
        """The slates of a training step."""
        labels = np.concatenate([np.arange(len(slate.offset)) == slate.target for slate in slates])
        offset = np.maximum(np.concatenate([slate.offset for slate in slates]), _LEAST)
        return Batch(
            self._groups(slates),
            torch.from_numpy(labels.astype(np.int64)),
            offset=torch.from_numpy(offset.astype(np.float32)),
        )

    def save(self, folder: Path) -> None:
        """Write adapters and head into an existing folder."""
        write_lora(self.peft, folder / ADAPTER)
        write_tensors(folder / HEAD, self.ranker.model.heads.state_dict())
        if self.observer is not None:
            self.observer.save(folder)

    def restore(self, folder: Path) -> ResidualAgent:
        """Take what :meth:`save` wrote.

        Raises:
            ValueError: adapters or a head of another backbone.
        """
        with self.adapters.unmerged():
            read_lora(self.peft, folder / ADAPTER)
        try:
            self.ranker.model.heads.load_state_dict(read_tensors(folder / HEAD))
        except RuntimeError as error:
            raise ValueError(f"{folder}: expected a head of this backbone; {' '.join(str(error).split())}") from error
        if (folder / SETTINGS).is_file():
            model = self.ranker.model
            self._observe(model, Observer.load(folder, self.peft.get_input_embeddings().weight))
        return self


def _fewer(slate: Slate, size: int, generator: np.random.Generator) -> Slate:
    """A slate with its target and others drawn at random, in their order."""
    others = np.delete(np.arange(len(slate.offset)), slate.target)
    if len(others) < size:
        return slate
    kept = np.sort(np.append(generator.choice(others, size - 1, replace=False), slate.target))
    prefix, suffixes = slate.group
    return Slate(
        (prefix, [suffixes[index] for index in kept]), slate.offset[kept], int(np.searchsorted(kept, slate.target))
    )
