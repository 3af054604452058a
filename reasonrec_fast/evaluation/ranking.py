"""Ranking metrics: one value per user, for averages, strata and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reasonrec_fast.arrays import as_count, as_index, as_numbers, same_length
from reasonrec_fast.data.histories import Histories
from reasonrec_fast.data.negatives import NegativeSampler

Relevant = Histories | Sequence[Sequence[int]]


def hits(ranked: np.ndarray, relevant: Relevant) -> np.ndarray:
    """Which of the ranked items are relevant, bool ``[B, k]``; a repeated item is a hit only at its first rank.

    Args:
        ranked: items of each row, best first, integers ``[B, k]``; -1 for none.
        relevant: the relevant items of each row, one list per row.

    Raises:
        ValueError: another number of lists than rows, or an invalid item (with its row).

    >>> hits(np.array([[4, 2]]), Histories.from_lists([[2, 7]])).tolist()
    [[False, True]]
    """
    ranked = as_index(ranked, "ranked", least=-1, dims=2)
    relevant = _distinct(relevant, len(ranked))
    if not len(relevant.items):
        return np.zeros(ranked.shape, dtype=bool)
    item_ids = np.unique(relevant.items)  # ids may be arbitrarily large: use their index among the distinct ones
    relevant_keys = np.repeat(np.arange(len(ranked)), relevant.lengths) * len(item_ids) + np.searchsorted(
        item_ids, relevant.items
    )
    index = np.minimum(np.searchsorted(item_ids, ranked), len(item_ids) - 1)
    ranked_keys = np.where(item_ids[index] == ranked, np.arange(len(ranked))[:, None] * len(item_ids) + index, -1)
    hit = relevant_keys[np.minimum(np.searchsorted(relevant_keys, ranked_keys), len(relevant_keys) - 1)] == ranked_keys
    order = np.argsort(ranked, axis=1, kind="stable")
    ordered = np.take_along_axis(ranked, order, 1)
    is_repeat = np.zeros(ranked.shape, dtype=bool)
    np.put_along_axis(is_repeat, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return hit & ~is_repeat


def _distinct(relevant: Relevant, rows: int) -> Histories:
    if not isinstance(relevant, Histories):
        relevant = Histories.from_lists(relevant)
    relevant = relevant.checked()
    if rows != relevant.num_users:
        raise ValueError(f"relevant: expected {rows} lists, one a row; got {relevant.num_users}")
    return relevant.distinct()


class Ties(NamedTuple):
    """Which of the ranked items have equal scores, so that their order means nothing.

    Attributes:
        scores: of the ranked items, best first, ``[B, K]``.
        outside: how many further items of each row have the score of its last ranked item, integers ``[B]``.
        relevant_outside: how many of these are relevant, integers ``[B]``.
    """

    scores: np.ndarray
    outside: np.ndarray
    relevant_outside: np.ndarray


def ranking_metrics(
    ranked: np.ndarray, relevant: Relevant, ks: Sequence[int], *, ties: Ties | None = None
) -> dict[str, np.ndarray]:
    """HR, recall and NDCG at every ``k`` and the reciprocal rank, of each row.

    Duplicates count once, both among relevant and among ranked items.

    Args:
        ranked: items of each row, best first, integers ``[B, K]``; -1 for none.
        relevant: the relevant items of each row, one list per row; rows without any are NaN.
        ks: cutoffs, at most ``K``.
        ties: a metric is then its expectation over all orders of the items that have equal scores (McSherry and Najork
            2008), and does not depend on the order in which they came: an order of item numbers may know the future.

    Returns:
        ``hr@k``, ``recall@k``, ``ndcg@k`` (binary gains) and ``mrr@K``, float64 ``[B]`` each.

    Raises:
        ValueError: a cutoff above ``K``, another number of lists than rows, or an invalid item (with its row).

    >>> metrics = ranking_metrics(np.array([[4, 2, 9]]), Histories.from_lists([[2]]), [1, 3])
    >>> {name: round(float(value[0]), 3) for name, value in metrics.items()}
    {'hr@1': 0.0, 'recall@1': 0.0, 'ndcg@1': 0.0, 'hr@3': 1.0, 'recall@3': 1.0, 'ndcg@3': 0.631, 'mrr@3': 0.5}
    >>> ties = Ties(np.array([[5.0, 5.0, 1.0]]), np.array([0]), np.array([0]))
    >>> ranking_metrics(np.array([[4, 2, 9]]), Histories.from_lists([[2]]), [1], ties=ties)["hr@1"].tolist()
    [0.5]
    """
    ranked = as_index(ranked, "ranked", least=-1, dims=2)
    relevant = _distinct(relevant, len(ranked))
    width, ks = ranked.shape[1], [as_count(k, "ks") for k in ks]
    if any(not 1 <= k <= width for k in ks):
        raise ValueError(f"ks: expected cutoffs in [1, {width}]; got {list(ks)}")
    hit, sizes = hits(ranked, relevant), relevant.lengths
    # Of each rank: the probability that its item is relevant, and that those up to it are the first that are.
    expected, any_hit = (hit, np.maximum.accumulate(hit, axis=1)) if ties is None else _expected_hits(hit, ties)
    valid = np.where(sizes > 0, 1.0, np.nan)
    discount = 1 / np.log2(np.arange(width) + 2)
    ideal = np.cumsum(discount)
    metrics = {}
    for k in ks:
        ideal_hits = np.maximum(np.minimum(sizes, k), 1)
        metrics[f"hr@{k}"] = any_hit[:, k - 1] * valid
        metrics[f"recall@{k}"] = expected[:, :k].sum(1) / np.maximum(sizes, 1) * valid
        metrics[f"ndcg@{k}"] = (expected[:, :k] * discount[:k]).sum(1) / ideal[ideal_hits - 1] * valid
    first = np.diff(any_hit.astype(np.float64), prepend=0.0, axis=1)
    metrics[f"mrr@{width}"] = (first / (np.arange(width) + 1)).sum(1) * valid
    return metrics


def _expected_hits(hit: np.ndarray, ties: Ties) -> tuple[np.ndarray, np.ndarray]:
    """Of each rank, over all orders of equal scores: the probability that its item is relevant, and that one of the
    items down to it is, float64 ``[B, K]`` both."""
    rows, width = hit.shape
    starts = np.ones(hit.shape, dtype=bool)
    starts[:, 1:] = ties.scores[:, 1:] != ties.scores[:, :-1]
    group = np.cumsum(starts, axis=1) - 1 + np.arange(rows)[:, None] * width  # a number for each group of equal scores
    size = np.bincount(group.ravel(), minlength=rows * width).astype(np.float64)
    among = np.bincount(group.ravel(), hit.ravel().astype(np.float64), minlength=rows * width)
    if width:
        size[group[:, -1]] += ties.outside
        among[group[:, -1]] += ties.relevant_outside
    ranks = np.arange(width)
    offset = ranks - np.maximum.accumulate(np.where(starts, ranks, 0), axis=1)  # within the group
    # None found so far: the next is one of the relevant of its group among those of the group that are left.
    none = np.cumprod(1 - np.minimum(among[group] / np.maximum(size[group] - offset, 1), 1), axis=1)
    return among[group] / size[group], 1 - none


def coverage(ranked: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is recommended to at least one user.

    Args:
        ranked: integers ``[B, k]``; -1 for none.
        num_items: of the catalogue, at least 1.

    Raises:
        ValueError: an item outside the catalogue (with its row).

    >>> coverage(np.array([[0, 1], [1, -1]]), 4)
    0.5
    """
    num_items = as_count(num_items, "num_items", 1)
    ranked = as_index(ranked, "ranked", num_items, least=-1, dims=2)
    return len(np.unique(ranked[ranked >= 0])) / num_items


def novelty(ranked: np.ndarray, counts: np.ndarray) -> float:
    """Mean self-information of the recommended items, in bits: ``-log2`` of an item's share of the training events
    (with one event added to every item); NaN if nothing is recommended.

    Args:
        ranked: integers ``[B, k]``; -1 for none.
        counts: training events of every item, integers ``[I]``.

    Raises:
        ValueError: an item without a count, or a count below 0 (with its row).

    >>> novelty(np.array([[1]]), np.array([5, 1]))
    2.0
    """
    counts = as_index(counts, "counts")
    ranked = as_index(ranked, "ranked", len(counts), least=-1, dims=2)
    information = -np.log2((counts + 1) / (counts + 1).sum())
    recommended = information[ranked[ranked >= 0]]
    return float(recommended.mean()) if len(recommended) else float("nan")


def popularity_strata(items: np.ndarray, counts: np.ndarray, parts: int = 3) -> np.ndarray:
    """Popularity stratum of each item, int64 ``[B]``: 0 for the most popular items, which together have a
    ``parts``-th of all training events, 1 for those with the next ``parts``-th, and so on. Items with as many events
    are in the same stratum.

    Args:
        items: integers ``[B]``, such as each row's target.
        counts: training events of every item, integers ``[I]``.
        parts: number of strata, at least 1.

    Raises:
        ValueError: an item without a count, or a count below 0 (with its row).

    >>> popularity_strata(np.array([0, 1, 2]), np.array([4, 2, 2]), 2).tolist()
    [0, 1, 1]
    """
    counts, parts = as_index(counts, "counts"), as_count(parts, "parts", 1)
    items = as_index(items, "items", len(counts))
    descending = -np.sort(-counts)
    before = np.append(0, np.cumsum(descending))[np.searchsorted(-descending, -counts)]  # events of items with more
    return np.minimum(before * parts // max(int(counts.sum()), 1), parts - 1)[items]


def by_stratum(values: np.ndarray, strata: np.ndarray) -> dict[int, float]:
    """Mean of the values of every stratum; NaN values are skipped, and a stratum of only NaN is NaN.

    Args:
        values: ``[B]``.
        strata: integers ``[B]``.

    Raises:
        ValueError: not vectors of one length.

    >>> by_stratum(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 2]))
    {0: 0.5, 2: 1.0}
    """
    values, strata = as_numbers(values, "values", nan=True), as_index(strata, "strata", least=-(2**63))
    same_length(values=values, strata=strata)
    parts = {int(stratum): values[(strata == stratum) & ~np.isnan(values)] for stratum in np.unique(strata)}
    return {stratum: float(part.mean()) if len(part) else float("nan") for stratum, part in parts.items()}


def sampled_candidates(
    targets: np.ndarray, users: np.ndarray, histories: Histories, num_items: int, *, negatives: int = 99, seed: int = 0
) -> np.ndarray:
    """Candidates of the sampled evaluation protocol: each row's target, then negatives that the user has not seen.

    Sampled metrics may order systems differently from metrics over all items (Krichene and Rendle 2020); use them to
    compare with papers that report them.

    Args:
        targets, users: integers ``[B]``.
        histories: items that are not drawn for each user, usually all seen items, liked or not
            (:meth:`~reasonrec_fast.data.Histories.seen`); a user's targets are never drawn.
        num_items: ``I``.
        negatives: distinct negatives per row.
        seed: of the random numbers.

    Returns:
        int64 ``[B, 1 + negatives]``.

    Raises:
        ValueError: a target or user out of range, or a user with fewer unseen items than ``negatives`` (with the row).

    >>> sampled_candidates(np.array([3]), np.array([0]), Histories.from_lists([[1, 3]]), 4, negatives=2)[0, 0]
    np.int64(3)
    """
    targets = as_index(targets, "targets", as_count(num_items, "num_items", 1))
    histories = histories.checked(num_items)
    users = histories.known(users)
    same_length(targets=targets, users=users)
    history_users = np.concatenate([np.repeat(np.arange(histories.num_users), histories.lengths), users])
    excluded = Histories.from_pairs(histories.num_users, history_users, np.concatenate([histories.items, targets]))
    sampler = NegativeSampler(excluded, num_items)
    drawn = sampler.draw(users, negatives, np.random.default_rng(seed), distinct=True)
    return np.concatenate([targets[:, None], drawn], 1)


def rank_candidates(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Candidates by descending score. Ties put the later candidate first: since the target is first, a model with
    constant scores gets no hit.

    Args:
        candidates: integers ``[B, C]``.
        scores: ``[B, C]``.

    Raises:
        ValueError: another shape of scores than of candidates, or a NaN score (with its row).

    >>> rank_candidates(np.array([[7, 8, 9]]), np.array([[0.5, 0.5, 0.1]])).tolist()
    [[8, 7, 9]]
    """
    candidates = as_index(candidates, "candidates", least=-(2**63), dims=2)
    scores = as_numbers(scores, "scores", dims=2, infinite=True)
    if scores.shape != candidates.shape:
        raise ValueError(f"scores: expected {list(candidates.shape)}, as candidates have; got {list(scores.shape)}")
    order = np.argsort(-scores[:, ::-1], axis=1, kind="stable")
    return np.take_along_axis(candidates, candidates.shape[1] - 1 - order, 1)
