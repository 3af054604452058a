"""The evidence-horizon curriculum: horizons, phases, pacing, and what is drawn."""

import numpy as np
import pytest

from reasonrec_fast.training.curriculum import Curriculum, evidence_horizons


def test_horizons_of_the_paper_and_by_quantile():
    counts = np.random.default_rng(0).zipf(1.7, 2000).clip(1, 5000)
    paper, quantile = (evidence_horizons(counts, kind) for kind in ("paper", "quantile"))
    assert paper.min() == 0 and (paper > 0.7).mean() > 0.97  # hence quantiles by default
    assert quantile.mean() == pytest.approx(0.5)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(quantile[order]) <= 0).all() and (np.diff(paper[order]) <= 0).all()
    longer = (counts[None] > counts[:, None]).mean(1) + (counts[None] == counts[:, None]).mean(1) / 2
    np.testing.assert_allclose(quantile, longer, atol=1e-12)


@pytest.mark.parametrize("pacing", ["linear", "root", "competence"])
def test_the_three_phases(pacing):
    curriculum = Curriculum(pacing=pacing)
    limits = [curriculum.limit(progress) for progress in np.linspace(0, 1, 201)]
    assert limits[:20] == [0.3] * 20 and limits[-10:] == [1.0] * 10
    assert (np.diff(limits) >= 0).all() and curriculum.limit(0.1) == pytest.approx(0.3)
    middle = curriculum.limit((0.1 + 0.95) / 2)
    expected = {"linear": 0.65, "root": 0.3 + 0.7 * 0.5**0.5, "competence": (0.5 * 0.91 + 0.09) ** 0.5}
    assert middle == pytest.approx(expected[pacing])


def test_what_is_drawn_follows_the_phases():
    horizons = np.linspace(0, 1, 1001)
    curriculum = Curriculum()

    def drawn(step):
        return np.concatenate([curriculum.draw(horizons, 64, step=step, steps=100, seed=seed) for seed in range(40)])

    assert horizons[drawn(0)].max() <= 0.3
    assert 0.3 < horizons[drawn(30)].max() <= curriculum.limit(0.3)
    last = horizons[drawn(99)]
    cold, others = (last > 0.7).sum() / 0.3, (last <= 0.7).sum() / 0.7
    assert 2.3 < cold / others < 3.6
    assert horizons[drawn(94)].max() > 0.9
    reversed_ = Curriculum(reverse=True).draw(horizons, 64, step=0, steps=100)
    assert horizons[reversed_].min() >= 0.7


def test_draws_depend_on_step_and_seed_alone():
    horizons = np.random.default_rng(0).random(300)
    first = Curriculum().draw(horizons, 16, step=7, steps=50, seed=3)
    Curriculum().draw(horizons, 16, step=8, steps=50, seed=3)
    np.testing.assert_array_equal(first, Curriculum().draw(horizons, 16, step=7, steps=50, seed=3))
    assert len(set(first.tolist())) == 16
    assert (first != Curriculum().draw(horizons, 16, step=8, steps=50, seed=3)).any()


def test_the_tail_is_weighted():
    weights = Curriculum(tail=0.5).weights(np.zeros(3), 0.5, np.array([0, 4, 100]))
    np.testing.assert_allclose(weights, [1, 0.5, 0.1])
    with pytest.raises(ValueError, match="target_counts: expected, as tail is not 0; got None"):
        Curriculum(tail=0.5).weights(np.zeros(3), 0.5)


def test_where_nobody_is_warm_the_warmest_begin():
    horizons = np.array([0.9, 0.5, 0.5, 0.99])
    assert sorted(Curriculum().draw(horizons, 8, step=0, steps=10).tolist()) == [1, 2]


def test_a_trace_tells_and_plots(tmp_path):
    trace = Curriculum().trace(np.linspace(0, 1, 500))
    assert trace.admitted[0] == pytest.approx(0.3, abs=0.01) and trace.admitted[-1] == 1
    assert trace.mean_horizon[0] == pytest.approx(0.15, abs=0.01)
    assert trace.mean_horizon[-1] > trace.mean_horizon[94] > trace.mean_horizon[50]
    pytest.importorskip("matplotlib")
    trace.plot(tmp_path / "curriculum.png")
    assert (tmp_path / "curriculum.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evidence_horizons(np.array([])), "counts: expected at least one user; got none"),
        (lambda: evidence_horizons(np.array([1, -2])), "counts: expected at least 0; got -2 in row 1"),
        (lambda: evidence_horizons(np.array([1]), "log"), "kind: expected 'quantile' or 'paper'; got 'log'"),
        (lambda: Curriculum(warm=0.8), "cold: expected at least warm, 0.8; got 0.7"),
        (lambda: Curriculum(warm_until=0.99), "cold_from: expected at least warm_until, 0.99; got 0.95"),
        (lambda: Curriculum(pacing="slow"), "pacing: expected 'linear', 'root' or 'competence'; got 'slow'"),
        (lambda: Curriculum().limit(1.5), r"progress: expected in \[0, 1\]; got 1.5"),
        (lambda: Curriculum().weights(np.array([0.1, 1.2]), 0.1), r"horizons: expected in \[0, 1\]; got 1.2 in row 1"),
        (lambda: Curriculum().draw(np.array([]), 2, step=0, steps=2), "horizons: expected a sample"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
