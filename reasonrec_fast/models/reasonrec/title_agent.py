"""An agent that asks a language model how likely each candidate's title is after the titles that the user liked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize

from reasonrec_fast.devices import resolve_device
from reasonrec_fast.files import read_json, write_json
from reasonrec_fast.lm.adapters import AdapterMerger, read_lora, with_lora, write_lora
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.models.reasonrec.agent_base import Agent, Slate, checked, digest_of_weights
from reasonrec_fast.models.reasonrec.config import TitleAgentConfig
from reasonrec_fast.models.reasonrec.prompt import introduction
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.prompts.tokens import TokenIds
from reasonrec_fast.training.packed import token_logprobs
from reasonrec_fast.training.progress import Progress
from reasonrec_fast.training.sft import SupervisedGroup, SupervisedTraining, train_supervised

ADAPTER, WEIGHTS = "adapter.safetensors", "weights.json"
FEATURES = ("after", "alone", "after, a token", "alone, a token", "after, its beginning", "alone, its beginning")
"""Log-likelihoods of a title after the user's and after no other: the sum, the mean, and that of the first tokens."""
_BEGINNING = 4  # tokens
_KEPT = 1 << 20  # titles whose likelihood alone is remembered


class TitleAgent(Agent):
    """Adds to the stack's logits a weighted sum of log-likelihoods of the candidates' titles.

    The language model is fine-tuned with LoRA on the titles of training histories, as a model of what is liked next
    (:meth:`read`); the weights, which start at zero, are learned on validation events of users (:meth:`train`). A
    title is read once after the user's history, which all candidates share, and once after none, so that what is
    likely of itself can be told from what is likely here.

    Args:
        config: settings.
        device: where the model lives; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not available, or more layers with adapters than the model has.
    """

    hears_tools: ClassVar[bool] = False
    reads_likes: ClassVar[bool] = False
    trust: float = 1.0

    def __init__(self, config: TitleAgentConfig, *, device: torch.device | str | None = None) -> None:
        self.config = config
        self._device = resolve_device(device)
        # Drawn on the CPU, so that adapters are alike for every device.
        model, tokenizer = load_language_model(config.backbone, fast_dtype(self._device), device="cpu")
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
        decoder = Decoder(model)
        if config.adapted_layers > decoder.num_layers:
            raise ValueError(
                f"titles.adapted_layers: expected at most {decoder.num_layers}, the backbone's layers; got "
                f"{config.adapted_layers}"
            )
        self.max_length = decoder.max_length
        self.backbone_digest = digest_of_weights(decoder)
        self.peft: Any = with_lora(
            model,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            seed=config.seed,
            last_layers=config.adapted_layers,
        )
        self.peft.to(self._device).eval()
        self.adapters = AdapterMerger(self.peft)
        self._bare = introduction(TokenIds(self.tokenizer))
        self._alone: dict[tuple[int, ...], np.ndarray] = {}
        self.weights = np.zeros(len(FEATURES))

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: torch.device | str) -> TitleAgent:
        device = resolve_device(device)
        self.adapters.move(device, fast_dtype(self._device), fast_dtype(device))
        self._device = device
        self._alone.clear()
        return self

    def read(
        self,
        groups: Sequence[SupervisedGroup],
        *,
        checkpoint: str | Path | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Fine-tune the language model on histories in titles.

        Args:
            groups: of users.
            checkpoint: file of the training state; a run that was killed goes on from it.
            fingerprint: identity of the run besides settings and histories.
            progress: called after every step with its loss.
        """
        config = self.config
        with self.adapters.unmerged():
            train_supervised(
                self.peft, groups,
                SupervisedTraining(
                    groups_per_step=config.batch_users, learning_rate=config.learning_rate, seed=config.seed
                ),
                checkpoint=checkpoint, fingerprint={"backbone": self.backbone_digest, **(fingerprint or {})},
                progress=progress,
            )  # fmt: skip
        self._alone.clear()

    def train(self, slates: Sequence[Slate], progress: Progress | None = None) -> None:
        """Learn the weights: softmax over each slate's candidates, with the stack's logits as offset, and a penalty on
        the squares of the weights of standardised likelihoods.

        Args:
            slates: of users whose next item is known.
            progress: called with how many candidates have been read.

        Raises:
            ValueError: no slate with another candidate beside its target.
        """
        usable = [slate for slate in slates if len(slate.offset) > 1]
        if not usable:
            raise ValueError(f"slates: expected some with another candidate beside the target; got {len(slates)}")
        self.weights = residual_weights(usable, self.likelihoods(usable, progress), self.config.penalty)

    def logits(self, slates: Sequence[Slate], progress: Progress | None = None) -> list[np.ndarray]:
        corrections = (part @ self.weights for part in self.likelihoods(slates, progress))
        return checked([
            slate.offset + self.trust * (correction - correction.mean())
            for slate, correction in zip(slates, corrections, strict=True)
        ])  # fmt: skip

    def likelihoods(self, slates: Sequence[Slate], progress: Progress | None = None) -> list[np.ndarray]:
        """Log-likelihoods of each slate's titles, float64 ``[C, len(FEATURES)]`` each, in nats."""
        result: list[np.ndarray] = []
        total = sum(len(slate.offset) for slate in slates)
        with self.adapters.merged():
            # A batch a slate, and one a title alone: the last bits of a product depend on how many rows it has.
            for slate in slates:
                prefix, titles = slate.group
                after, alone = self._of_titles(prefix, titles), np.stack([self._of_title(title) for title in titles])
                result.append(np.stack([after, alone], axis=2).reshape(len(after), -1))
                if progress is not None:
                    progress(sum(map(len, result)), total)
        return result

    def _of_title(self, title: Any) -> np.ndarray:
        """Likelihoods of a title after no other, ``[3]``; it is read once."""
        key = tuple(title)
        found = self._alone.get(key)
        if found is None:
            if len(self._alone) >= _KEPT:
                self._alone.clear()
            found = self._alone[key] = self._of_titles(self._bare, [key])[0]
        return found

    def _of_titles(self, prefix: Any, titles: Sequence[Any]) -> np.ndarray:
        """Sum, mean and beginning of the log-probabilities of titles after a prefix, float64 ``[C, 3]``."""
        lengths = np.array([len(title) for title in titles])
        chosen = np.ones(int(lengths.sum()), dtype=bool)
        logprobs = token_logprobs(self.peft, [(prefix, list(titles))], chosen).double().cpu().numpy()
        rows = np.split(logprobs, np.cumsum(lengths)[:-1])
        return np.array([[row.sum(), row.mean(), row[:_BEGINNING].sum()] for row in rows])

    def save(self, folder: Path) -> None:
        write_lora(self.peft, folder / ADAPTER)
        write_json(folder / WEIGHTS, {"weights": dict(zip(FEATURES, self.weights, strict=True)), "trust": self.trust})

    def restore(self, folder: Path) -> TitleAgent:
        with self.adapters.unmerged():
            read_lora(self.peft, folder / ADAPTER)
        stored = read_json(folder / WEIGHTS)
        if set(stored["weights"]) != set(FEATURES):
            raise ValueError(f"{folder}: expected weights of {', '.join(FEATURES)}; got {sorted(stored['weights'])}")
        self.weights = np.array([stored["weights"][name] for name in FEATURES])
        self.trust = stored["trust"]
        self._alone.clear()
        return self


def residual_weights(slates: Sequence[Slate], features: Sequence[np.ndarray], penalty: float) -> np.ndarray:
    """Weights of features whose sum is added to the stack's logits, float64 ``[F]``: the likeliest on the slates'
    targets, with a penalty on the squares of the weights of standardised features.

    Args:
        slates: of two candidates at least, with targets.
        features: of each slate's candidates, float64 ``[C, F]`` each.
        penalty: in nats.

    >>> slate = Slate(([], [[], []]), np.log([0.5, 0.5]), target=1)
    >>> bool(residual_weights([slate], [np.array([[0.0], [1.0]])], 1.0)[0] > 0)
    True
    """
    features = [part - part.mean(0) for part in features]
    scale = np.maximum(np.sqrt(np.mean(np.concatenate(features) ** 2, axis=0)), 1e-6)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = 0.0, np.zeros(len(weights))
        for slate, part in zip(slates, features, strict=True):
            values = slate.offset + (part / scale) @ weights
            normalizer = np.logaddexp.reduce(values)
            total += float(normalizer - values[slate.target])
            slope += (np.exp(values - normalizer) @ part - part[slate.target]) / scale
        return total + penalty * float(weights @ weights), slope + 2 * penalty * weights

    found = minimize(loss, np.zeros(len(scale)), jac=True, method="L-BFGS-B")
    return np.asarray(found.x / scale)
