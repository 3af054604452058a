"""Features of a user and a candidate item: the tools' scores, the history, attributes and titles.

None of them depends on the number or the identifier of an item, or on an order that comes from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array, csr_matrix

from reasonrec_fast.data import Histories
from reasonrec_fast.models.classical.stack_items import ItemFacts
from reasonrec_fast.models.classical.stack_scores import View, ranks
from reasonrec_fast.models.classical.stack_transitions import NAMES

RECENT = 10
"""The latest items of a history that a candidate's title is compared with."""
_SMOOTHING = 0.1  # added to weights of pairs of attributes
_DECAY = 0.7  # weight of the attributes of an item against those of the next one


def feature_names(views: Sequence[str], facts: ItemFacts, text: bool) -> list[str]:
    """The names of the columns of :func:`features`."""
    names = [f"{view}:{part}" for view in views for part in ("score", "rank", "gap", "best")]
    names += ["tools:nominating", "tools:best rank", "tools:reciprocal rank"]
    names += ["history:length", "history:popularity", "history:position"]
    names += ["item:count", "item:position", "item:count against history"]
    names += [f"transitions:{name}" for name in NAMES]
    if len(facts.idf):
        names += [f"attributes:{part}" for part in ("last", "last but one", "recent", "all")]
        names += [f"attributes:{part}" for part in ("rarest shared with last", "rarest shared", "rarest's share")]
        names += [f"attributes:{part}" for part in ("rarest's count", "number", "cohesion", "after last")]
    if text:
        names += [f"titles:{part}" for part in ("last", "last but one", "most", "mean", "cohesion")]
    return names


def features(
    items: np.ndarray,
    views: Mapping[str, View | None],
    histories: Histories,
    facts: ItemFacts,
    vectors: torch.Tensor | None,
    nominated: int,
) -> np.ndarray:
    """Features of candidates, float32 ``[B, C, F]``; NaN for what is unknown, and for slots without an item.

    Args:
        items: candidates of each user, int64 ``[B, C]``; -1 for none.
        views: scores of the tools; None for one that gave none.
        histories: of the ``B`` users.
        facts: of the items.
        vectors: of their titles, rows of length 1, ``[I, D]``; None without.
        nominated: rank up to which a tool nominates an item.
    """
    index = np.maximum(items, 0)
    columns = [
        *_of_tools(index, views, nominated),
        *_of_history(index, histories, facts),
        *facts.transitions.features(index, histories),
        *(_of_attributes(index, histories, facts) if len(facts.idf) else ()),
        *(_of_titles(index, histories, vectors) if vectors is not None else ()),
    ]
    result = np.stack([np.broadcast_to(column, items.shape) for column in columns], axis=2, dtype=np.float32)
    result[items < 0] = np.nan
    return result


def _of_tools(index: np.ndarray, views: Mapping[str, View | None], nominated: int) -> list[np.ndarray]:
    columns, of_ranks = [], []
    for view in views.values():
        if view is None:
            columns += [np.full(index.shape, np.nan, dtype=np.float32)] * 4
            continue
        on_view = torch.from_numpy(index).to(view.scores.device)
        scores, rank = view.scores.gather(1, on_view).cpu().numpy(), ranks(view, on_view).cpu().numpy()
        best = view.best[:, :1].cpu().numpy()
        columns += [scores, np.log(rank), best - scores, np.where(np.isnan(scores), np.nan, best)]
        of_ranks.append(rank)
    if not of_ranks:
        return [*columns, np.zeros(index.shape), *[np.full(index.shape, np.nan)] * 2]
    stacked = np.stack(of_ranks)
    known = ~np.isnan(stacked)
    far = np.where(known, stacked, np.inf)
    mean = (1 / (far + 10)).sum(0) / np.maximum(known.sum(0), 1)
    best_rank = far.min(0)
    columns += [(far <= nominated).sum(0), np.log(np.where(np.isinf(best_rank), np.nan, best_rank)), mean]
    return columns


def _of_history(index: np.ndarray, histories: Histories, facts: ItemFacts) -> list[np.ndarray]:
    log_counts = np.log1p(facts.counts)
    popularity = _mean(histories, log_counts)
    positions = _mean(histories, np.nan_to_num(facts.positions, nan=0.5))
    count = log_counts[index]
    return [
        np.log1p(histories.lengths)[:, None], popularity[:, None], positions[:, None],
        count, facts.positions[index], count - popularity[:, None],
    ]  # fmt: skip


def _mean(histories: Histories, values: np.ndarray) -> np.ndarray:
    """Mean value of the items of each history, ``[B]``; NaN for an empty one."""
    rows = np.repeat(np.arange(histories.num_users), histories.lengths)
    with np.errstate(invalid="ignore"):
        return np.bincount(rows, values[histories.items], minlength=histories.num_users) / histories.lengths


def _of_attributes(index: np.ndarray, histories: Histories, facts: ItemFacts) -> list[np.ndarray]:
    matrix, users = facts.attributes, histories.num_users
    rows = np.repeat(np.arange(users), histories.lengths)
    back = np.repeat(histories.indptr[1:], histories.lengths) - 1 - np.arange(len(histories.items))  # 0 for the last
    of_events = matrix[histories.items]
    entry_rows = np.repeat(rows, np.diff(of_events.indptr))
    entry_back = np.repeat(back, np.diff(of_events.indptr))
    # Only attributes of these histories: the profiles below are dense.
    present, column = np.unique(of_events.indices, return_inverse=True)
    column_of = np.full(matrix.shape[1] + 1, len(present))
    column_of[present] = np.arange(len(present))
    lengths = np.maximum(histories.lengths, 1)
    weights = {
        "last": entry_back == 0,
        "last but one": entry_back == 1,
        "recent": _DECAY**entry_back * (1 - _DECAY),
        "all": 1 / lengths[entry_rows],
    }

    def profile(values: np.ndarray) -> np.ndarray:
        dense = np.zeros((users, len(present) + 1), dtype=np.float32)  # the last column stays 0
        np.add.at(dense, (entry_rows, column), values.astype(np.float32))
        return dense

    profiles = {name: profile(of_events.data * weight) for name, weight in weights.items()}
    share = profile(1 / lengths[entry_rows])

    # The entries of the candidates, flat.
    flat = index.ravel()
    of_candidates = matrix[flat]
    sizes = np.diff(of_candidates.indptr)
    candidate = np.repeat(np.arange(len(flat)), sizes)
    user, attribute = candidate // max(index.shape[1], 1), column_of[of_candidates.indices]

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(candidate, values, minlength=len(flat)).reshape(index.shape)

    def most(values: np.ndarray) -> np.ndarray:
        result = np.zeros(len(flat), dtype=np.float32)
        if len(values):
            result[sizes > 0] = np.maximum.reduceat(values, of_candidates.indptr[:-1][sizes > 0])
        return result.reshape(index.shape)

    idf = facts.idf[of_candidates.indices]
    similarities = [total(profile[user, attribute] * of_candidates.data) for profile in profiles.values()]
    rarest, rarest_count = _rarest(facts)
    of_rarest = rarest[index]  # -1, the column that stays 0, without attributes
    rows_of = np.arange(users)[:, None]
    return [
        *similarities,
        most(idf * (profiles["last"][user, attribute] > 0)),
        most(idf * (share[user, attribute] > 0)),
        share[rows_of, column_of[of_rarest]],
        rarest_count[index],
        sizes.reshape(index.shape),
        np.sqrt(np.square(profiles["all"]).sum(1))[:, None],
        _lift(histories, facts, of_candidates, user, candidate).reshape(index.shape),
    ]


def _lift(
    histories: Histories, facts: ItemFacts, of_candidates: csr_matrix, user: np.ndarray, candidate: np.ndarray
) -> np.ndarray:
    """Logarithm of how much more often attributes as a candidate's came right after ones as the last item's than they
    would by chance, ``[N]``; 0 where there is nothing to tell by.

    Args:
        of_candidates: attributes of the candidates, ``[N, A]``.
        user, candidate: rows of each of its entries.
    """
    pairs, before, after = facts.attribute_transitions
    some = np.flatnonzero(histories.lengths > 0)
    last = csr_array((histories.num_users, facts.attributes.shape[1]))
    if len(some):
        picked = csr_array((np.ones(len(some)), (some, np.arange(len(some)))), shape=(histories.num_users, len(some)))
        last = picked @ csr_array(facts.attributes[histories.items[histories.indptr[1:][some] - 1]])
    expected = (last @ before)[user]
    followed = (last @ pairs).toarray()

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(candidate, values * of_candidates.data, minlength=of_candidates.shape[0])

    observed, chance = total(followed[user, of_candidates.indices]), total(expected * after[of_candidates.indices])
    chance = chance / max(facts.transitions.following.sum(), 1)
    return np.log((observed + _SMOOTHING) / (chance + _SMOOTHING)).round(3)  # ties of sums in another order stay ties


def _rarest(facts: ItemFacts) -> tuple[np.ndarray, np.ndarray]:
    """Of each item the attribute that fewest items have (such as its brand), -1 for none, and the logarithm of the
    events of all items that have it."""
    matrix = facts.attributes
    sizes = np.diff(matrix.indptr)
    # Of equally rare ones the first by name: columns are in the order of the names.
    rows = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((matrix.indices, -facts.idf[matrix.indices], rows))
    rarest = np.full(len(sizes), -1)
    rarest[sizes > 0] = matrix.indices[order[matrix.indptr[:-1][sizes > 0]]]
    events = np.bincount(matrix.indices, facts.counts[rows], minlength=matrix.shape[1])
    return rarest, np.where(rarest < 0, np.nan, np.log1p(events[rarest])).astype(np.float32)


def _of_titles(index: np.ndarray, histories: Histories, vectors: torch.Tensor) -> list[np.ndarray]:
    users = np.arange(histories.num_users)
    recent, sizes = histories.latest(users, RECENT)
    device = vectors.device
    candidates = vectors[torch.from_numpy(index).to(device)].float()
    of_history = vectors[torch.from_numpy(recent).to(device)].float()
    similarity = (candidates @ of_history.transpose(1, 2)).cpu().numpy()  # [B, C, T]
    inside = np.arange(recent.shape[1]) < sizes[:, None]

    def at(back: int) -> np.ndarray:
        if not recent.shape[1]:
            return np.full(index.shape, np.nan)
        picked = similarity[users[:, None], np.arange(index.shape[1]), np.maximum(sizes - 1 - back, 0)[:, None]]
        return np.where(sizes[:, None] > back, picked, np.nan)

    known = sizes[:, None] > 0
    most = np.where(inside[:, None], similarity, -np.inf).max(2, initial=-np.inf)
    mean = np.where(inside[:, None], similarity, 0).sum(2) / np.maximum(sizes, 1)[:, None]
    summed = (of_history.cpu().numpy() * inside[..., None]).sum(1)
    cohesion = np.sqrt(np.square(summed).sum(1)) / np.maximum(sizes, 1)
    return [
        at(0), at(1), np.where(known, most, np.nan), np.where(known, mean, np.nan),
        np.where(sizes > 0, cohesion, np.nan)[:, None],
    ]  # fmt: skip
