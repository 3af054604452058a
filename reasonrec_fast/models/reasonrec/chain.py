"""The Deliberate stage: a language model writes chains of thought, and says in them how sure it is."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from reasonrec_fast.arrays import as_count
from reasonrec_fast.devices import resolve_device
from reasonrec_fast.lm.adapters import AdapterMerger, read_lora, with_lora, write_lora
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.generate import Generation, Piece, TextGenerator
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.lm.sampling import SamplingParams
from reasonrec_fast.models.reasonrec.agent_base import digest_of_weights
from reasonrec_fast.models.reasonrec.chain_prompts import ChainPrompts
from reasonrec_fast.models.reasonrec.config import ChainConfig
from reasonrec_fast.models.reasonrec.instruction import ReasoningSample
from reasonrec_fast.models.reasonrec.questions import Question, ReasoningTask, reasoning_template
from reasonrec_fast.models.reasonrec.rationale import LEVELS
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.pretrained import load_folder, save_folder
from reasonrec_fast.settings import settings_from
from reasonrec_fast.training.curriculum import CurriculumSampler
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.sft import SupervisedTraining, train_supervised

_logger = logging.getLogger("reasonrec_fast")

ADAPTER = "adapter.safetensors"
_FORMAT = 1

OnText = Callable[[int, int, str], None]
"""Called with the query, the chain of the query and its next characters, as soon as they are certain."""


@dataclass(frozen=True)
class Chain:
    """A chain of thought.

    Attributes:
        text: what was written.
        answer: the one of the question's choices that the chain ends in; None where it ends in none, or has not ended.
        stated: the confidence that the chain states, one of
            :data:`~reasonrec_fast.models.reasonrec.rationale.LEVELS`; None where it states none, or has not ended.
        entropy: mean entropy of the distributions that its tokens were drawn from, at temperature 1, in nats; NaN for a
            chain without tokens.
        logprob: mean log-probability of its tokens at temperature 1, in nats; NaN likewise.
        finished: whether it ended by itself. One that was cut at ``max_tokens`` is unsure, whatever it says.
        item: the item that the answer names, an index, or an identifier where users were given by identifiers; None
            where it names none or more than one.
    """

    text: str
    answer: str | None = None
    stated: str | None = None
    entropy: float = float("nan")
    logprob: float = float("nan")
    finished: bool = False
    item: int | str | None = None


def parse_chain(text: str, choices: Sequence[str]) -> tuple[str | None, str | None]:
    """The answer and the stated confidence that a chain ends in; nothing is guessed.

    Args:
        text: of a chain that has ended.
        choices: the texts that may be the answer, which must be matched exactly.

    >>> parse_chain("They like tea. Answer: Assam. Confidence: high.", ["Assam", "Assam Gold"])
    ('Assam', 'high')
    >>> parse_chain("They like tea. Answer: assam. Confidence: quite high.", ["Assam"])
    (None, None)
    """
    text = text.rstrip()
    stated = next((level for level in LEVELS if text.endswith(f" Confidence: {level}.")), None)
    if stated is None:
        return None, None
    text = text.removesuffix(f" Confidence: {stated}.")
    # A title may hold " Answer: " and another title behind it: both would match.
    answers = {choice for choice in choices if f" {text}".endswith(f" Answer: {choice}.")}
    return (answers.pop() if len(answers) == 1 else None), stated


class ChainWriter:
    """A causal language model with LoRA on all of its layers, that answers questions with chains of thought.

    The paper's agent is tuned so on Reasoning-aware Visual Instruction data (arXiv 2606.28357); here the chains are
    those of :class:`~reasonrec_fast.models.reasonrec.instruction.ReasoningConverter`, and texts alone are read.

    Args:
        config: settings.
        device: where the model lives; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not available, a model that has no token that ends a text, or one that reads no
            more than a chain.
    """

    def __init__(self, config: ChainConfig | None = None, *, device: torch.device | str | None = None) -> None:
        self.config = config or ChainConfig()
        device = resolve_device(device)
        # Drawn on the CPU, so that adapters are alike for every device.
        model, tokenizer = load_language_model(self.config.backbone, fast_dtype(device), device="cpu")
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
        self.backbone_digest = digest_of_weights(model)
        self.peft: Any = with_lora(
            model, rank=self.config.lora_rank, alpha=self.config.lora_alpha, seed=self.config.seed
        )
        self.peft.to(device).eval()
        self.device = device
        self.adapters = AdapterMerger(self.peft)
        self._stops = self._stop_tokens()
        self._prompts = ChainPrompts(
            self.tokenizer, system=self.config.system, budget=self.config.prompt_tokens, stop=self._stops[0],
            chain=self.config.max_tokens, room=Decoder(self.peft).max_length, wordings=self.config.wordings,
        )  # fmt: skip

    def _stop_tokens(self) -> tuple[int, ...]:
        """Those of the model, or else of its tokenizer; the first one ends the chains that are learnt."""
        own = set(TextGenerator(self.peft).stop_token_ids)
        of_tokenizer = self.tokenizer.eos_token_id
        if not own and of_tokenizer is None:
            raise ValueError(
                f"backbone: expected a model with a token that ends texts; {self.config.backbone} has none"
            )
        if of_tokenizer is None or (own and of_tokenizer not in own):
            return tuple(sorted(own))
        return (of_tokenizer, *sorted(own - {of_tokenizer}))

    def to(self, device: torch.device | str) -> ChainWriter:
        """Move the model; its weights take the type that the new device is fastest in.

        Raises:
            ValueError: a device that is not available.
        """
        device = resolve_device(device)
        self.adapters.move(device, fast_dtype(self.device), fast_dtype(device))
        self.device = device
        return self

    # Reading

    def prompt(self, question: Question, seed: int = 0) -> list[int]:
        """As :meth:`ChainPrompts.prompt <reasonrec_fast.models.reasonrec.chain_prompts.ChainPrompts.prompt>`."""
        return self._prompts.prompt(question, seed)

    def fits(self, sample: ReasoningSample) -> bool:
        """Whether the sample can be learnt: its question within ``prompt_tokens`` and what the model reads before a
        chain, its chain within ``max_tokens``."""
        return self._prompts.fits(sample, self.config.seed)

    # Learning

    def fit(
        self,
        samples: Sequence[ReasoningSample],
        *,
        sampler: CurriculumSampler | None = None,
        checkpoint: str | Path | None = None,
        fingerprint: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> ChainWriter:
        """Learn to write the samples' chains; what was learnt before is built upon.

        Args:
            samples: questions with chains.
            sampler: a curriculum over the samples; by default they come in a random order.
            checkpoint: file of the training state; a run that was killed goes on from it.
            fingerprint: identity of the run besides settings, samples and sampler.
            progress: called after every step with its loss.

        Raises:
            ValueError: no sample; one that is too long (with its number); a sampler of another number of samples; or a
                checkpoint of another run.
        """
        config = self.config
        groups = []
        for number, sample in enumerate(samples):
            try:
                groups.append(self._prompts.group(sample, config.seed))
            except ValueError as error:
                raise ValueError(f"samples[{number}]: {error}") from error
            length = len(groups[-1].continuations[0])
            if length > config.max_tokens:
                raise ValueError(
                    f"samples[{number}]: expected a chain of at most {config.max_tokens} tokens; got {length}"
                )
        settings = SupervisedTraining(
            epochs=config.epochs, groups_per_step=config.batch, max_tokens=config.batch_tokens,
            learning_rate=config.learning_rate, seed=config.seed,
        )  # fmt: skip
        identity = {name: getattr(config, name) for name in ("backbone", "lora_rank", "lora_alpha")}
        identity["weights"] = self.backbone_digest
        with self.adapters.unmerged():
            try:
                train_supervised(
                    self.peft, groups, settings, sampler=sampler, checkpoint=checkpoint,
                    fingerprint={**identity, **(fingerprint or {})}, progress=progress,
                )  # fmt: skip
            finally:
                self.peft.eval()
        return self

    # Writing

    def write(
        self,
        questions: Sequence[Question | ReasoningSample],
        n: int | None = None,
        seed: int = 0,
        *,
        on_text: OnText | None = None,
    ) -> list[Chain]:
        """Chains of thought; each depends on its own question, its number in the question and the seed alone (on some
        processors to the rounding of the type, see :class:`~reasonrec_fast.lm.generate.TextGenerator`).

        Args:
            questions: or samples, whose chains are not read.
            n: chains of a question, which share its prompt; by default ``config.chains``.
            seed: any whole number: of the wordings and of the draws.
            on_text: receives the chains while they are written.

        Returns:
            ``n`` chains of the first question, then those of the second, and so on.

        Raises:
            ValueError: several chains at temperature 0, which would be equal; a question that is too long (with its
                number).
        """
        config, n = self.config, as_count(self.config.chains if n is None else n, "n", 1)
        if n > 1 and config.temperature == 0:
            raise ValueError(f"n: expected 1 at temperature 0, where all chains of a question are equal; got {n}")
        asked = [entry.question if isinstance(entry, ReasoningSample) else entry for entry in questions]
        prompts = []
        for number, question in enumerate(asked):
            try:
                prompts.append(self.prompt(question, seed))
            except ValueError as error:
                raise ValueError(f"questions[{number}]: {error}") from error
        params = [
            SamplingParams(
                temperature=config.temperature, num_samples=n, max_new_tokens=config.max_tokens,
                stop_token_ids=self._stops, seed=_seed_of(seed, prompt),
            )
            for prompt in prompts
        ]  # fmt: skip

        def on_piece(piece: Piece) -> None:
            if on_text is not None and piece.text:
                on_text(piece.request, piece.sample, piece.text)

        with self.adapters.merged():
            generator = TextGenerator(self.peft, self.tokenizer)
            written = generator.generate([([], [prompt]) for prompt in prompts], params, on_piece=on_piece)
        return [
            _chain_of(generation, question)
            for question, generations in zip(asked, written, strict=True)
            for generation in generations
        ]

    # Saving, loading

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapters (safetensors) and settings (JSON); the backbone stays where it is."""

        def write(path: Path) -> dict[str, Any]:
            write_lora(self.peft, path / ADAPTER)
            return {
                "config": asdict(self.config),
                "backbone": self.backbone_digest,
                "templates": {task: reasoning_template(task).digest for task in get_args(ReasoningTask)},
            }

        save_folder(folder, "ChainWriter", _FORMAT, (ADAPTER,), write)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: torch.device | str | None = None) -> ChainWriter:
        """Read what :meth:`save_pretrained` wrote, on any device.

        A log message tells of questions that are put in other words than those it learnt from.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else, or adapters of another backbone, or the backbone has other
                weights.
        """

        def read(path: Path, stored: dict[str, Any]) -> ChainWriter:
            writer = cls(settings_from(ChainConfig, stored["config"], str(path)), device=device)
            if stored.get("backbone", writer.backbone_digest) != writer.backbone_digest:
                raise ValueError(
                    f"{path}: expected the language model that the writer was trained with; "
                    f"{writer.config.backbone} has other weights"
                )
            for task, digest in stored.get("templates", {}).items():
                if digest != reasoning_template(task).digest:
                    _logger.warning("%s: learnt from questions of another template %s than this one", path, task)
            read_lora(writer.peft, path / ADAPTER)
            return writer

        return load_folder(folder, "ChainWriter", _FORMAT, read)


def _seed_of(seed: int, prompt: Sequence[int]) -> int:
    """Two questions do not share their draws."""
    return int.from_bytes(hashlib.blake2b(repr((int(seed), list(prompt))).encode(), digest_size=8).digest(), "little")


def _chain_of(generation: Generation, question: Question) -> Chain:
    text, count = generation.text or "", len(generation.token_ids)
    finished = generation.finish_reason == "stop"
    answer, stated = parse_chain(text, question.choices) if finished else (None, None)
    return Chain(
        text, answer, stated, sum(generation.entropies) / count, sum(generation.logprobs) / count, finished,
        question.item_of(answer),
    )  # fmt: skip
