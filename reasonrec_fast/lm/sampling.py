"""Sampling of the next token: settings, and draws that depend on a sequence's own seed and index alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from reasonrec_fast.devices import on_device
from reasonrec_fast.settings import Bound, Count, check_settings

_CANDIDATES = 1024
"""Number of most likely tokens that are sorted first on a CPU; for a larger nucleus the whole vocabulary is sorted."""


# Logits that are divided by it stay numbers of float32, and different.
_Divisor = Annotated[float, Bound("in [1e-30, 1e30]", lambda value: 1e-30 <= value <= 1e30)]
_DivisorOrZero = Annotated[
    float, Bound("that is 0 or in [1e-30, 1e30]", lambda value: value == 0 or 1e-30 <= value <= 1e30)
]


@dataclass(frozen=True)
class SamplingParams:
    """Settings of generation.

    Attributes:
        temperature: divides the logits, in [1e-30, 1e30]; 0 takes the most likely token (greedy).
        top_p: samples only the most likely tokens that together have this probability, above 0; 1 for all (nucleus
            sampling, Holtzman et al., arXiv 1904.09751). Applied after ``temperature`` and ``top_k``, as in
            transformers.
        top_k: only tokens that are as likely as the ``top_k``-th; None for all.
        num_samples: sequences of the request.
        max_new_tokens: maximum length of each sequence.
        stop: texts at which a sequence ends; its text ends before them. They need not end where a token ends.
        stop_token_ids: tokens at which a sequence ends; None for the model's own (``generation_config.eos_token_id``).
        seed: any whole number. The draws of a sequence depend on it and on the sequence's index in its request.
        statistics_temperature: temperature of the log-probabilities and entropies that are returned; with
            ``temperature`` itself they are the ``old_logprobs`` of ``ops.policy_loss``.

    Raises:
        ValueError: a setting without meaning (it is named).

    >>> SamplingParams(top_p=0)
    Traceback (most recent call last):
    ValueError: top_p: expected a finite number in (0, 1]; got 0
    """

    temperature: _DivisorOrZero = 1.0
    top_p: Annotated[float, Bound("in (0, 1]", lambda value: 0 < value <= 1)] = 1.0
    top_k: Count | None = None
    num_samples: Count = 1
    max_new_tokens: Count = 128
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] | None = None
    seed: int = 0
    statistics_temperature: _Divisor = 1.0

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_settings(self)
        if "" in self.stop:
            raise ValueError("stop: expected texts of at least one character; got ''")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def uniform_numbers(seed: int, sample: int, count: int) -> np.ndarray:
    """Uniform random numbers in [0, 1) for each token, float64 ``[count]``: Philox 4x64 (Salmon et al., 2011) keyed by
    seed and sample.

    Args:
        seed: any whole number, taken modulo 2⁶⁴.
        sample: index of the sequence in its request.
        count: of tokens; a longer series begins with the shorter series.

    >>> uniform_numbers(0, 1, 3)[:2].tolist() == uniform_numbers(0, 1, 2).tolist()
    True
    """
    key = np.array([seed % 2**64, sample], dtype=np.uint64)
    return (np.random.Philox(key=key).random_raw(count) >> np.uint64(11)) * 2.0**-53


def draw_tokens(logits: torch.Tensor, params: list[SamplingParams], uniform: torch.Tensor) -> torch.Tensor:
    """A token of each row by inversion: the first whose cumulative probability exceeds the row's number.

    A row's token depends on nothing but its own logits, settings and number. On a CPU the whole vocabulary is sorted
    only if the nucleus is larger than the :data:`_CANDIDATES` most likely tokens.

    Args:
        logits: float32 ``[B, V]``.
        params: of each row; none greedy.
        uniform: numbers in [0, 1), float64 ``[B]``.

    Returns:
        int64 ``[B]``.
    """
    device, vocabulary = logits.device, logits.shape[1]
    temperatures = on_device(np.array([p.temperature for p in params], dtype=np.float32), device)
    logits = logits / temperatures[:, None]
    truncated = np.array([p.top_p < 1 or (p.top_k or vocabulary) < vocabulary for p in params])
    tokens = torch.empty(len(logits), dtype=torch.int64, device=device)
    for part, of_part in ((False, _of_all), (True, _of_most_likely)):
        rows = np.flatnonzero(truncated == part)
        if len(rows):
            at = on_device(rows, device)
            some = logits if len(rows) == len(logits) else logits[at]
            tokens[at] = of_part(some, [params[row] for row in rows], uniform[at])
    return tokens


def _of_all(logits: torch.Tensor, params: list[SamplingParams], uniform: torch.Tensor) -> torch.Tensor:
    return _invert(logits.softmax(-1).cumsum(-1, dtype=torch.float64), uniform)


def _of_most_likely(logits: torch.Tensor, params: list[SamplingParams], uniform: torch.Tensor) -> torch.Tensor:
    vocabulary = logits.shape[1]
    wanted = max(p.top_k or 0 for p in params)
    # On a GPU, reading back the number of rows that need more would synchronise.
    count = min(max(_CANDIDATES, 2 * wanted), vocabulary) if logits.device.type == "cpu" else vocabulary
    tokens, whole = _nucleus(logits, params, uniform, count)
    if count < vocabulary:
        more = torch.nonzero(~whole)[:, 0]
        if len(more):
            tokens[more] = _nucleus(logits[more], [params[row] for row in more.tolist()], uniform[more], vocabulary)[0]
    return tokens


def _nucleus(
    logits: torch.Tensor, params: list[SamplingParams], uniform: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``[B]`` drawn among the ``count`` most likely, and whether these contain the whole nucleus."""
    vocabulary, device = logits.shape[1], logits.device
    top_p = on_device(np.array([p.top_p for p in params]), device)[:, None]
    top_k = on_device(np.array([min(p.top_k or vocabulary, vocabulary) for p in params]), device)[:, None]
    values, order = logits.topk(count, -1)
    # Tokens as likely as the k-th are kept, including ties. Rows without a top_k keep all tokens.
    last = values.gather(1, (top_k - 1).clamp(max=count - 1))
    of_top_k = (values >= last) | (top_k == vocabulary)
    shares = torch.where(of_top_k, logits.softmax(-1).gather(1, order), 0.0).double()
    sums = shares.cumsum(-1)
    total = torch.where(top_k == vocabulary, 1.0, sums[:, -1:])
    # A token is kept if the more likely tokens do not have top_p already; the first is always kept.
    kept = of_top_k & ((sums - shares < top_p * total) | (top_p == 1))
    kept[:, 0] = True
    drawn = _invert(torch.where(kept, shares, 0.0).cumsum(-1), uniform)
    return order.gather(1, drawn[:, None])[:, 0], ~kept[:, -1]


def _invert(sums: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index of the first cumulative sum above ``uniform`` times the last sum: never a token of probability 0."""
    total = sums[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # Sums of logits that are not finite have no such index; on a GPU one beyond the vocabulary would end the process.
    return torch.searchsorted(sums, target, right=True)[:, 0].clamp(max=sums.shape[1] - 1)
