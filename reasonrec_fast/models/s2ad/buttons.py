"""Stage 2, Language Buttons: levels with names, one token each, whose probabilities are a score.

Level ``l`` of ``L`` stands for the percentile ``l / (L - 1)``: the worst for 0, the best for 1. A percentile between
two levels is both, by how near they are, and the expectation of the levels reads it back exactly, up to the ends of the
scale. The mass in each of ``L`` equal bins, read at their middles, would not: it is exact for wide positions alone, and
all percentiles in the outer half of an end bin would be one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.early_exit.heads import MAX_ANSWERS
from reasonrec_fast.models.s2ad.gaussian import expected_excess

DEFAULT_NAMES = ("bad", "poor", "fair", "good", "excellent")


class ButtonReading(NamedTuple):
    """What ``B`` rows of buttons say; differentiable but for ``levels``.

    Attributes:
        scores: expectations, in (0, 1) as far as float32 (float64) goes, ``[B]``.
        probabilities: of the levels, ``[B, L]``.
        levels: the most probable one, int64 ``[B]``.
    """

    scores: torch.Tensor
    probabilities: torch.Tensor
    levels: torch.Tensor


@dataclass(frozen=True)
class Buttons:
    """Levels, from the worst to the best.

    Attributes:
        names: ``L`` of them, two at least.
        token_ids: of each, in its place in the prompt.
    """

    names: tuple[str, ...]
    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= MAX_ANSWERS:
            raise ValueError(f"names: expected 2 to {MAX_ANSWERS} levels; got {len(self.names)}")
        if len(self.token_ids) != len(self.names):
            raise ValueError(f"token_ids: expected {len(self.names)}, one a level; got {len(self.token_ids)}")
        for level, token in enumerate(self.token_ids):
            if token in self.token_ids[:level]:
                raise ValueError(f"names: expected different tokens; got that of {self.names[level]!r} twice")

    @classmethod
    def of(
        cls, tokenizer: Any, names: Sequence[str] = DEFAULT_NAMES, *, before: str = "", space: bool = True
    ) -> Buttons:
        """Levels as a tokenizer writes them.

        Args:
            tokenizer: of the model.
            names: from the worst to the best.
            before: the end of the prompt, without a space at its end; a name may be written in other tokens behind it.
            space: whether a name follows with a space in front.

        Raises:
            TypeError: a single text in the place of names.
            ValueError: a name that is not one token in its place (the message has it), or fewer than two levels.
        """
        if isinstance(names, str):
            raise TypeError(f"names: expected several texts, the best last; got {names!r}")
        start = tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
        token_ids = []
        for name in names:
            text = f"{before}{' ' * space}{name}"
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            own = tokens[len(start) :]
            if tokens[: len(start)] != start or len(own) != 1 or not name.strip():
                raise ValueError(f"names: expected one token each behind {before!r}; got {name!r}, which is {len(own)}")
            token_ids.append(int(own[0]))
        return cls(tuple(names), tuple(token_ids))

    @property
    def values(self) -> torch.Tensor:
        """The percentile that each level stands for, float64 ``[L]``."""
        return torch.linspace(0, 1, len(self.names), dtype=torch.float64)

    def targets(self, percentiles: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """Target distribution of soft positions, float64 ``[B, L]``: each level's share of a normal distribution,
        linear between neighbouring levels; what is beyond the scale's ends is theirs.

        Args:
            percentiles: in [0, 1], ``[B]``.
            sigma: at least 0, ``[B]`` or a number.

        Raises:
            ValueError: a percentile or a sigma that is none (with its row).

        >>> Buttons(DEFAULT_NAMES, (1, 2, 3, 4, 5)).targets(torch.tensor([0.625]), 0.0).tolist()
        [[0.0, 0.0, 0.5, 0.5, 0.0]]
        """
        percentiles = percentiles.double()
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=percentiles.device).expand(percentiles.shape)
        checks = (
            ("percentiles", percentiles, (percentiles >= 0) & (percentiles <= 1), "numbers in [0, 1]"),
            ("sigma", sigma, (sigma >= 0) & sigma.isfinite(), "finite numbers of at least 0"),
        )
        for name, column, fits, expected in checks:
            if not fits.all():
                row = int((~fits).nonzero()[0])
                raise ValueError(f"{name}: expected {expected}; got {column[row].item()} in row {row}")
        values = self.values.to(percentiles.device)
        differences = percentiles[:, None] - values
        safe = torch.where(sigma > 0, sigma, 1.0)[:, None]
        excess = torch.where(
            sigma[:, None] > 0, sigma[:, None] * expected_excess(differences / safe), differences.clamp_min(0)
        )
        # How far the position is expected to be past each level on its way to the next, as a share of the step.
        share = ((excess[:, :-1] - excess[:, 1:]) * (len(values) - 1)).clamp(0, 1)
        ends = torch.ones_like(share[:, :1])
        shares = torch.cat([ends, share, torch.zeros_like(ends)], -1)
        return (shares[:, :-1] - shares[:, 1:]).clamp_min(0)

    def read(
        self, hidden: torch.Tensor, heads: torch.Tensor, *, bias: torch.Tensor | None = None, temperature: float = 1.0
    ) -> ButtonReading:
        """The score of each row, by ``ops.exit_confidence``, whose bits do not depend on the other rows.

        The operator gives the log-probability of one target a row, so that each row is given once a level.

        Args:
            hidden: final hidden states ``[B, D]``.
            heads: what reads each level, such as the LM head's rows of :attr:`token_ids`, ``[L, D]``.
            bias: ``[L]``.
            temperature: divides the logits.

        Raises:
            ValueError: shapes that do not fit.

        >>> Buttons(("bad", "good"), (1, 2)).read(torch.zeros(1, 3), torch.zeros(2, 3)).scores.tolist()
        [0.5]
        """
        count = len(self.names)
        if heads.dim() != 2 or len(heads) != count:
            raise ValueError(f"heads: expected one a level, [{count}, D]; got {list(heads.shape)}")
        levels = torch.arange(count, device=hidden.device).repeat(len(hidden))
        statistics = ops.exit_confidence(
            hidden.repeat_interleave(count, 0), heads, bias=bias, temperature=temperature, targets=levels
        )
        probabilities = statistics.target_logprob.view(len(hidden), count).exp()
        # A sum of each row alone: a product of matrices may depend on how many rows there are.
        scores = (probabilities * self.values.to(probabilities)).sum(-1)
        return ButtonReading(scores, probabilities, statistics.prediction.view(-1, count)[:, 0])

    def read_logits(self, logits: torch.Tensor, *, temperature: float = 1.0) -> ButtonReading:
        """:meth:`read` of logits of the levels, ``[B, L]``."""
        return self.read(logits, torch.eye(len(self.names)).to(logits), temperature=temperature)

    def named(self, levels: torch.Tensor | np.ndarray) -> list[str]:
        """The names of levels."""
        return [self.names[level] for level in np.asarray(levels).tolist()]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"names": list(self.names), "token_ids": list(self.token_ids)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Buttons:
        """What :meth:`to_dict` made."""
        return cls(tuple(values["names"]), tuple(values["token_ids"]))
