"""Guarantees by simulation; risk, coverage and calibration error against independent implementations."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.calibration import calibration_curve

from reasonrec_fast import uncertainty


def population(rows, seed=0):
    """Losses and confidences of three exits: the surer, the less likely a loss; the last exit loses nothing."""
    generator = np.random.default_rng(seed)
    ease = generator.random(rows)
    confidence = np.clip(np.stack([ease, 0.3 + 0.7 * ease, np.ones(rows)]) + generator.normal(0, 0.1, (3, rows)), 0, 1)
    rate = np.stack([0.5 * (1 - ease), 0.2 * (1 - ease), np.zeros(rows)])
    return (generator.random((3, rows)) < rate).astype(np.float64), confidence


@pytest.mark.parametrize(("alpha", "delta"), [(0.05, 0.1), (0.1, 0.2)])
def test_promise_holds_at_its_rate(alpha, delta):
    """500 calibration sets; the true loss of each policy is its loss on the whole population."""
    losses, confidence = population(10_000)
    generator = np.random.default_rng(1)
    broken = bold = 0
    for seed in range(500):
        rows = generator.choice(losses.shape[1], 500, replace=False)
        result = uncertainty.guarantee_thresholds(
            losses[:, rows], confidence[:, rows], [10, 20, 30], alpha=alpha, delta=delta, steps=6, seed=seed
        )
        lost, _ = uncertainty.simulate(losses, confidence, result.thresholds)
        broken += lost.mean() > alpha
        bold += result.mean_depth < 25
    # No more failures than chance allows at the promised rate; and the promise is not kept by never leaving.
    assert broken <= binom.ppf(0.999, 500, delta)
    assert bold > 200


def test_promise_that_cannot_be_kept_reads_every_layer():
    losses, confidence = population(60)
    result = uncertainty.guarantee_thresholds(losses, confidence, [10, 20, 30], alpha=0.001)
    assert result.thresholds == (np.inf, np.inf)
    assert (result.loss, result.mean_depth) == (0.0, 30.0)


def test_p_value_is_valid():
    """At the edge of the hypothesis p <= u at most in a share u of the draws."""
    rows, alpha = 200, 0.1
    draws = np.random.default_rng(0).binomial(rows, alpha, 4000) / rows
    p_values = np.array([uncertainty.hoeffding_bentkus(mean, rows, alpha) for mean in draws])
    for level in (0.01, 0.05, 0.2):
        assert (p_values <= level).mean() <= level + 3 * (level / 4000) ** 0.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"losses": np.zeros((2, 9))}, "losses, confidence: expected"),
        ({"losses": np.full((3, 9), 2.0)}, r"losses: expected values in \[0, 1\]"),
        ({"alpha": 0.0}, "alpha: expected"),
        ({"delta": 1.0}, "delta: expected"),
    ],
)
def test_bad_calibration(changed, message):
    arguments = {"losses": np.zeros((3, 9)), "confidence": np.zeros((3, 9)), "depths": [1, 2, 3], "alpha": 0.1}
    with pytest.raises(ValueError, match=message):
        uncertainty.guarantee_thresholds(**{**arguments, **changed})


def test_risk_coverage_equals_its_definition():
    generator = np.random.default_rng(0)
    confidence, losses = generator.permutation(50) / 50, generator.random(50)
    coverage, risk = uncertainty.risk_coverage(confidence, losses)
    for share, result in zip(coverage, risk, strict=True):
        surest = np.argsort(-confidence)[: round(share * 50)]
        assert result == pytest.approx(losses[surest].mean())
    assert uncertainty.aurc(confidence, losses) == pytest.approx(risk.mean())


def test_ties_do_not_depend_on_the_order():
    generator = np.random.default_rng(0)
    confidence, losses = generator.integers(0, 4, 60) / 4, generator.random(60)
    order = generator.permutation(60)
    assert uncertainty.aurc(confidence, losses) == pytest.approx(uncertainty.aurc(confidence[order], losses[order]))


def test_reliability_equals_scikit_learn():
    generator = np.random.default_rng(0)
    probability = generator.random(500)
    labels = generator.random(500) < probability**2
    result = uncertainty.reliability(probability, labels, bins=10)
    frequency, predicted = calibration_curve(labels, probability, n_bins=10)
    np.testing.assert_allclose(result.frequency, frequency)
    np.testing.assert_allclose(result.probability, predicted)
    assert uncertainty.ece(probability, labels, 10) == pytest.approx(
        np.average(np.abs(frequency - predicted), weights=result.count)
    )
