"""What people hand to metrics: repeated items, any container, any identifier; what cannot be scored is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from reasonrec_fast import evaluation as ev
from reasonrec_fast.data import Histories

NAN = float("nan")
LABELS, SCORES, USERS = [0, 1, 0, 1], [0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1]


def shuffled(values):
    """A Series whose index is in another order than its rows."""
    return pd.Series(values, index=[2, 0, 3, 1][: len(values)])


CONTAINERS = [
    list,
    np.array,
    lambda v: torch.from_numpy(np.array(v)),
    shuffled,
    lambda v: np.array(v)[::-1][::-1],
    lambda v: np.array(v, object),
]


def values_of(result):
    return {name: value.tolist() for name, value in result.items()}


@pytest.mark.parametrize("relevant", [[[5, 5]], [[5]], Histories.from_lists([[5, 5, 5]]), [np.array([5, 5])]])
@pytest.mark.parametrize("ranked", [[[5, 1, 2]], [[5, 5, 5]], np.array([[5, -1, 5]]), torch.tensor([[5, 5, 1]])])
def test_what_is_relevant_or_ranked_twice_counts_once(ranked, relevant):
    result = ev.ranking_metrics(ranked, relevant, [1, 3])
    assert all(value.tolist() == [1.0] for value in result.values()), result


def test_a_repeated_recommendation_takes_up_a_rank():
    assert ev.hits([[5, 5, 7]], [[5, 7]]).tolist() == [[True, False, True]]
    result = ev.ranking_metrics([[5, 5, 7], [9, 5, 5]], [[5, 7], [5, 7]], [2, 3])
    assert result["recall@2"].tolist() == [0.5, 0.5] and result["recall@3"].tolist() == [1.0, 0.5]
    assert result["ndcg@3"][0] == pytest.approx((1 + 0.5) / (1 + 1 / np.log2(3)))
    assert max(value.max() for value in result.values()) <= 1


def test_identifiers_of_any_size_are_ranked():
    large = 2**62
    assert ev.hits([[large, 1], [large, 1]], [[large], [1]]).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("contain", CONTAINERS)
def test_metrics_of_clicks_take_any_container_by_position(contain):
    labels, scores, users = contain(LABELS), contain(SCORES), contain(USERS)
    expected = ev.ctr_metrics(np.array(LABELS), np.array(SCORES), np.array(USERS))
    assert ev.ctr_metrics(labels, scores, users) == expected
    assert ev.auc(labels, scores) == 0.5 and ev.gauc(labels, scores, users) == 0.5
    assert ev.fit_platt(labels, scores) == ev.fit_platt(np.array(LABELS), np.array(SCORES))
    assert ev.platt_log_loss(labels, scores, (1.0, 0.0)) == ev.platt_log_loss(
        np.array(LABELS), np.array(SCORES), (1, 0)
    )
    result = ev.paired_differences(labels, users, scores, contain(SCORES[::-1]), resamples=5)
    assert result == ev.paired_differences(
        np.array(LABELS), np.array(USERS), np.array(SCORES), np.array(SCORES[::-1]), resamples=5
    )
    assert ev.mean_interval(scores).value == pytest.approx(0.5)
    gap = ev.paired_means(pd.Series(SCORES), contain(SCORES), resamples=5)
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)
    assert ev.by_stratum(scores, users) == {0: pytest.approx(0.15), 1: pytest.approx(0.85)}
    assert ev.popularity_strata(contain([0, 1, 2, 3]), contain([4, 2, 2, 1]), 2).tolist() == [0, 0, 0, 1]
    assert ev.novelty([[1]], contain([5, 1])) == 2.0


@pytest.mark.parametrize(
    "users",
    [["a", "a", "b", "b"], np.array(["a", "a", "b", "b"]), pd.Series(["x", "x", "y", "y"], index=[3, 2, 1, 0]),
     pd.Categorical(["x", "x", "y", "y"]), np.array(["a", "a", 7, 7], dtype=object), [0.5, 0.5, 0.7, 0.7]],
)  # fmt: skip
def test_users_are_whatever_tells_them_apart(users):
    assert ev.gauc(LABELS, SCORES, users) == 0.5
    assert ev.user_aucs(LABELS, SCORES, users)[0].tolist() == list(users)[::2]
    assert ev.ctr_metrics(LABELS, SCORES, users)["gauc"] == 0.5
    assert ev.paired_differences(LABELS, users, SCORES, SCORES, resamples=3)["gauc"].value == 0


def test_candidates_of_any_type_are_ranked():
    for scores in ([[5, 0, 1]], np.array([[5, 0, 1]], dtype=np.uint8), np.array([[5.0, -np.inf, 1]])):
        assert ev.rank_candidates([[7, 8, 9]], scores).tolist() == [[7, 9, 8]]
    assert ev.rank_candidates([[7, 8, 9]], [[True, False, True]]).tolist() == [[9, 7, 8]]


def test_a_target_is_no_negative_of_its_own():
    for seed in range(20):
        result = ev.sampled_candidates([2], [0], Histories.from_lists([[1, 3]]), 4, negatives=1, seed=seed)
        assert result.tolist() == [[2, 0]]


def test_nothing_to_compare_is_not_significant():
    result = ev.paired_means([NAN], [1.0], resamples=10)
    assert np.isnan(result.value) and result.p_value is None
    assert np.isnan(ev.by_stratum([NAN, 1.0], [0, 1])[0])


HAD = Histories.from_lists([[1, 3], [0]])
REFUSED = [
    (lambda: ev.hits([[5.5, 1]], [[5]]), "ranked: expected whole numbers; got float64 5.5"),
    (lambda: ev.hits([[-7, 1]], [[5]]), "ranked: expected indices of at least -1; got -7 in row 0, column 0"),
    (lambda: ev.hits([5, 1], [[5]]), "ranked: expected a matrix"),
    (lambda: ev.hits([["5"]], [[5]]), "ranked: expected whole numbers; got <U1 '5'"),
    (lambda: ev.hits([[1]], [[-1]]), "lists, list 0: expected indices of at least 0; got -1"),
    (lambda: ev.hits([[1]], Histories(np.array([0, 9]), np.array([1]))), "histories: expected an indptr that rises"),
    (lambda: ev.ranking_metrics([[1]], [[1]], [1.0]), "ks: expected a whole number"),
    (lambda: ev.coverage([[0, 9]], 2), r"ranked: expected indices in \[-1, 2\); got 9 in row 0, column 1"),
    (lambda: ev.coverage([[0]], 0), "num_items: expected a whole number of at least 1"),
    (lambda: ev.novelty([[7]], [5, 1]), "ranked: .* got 7"),
    (lambda: ev.novelty([[1]], [5, -3]), "counts: .* got -3 in row 1"),
    (lambda: ev.popularity_strata([-1], [4, 2]), r"items: expected indices in \[0, 2\); got -1"),
    (lambda: ev.popularity_strata([1], [4, NAN]), "counts: expected whole numbers"),
    (lambda: ev.by_stratum([1.0, 0.0], [0]), "strata: expected a vector like values, of 2 rows; got 1"),
    (lambda: ev.sampled_candidates([3], [-1], HAD, 4, negatives=1), "users: .* got -1"),
    (lambda: ev.sampled_candidates([9], [0], HAD, 4, negatives=1), r"targets: expected indices in \[0, 4\); got 9"),
    (lambda: ev.sampled_candidates([3, 3], [0], HAD, 4, negatives=1), "users: expected a vector like targets"),
    (lambda: ev.sampled_candidates([3], [0], HAD, 4, negatives=3), "count: expected at most 2, the items that user 0"),
    (lambda: ev.rank_candidates([[7, 8]], [[NAN, 1]]), "scores: expected numbers; got nan in row 0, column 0"),
    (lambda: ev.rank_candidates([[7, 8]], [[1]]), r"scores: expected \[1, 2\]"),
    *[
        (lambda label=label: ev.auc([0, label, 0, 1], SCORES), "labels: expected")
        for label in (2, -1, 0.5, NAN, None, "1", pd.NA)
    ],
    (lambda: ev.auc(["0", "1", "0", "1"], SCORES), "labels: expected numbers; got <U1 '0'"),
    (lambda: ev.auc(LABELS, ["0.1", "10", "9", "8"]), "scores: expected numbers"),
    (lambda: ev.auc(LABELS, [0.1, NAN, 0.9, 0.8]), "scores: expected finite numbers; got nan in row 1"),
    (lambda: ev.auc(LABELS, [0.1, np.inf, 0.9, 0.8]), "scores: expected finite numbers; got inf in row 1"),
    (lambda: ev.auc(LABELS, np.ma.array(SCORES, mask=[0, 0, 1, 0])), "scores: .* got a masked one in row 2"),
    (lambda: ev.auc(1, 0.5), "labels: expected a vector"),
    (lambda: ev.gauc(LABELS, SCORES, ["a", "a", None, "b"]), "users: expected identifiers; got None in row 2"),
    (lambda: ev.gauc(LABELS, SCORES, [0, 0, NAN, NAN]), "users: expected identifiers; got nan in row 2"),
    (lambda: ev.gauc(LABELS, SCORES, [0, 0, 1]), "users: expected a vector like labels, of 4 rows; got 3"),
    (lambda: ev.fit_platt([0, 0], [0.1, 0.2]), r"labels: expected both 0 and 1; got \[0\] alone in 2 rows"),
    (lambda: ev.fit_platt([0, 2], [0.1, 0.2]), "labels: expected 0 or 1; got 2.0 in row 1"),
    (lambda: ev.fit_platt([0, 1], [1e308, -1e308]), "scores: expected numbers whose squares are finite"),
    (lambda: ev.platt_log_loss([], [], (1.0, 0.0)), "labels: expected at least one event"),
    (lambda: ev.platt_log_loss([0, 1], [0.1, NAN], (1.0, 0.0)), "scores: expected finite numbers"),
    (
        lambda: ev.ctr_metrics(LABELS, [0.1, 1.2, 0.9, 0.8], USERS),
        r"probabilities: expected \[0, 1\]; got 1.2 in row 1",
    ),
    (lambda: ev.ctr_metrics([], [], []), "labels: expected at least one event"),
    (lambda: ev.paired_differences([], [], [], []), "labels: expected at least one event"),
    (lambda: ev.paired_differences(LABELS, USERS, SCORES, SCORES, resamples=0), "resamples: expected"),
    (lambda: ev.mean_interval([1.0, np.inf]), "values: expected finite numbers; got inf in row 1"),
    (lambda: ev.mean_interval(["1"]), "values: expected numbers"),
    (lambda: ev.mean_interval([1.0], resamples=0), "resamples: expected a whole number of at least 1; got 0"),
    (lambda: ev.paired_means([1.0, 2.0], [1.0]), "theirs: expected a vector like ours"),
    (lambda: ev.judge_metrics([1, 2, 3, 4, NAN], range(5)), "predicted: expected finite numbers; got nan in row 4"),
    (lambda: ev.fit_logistic([1.0, 2.0], [1.0]), "predicted, opinion: expected vectors of one length"),
    (lambda: ev.text_metrics("abc", "abc"), "texts: expected several texts; got one, 'abc'"),
    (lambda: ev.text_metrics(["a", None], ["a", "b"]), "texts: expected text; got None in row 1"),
    (lambda: ev.distinct("the cat", 1), "texts: expected several texts"),
    (lambda: ev.distinct(["the cat"], 0), "n: expected a whole number of at least 1"),
    (lambda: ev.feature_coverage("great coffee", ["coffee"]), "texts: expected several texts"),
    (lambda: ev.feature_coverage(["great coffee"], "coffee"), "features: expected several texts"),
    (lambda: ev.feature_coverage(["great coffee"], ["", "tea"]), "features: expected at least one, and words in each"),
    (lambda: ev.reference_ranks(["a"], ["a"], lambda some: np.full((1, 2), NAN)), "encode: expected finite numbers"),
    (lambda: ev.reference_ranks(["a"], ["a"], lambda some: np.ones(1)), "encode: expected a matrix"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
