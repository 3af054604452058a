"""From the scores of all exits to temperatures and thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from reasonrec_fast import evaluation, uncertainty
from reasonrec_fast.models.optirag import OptiRAGConfig
from reasonrec_fast.models.optirag.calibration import ExitScores, calibrate, confidence_of

DEPTHS = (2, 4, 6)


def exit_scores(noise, cold_share=0.3, rows=4000, seed=0):
    """Exits whose log-odds are the truth plus noise, all three times too large."""
    generator = np.random.default_rng(seed)
    truth = 1.5 * generator.normal(size=rows)
    labels = (generator.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.int64)
    logits = np.stack([truth + level * generator.normal(size=rows) for level in noise])[..., None]
    return ExitScores(3 * logits, labels, generator.integers(0, 40, rows), generator.random(rows) < cold_share)


def test_limits_hold_and_temperatures_undo_overconfidence():
    known, unrated = exit_scores((1.0, 0.3, 0.1)), exit_scores((3.0, 1.0, 0.1), seed=1)
    config = OptiRAGConfig(max_auc_loss=0.01, max_gauc_loss=0.01)
    found = calibrate(known, unrated, DEPTHS, config)
    assert found.temperatures[-1] == pytest.approx(3.0, rel=0.1)
    for scores, stratum in ((known, 0), (unrated, 1)):
        part = ~scores.cold if stratum == 0 else np.ones_like(scores.cold)
        probability = 1 / (1 + np.exp(-scores.logits[..., 0] / np.array(found.temperatures)[:, None]))
        exited, places = uncertainty.simulate(
            probability, confidence_of(probability, "ratio"), found.policy.thresholds[stratum]
        )
        joint = np.where(part, exited, probability[-1])
        assert evaluation.auc(scores.labels, joint) >= evaluation.auc(scores.labels, probability[-1]) - 0.01
        assert places[part].mean() < 2
    gauc = [evaluation.gauc(unrated.labels, values, unrated.users) for values in (exited, probability[-1])]
    assert gauc[0] >= gauc[1] - 0.01


def test_without_unrated_requests_cold_ones_read_every_layer():
    found = calibrate(exit_scores((1.0, 0.3, 0.1)), None, DEPTHS, OptiRAGConfig())
    assert np.isinf(found.policy.thresholds[1]).all()


@pytest.mark.parametrize("measure", ["max_prob", "margin", "entropy", "ratio"])
@pytest.mark.parametrize("trend", [False, True])
def test_policy_has_the_configured_measure(measure, trend):
    config = replace(OptiRAGConfig(), measure=measure, trend=trend)
    policy = calibrate(exit_scores((0.5, 0.3, 0.1)), None, DEPTHS, config).policy
    assert (policy.measure, policy.trend) == (measure, trend)
    assert any(np.isfinite(policy.thresholds[0]))


def test_measures_agree_with_their_definitions():
    p = np.array([[0.1, 0.5], [0.7, 0.99]])
    np.testing.assert_allclose(confidence_of(p, "max_prob"), np.maximum(p, 1 - p))
    np.testing.assert_allclose(confidence_of(p, "margin"), np.abs(2 * p - 1), atol=1e-12)
    np.testing.assert_allclose(confidence_of(p, "ratio"), np.abs(np.log(p / (1 - p))), atol=1e-9)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(confidence_of(p, "entropy"), 1 - entropy / np.log(2), atol=1e-9)


def test_a_promise_holds_on_other_users():
    """Thresholds from few users keep the promised disagreement on many others, as often as they should."""
    kept = []
    for seed in range(40):
        known = exit_scores((1.0, 0.3, 0.1), cold_share=0.0, rows=600, seed=seed)
        known = replace(known, users=np.arange(600))
        config = OptiRAGConfig(max_disagreement=0.08)
        found = calibrate(known, None, DEPTHS, config)
        fresh = exit_scores((1.0, 0.3, 0.1), cold_share=0.0, rows=20_000, seed=1000 + seed)
        probability = 1 / (1 + np.exp(-fresh.logits[..., 0] / np.array(found.temperatures)[:, None]))
        exited, places = uncertainty.simulate(
            probability, confidence_of(probability, "ratio"), found.policy.thresholds[0]
        )
        kept.append(((exited > 0.5) != (probability[-1] > 0.5)).mean() <= 0.08)
    assert np.mean(kept) >= 0.9
    assert places.mean() < 1.9  # and rows do leave


def test_requests_of_one_user_each_have_no_gauc_to_keep():
    known = replace(exit_scores((1.0, 0.3, 0.1), cold_share=0.0), users=np.arange(4000))
    found = calibrate(known, None, DEPTHS, OptiRAGConfig(max_auc_loss=0.01))
    assert min(found.policy.thresholds[0]) < np.inf
