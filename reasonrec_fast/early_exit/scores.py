"""What early exit answers: scores of rows, and how deep each was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reasonrec_fast.arrays import as_numbers
from reasonrec_fast.ops.exit_confidence import Measure, exit_confidence


@dataclass(frozen=True)
class RowScores:
    """Scores of ``R`` rows, in the order in which they were given, on the device of the model.

    Attributes:
        probability: of the positive answer, which is the last, float32 ``[R]``.
        depth: layers that the row went through, int64 ``[R]``.
        distribution: of more than two answers, the probabilities of all, float32 ``[R, L]``; None for two.
    """

    probability: torch.Tensor
    depth: torch.Tensor
    distribution: torch.Tensor | None = None

    @classmethod
    def empty(cls, rows: int, num_answers: int, device: torch.device) -> RowScores:
        """Room for the scores of ``rows`` rows."""
        return cls(
            torch.empty(rows, dtype=torch.float32, device=device),
            torch.empty(rows, dtype=torch.int64, device=device),
            torch.empty(rows, num_answers, dtype=torch.float32, device=device) if num_answers > 2 else None,
        )

    @property
    def probabilities(self) -> torch.Tensor:
        """Of all answers, float32 ``[R, L]``.

        >>> RowScores(torch.tensor([0.25]), torch.tensor([3])).probabilities.tolist()
        [[0.75, 0.25]]
        """
        if self.distribution is not None:
            return self.distribution
        return torch.stack([1 - self.probability, self.probability], -1)

    @property
    def prediction(self) -> torch.Tensor:
        """Index of the likeliest answer, int64 ``[R]``; the lowest of those that are equally likely."""
        return self.probabilities.argmax(-1)

    def expected(self, levels: Sequence[float]) -> torch.Tensor:
        """Mean of values that the answers stand for, under their probabilities, float32 ``[R]``.

        Args:
            levels: of each answer, ``[L]``; such as 1 to 5 for five words from bad to good.

        Raises:
            ValueError: not one finite number an answer.

        >>> RowScores(torch.tensor([0.25]), torch.tensor([3])).expected([1.0, 5.0]).tolist()
        [2.0]
        """
        probabilities = self.probabilities
        values = checked_levels(levels, probabilities.shape[1])
        return probabilities @ torch.tensor(values, dtype=probabilities.dtype, device=probabilities.device)

    def put(self, rows: torch.Tensor | slice, scores: RowScores) -> None:
        """Write scores of some of the rows."""
        self.probability[rows], self.depth[rows] = scores.probability, scores.depth
        if self.distribution is not None:
            self.distribution[rows] = scores.probabilities

    def split(self, sizes: Sequence[int]) -> list[RowScores]:
        """Scores of parts that lie one after the other."""
        fields = (self.probability, self.depth, self.distribution)
        parts = [[None] * len(sizes) if field is None else field.split(list(sizes)) for field in fields]
        return [RowScores(*part) for part in zip(*parts, strict=True)]  # type: ignore[arg-type]

    def cpu(self) -> RowScores:
        """The same on the CPU."""
        distribution = None if self.distribution is None else self.distribution.cpu()
        return RowScores(self.probability.cpu(), self.depth.cpu(), distribution)


def put_logits(scores: RowScores, logits: torch.Tensor) -> None:
    """Write probabilities of all rows: from the logits ``[R]`` of the second of two answers, or from those of all
    ``[R, L]``."""
    if scores.distribution is None:
        scores.probability.copy_(torch.sigmoid(logits.float()))
    else:
        scores.distribution.copy_(logits.float().softmax(-1))
        scores.probability.copy_(scores.distribution[:, -1])


def checked_levels(levels: Sequence[float], count: int) -> np.ndarray:
    """What answers stand for, float64 ``[L]``.

    Raises:
        ValueError: not one finite number for each of ``count`` answers.
    """
    values = as_numbers(levels, "levels")
    if len(values) != count:
        raise ValueError(f"levels: expected {count}, one an answer; got {len(values)}")
    return values


def logit_confidence(logits: torch.Tensor | np.ndarray, measure: Measure, num_answers: int = 2) -> np.ndarray:
    """The confidence that ``exit_confidence`` gives logits, float64.

    Args:
        logits: of the second of two answers, of any shape, which is that of the result; of more answers those of all
            ``[N, L]``, and the result is ``[N]``.
        measure: of the confidence.
        num_answers: ``L``.

    >>> logit_confidence(np.array([0.0, 2.0]), "ratio").tolist()
    [0.0, 2.0]
    >>> logit_confidence(np.array([[0.0, 0.0, 0.0]]), "margin", 3).tolist()
    [0.0]
    """
    values = torch.as_tensor(logits).detach().cpu().double()
    if num_answers > 2:
        return exit_confidence(values, torch.eye(num_answers, dtype=torch.float64), measure=measure).confidence.numpy()
    heads = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return exit_confidence(values.reshape(-1, 1), heads, measure=measure).confidence.reshape(values.shape).numpy()
