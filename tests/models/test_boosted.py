"""Boosted trees on the evidence: what they read, and that they learn it."""

import numpy as np

from reasonrec_fast.evaluation import auc
from reasonrec_fast.models.optirag.boosted import SETTINGS, BoostedEvidence, boosted_features
from reasonrec_fast.models.optirag.evidence import DENSE_FEATURES, Evidence


def evidence(seed, size=3000):
    """Likes where exactly one of two numbers is high, or a taste that only some have is."""
    draws = np.random.default_rng(seed)
    dense_features = draws.normal(size=(size, len(DENSE_FEATURES))).astype(np.float32)
    taste = draws.normal(size=(size, 3, 2)).astype(np.float32)
    taste[draws.random((size, 3, 2)) < 0.5] = np.nan
    result = Evidence(dense_features, draws.integers(0, 5, (size, 2)), np.zeros((size, 4), np.int64), taste)
    return result, (
        (dense_features[:, 0] > 0) ^ (dense_features[:, 3] > 0) | (np.nan_to_num(taste[:, 1, 0]) > 1)
    ).astype(np.int64)


def test_features_are_all_that_is_a_number():
    result, _ = evidence(0, 50)
    result.taste[0] = np.nan
    features = boosted_features(result)
    assert features.shape == (50, len(DENSE_FEATURES) + 6 + 2 + 2) and features.dtype == np.float32
    np.testing.assert_array_equal(features[:, : len(DENSE_FEATURES)], result.dense_features)
    np.testing.assert_array_equal(features[:, -2:], result.votes)
    assert np.isnan(features[0, -4:-2]).all()
    row = next(row for row in range(1, 50) if np.isnan(result.taste[row, :, 1]).sum() == 1)
    np.testing.assert_allclose(features[row, -3], np.nanmean(result.taste[row, :, 1]), rtol=1e-6)


def test_trees_learn_what_no_line_tells(monkeypatch):
    monkeypatch.setitem(SETTINGS, "learning_rate", 0.2)
    train, validation, test = (evidence(seed) for seed in range(3))
    model = BoostedEvidence.fit(*train, *validation)
    scores = model.logits(test[0])
    assert auc(test[1], scores) > 0.9 and 10 < model.num_trees < 5000
    assert auc(test[1], test[0].dense_features[:, 0]) < 0.6
    np.testing.assert_array_equal(BoostedEvidence.fit(*train, *validation).logits(test[0]), scores)
    single = Evidence(*(values[7:8] for values in vars(test[0]).values()))
    np.testing.assert_allclose(model.logits(single), scores[7:8])
