"""Near duplicates, the noise ceiling and the agreement of nearest pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reasonrec_fast.evaluation import near_duplicates, nearest_pair_correlation, nearest_pairs, noise_ceiling


@pytest.mark.parametrize("block", [1, 3, 7, 1024])
def test_pairs_above_a_threshold(block):
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((20, 4)), generator.standard_normal((11, 4))
    second[3], second[7] = 5 * first[16], first[2] + 0.01
    found = near_duplicates(first, second, 0.9, block=block)
    cosines = (first @ second.T) / np.linalg.norm(first, axis=1)[:, None] / np.linalg.norm(second, axis=1)
    expected = {(int(row), int(column)) for row, column in np.argwhere(cosines >= 0.9)}
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected and len(expected) > 2
    assert (np.diff(found.similarity) <= 0).all() and found.similarity[0] == 1.0
    assert (found.first[0], found.second[0]) == (16, 3)
    assert near_duplicates(first, second, 1.0, block=block).first.tolist() == [16]
    names = [f"a{row}.jpg" for row in range(20)], [f"b{row}.jpg" for row in range(11)]
    assert found.lines(*names)[0] == "1.0000\ta16.jpg\tb3.jpg"
    assert near_duplicates(first, np.zeros((0, 4))).lines(*names) == []


@pytest.mark.parametrize("block", [1, 4, 1024])
def test_nearest_pairs(block):
    features = np.random.default_rng(1).standard_normal((15, 3))
    unit = features / np.linalg.norm(features, axis=1)[:, None]
    rows, columns = np.triu_indices(15, 1)
    order = np.argsort(-(unit[rows] * unit[columns]).sum(1))[:6]
    found = nearest_pairs(features, 6, block=block)
    assert found.first.tolist() == rows[order].tolist() and found.second.tolist() == columns[order].tolist()
    assert len(nearest_pairs(features, 1000, block=block).first) == 105
    repeated = np.repeat(features, 2, axis=0)  # fifteen pairs tie
    assert len(nearest_pairs(repeated, 4, block=block).first) == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3)), np.ones((2, 4))), "second: expected 3 features as in first; got 4"),
        (
            (np.array([[1.0], [0.0]]), np.ones((1, 1))),
            "first: expected vectors that have a direction; got zeros in row 1",
        ),
        ((np.ones((2, 1)), np.array([[np.nan]])), "second: expected finite numbers; got nan in row 0"),
        ((np.ones(2), np.ones((1, 1))), "first: expected"),
        ((np.ones((1, 1)), np.ones((1, 1)), -1), "threshold: expected a cosine in"),
    ],
)
def test_vectors_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        near_duplicates(*arguments)
    with pytest.raises(ValueError, match="count: expected a whole number of at least 1; got 0"):
        nearest_pairs(np.ones((2, 1)), 0)


@pytest.mark.parametrize("noise", [0.2, 0.6, 1.5])
def test_the_ceiling_is_what_the_truth_reaches(noise):
    """Errors that are added to the opinions, as if these were true, promise too much."""
    generator = np.random.default_rng(2)
    true = generator.standard_normal(4000)
    errors = noise * generator.uniform(0.5, 1.5, len(true))
    scores = true + errors * generator.standard_normal(len(true))
    reached = stats.spearmanr(true, scores).statistic
    ceiling = noise_ceiling(scores, errors, draws=20)
    assert abs(ceiling.srcc.value - reached) < 0.02 and ceiling.srcc.low <= ceiling.srcc.value <= ceiling.srcc.high
    too_high = stats.spearmanr(scores, scores + errors * generator.standard_normal(len(scores))).statistic
    assert noise < 0.5 or too_high > reached + 0.04
    assert noise_ceiling(scores, errors, draws=20) == ceiling != noise_ceiling(scores, errors, draws=20, seed=1)
    stretched = noise_ceiling(50 + 10 * scores, 10 * errors, draws=20)
    assert stretched.srcc.value == pytest.approx(ceiling.srcc.value)


def test_ceilings_at_the_ends():
    scores = np.arange(50.0)
    assert noise_ceiling(scores, np.zeros(50)).srcc.value == pytest.approx(1.0)
    assert noise_ceiling(scores, np.full(50, 1e6)).srcc.value == 0.0  # nothing but noise
    some = np.where(np.arange(50) % 2, 3.0, np.nan)
    assert noise_ceiling(scores, some).images == 25
    assert noise_ceiling(scores, some) == noise_ceiling(scores[1::2], some[1::2])


@pytest.mark.parametrize(
    ("scores", "deviations", "message"),
    [
        (np.arange(5.0), np.zeros(4), "deviations: expected 5, one a score; got 4"),
        (np.arange(5.0), [0, 0, -1, 0, 0], "deviations: expected at least 0; got -1.0 in row 2"),
        (np.arange(5.0), [1, 1, 1, 1, np.nan], "deviations: expected at least five that are known; got 4"),
        (np.ones(5), np.ones(5), "scores: expected different ones"),
        ([1, 2, np.nan, 3, 4], np.ones(5), "scores: expected finite numbers; got nan in row 2"),
    ],
)
def test_ceilings_that_are_refused(scores, deviations, message):
    with pytest.raises(ValueError, match=message):
        noise_ceiling(scores, deviations)


def test_alike_images_with_unlike_opinions():
    generator = np.random.default_rng(3)
    features = np.repeat(generator.standard_normal((200, 6)), 2, axis=0) + 0.01 * generator.standard_normal((400, 6))
    quality = np.repeat(generator.standard_normal(200), 2)
    assert nearest_pair_correlation(features, quality + 0.1 * generator.standard_normal(400)) > 0.95
    assert abs(nearest_pair_correlation(features, generator.standard_normal(400), pairs=200)) < 0.2
    scores = quality + generator.standard_normal(400)
    shuffled = generator.permutation(400)
    assert nearest_pair_correlation(features, scores) == pytest.approx(
        nearest_pair_correlation(features[shuffled], scores[shuffled])
    )
    assert np.isnan(nearest_pair_correlation(features, np.ones(400)))
    with pytest.raises(ValueError, match="features: expected 3 rows, one a score, at least three; got 400"):
        nearest_pair_correlation(features, np.arange(3.0))
