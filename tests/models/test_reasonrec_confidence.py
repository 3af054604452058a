"""Confidence of a ranking: the probability of a hit, on made rankings whose truth is known."""

from typing import NamedTuple

import numpy as np
import pytest

from reasonrec_fast.evaluation import auc
from reasonrec_fast.models.reasonrec.confidence import HitConfidence, ranking_features
from reasonrec_fast.uncertainty import ece


class Made(NamedTuple):
    logits: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    entropy: np.ndarray
    candidates: np.ndarray

    def of(self, rows):
        return Made(*(values[rows] for values in self))


def made(users=3000, seed=0):
    """A hit depends on the mass of the best five, and on a feature of the first that the probabilities do not know."""
    generator = np.random.default_rng(seed)
    logits = -np.sort(-generator.normal(size=(users, 20)) * generator.uniform(0.3, 3, (users, 1)), axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    features = generator.normal(size=(users, 20, 3)).astype(np.float32)
    features[::7, :, 2] = np.nan
    probabilities = shares * 0.5
    chance = 1 / (1 + np.exp(-(4 * (probabilities[:, :5].sum(1) - 0.35) + 1.5 * features[:, 0, 0])))
    entropy = -(shares * np.log(shares)).sum(1)
    ranking = Made(logits, probabilities, features, entropy, np.full(users, 20))
    return ranking, (generator.random(users) < chance).astype(np.int64), chance


def test_it_knows_more_than_the_mass_and_is_calibrated(tmp_path):
    ranking, hits, chance = made()
    train, test = slice(0, 2000), slice(2000, None)
    model = HitConfidence.fit(ranking.of(train), hits[train])
    probability = model.probability(ranking.of(test))
    mass = ranking.probabilities[test, :5].sum(1)
    assert auc(hits[test], probability) > auc(hits[test], mass) + 0.1
    assert ece(probability, hits[test]) < 0.06
    assert np.corrcoef(probability, chance[test])[0, 1] > 0.85
    loaded = HitConfidence.load(tmp_path, model.save(tmp_path))
    np.testing.assert_array_equal(loaded.probability(ranking.of(test)), probability)


def test_a_users_confidence_depends_on_that_user_alone():
    ranking, hits, _ = made(600)
    model = HitConfidence.fit(ranking, hits)
    whole = model.probability(ranking)
    for rows in (slice(3, 4), slice(100, 150), np.arange(599, -1, -1)):
        np.testing.assert_array_equal(model.probability(ranking.of(rows)), whole[rows])


def test_features_are_finite_or_unknown():
    ranking, _, _ = made(50)
    ranking.logits[:, 8:] = -np.inf
    features = ranking_features(ranking, 10)
    assert features.shape == (50, 7 + 9) and not np.isinf(features).any()
    assert np.isnan(features[:, 3]).all() and not np.isnan(features[:, 2]).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, h: ranking_features(r, 20), "ranking: expected more than k = 20 candidates; got 20"),
        (lambda r, h: HitConfidence.fit(r, np.zeros_like(h)), r"hits: expected both 0 and 1; got \[0\] alone"),
        (lambda r, h: HitConfidence.fit(r, h[1:]), "expected"),
        (lambda r, h: HitConfidence.fit(r, h).probability(r._replace(features=r.features[..., 1:])), "features: ex"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(call, message):
    ranking, hits, _ = made(300)
    with pytest.raises(ValueError, match=message):
        call(ranking, hits)
