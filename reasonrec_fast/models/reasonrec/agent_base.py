"""What every agent is: it reads a user and the stack's best candidates, and corrects the stack's logits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from reasonrec_fast.data import DataError
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.models.reasonrec.observe import Observer
from reasonrec_fast.training.progress import Progress

_SAMPLED = 256  # values of a parameter, about


@dataclass(frozen=True)
class Slate:
    """A user's candidates.

    Attributes:
        group: the user as a prefix, each of ``C`` candidates as a suffix.
        offset: logarithm of each candidate's probability by the stack's softmax, float ``[C]``.
        target: position of the user's next item, for training.
    """

    group: TokenGroup
    offset: np.ndarray
    target: int = 0


class Agent(ABC):
    """A language model that corrects the stack's logits of its best candidates. One that has learnt nothing answers
    what the stack says.

    Attributes:
        tokenizer: of the language model.
        backbone_digest: tells the language model from others of the same shape.
        observer: makes soft tokens of items' features; None for an agent that reads words alone.
        hears_tools: whether it reads what tools say, so that consulting them may change its answer.
        reads_likes: whether its prompts tell what other users liked.
        trust: how much of what it has learnt is added to the stack's logits: 0 for nothing, 1 for all of it.
    """

    tokenizer: Any
    backbone_digest: str
    observer: Observer | None = None
    hears_tools: ClassVar[bool] = True
    reads_likes: ClassVar[bool] = True

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it lives."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Agent:
        """Move it; its weights take the type that the new device is fastest in.

        Raises:
            ValueError: a device that is not available.
        """

    @property
    @abstractmethod
    def trust(self) -> float: ...

    @trust.setter
    @abstractmethod
    def trust(self, value: float) -> None: ...

    @abstractmethod
    def logits(self, slates: Sequence[Slate], progress: Progress | None = None) -> list[np.ndarray]:
        """Corrected logits of each slate's candidates, float64 ``[C]`` each; those of a slate depend on that slate
        alone.

        Raises:
            DataError: logits that are not finite.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what it has learnt into an existing folder."""

    @abstractmethod
    def restore(self, folder: Path) -> Agent:
        """Take what :meth:`save` wrote.

        Raises:
            ValueError: what an agent with another backbone wrote.
        """

    def calibrate(self, slates: Sequence[Slate], logits: Sequence[np.ndarray]) -> float:
        """Choose how far the agent is trusted, by likelihood on slates that it has not learnt; 0 where it only harms.

        Args:
            slates: with targets.
            logits: of the candidates, by :meth:`logits` at full trust.

        Returns:
            the trust.
        """
        known = [(slate, corrected) for slate, corrected in zip(slates, logits, strict=True) if len(corrected) > 1]

        def loss(trust: float) -> float:
            total = 0.0
            for slate, corrected in known:
                values = slate.offset + trust * (corrected - slate.offset)
                total += float(np.logaddexp.reduce(values) - values[slate.target])
            return total / max(len(known), 1)

        best = minimize_scalar(loss, bounds=(0.0, 1.5), method="bounded") if known else None
        self.trust = float(best.x) if best is not None and best.fun < loss(0.0) else 0.0
        return self.trust


def checked(logits: list[np.ndarray]) -> list[np.ndarray]:
    """Corrected logits of slates, as they are.

    Raises:
        DataError: some that are not finite: a language model or weights that overflow.
    """
    for number, values in enumerate(logits):
        if not np.isfinite(values).all():
            raise DataError(f"agent: expected finite logits; got {values.tolist()} for slate {number}")
    return logits


def digest_of_weights(module: torch.nn.Module) -> str:
    """Tells weights from others of the same shapes, by a sample of each parameter; the same in float32 and bfloat16."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        values = parameter.detach().reshape(-1)
        sample = values[:: max(len(values) // _SAMPLED, 1)].bfloat16().view(torch.int16)
        digest.update(name.encode() + sample.cpu().numpy().tobytes())
    return digest.hexdigest()
