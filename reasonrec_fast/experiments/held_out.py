"""Metrics of a fitted model on the test part."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from reasonrec_fast import evaluation
from reasonrec_fast.data import DataError, Histories, Interactions, Split
from reasonrec_fast.data.interactions import UNLABELLED, joined
from reasonrec_fast.data.split import check_not_learnt
from reasonrec_fast.evaluation import Interval
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.models.base import CatalogRecommender, Recommender
from reasonrec_fast.models.ties import ranked_with_ties

STRATA = ("popular", "middling", "rare"), ("short", "middling", "long")


class TestRanking(NamedTuple):
    """A model's rankings for the test part.

    Attributes:
        users: of each row, int64 ``[B]``: the users with a target that is not excluded; with sampled candidates, a row
            for each target.
        relevant: the targets of each row.
        items: best first, int64 ``[B, K]``; -1 for none, and for what ties with items outside of the list.
        known: the items that every user liked before.
        values: metrics of each row, ``[B]`` each.
        unreachable: number of targets that their users have seen before, which are excluded from recommendations and
            not measured.
    """

    users: np.ndarray
    relevant: Histories
    items: np.ndarray
    known: Histories
    values: dict[str, np.ndarray]
    unreachable: int


def check_measurable(data: Interactions, split: Split, settings: EvaluationConfig, name: str) -> None:
    """Refuse a data set, before any model is fitted, on which the evaluation cannot be measured.

    Raises:
        DataError: no positive event in the training or test part, for CTR a part without both labels, or a user with
            too few unseen items to sample candidates from.
    """
    if settings.task == "ctr":
        for part in ("train", "validation", "test"):
            labels = np.unique(data.labels[getattr(split, part)])
            if not {0, 1} <= set(labels.tolist()):
                raise DataError(
                    f"{name}: expected events of both labels in the {part} part, for task 'ctr'; got {labels.tolist()}"
                )
        return
    for part in ("train", "test"):
        rows = getattr(split, part)
        if not (data.labels[rows] == 1).any():
            raise DataError(f"{name}: expected a positive event in the {part} part; got none in {len(rows)} events")
    if settings.negatives:
        seen = Histories.seen(data, np.arange(len(data)))
        users = data.users[split.test[data.labels[split.test] == 1]]
        least = users[np.argmax(seen.distinct_counts()[users])]
        left = data.num_items - int(seen.distinct_counts()[least])
        if left < settings.negatives:
            raise DataError(
                f"{name}: evaluation.negatives: expected at most {left}, the items that user "
                f"{data.user_ids[least]!r} has not had; got {settings.negatives}"
            )


def check_rankable(model: Recommender, settings: EvaluationConfig) -> None:
    """Refuse, before any work, a model that does not support the ranking settings.

    Raises:
        ValueError: the model only scores given candidates, or always uses validation events as history.
    """
    if settings.task != "ranking" or isinstance(model, CatalogRecommender):
        return
    name = type(model).__name__
    if not settings.negatives:
        raise ValueError(
            f"evaluation.negatives: expected at least 1, as {name} scores the candidates that it is given; got 0"
        )
    if not settings.validation_is_history:
        raise ValueError(
            f"evaluation.validation_is_history: expected true, as {name} reads all that a user did before; got false"
        )


def with_reasons(metrics: dict[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Metrics with None for undefined values, and the reasons why they are undefined.

    >>> with_reasons({"auc": 0.5, "gauc": float("nan")})
    ({'auc': 0.5, 'gauc': None}, {'gauc': 'no user with both labels'})
    >>> with_reasons({"auroc": float("nan")})[1]
    {'auroc': 'queries that are all hits, or all misses'}
    """
    missing = [name for name, value in metrics.items() if not np.isfinite(value)]
    reasons = {name: _reason(name) for name in missing}
    return {name: None if name in reasons else value for name, value in metrics.items()}, reasons


def _reason(name: str) -> str:
    if name.startswith("gauc"):
        return "no user with both labels"
    if name in ("auroc", "aurc_gain"):
        return "queries that are all hits, or all misses"
    if name == "kept":
        return "asking the agent gains nothing"
    if name in ("milliseconds/agent", "milliseconds/consult"):
        return "nobody asks an agent whose corrections count nothing"
    if name.startswith(("srcc", "plcc", "krcc")):
        return "scores that are all the same"
    return "no row in this part" if "/" in name else "no row to measure"


def metrics_on_test(
    model: Recommender, data: Interactions, split: Split, settings: EvaluationConfig
) -> dict[str, float]:
    """Metrics of a fitted model on the test part.

    For ranking: means over users, and NDCG at the middle cutoff by popularity of the target and length of the history
    (thirds of the training events, and of the users). Targets that the user has seen before are excluded from all
    recommendations: ``unreachable`` is their number, and the means are over the others. Items of equal scores are in no
    order: a metric is its expectation over their orders. For CTR: of probabilities that
    are calibrated on validation by Platt scaling; ``gauc_unrated`` is the GAUC on items without a training event.

    Raises:
        DataError: the model was trained on events of the test part.
    """
    check_not_learnt(data, split, model.fitted_events, "data")
    if settings.task == "ctr":
        labels, users = data.labels[split.test], data.users[split.test]
        probabilities = _probabilities(model, data, split)
        unrated = ~np.isin(data.items[split.test], data.items[split.train])
        of_unrated = evaluation.gauc(labels[unrated], probabilities[unrated], users[unrated])
        return evaluation.ctr_metrics(labels, probabilities, users) | {"gauc_unrated": of_unrated}
    return _means(_ranked(model, data, split, settings), Histories.of(data, split.train), data, settings)


def compared_on_test(
    model: Recommender,
    baseline: Recommender,
    data: Interactions,
    split: Split,
    settings: EvaluationConfig,
) -> dict[str, Interval]:
    """Differences between two fitted models on the test part, model minus baseline, with 95 % bootstrap intervals over
    users: of every ranking metric, with a sign-flip test
    (:func:`~reasonrec_fast.evaluation.paired_means`), or of AUC and GAUC
    (:func:`~reasonrec_fast.evaluation.paired_differences`).

    Raises:
        DataError: a model was trained on events of the test part.
    """
    for compared in (model, baseline):
        check_not_learnt(data, split, compared.fitted_events, "data")
    if settings.task == "ctr":
        scores = [compared.score_events(data, split.test) for compared in (model, baseline)]
        return evaluation.paired_differences(data.labels[split.test], data.users[split.test], *scores)
    values = [_ranked(compared, data, split, settings).values for compared in (model, baseline)]
    return {name: evaluation.paired_means(values[0][name], values[1][name]) for name in values[0]}


def _ranked(model: Recommender, data: Interactions, split: Split, settings: EvaluationConfig) -> TestRanking:
    earlier = np.sort(np.concatenate([split.train, split.validation]))
    known, seen, unreachable = Histories.of(data, earlier), Histories.seen(data, earlier), 0
    if settings.validation_is_history and isinstance(model, CatalogRecommender):
        model.set_histories(known, seen=seen)
    rows = split.test[data.labels[split.test] == 1]
    if settings.negatives:
        users, relevant = data.users[rows], Histories.from_lists(data.items[rows][:, None].tolist())
        owned = Histories.seen(data, np.arange(len(data)))
        candidates = evaluation.sampled_candidates(
            data.items[rows], users, owned, data.num_items, negatives=settings.negatives
        )
        scores = _score_candidates(model, data, rows, candidates)
        items = evaluation.rank_candidates(candidates, scores.reshape(candidates.shape))
    else:
        users, user_rows = np.unique(data.users[rows], return_inverse=True)
        wanted = Histories.from_pairs(len(users), user_rows, data.items[rows])
        reachable = wanted.without(seen.select(users))
        unreachable = len(wanted.items) - len(reachable.items)
        some = np.flatnonzero(reachable.lengths)
        users, relevant = users[some], reachable.select(some)
        assert isinstance(model, CatalogRecommender)  # others are refused by check_rankable
        items, ties = ranked_with_ties(model, users, relevant, seen, max(settings.ks), data.num_items)
        values = evaluation.ranking_metrics(items, relevant, settings.ks, ties=ties)
        # What ties with an item outside of the list is not in it by the model's choice: it counts as not recommended.
        items = np.where((ties.outside > 0)[:, None] & (ties.scores == ties.scores[:, -1:]), -1, items)
        return TestRanking(users, relevant, items, known, values, unreachable)
    values = evaluation.ranking_metrics(items, relevant, settings.ks)
    return TestRanking(users, relevant, items, known, values, unreachable)


def _score_candidates(model: Recommender, data: Interactions, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Scores of candidates ``[N, C]`` for the users and moments of events, ``[N * C]``."""
    users = np.repeat(data.users[rows], candidates.shape[1])
    if isinstance(model, CatalogRecommender):  # whose scores do not depend on the moment
        return model.score(users, candidates.ravel())
    # After all events of the same moment, and without labels, so that no candidate is another candidate's history.
    queries = replace(
        data, users=users, items=candidates.ravel(), labels=np.full(len(users), UNLABELLED),
        timestamps=np.repeat(data.timestamps[rows], candidates.shape[1]),
    )  # fmt: skip
    order = np.argsort(queries.timestamps, kind="stable")
    table, positions = joined(data, queries.take(order))
    scores = np.empty(len(users))
    scores[order] = model.score_events(table, positions[1])
    return scores


def _means(ranking: TestRanking, train: Histories, data: Interactions, settings: EvaluationConfig) -> dict[str, float]:
    metrics = {
        name: float(np.nanmean(value)) if np.isfinite(value).any() else float("nan")
        for name, value in ranking.values.items()
    }
    metrics["unreachable"] = float(ranking.unreachable)
    counts = np.bincount(train.items, minlength=data.num_items)
    top = ranking.items[:, : max(settings.ks)]
    metrics["coverage"] = evaluation.coverage(top, data.num_items)
    metrics["novelty"] = evaluation.novelty(top, counts)
    name = f"ndcg@{sorted(settings.ks)[len(settings.ks) // 2]}"
    lengths = ranking.known.lengths[ranking.users]
    strata = (
        evaluation.popularity_strata(ranking.relevant.items[ranking.relevant.indptr[:-1]], counts),
        np.searchsorted(np.quantile(lengths, (1 / 3, 2 / 3)) if len(lengths) else lengths, lengths, side="left"),
    )
    for words, stratum, of in zip(STRATA, strata, ("target", "history"), strict=True):
        for part, value in evaluation.by_stratum(ranking.values[name], stratum).items():
            metrics[f"{name}/{words[part]}-{of}"] = value
    return metrics


def _probabilities(model: Recommender, data: Interactions, split: Split) -> np.ndarray:
    validation, test = (model.score_events(data, rows) for rows in (split.validation, split.test))
    slope, intercept = evaluation.fit_platt(data.labels[split.validation], validation)
    return 1 / (1 + np.exp(-(slope * test + intercept)))
