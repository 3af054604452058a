"""Metrics of ranked items: one value a user, to be averaged, divided into strata, compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reasonrec_fast.arrays import as_count, as_index, as_numbers, same_length
from reasonrec_fast.data.histories import Histories
from reasonrec_fast.data.negatives import NegativeSampler

Relevant = Histories | Sequence[Sequence[int]]


def hits(ranked: np.ndarray, relevant: Relevant) -> np.ndarray:
    """Which of the ranked items are relevant, bool ``[B, k]``; an item that is ranked twice is found once, at first.

    Args:
        ranked: items of each row, best first, integers ``[B, k]``; -1 for none.
        relevant: what each row should have found, one list a row.

    Raises:
        ValueError: not one list of relevant items a row, or what is no item (with its row).

    >>> hits(np.array([[4, 2]]), Histories.from_lists([[2, 7]])).tolist()
    [[False, True]]
    """
    ranked = as_index(ranked, "ranked", least=-1, dims=2)
    relevant = _distinct(relevant, len(ranked))
    if not len(relevant.items):
        return np.zeros(ranked.shape, dtype=bool)
    known = np.unique(relevant.items)  # identifiers of any size become places
    keys = np.repeat(np.arange(len(ranked)), relevant.lengths) * len(known) + np.searchsorted(known, relevant.items)
    place = np.minimum(np.searchsorted(known, ranked), len(known) - 1)
    asked = np.where(known[place] == ranked, np.arange(len(ranked))[:, None] * len(known) + place, -1)
    hit = keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked
    order = np.argsort(ranked, axis=1, kind="stable")
    ordered = np.take_along_axis(ranked, order, 1)
    again = np.zeros(ranked.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return hit & ~again


def _distinct(relevant: Relevant, rows: int) -> Histories:
    if not isinstance(relevant, Histories):
        relevant = Histories.from_lists(relevant)
    relevant = relevant.checked()
    if rows != relevant.num_users:
        raise ValueError(f"relevant: expected {rows} lists, one a row; got {relevant.num_users}")
    return relevant.distinct()


def ranking_metrics(ranked: np.ndarray, relevant: Relevant, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """HR, recall and NDCG at every ``k`` and the reciprocal rank, of each row.

    Relevant items are a set: one that stands there twice counts once, and one that is ranked twice is found once.

    Args:
        ranked: items of each row, best first, integers ``[B, K]``; -1 for none.
        relevant: what each row should have found, one list a row; rows without any are NaN.
        ks: cutoffs, at most ``K``.

    Returns:
        ``hr@k``, ``recall@k``, ``ndcg@k`` (binary gains) and ``mrr@K``, float64 ``[B]`` each.

    Raises:
        ValueError: a cutoff beyond the lists, not one list of relevant items a row, or what is no item (with its row).

    >>> found = ranking_metrics(np.array([[4, 2, 9]]), Histories.from_lists([[2]]), [1, 3])
    >>> {name: round(float(value[0]), 3) for name, value in found.items()}
    {'hr@1': 0.0, 'recall@1': 0.0, 'ndcg@1': 0.0, 'hr@3': 1.0, 'recall@3': 1.0, 'ndcg@3': 0.631, 'mrr@3': 0.5}
    """
    ranked = as_index(ranked, "ranked", least=-1, dims=2)
    relevant = _distinct(relevant, len(ranked))
    width, ks = ranked.shape[1], [as_count(k, "ks") for k in ks]
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
    first = hit.argmax(1) if width else np.zeros(len(hit))
    found[f"mrr@{width}"] = np.where(hit.any(1), 1 / (first + 1), 0.0) * known
    return found


def coverage(ranked: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is recommended to anybody.

    Args:
        ranked: integers ``[B, k]``; -1 for none.
        num_items: of the catalogue, at least 1.

    Raises:
        ValueError: an item that the catalogue does not have (with its row).

    >>> coverage(np.array([[0, 1], [1, -1]]), 4)
    0.5
    """
    num_items = as_count(num_items, "num_items", 1)
    ranked = as_index(ranked, "ranked", num_items, least=-1, dims=2)
    return len(np.unique(ranked[ranked >= 0])) / num_items


def novelty(ranked: np.ndarray, counts: np.ndarray) -> float:
    """Mean self-information of what is recommended, in bits: ``-log2`` of an item's share of the training events
    (one event is added to every item); NaN where nothing is recommended.

    Args:
        ranked: integers ``[B, k]``; -1 for none.
        counts: training events of every item, whole numbers ``[I]``.

    Raises:
        ValueError: an item without a count, or a count below 0 (with its row).

    >>> novelty(np.array([[1]]), np.array([5, 1]))
    2.0
    """
    counts = as_index(counts, "counts")
    ranked = as_index(ranked, "ranked", len(counts), least=-1, dims=2)
    information = -np.log2((counts + 1) / (counts + 1).sum())
    given = information[ranked[ranked >= 0]]
    return float(given.mean()) if len(given) else float("nan")


def popularity_strata(items: np.ndarray, counts: np.ndarray, parts: int = 3) -> np.ndarray:
    """Which part of the training events each item's popularity lies in: 0 for the most popular items, which have a
    ``parts``-th of all events together, and so on, int64 ``[B]``.

    Args:
        items: integers ``[B]``, such as each row's target.
        counts: training events of every item, whole numbers ``[I]``.
        parts: how many, at least 1.

    Raises:
        ValueError: an item without a count, or a count below 0 (with its row).

    >>> popularity_strata(np.array([0, 1, 2]), np.array([4, 2, 2]), 2).tolist()
    [0, 1, 1]
    """
    counts, parts = as_index(counts, "counts"), as_count(parts, "parts", 1)
    items = as_index(items, "items", len(counts))
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    part = np.empty(len(counts), dtype=np.int64)
    part[order] = np.minimum(before * parts // max(int(counts.sum()), 1), parts - 1)
    return part[items]


def by_stratum(values: np.ndarray, strata: np.ndarray) -> dict[int, float]:
    """Mean of the values (NaN left out; NaN where nothing else is there) of every stratum.

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
    """Candidates of the sampled protocol: each row's target first, then negatives that the user has not had.

    Metrics over samples need not order systems as those over all items do (Krichene and Rendle 2020); they are for
    comparison with papers that use them.

    Args:
        targets, users: integers ``[B]``.
        histories: what is not to be drawn, of every user, who may have liked it or not
            (:meth:`~reasonrec_fast.data.Histories.had`); a user's targets are not drawn, whether in it or not.
        num_items: ``I``.
        negatives: how many, distinct.
        seed: of the draw.

    Returns:
        int64 ``[B, 1 + negatives]``.

    Raises:
        ValueError: a target or user out of range, or a user who has had so much that too little is left (with the row).

    >>> sampled_candidates(np.array([3]), np.array([0]), Histories.from_lists([[1, 3]]), 4, negatives=2)[0, 0]
    np.int64(3)
    """
    targets = as_index(targets, "targets", as_count(num_items, "num_items", 1))
    histories = histories.checked(num_items)
    users = histories.known(users)
    same_length(targets=targets, users=users)
    owners = np.concatenate([np.repeat(np.arange(histories.num_users), histories.lengths), users])
    owned = Histories.from_pairs(histories.num_users, owners, np.concatenate([histories.items, targets]))
    sampler = NegativeSampler(owned, num_items)
    drawn = sampler.draw(users, negatives, np.random.default_rng(seed), distinct=True)
    return np.concatenate([targets[:, None], drawn], 1)


def rank_candidates(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Candidates by falling score; of equal scores the one that stands later comes first, so that a model that tells
    nothing apart finds no target.

    Args:
        candidates: integers ``[B, C]``.
        scores: ``[B, C]``.

    Raises:
        ValueError: not a score a candidate, or one that is NaN (with its row).

    >>> rank_candidates(np.array([[7, 8, 9]]), np.array([[0.5, 0.5, 0.1]])).tolist()
    [[8, 7, 9]]
    """
    candidates = as_index(candidates, "candidates", least=-(2**63), dims=2)
    scores = as_numbers(scores, "scores", dims=2, infinite=True)
    if scores.shape != candidates.shape:
        raise ValueError(f"scores: expected {list(candidates.shape)}, as candidates have; got {list(scores.shape)}")
    order = np.argsort(-scores[:, ::-1], axis=1, kind="stable")
    return np.take_along_axis(candidates, candidates.shape[1] - 1 - order, 1)
