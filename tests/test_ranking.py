"""Ranking, judge and text metrics against independent implementations."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)
from torchmetrics.functional.text import sacre_bleu_score
from torchmetrics.functional.text.rouge import rouge_score

from reasonrec_fast import evaluation
from reasonrec_fast.data import Histories


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 20), st.integers(0, 10_000))
def test_ranking_equals_torchmetrics(items, seed):
    generator = np.random.default_rng(seed)
    scores, relevant = generator.random((6, items)), generator.random((6, items)) < 0.25
    ranked = np.argsort(-scores, 1)
    lists = Histories.from_lists([np.flatnonzero(row).tolist() for row in relevant])
    ks = (1, 3)
    result = evaluation.ranking_metrics(ranked, lists, ks)
    for row in range(6):
        if not relevant[row].any():
            assert all(np.isnan(values[row]) for values in result.values())
            continue
        given_ = torch.from_numpy(scores[row]), torch.from_numpy(relevant[row].astype(int))
        assert result[f"mrr@{items}"][row] == pytest.approx(float(retrieval_reciprocal_rank(*given_)))
        for k in ks:
            assert result[f"hr@{k}"][row] == float(retrieval_hit_rate(*given_, top_k=k))
            assert result[f"recall@{k}"][row] == pytest.approx(float(retrieval_recall(*given_, top_k=k)))
            assert result[f"ndcg@{k}"][row] == pytest.approx(
                float(retrieval_normalized_dcg(*given_, top_k=k)), abs=1e-6
            )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_metrics_under_ties_are_expectations_over_orders(width, seed):
    """Against all orders of six items, of which a list shows the first."""
    generator = np.random.default_rng(seed)
    scores, relevant = generator.integers(0, 3, 6), np.flatnonzero(generator.random(6) < 0.4)
    ks = sorted({1, max(width // 2, 1), width})
    orders = [order for order in itertools.permutations(range(6)) if (np.diff(scores[list(order)]) <= 0).all()]
    of_orders = evaluation.ranking_metrics(
        np.array(orders)[:, :width], Histories.from_lists([relevant.tolist()] * len(orders)), ks
    )
    ranked = np.array(orders[generator.integers(len(orders))][:width])
    outside = np.setdiff1d(np.flatnonzero(scores == scores[ranked[-1]]), ranked)
    ties = evaluation.Ties(
        scores[ranked][None], np.array([len(outside)]), np.array([len(np.intersect1d(outside, relevant))])
    )
    result = evaluation.ranking_metrics(ranked[None], Histories.from_lists([relevant.tolist()]), ks, ties=ties)
    for name, values in result.items():
        assert values[0] == pytest.approx(of_orders[name].mean(), nan_ok=True), name


def test_empty_slots_are_no_hits():
    ranked = np.array([[-1, 3], [2, -1]])
    assert evaluation.hits(ranked, Histories.from_lists([[3], [1]])).tolist() == [[False, True], [False, False]]
    with pytest.raises(ValueError, match="relevant: expected 2 lists, one a row; got 1"):
        evaluation.hits(ranked, Histories.from_lists([[3]]))
    with pytest.raises(ValueError, match=r"ks: expected cutoffs in \[1, 2\]; got \[3\]"):
        evaluation.ranking_metrics(ranked, Histories.from_lists([[3], [1]]), [3])


def test_sampled_candidates_hold_the_target_and_nothing_else_of_the_user():
    generator = np.random.default_rng(0)
    lists = [generator.permutation(200)[:20].tolist() for _ in range(30)]
    targets = np.array([row[-1] for row in lists])
    results = evaluation.sampled_candidates(targets, np.arange(30), Histories.from_lists(lists), 200, negatives=99)
    again = evaluation.sampled_candidates(targets, np.arange(30), Histories.from_lists(lists), 200, negatives=99)
    assert results.shape == (30, 100) and np.array_equal(results, again)
    for row, seen in zip(results, lists, strict=True):
        assert row[0] == seen[-1] and len(set(row.tolist())) == 100 and not set(row[1:].tolist()) & set(seen)


def test_a_model_that_tells_nothing_apart_finds_no_target():
    candidates = np.arange(40).reshape(4, 10)
    ranked = evaluation.rank_candidates(candidates, np.zeros((4, 10)))
    assert ranked[:, -1].tolist() == candidates[:, 0].tolist()


def test_popularity_strata_divide_the_events():
    counts = np.random.default_rng(0).zipf(1.5, 500).clip(max=400)
    part = evaluation.popularity_strata(np.arange(500), counts)
    shares = np.bincount(part, counts) / counts.sum()
    assert np.abs(shares - 1 / 3).max() < 0.1
    assert counts[part == 0].min() >= counts[part == 1].max() >= counts[part == 2].max()


def test_ctr_metrics_equal_scikit_learn():
    generator = np.random.default_rng(0)
    labels, logits, users = generator.integers(0, 2, 500), generator.random(500), generator.integers(0, 9, 500)
    result = evaluation.ctr_metrics(labels, logits, users)
    assert result["log_loss"] == pytest.approx(log_loss(labels, logits))
    assert result["accuracy"] == accuracy_score(labels, logits > 0.5)
    with pytest.raises(ValueError, match=r"probabilities: expected \[0, 1\]"):
        evaluation.ctr_metrics(labels, logits + 1, users)


def test_judge_metrics():
    generator = np.random.default_rng(0)
    opinion = generator.random(200)
    predicted = -np.log(1 / np.clip(opinion + 0.05 * generator.normal(size=200), 0.02, 0.98) - 1)  # a logit: not linear
    result = evaluation.judge_metrics(predicted, opinion)
    assert result["srcc"] == pytest.approx(stats.spearmanr(predicted, opinion).statistic)
    assert result["krcc"] == pytest.approx(stats.kendalltau(predicted, opinion).statistic)
    assert result["plcc"] > stats.pearsonr(predicted, opinion).statistic and result["rmse"] < 0.06
    falling = evaluation.judge_metrics(-predicted, opinion)
    assert falling["srcc"] == pytest.approx(-result["srcc"]) and falling["plcc"] == pytest.approx(
        result["plcc"], abs=1e-3
    )
    constant = evaluation.fit_logistic(np.arange(6.0), np.full(6, 0.5))
    assert np.allclose(constant, 0.5)
    with pytest.raises(ValueError, match="predicted, opinion: expected vectors of one length"):
        evaluation.judge_metrics(predicted[:4], opinion[:4])


def test_text_metrics_equal_torchmetrics():
    texts = ["the coffee is warm and the staff kind", "a good place to read a book in the evening"]
    references = ["the coffee was warm and the staff were kind", "a quiet place for reading books"]
    result = evaluation.text_metrics(texts, references)
    assert result["bleu"] == pytest.approx(100 * float(sacre_bleu_score(texts, [[r] for r in references])), abs=1e-3)
    peer = rouge_score(texts, references, use_stemmer=True, rouge_keys=("rouge1", "rouge2"))
    for kind in ("rouge1", "rouge2"):
        assert result[kind] == pytest.approx(100 * float(peer[f"{kind}_fmeasure"]), abs=1e-3)
    with pytest.raises(ValueError, match="references: expected 2"):
        evaluation.text_metrics(texts, references[:1])


def test_reference_ranks_are_those_of_the_likeness():
    generator = np.random.default_rng(0)
    vectors = {f"{kind}{i}": generator.normal(size=8) for kind in "tr" for i in range(20)}
    texts, references = [f"t{i}" for i in range(20)], [f"r{i}" for i in range(20)]
    result = evaluation.reference_ranks(texts, references, lambda some: np.array([vectors[name] for name in some]))
    likeness = np.array(
        [[np.dot(vectors[t], vectors[r]) / np.linalg.norm(vectors[r]) for r in references] for t in texts]
    )
    expected = [stats.rankdata(-row)[index] for index, row in enumerate(likeness)]
    assert result.tolist() == expected


def test_paired_means_agree_with_a_t_test():
    generator = np.random.default_rng(0)
    base = generator.random(400)
    better = base + generator.normal(0.03, 0.2, 400)
    result = evaluation.paired_means(better, base, resamples=4000)
    expected = stats.ttest_rel(better, base)
    interval = expected.confidence_interval(0.95)
    assert result.value == pytest.approx((better - base).mean())
    assert result.low == pytest.approx(interval.low, abs=0.003) and result.high == pytest.approx(
        interval.high, abs=0.003
    )
    assert result.p_value == pytest.approx(expected.pvalue, abs=0.01)
    with_gaps = evaluation.mean_interval(np.array([1.0, np.nan, 3.0]))
    assert with_gaps.value == 2.0
