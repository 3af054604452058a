"""How unsure a query is, out of its chains of thought: numbers that a confidence or a router can learn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reasonrec_fast.arrays import as_count
from reasonrec_fast.models.reasonrec.chain import Chain
from reasonrec_fast.models.reasonrec.confidence import agreement
from reasonrec_fast.models.reasonrec.rationale import LEVELS

CHAIN_FEATURES = ("agreement", "answered", "finished", "entropy", "highest entropy", "logprob", "stated")
"""Columns of :func:`chain_features`."""


def stated_probability(stated: str | None) -> float:
    """The middle of what a stated confidence stands for; NaN for none.

    >>> stated_probability("high")
    0.7
    """
    return float("nan") if stated is None else (2 * LEVELS.index(stated) + 1) / (2 * len(LEVELS))


def chain_features(chains: Sequence[Chain], n: int = 1) -> np.ndarray:
    """What the chains of ``B`` queries say of their uncertainty, float32 ``[B, F]``, columns :data:`CHAIN_FEATURES`.

    Share of all chains that give the commonest answer (self-consistency, Wang et al. 2023; a chain without an answer
    agrees with none), shares that have an answer and that ended by themselves, mean and highest of the chains' mean
    entropies, mean log-probability of a token, mean of the confidences that they state. The last four are NaN where no
    chain has any.

    They stand beside :func:`~reasonrec_fast.models.reasonrec.confidence.ranking_features` for whoever learns from both.

    Args:
        chains: as :meth:`~reasonrec_fast.models.reasonrec.chain.ChainWriter.write` returns them.
        n: chains of a query.

    Raises:
        ValueError: a number of chains that is no multiple of ``n``.

    >>> tea, cut = Chain("", "tea", "high", 0.5, -0.5, True), Chain("", None, None, 2.0, -2.0, False)
    >>> chain_features([tea, tea, cut, cut], 2).round(2)[:, :6].tolist()
    [[1.0, 1.0, 1.0, 0.5, 0.5, -0.5], [0.0, 0.0, 0.0, 2.0, 2.0, -2.0]]
    """
    n = as_count(n, "n", 1)
    if len(chains) % n:
        raise ValueError(f"chains: expected a multiple of n = {n}; got {len(chains)}")
    rows = [list(chains[first : first + n]) for first in range(0, len(chains), n)]
    answers = [[chain.answer for chain in row if chain.answer is not None] for row in rows]
    answered = np.array([len(row) / n for row in answers])
    entropies = [[chain.entropy for chain in row] for row in rows]
    columns = [
        agreement(answers) * answered,
        answered,
        np.array([sum(chain.finished for chain in row) / n for row in rows]),
        np.array([_mean(row) for row in entropies]),
        np.array([max((value for value in row if not np.isnan(value)), default=np.nan) for row in entropies]),
        np.array([_mean([chain.logprob for chain in row]) for row in rows]),
        np.array([_mean([stated_probability(chain.stated) for chain in row]) for row in rows]),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else float("nan")
