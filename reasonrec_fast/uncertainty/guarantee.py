"""Exit thresholds with a guarantee: the loss against full depth is at most alpha, with probability 1 - delta.

Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052) by fixed-sequence testing. One half of the calibration
rows lays out a sequence of policies, from careful to bold; the other half tests them in that order, and the first that
cannot be shown to keep the promise ends it. The half that designs never tests, so no correction for the number of
policies is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from scipy.stats import binom

from reasonrec_fast.arrays import as_keys, as_numbers
from reasonrec_fast.uncertainty.thresholds import Limit, at_exits, choose_thresholds, simulate


@dataclass(frozen=True)
class Guarantee:
    """Thresholds that keep a promise.

    Attributes:
        thresholds: one an exit but the last; all ``inf`` where no bolder policy could be shown to keep the promise.
        alpha, delta: the promise: mean loss at most ``alpha``, with probability ``1 - delta`` over calibration sets.
        p_value: of the mean loss being above ``alpha``, on the rows that test.
        loss: mean loss on the rows that test.
        mean_depth: layers a row on the rows that test.
    """

    thresholds: tuple[float, ...]
    alpha: float
    delta: float
    p_value: float
    loss: float
    mean_depth: float


def guarantee_thresholds(
    losses: np.ndarray,
    confidence: np.ndarray,
    depths: Sequence[int],
    *,
    alpha: float,
    delta: float = 0.1,
    trend: bool = False,
    groups: np.ndarray | None = None,
    steps: int = 12,
    seed: int = 0,
    heads_from: int = 0,
) -> Guarantee:
    """The boldest policy that is shown to lose at most ``alpha``.

    Args:
        losses: of leaving at each exit, against full depth, in [0, 1], ``[E, N]``: disagreement of the predictions, for
            instance. Rows are independent draws of what is to come, but for those of one group.
        confidence: at each exit, ``[E, N]``.
        depths: layers of each exit.
        alpha: the largest mean loss, in (0, 1).
        delta: how often the promise may fail.
        trend: leave only where the confidence has not fallen since the exit before.
        groups: of each row, any keys ``[N]``, where rows go together (requests of one user); the groups are then the
            independent draws, and the promise is of the mean over groups of their mean loss.
        steps: policies in the sequence.
        seed: of the split in halves.
        heads_from: as of :func:`~reasonrec_fast.uncertainty.thresholds.simulate`.

    Raises:
        ValueError: an argument does not fit (argument, expected, got), or is NaN (with its exit as row, and its row as
            column).

    >>> generator = np.random.default_rng(0)
    >>> confidence = generator.random((2, 4000))
    >>> losses = np.stack([generator.random(4000) > confidence[0], np.zeros(4000)]).astype(float)
    >>> result = guarantee_thresholds(losses, confidence, [10, 30], alpha=0.1)
    >>> result.loss < 0.1, result.p_value <= 0.1, result.mean_depth < 30
    (True, True, True)
    """
    losses, confidence = as_numbers(losses, "losses", dims=2), at_exits(confidence, "confidence")
    if losses.shape != confidence.shape or losses.shape[0] != len(depths):
        raise ValueError(f"losses, confidence: expected [{len(depths)}, N]; got {losses.shape} and {confidence.shape}")
    if losses.size and not (losses.min() >= 0 and losses.max() <= 1):
        raise ValueError(f"losses: expected values in [0, 1]; got [{losses.min()}, {losses.max()}]")
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not isinstance(value, Real) or not 0 < value < 1:
            raise ValueError(f"{name}: expected a number in (0, 1); got {value!r}")
    group_index = np.arange(losses.shape[1]) if groups is None else as_keys(groups, "groups")[1]
    if groups is not None and len(group_index) != losses.shape[1]:
        raise ValueError(f"groups: expected [{losses.shape[1]}]; got {list(group_index.shape)}")
    count = int(group_index.max(initial=-1)) + 1
    if count < 2:
        raise ValueError(f"losses: expected at least 2 rows (or groups); got {count}")
    order = np.random.default_rng(seed).permutation(count)
    tests = np.zeros(count, dtype=bool)
    tests[order[count // 2 :]] = True
    design, test = (np.flatnonzero(tests[group_index] == wanted) for wanted in (False, True))

    def mean_of(rows: np.ndarray) -> Callable[[np.ndarray], float]:
        """Mean over the groups among some rows of their mean values."""
        _, places, sizes = np.unique(group_index[rows], return_inverse=True, return_counts=True)
        return lambda values: float((np.bincount(places, values) / sizes).mean())

    layers = np.asarray(depths)
    best = Guarantee((float("inf"),) * (len(depths) - 1), alpha, delta, 0.0, 0.0, float(layers[-1]))
    designed, tested = mean_of(design), mean_of(test)
    for step in range(1, steps + 1):
        limit = Limit(lambda values: -designed(values), alpha * step / steps)
        thresholds = choose_thresholds(
            losses[:, design], confidence[:, design], depths, [limit], trend=trend, heads_from=heads_from
        )
        lost, exits = simulate(losses[:, test], confidence[:, test], thresholds, trend=trend, heads_from=heads_from)
        loss = tested(lost)
        p_value = hoeffding_bentkus(loss, int(tests.sum()), alpha)
        if p_value > delta:
            break
        best = Guarantee(thresholds, alpha, delta, p_value, loss, float(layers[exits].mean()))
    return best


def hoeffding_bentkus(mean: float, rows: int, alpha: float) -> float:
    """A p-value of "the expected loss is above alpha" from the mean of independent losses in [0, 1].

    The smaller of Hoeffding's and Bentkus' bounds (Bates et al. 2021, arXiv 2101.02703, theorem 4).

    >>> round(hoeffding_bentkus(0.0, 100, 0.05), 4), hoeffding_bentkus(0.2, 100, 0.1)
    (0.0059, 1.0)
    """
    if mean >= alpha:
        return 1.0
    entropy = (1 - mean) * np.log((1 - mean) / (1 - alpha))
    if mean > 0:
        entropy += mean * np.log(mean / alpha)
    bentkus = np.e * binom.cdf(np.ceil(rows * mean), rows, alpha)
    return float(min(np.exp(-rows * entropy), bentkus, 1.0))
