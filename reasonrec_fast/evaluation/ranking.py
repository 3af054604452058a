"""Metrics of ranked items: one value a user, to be averaged, divided into strata, compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reasonrec_fast.data.histories import Histories
from reasonrec_fast.data.negatives import NegativeSampler


def hits(ranked: np.ndarray, relevant: Histories) -> np.ndarray:
    """Which of the ranked items are relevant, bool ``[B, k]``.

    Args:
        ranked: items of each row, best first, int64 ``[B, k]``; -1 for none.
        relevant: what each row should have found.

    Raises:
        ValueError: not one list of relevant items a row.

    >>> hits(np.array([[4, 2]]), Histories.from_lists([[2, 7]])).tolist()
    [[False, True]]
    """
    if len(ranked) != relevant.num_users:
        raise ValueError(f"relevant: expected {len(ranked)} lists, one a row; got {relevant.num_users}")
    width = max(int(ranked.max(initial=0)), int(relevant.items.max(initial=0))) + 1
    keys = np.sort(np.repeat(np.arange(relevant.num_users), relevant.lengths) * width + relevant.items)
    asked = np.arange(len(ranked))[:, None] * width + ranked
    places = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    return (keys[places] == asked) & (ranked >= 0) if len(keys) else np.zeros(ranked.shape, dtype=bool)


def ranking_metrics(ranked: np.ndarray, relevant: Histories, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """HR, recall and NDCG at every ``k`` and the reciprocal rank, of each row.

    Args:
        ranked: items of each row, best first, int64 ``[B, K]``; -1 for none.
        relevant: what each row should have found; rows without any are NaN.
        ks: cutoffs, at most ``K``.

    Returns:
        ``hr@k``, ``recall@k``, ``ndcg@k`` (binary gains) and ``mrr@K``, float64 ``[B]`` each.

    Raises:
        ValueError: a cutoff beyond the lists.

    >>> found = ranking_metrics(np.array([[4, 2, 9]]), Histories.from_lists([[2]]), [1, 3])
    >>> {name: round(float(value[0]), 3) for name, value in found.items()}
    {'hr@1': 0.0, 'recall@1': 0.0, 'ndcg@1': 0.0, 'hr@3': 1.0, 'recall@3': 1.0, 'ndcg@3': 0.631, 'mrr@3': 0.5}
    """
    width = ranked.shape[1]
    if any(not 1 <= k <= width for k in ks):
        raise ValueError(f"ks: expected cutoffs in [1, {width}]; got {list(ks)}")
    hit, sizes = hits(ranked, relevant), relevant.lengths
    known = np.where(sizes > 0, 1.0, np.nan)
    discount = 1 / np.log2(np.arange(width) + 2)
    ideal = np.cumsum(discount)
    found = {}
    for k in ks:
        wanted = np.maximum(np.minimum(sizes, k), 1)
        found[f"hr@{k}"] = hit[:, :k].any(1) * known
        found[f"recall@{k}"] = hit[:, :k].sum(1) / np.maximum(sizes, 1) * known
        found[f"ndcg@{k}"] = (hit[:, :k] * discount[:k]).sum(1) / ideal[wanted - 1] * known
    found[f"mrr@{width}"] = np.where(hit.any(1), 1 / (hit.argmax(1) + 1), 0.0) * known
    return found


def coverage(ranked: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is recommended to anybody.

    >>> coverage(np.array([[0, 1], [1, -1]]), 4)
    0.5
    """
    return len(np.unique(ranked[ranked >= 0])) / num_items


def novelty(ranked: np.ndarray, counts: np.ndarray) -> float:
    """Mean self-information of what is recommended, in bits: ``-log2`` of an item's share of the training events
    (one event is added to every item).

    Args:
        ranked: int64 ``[B, k]``; -1 for none.
        counts: training events of every item, ``[I]``.

    >>> novelty(np.array([[1]]), np.array([5, 1]))
    2.0
    """
    information = -np.log2((counts + 1) / (counts + 1).sum())
    return float(information[ranked[ranked >= 0]].mean())


def popularity_strata(items: np.ndarray, counts: np.ndarray, parts: int = 3) -> np.ndarray:
    """Which part of the training events each item's popularity lies in: 0 for the most popular items, which have a
    ``parts``-th of all events together, and so on, int64 ``[B]``.

    Args:
        items: int64 ``[B]``, such as each row's target.
        counts: training events of every item, ``[I]``.
        parts: how many.

    >>> popularity_strata(np.array([0, 1, 2]), np.array([4, 2, 2]), 2).tolist()
    [0, 1, 1]
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    part = np.empty(len(counts), dtype=np.int64)
    part[order] = np.minimum(before * parts // max(int(counts.sum()), 1), parts - 1)
    return part[items]


def by_stratum(values: np.ndarray, strata: np.ndarray) -> dict[int, float]:
    """Mean of the values (NaN left out) of every stratum.

    >>> by_stratum(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 2]))
    {0: 0.5, 2: 1.0}
    """
    return {int(stratum): float(np.nanmean(values[strata == stratum])) for stratum in np.unique(strata)}


def sampled_candidates(
    targets: np.ndarray, users: np.ndarray, histories: Histories, num_items: int, *, negatives: int = 99, seed: int = 0
) -> np.ndarray:
    """Candidates of the sampled protocol: each row's target first, then negatives that the user has not had.

    Metrics over samples need not order systems as those over all items do (Krichene and Rendle 2020); they are for
    comparison with papers that use them.

    Args:
        targets, users: int64 ``[B]``.
        histories: of every user, targets included.
        num_items: ``I``.
        negatives: how many, distinct.
        seed: of the draw.

    Returns:
        int64 ``[B, 1 + negatives]``.

    >>> sampled_candidates(np.array([3]), np.array([0]), Histories.from_lists([[1, 3]]), 4, negatives=2)[0, 0]
    np.int64(3)
    """
    sampler = NegativeSampler(histories, num_items)
    drawn = sampler.draw(users, negatives, np.random.default_rng(seed), distinct=True)
    return np.concatenate([targets[:, None], drawn], 1)


def rank_candidates(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Candidates by falling score; of equal scores the one that stands later comes first, so that a model that tells
    nothing apart finds no target.

    Args:
        candidates, scores: ``[B, C]``.

    >>> rank_candidates(np.array([[7, 8, 9]]), np.array([[0.5, 0.5, 0.1]])).tolist()
    [[8, 7, 9]]
    """
    order = np.argsort(-scores[:, ::-1], axis=1, kind="stable")
    return np.take_along_axis(candidates, candidates.shape[1] - 1 - order, 1)
