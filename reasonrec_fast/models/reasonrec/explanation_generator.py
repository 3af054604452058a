"""A language model that writes explanations: samples after a prompt, fine-tuned with LoRA or as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from peft import PeftModel

from reasonrec_fast.devices import resolve_device
from reasonrec_fast.files import read_json, write_json
from reasonrec_fast.lm.adapters import with_lora
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.generate import TextGenerator
from reasonrec_fast.lm.loading import DEFAULT_MODEL, load_language_model
from reasonrec_fast.lm.sampling import SamplingParams
from reasonrec_fast.models.reasonrec.explanation_prompts import Prompt
from reasonrec_fast.models.reasonrec.sample_store import SampleStore
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.prompts import TokenIds
from reasonrec_fast.settings import Bound, Count, NotNegative, ShareBelowOne, Whole, check_settings
from reasonrec_fast.training.epochs import EpochTraining, train_epochs
from reasonrec_fast.training.grpo import GRPOTraining, train_grpo
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.sft import SupervisedGroup, groups_digest, supervised_loss

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What peft calls them."""
_MICRO_BATCH = 4  # groups of a few hundred tokens
_REQUESTS = 10  # a batch of sequences that is written to the store as a whole
_WARMUP = 20  # steps
_AFTER = ("temperature", "top_p", "max_new_tokens", "iterations", "prompts", "group", "policy_learning_rate")

_ShareAboveZero = Annotated[float, Bound("in (0, 1]", lambda value: 0 < value <= 1)]


@dataclass(frozen=True)
class GeneratorConfig:
    """Settings of the language model, its fine-tuning and its samples.

    Attributes:
        backbone: as in :func:`~reasonrec_fast.lm.loading.load_language_model`.
        epochs: of fine-tuning, at most; 0 leaves the model as it is, which then learns from the prompt's examples
            alone.
        patience, learning_rate, average: as in :class:`~reasonrec_fast.training.epochs.EpochTraining`.
        adapted_layers: how many of the last layers get adapters; those before have no backward pass.
        lora_rank, lora_alpha: of the adapters of every linear map of these layers.
        micro_batches: of four pairs, in a step.
        iterations: of GRPO after fine-tuning; 0 for none.
        prompts, group: pairs of an iteration, and explanations that are sampled for each.
        policy_learning_rate: of GRPO.
        temperature, top_p: of sampling; GRPO samples without ``top_p``.
        max_new_tokens: longest explanation.
        seed: of the adapters, the order of training, and the samples.
    """

    backbone: str = DEFAULT_MODEL
    epochs: Whole = 0
    patience: Count = 1
    learning_rate: NotNegative = 5e-4
    average: ShareBelowOne = 0.98
    adapted_layers: Count = 8
    lora_rank: Count = 16
    lora_alpha: Count = 32
    micro_batches: Count = 2
    iterations: Whole = 0
    prompts: Count = 8
    group: Annotated[int, Bound("of at least 2", lambda value: value >= 2)] = 6
    policy_learning_rate: NotNegative = 5e-5
    temperature: NotNegative = 0.7
    top_p: _ShareAboveZero = 0.95
    max_new_tokens: Count = 56
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.iterations and not self.temperature:
            raise ValueError("temperature: expected one above 0 with iterations of GRPO, which compares samples; got 0")


class ExplanationGenerator:
    """A causal language model; :meth:`fit` gives its last layers adapters.

    Args:
        config: settings.
        device: where the model lives; by default the GPU where there is one.

    Attributes:
        store: of samples that were drawn; None for none. It is given by whoever wants an interrupted run to go on.

    Raises:
        ValueError: a device that is not available, or more layers with adapters than the model has.
    """

    def __init__(self, config: GeneratorConfig | None = None, *, device: torch.device | str | None = None) -> None:
        self.config = config or GeneratorConfig()
        self.device = resolve_device(device)
        self.model: Any
        self.model, self.tokenizer = load_language_model(
            self.config.backbone, fast_dtype(self.device), device=self.device
        )
        self.store: SampleStore | None = None
        layers = Decoder(self.model).num_layers
        if (self.config.epochs or self.config.iterations) and self.config.adapted_layers > layers:
            raise ValueError(f"adapted_layers: expected at most {layers}; got {self.config.adapted_layers}")
        self._ids = TokenIds(self.tokenizer)
        self._weights: str | None = None  # digest

    @property
    def is_adapted(self) -> bool:
        """Whether the model has adapters."""
        return isinstance(self.model, PeftModel)

    def fit(
        self,
        prompts: Sequence[Prompt],
        explanations: Sequence[str],
        validation: tuple[Sequence[Prompt], Sequence[str]] | None = None,
        *,
        checkpoint: str | Path | None = None,
        fingerprint: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> float:
        """Fine-tune adapters on explanations; the loss is that of their tokens and of the line's end.

        Args:
            prompts, explanations: one of each a pair.
            validation: prompts and explanations of other pairs, on whose loss the training stops early, and by which
                the best epoch is kept; without it all epochs are trained.
            checkpoint: file of the training state; a run that was killed resumes from it.
            fingerprint: further identity of the run.
            progress: called after each epoch.

        Returns:
            minus the loss on validation, in nats a token; NaN without validation.

        Raises:
            ValueError: the checkpoint is of another run, or a model that is fine-tuned already.
        """
        if self.is_adapted:
            raise ValueError("model: expected one that was not fine-tuned; got one with adapters")
        groups = self._groups(prompts, explanations)
        held_out = self._groups(*validation) if validation is not None else []
        self.model = self._with_adapters()
        self._weights = None

        def batches(epoch: int) -> Iterator[list[SupervisedGroup]]:
            order = np.random.default_rng((self.config.seed, epoch)).permutation(len(groups))
            for start in range(0, len(order), _MICRO_BATCH):
                yield [groups[row] for row in order[start : start + _MICRO_BATCH]]

        config = asdict(self.config)
        return train_epochs(
            self.model,
            batches,
            lambda batch: supervised_loss(self.model, batch),
            EpochTraining(
                epochs=self.config.epochs,
                patience=self.config.patience,
                learning_rate=self.config.learning_rate,
                warmup=_WARMUP,
                average=self.config.average,
                clip=1.0,
                seed=self.config.seed,
                accumulate=self.config.micro_batches,
            ),
            validate=(lambda: -self._loss(held_out)) if held_out else None,
            checkpoint=checkpoint,
            fingerprint={
                "generator": {f.name: config[f.name] for f in fields(GeneratorConfig) if f.name not in _AFTER},
                "groups": groups_digest(groups),
                "validation": groups_digest(held_out),
                **(fingerprint or {}),
            },
            progress=progress,
        )

    def reinforce(
        self,
        prompts: Sequence[Prompt],
        reward: Callable[[int, list[str]], Sequence[float]],
        *,
        checkpoint: str | Path | None = None,
        fingerprint: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Train the adapters, new ones or those of :meth:`fit`, by GRPO (arXiv 2402.03300) on rewards of explanations
        that the model samples at ``config.temperature``.

        Args:
            prompts: of pairs.
            reward: of the explanations of a prompt, by its index; larger is better. An empty text is one that did not
                end in time.
            checkpoint: file of the training state; a run that was killed resumes from it.
            fingerprint: further identity of the run, the reward's.
            progress: called after each iteration (:func:`~reasonrec_fast.training.grpo.train_grpo`).

        Raises:
            ValueError: the checkpoint is of another run.
        """
        config = self.config
        if not self.is_adapted:
            self.model = self._with_adapters()
        generator = TextGenerator(self.model, self.tokenizer)

        def generate(ids: Sequence[Sequence[int]], seeds: Sequence[int]) -> Sequence[Sequence[Any]]:
            params = [replace(self._params(config.group, top_p=1.0), seed=seed) for seed in seeds]
            return generator.generate([((), [prompt]) for prompt in ids], params)

        train_grpo(
            self.model,
            [[*prefix, *suffix] for prefix, suffix in prompts],
            generate,
            lambda index, rollouts: reward(index, [_text_of(rollout) for rollout in rollouts]),
            GRPOTraining(
                iterations=config.iterations,
                prompts_per_iteration=config.prompts,
                temperature=config.temperature,
                learning_rate=config.policy_learning_rate,
                seed=config.seed,
            ),
            checkpoint=checkpoint,
            fingerprint={"weights": self._digest(), **(fingerprint or {})},
            progress=progress,
        )
        self._weights = None

    def sample(self, prompts: Sequence[Prompt], count: int) -> list[list[str]]:
        """Explanations of each prompt, at most ``count``: what did not end in time is cut after its last sentence, and
        left out if it has none. Those of a prompt depend on it alone."""
        params = self._params(count, top_p=self.config.top_p)
        keys = [self._key(prompt, params) for prompt in prompts]
        store = SampleStore() if self.store is None else self.store
        missing = [row for row, key in enumerate(keys) if key not in store]
        # A batch a prompt: on some processors the last bits of a product depend on how many rows it has, and in
        # bfloat16 a draw between two tokens may then fall otherwise.
        generator = TextGenerator(self.model, self.tokenizer, max_sequences=count)
        for start in range(0, len(missing), _REQUESTS):
            rows = missing[start : start + _REQUESTS]
            requests = generator.generate([(prompts[row][0], [prompts[row][1]]) for row in rows], params)
            for row, samples in zip(rows, requests, strict=True):
                texts = [_text_of(sample) for sample in samples]
                store.add(keys[row], [text for text in texts if text])
        return [store[key] for key in keys]

    def save_adapters(self, folder: Path) -> None:
        """Write :data:`ADAPTER_FILES` in peft's format; nothing of a model without adapters."""
        if not self.is_adapted:
            return
        self.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's, with nothing in it
        config = read_json(folder / ADAPTER_FILES[0])
        write_json(folder / ADAPTER_FILES[0], config | {"base_model_name_or_path": None})  # a path of this machine

    def load_adapters(self, folder: Path) -> None:
        """Read what :meth:`save_adapters` wrote, where there is something.

        Raises:
            ValueError: adapters that do not fit the backbone.
        """
        if not (folder / ADAPTER_FILES[0]).is_file():
            return
        try:
            self.model = PeftModel.from_pretrained(self.model, str(folder), torch_device=str(self.device)).eval()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{folder}: expected adapters of {self.config.backbone}; {error}") from error
        self._weights = None

    def _with_adapters(self) -> Any:
        adapted = with_lora(
            self.model.to("cpu"),
            rank=self.config.lora_rank,
            alpha=self.config.lora_alpha,
            seed=self.config.seed,
            last_layers=self.config.adapted_layers,
        )
        return adapted.to(self.device).eval()

    def _groups(self, prompts: Sequence[Prompt], explanations: Sequence[str]) -> list[SupervisedGroup]:
        return [
            SupervisedGroup([*prefix, *suffix], [self._ids.of(f" {' '.join(text.split())}\n")])
            for (prefix, suffix), text in zip(prompts, explanations, strict=True)
        ]

    @torch.no_grad()
    def _loss(self, groups: Sequence[SupervisedGroup]) -> float:
        """Mean over all tokens, in nats."""
        total, count = 0.0, 0
        for start in range(0, len(groups), _MICRO_BATCH):
            batch = groups[start : start + _MICRO_BATCH]
            tokens = sum(int(group.flat_chosen().sum()) for group in batch)
            total += tokens * float(supervised_loss(self.model, batch))
            count += tokens
        return total / count

    def _params(self, count: int, *, top_p: float) -> SamplingParams:
        return SamplingParams(
            temperature=self.config.temperature,
            top_p=top_p,
            num_samples=count,
            max_new_tokens=self.config.max_new_tokens,
            stop=("\n",),
            seed=self.config.seed,
        )

    def _digest(self) -> str:
        """Of all weights."""
        if self._weights is None:
            digest = hashlib.blake2b(digest_size=16)
            for name, value in sorted(self.model.state_dict().items()):
                digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._weights = digest.hexdigest()
        return self._weights

    def _key(self, prompt: Prompt, params: SamplingParams) -> str:
        """Identity of the samples of a prompt."""
        content = repr((self._digest(), [list(part) for part in prompt], asdict(params)))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _text_of(sample: Any) -> str:
    return whole_sentences(sample.text or "", sample.finish_reason == "stop")


def whole_sentences(text: str, complete: bool) -> str:
    """A text on one line, up to the end of its last sentence if it is not complete.

    >>> whole_sentences("It is calm. It has a", complete=False)
    'It is calm.'
    """
    text = " ".join(text.split())
    return text if complete or text.endswith(".") else text[: text.rfind(". ") + 1]
