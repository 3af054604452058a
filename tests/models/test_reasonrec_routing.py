"""Who answers: risk levels, budgets, and a router that predicts the agent's gain."""

import numpy as np
import pytest

from reasonrec_fast.models.reasonrec.routing import (
    AGENT,
    CONSULT,
    STACK,
    GainRouter,
    RiskLevels,
    gain_curve,
    route_unsure,
)


def test_risk_levels_are_those_of_the_paper():
    generator = np.random.default_rng(0)
    horizons, confidence = generator.random(500), generator.random(500)
    route = RiskLevels(confident=0.6).route(horizons, confidence)
    for horizon, sure, destination in zip(horizons, confidence >= 0.6, route.destination.tolist(), strict=True):
        expected = STACK if horizon < 0.3 and sure else CONSULT if horizon > 0.7 and not sure else AGENT
        assert destination == expected
    assert route.offsets.tolist()[-1] == 500 and len(route.offsets) == 4


def test_a_budget_sends_the_unsure():
    confidence = np.random.default_rng(1).random(101)
    destination = route_unsure(confidence, budget=0.25).destination.numpy()
    assert destination.sum() == 25
    assert confidence[destination == AGENT].max() < confidence[destination == STACK].min()
    by_threshold = route_unsure(confidence, threshold=0.4).destination.numpy()
    np.testing.assert_array_equal(by_threshold == AGENT, confidence < 0.4)


def test_the_router_learns_where_the_agent_gains(tmp_path):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(4000, 5)).astype(np.float32)
    expected = np.where(features[:, 0] > 0.5, 0.3, -0.05)
    gain = expected + generator.normal(0, 0.3, 4000)
    router = GainRouter.fit(features[:3000], gain[:3000])
    predicted = router.predict(features[3000:])
    curve = gain_curve(predicted, gain[3000:])
    assert curve.kept(0.4) > 1.1 and curve.kept(1.0) == pytest.approx(1)
    assert (curve.oracle >= curve.routed - 1e-9).all() and curve.routed[40] > curve.random[40] * 2
    route = router.route(features[3000:])
    np.testing.assert_array_equal(route.destination.numpy() == AGENT, predicted > 0)
    loaded = GainRouter.load(tmp_path, router.save(tmp_path))
    np.testing.assert_array_equal(loaded.predict(features), router.predict(features))
    np.testing.assert_array_equal(router.predict(features[7:8]), router.predict(features)[7:8])


def test_a_latency_budget_is_kept():
    generator = np.random.default_rng(2)
    features = generator.normal(size=(2000, 2)).astype(np.float32)
    router = GainRouter.fit(features, features[:, 0].astype(np.float64))
    cost = generator.uniform(1, 50, 300)
    for budget in (0.0, 30.0, 500.0, 1e9):
        chosen = router.route(features[:300], cost=cost, budget=budget).destination.numpy() == AGENT
        assert cost[chosen].sum() <= budget
    gain = router.predict(features[:300])
    np.testing.assert_array_equal(chosen, gain > 0)
    chosen = router.route(features[:300], cost=cost, budget=300.0).destination.numpy() == AGENT
    rate = gain / cost
    first_out = np.argsort(-rate)[: chosen.sum() + 1]
    assert chosen[first_out[: chosen.sum() // 2]].all()  # the best for their cost are all in


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: RiskLevels(warm=0.9), "cold: expected at least warm, 0.9; got 0.7"),
        (lambda r: RiskLevels().route(np.zeros(2), np.zeros(3)), "expected"),
        (lambda r: r.route(np.zeros((2, 2), np.float32), cost=np.array([1.0, 0.0])), "cost: expected above 0; got 0"),
        (lambda r: r.route(np.zeros((2, 2), np.float32), budget=-1.0), "budget: expected at least 0; got -1"),
        (lambda r: r.predict(np.zeros((2, 3), np.float32)), "features: expected"),
        (lambda r: gain_curve(np.array([]), np.array([])), "gain: expected at least one query; got none"),
        (lambda r: route_unsure(np.array([0.5, 0.2])), "threshold, budget: expected exactly one"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    generator = np.random.default_rng(0)
    router = GainRouter.fit(generator.normal(size=(300, 2)).astype(np.float32), generator.normal(size=300))
    with pytest.raises(ValueError, match=message):
        call(router)
