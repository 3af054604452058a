"""Metrics and calibration against independent implementations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from reasonrec_fast import evaluation, uncertainty


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 10_000))
def test_auc_equals_scikit_learn(size, levels, seed):
    generator = np.random.default_rng(seed)
    labels, scores = generator.integers(0, 2, size), generator.integers(0, levels, size) / 2
    weights = generator.integers(0, 4, size).astype(float)
    result = evaluation.auc(labels, scores)
    if labels.min() == labels.max():
        assert np.isnan(result)
        return
    assert result == pytest.approx(roc_auc_score(labels, scores))
    if weights[labels == 1].sum() > 0 and weights[labels == 0].sum() > 0:
        weighted = evaluation.ctr.RankedLabels(labels, scores).auc(weights)
        assert weighted == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


def test_gauc_is_the_weighted_mean_of_users():
    generator = np.random.default_rng(0)
    users, labels, scores = generator.integers(0, 9, 300), generator.integers(0, 2, 300), generator.random(300)
    values = [roc_auc_score(labels[users == u], scores[users == u]) for u in range(9)]
    expected = np.average(values, weights=np.bincount(users))
    assert evaluation.gauc(labels, scores, users) == pytest.approx(expected)


def test_platt_recovers_log_odds():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=20_000)
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-logits))).astype(int)
    slope, intercept = evaluation.fit_platt(labels, 5 * logits + 2)
    assert slope == pytest.approx(0.2, abs=0.01)
    assert intercept == pytest.approx(-0.4, abs=0.05)
    expected = log_loss(labels, 1 / (1 + np.exp(-(slope * (5 * logits + 2) + intercept))))
    assert evaluation.platt_log_loss(labels, 5 * logits + 2, (slope, intercept)) == pytest.approx(expected)


def test_bootstrap_covers_the_truth_and_finds_differences():
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(100), 20)
    labels = generator.integers(0, 2, 2000)
    good, bad = labels + generator.normal(size=2000), labels + 3 * generator.normal(size=2000)
    result = evaluation.paired_differences(labels, users, good, bad, resamples=300)
    for name, metric in (("auc", evaluation.auc), ("gauc", lambda y, s: evaluation.gauc(y, s, users))):
        assert result[name].value == pytest.approx(metric(labels, good) - metric(labels, bad))
        assert result[name].low < result[name].value < result[name].high
        assert result[name].significant
    other = labels + 3 * generator.normal(size=2000)
    assert not evaluation.paired_differences(labels, users, bad, other, resamples=300)["gauc"].significant


def test_scores_must_be_finite_and_fit():
    with pytest.raises(ValueError, match="scores: expected finite"):
        evaluation.auc(np.array([0, 1]), np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="scores: expected a vector like labels"):
        evaluation.auc(np.array([0, 1]), np.array([0.0]))


def exits(seed=0, rows=3000):
    """Three exits of growing accuracy, whose confidence is honest."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    signal = (2 * labels - 1)[None] + generator.normal(size=(3, rows)) * np.array([[3.0], [1.5], [1.0]])
    return labels, signal, np.abs(signal)


def test_thresholds_keep_their_limits_and_save_layers():
    labels, scores, confidence = exits()
    limit = uncertainty.Limit(lambda s: evaluation.auc(labels, s), 0.02)
    chosen = uncertainty.choose_thresholds(scores, confidence, (2, 4, 6), [limit])
    result, exit_indices = uncertainty.simulate(scores, confidence, chosen)
    assert evaluation.auc(labels, result) >= evaluation.auc(labels, scores[-1]) - 0.02
    assert exit_indices.mean() < 1.8
    strict = uncertainty.choose_thresholds(scores, confidence, (2, 4, 6), [uncertainty.Limit(limit.metric, -0.5)])
    assert all(np.isinf(strict))


def test_simulated_trend():
    scores, confidence = np.zeros((3, 2)), np.array([[0.5, 0.9], [0.8, 0.8], [1.0, 1.0]])
    assert uncertainty.simulate(scores, confidence, [2.0, 0.7], trend=True)[1].tolist() == [1, 2]
    assert uncertainty.simulate(scores, confidence, [2.0, 0.7])[1].tolist() == [1, 1]


def test_shapes_of_exits():
    with pytest.raises(ValueError, match="scores, confidence: expected"):
        uncertainty.choose_thresholds(np.zeros((3, 2)), np.zeros((3, 2)), (1, 2), [])
    with pytest.raises(ValueError, match="labels: expected at least one"):
        uncertainty.fit_temperature(np.zeros(0), np.zeros(0))
