"""From the scores of all exits to temperatures and thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from reasonrec_fast import evaluation, uncertainty
from reasonrec_fast.models.optirag import OptiRAGConfig
from reasonrec_fast.models.optirag.calibration import ExitScores, calibrate, confidence_of

DEPTHS = (2, 4, 6)


def exit_scores(noise, cold_share=0.3, rows=4000, seed=0):
    """Exits whose logits are the true logits plus noise, three times too large."""
    generator = np.random.default_rng(seed)
    truth = 1.5 * generator.normal(size=rows)
    labels = (generator.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.int64)
    logits = np.stack([truth + level * generator.normal(size=rows) for level in noise])[..., None]
    return ExitScores(3 * logits, labels, generator.integers(0, 40, rows), generator.random(rows) < cold_share)


def test_limits_hold_and_temperatures_undo_overconfidence():
    known, unrated = exit_scores((1.0, 0.3, 0.1)), exit_scores((3.0, 1.0, 0.1), seed=1)
    config = OptiRAGConfig(max_auc_loss=0.01, max_gauc_loss=0.01)
    result = calibrate(known, unrated, DEPTHS, config)
    assert result.temperatures[-1] == pytest.approx(3.0, rel=0.1)
    for scores, stratum in ((known, 0), (unrated, 1)):
        part = ~scores.cold if stratum == 0 else np.ones_like(scores.cold)
        probability = 1 / (1 + np.exp(-scores.logits[..., 0] / np.array(result.temperatures)[:, None]))
        exited, exit_indices = uncertainty.simulate(
            probability, confidence_of(probability, "ratio"), result.policy.thresholds[stratum]
        )
        joint = np.where(part, exited, probability[-1])
        assert evaluation.auc(scores.labels, joint) >= evaluation.auc(scores.labels, probability[-1]) - 0.01
        assert exit_indices[part].mean() < 2
    gauc = [evaluation.gauc(unrated.labels, values, unrated.users) for values in (exited, probability[-1])]
    assert gauc[0] >= gauc[1] - 0.01


def test_without_unrated_requests_cold_ones_read_every_layer():
    result = calibrate(exit_scores((1.0, 0.3, 0.1)), None, DEPTHS, OptiRAGConfig())
    assert np.isinf(result.policy.thresholds[1]).all()


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


def promised(users, *, noise=(1.0, 0.3, 0.1), cold_share=0.0, seed=0):
    """Exits of ``users`` users with one request each."""
    return replace(exit_scores(noise, cold_share, users, seed), users=np.arange(users))


def test_both_promises_hold_on_other_users():
    """Thresholds from few users keep the promised disagreement on many others, in both strata at once."""
    kept, depths = [], []
    for seed in range(30):
        known, unrated = (promised(1200, noise=noise, seed=seed) for noise in ((1.0, 0.3, 0.1), (1.5, 0.5, 0.1)))
        result = calibrate(known, unrated, DEPTHS, OptiRAGConfig(max_disagreement=0.08))
        within = []
        for stratum, noise in enumerate(((1.0, 0.3, 0.1), (1.5, 0.5, 0.1))):
            fresh = promised(10_000, noise=noise, seed=1000 + seed)
            probability = 1 / (1 + np.exp(-fresh.logits[..., 0] / np.array(result.temperatures)[:, None]))
            exited, positions = uncertainty.simulate(
                probability, confidence_of(probability, "ratio"), result.policy.thresholds[stratum]
            )
            within.append(((exited > 0.5) != (probability[-1] > 0.5)).mean() <= 0.08)
            depths.append(positions.mean())
        kept.append(all(within))
    assert np.mean(kept) >= 0.9
    assert np.mean(depths) < 1.9  # and rows do leave


def test_two_promises_share_their_probability_of_failing():
    """30 users without a loss have a p-value of 0.92 ** 30 = 0.082: enough for one guarantee, not for two."""
    config = OptiRAGConfig(max_disagreement=0.08)
    few, many = (promised(count, noise=(0.0, 0.0, 0.0)) for count in (120, 160))  # 0.92 ** 40 = 0.036
    leaves = {
        name: tuple(bool(np.isfinite(row).any()) for row in calibrate(*parts, DEPTHS, config).policy.thresholds)
        for name, parts in {"one": (few, None), "two": (few, few), "two of more users": (many, many)}.items()
    }
    assert leaves == {"one": (True, False), "two": (False, False), "two of more users": (True, True)}
    only_unrated = replace(few, cold=np.ones(120, dtype=bool))  # a stratum without anybody takes no share
    policy = calibrate(only_unrated, few, DEPTHS, config).policy
    assert [bool(np.isfinite(row).any()) for row in policy.thresholds] == [False, True]


def test_what_tests_a_promise_fits_no_temperature():
    known, config = promised(40), OptiRAGConfig(max_disagreement=0.08)
    expected = calibrate(known, None, DEPTHS, config).temperatures
    changes = 0
    for user in range(40):
        logits = known.logits.copy()
        logits[:, user] *= -2
        changes += calibrate(replace(known, logits=logits), None, DEPTHS, config).temperatures != expected
    assert changes == 20


def test_a_promise_needs_both_labels_in_both_halves_of_the_users():
    known = promised(40)
    known = replace(known, labels=(np.arange(40) == 3).astype(np.int64))
    message = "both halves of the users, for max_disagreement=0.1; got 40 users, of whom 39 have label 0 and 1 have lab"
    with pytest.raises(ValueError, match=message):
        calibrate(known, None, DEPTHS, OptiRAGConfig(max_disagreement=0.1))


def test_requests_of_one_user_each_have_no_gauc_to_keep():
    known = replace(exit_scores((1.0, 0.3, 0.1), cold_share=0.0), users=np.arange(4000))
    result = calibrate(known, None, DEPTHS, OptiRAGConfig(max_auc_loss=0.01))
    assert min(result.policy.thresholds[0]) < np.inf
