"""Scale steering: marks on other scales never change an order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.models.s2ad.scales import AnchorScale, LetterScale, NumericScale, as_scale

# Scores on a grid: what differs, differs by 1e-7.
SCORES = st.lists(st.integers(0, 10**7), min_size=2, max_size=40, unique=True).map(
    lambda all: np.array(sorted(all)) / 1e7
)
RANGES = st.tuples(st.integers(-1000, 1000), st.integers(1, 1000)).map(lambda pair: (pair[0], pair[0] + pair[1]))
ANCHORS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=10)


@settings(max_examples=40, deadline=None)
@given(SCORES, RANGES)
def test_ranges_keep_the_order(scores, range):
    marks = NumericScale(*range)(scores)
    assert (np.diff(marks) > 0).all()
    assert range[0] <= marks[0] < marks[-1] <= range[1]


@settings(max_examples=40, deadline=None)
@given(SCORES, st.integers(2, 7), st.data())
def test_letters_never_invert_an_order(scores, count, data):
    names = tuple("GFEDCBA"[-count:])
    weights = np.array(data.draw(st.lists(st.integers(1, 20), min_size=count, max_size=count)))
    for scale in (LetterScale(names), LetterScale(names, tuple(weights / weights.sum()))):
        levels = [names.index(name) for name in scale(scores)]
        assert levels == sorted(levels)
        assert scale([0.0, 1.0]).tolist() == [names[0], names[-1]]


@settings(max_examples=40, deadline=None)
@given(SCORES, ANCHORS, RANGES)
def test_any_anchors_keep_the_order_within_the_range(scores, anchors, range):
    low, high = range
    at, marks = np.array(anchors).T
    scale = AnchorScale.fit(at / 1000, low + (high - low) * marks / 100, range=range)
    given = scale(scores)
    assert (np.diff(given) > 0).all()
    assert low <= given[0] < given[-1] <= high


@settings(max_examples=40, deadline=None)
@given(SCORES, ANCHORS)
def test_any_anchors_keep_the_order_without_a_range(scores, anchors):
    at, marks = np.array(anchors).T
    assume(len(set(at)) > 1 and len(set(marks)) > 1)
    assert (np.diff(AnchorScale.fit(at / 1000, marks)(scores)) > 0).all()


def test_letters_by_shares():
    grid = (np.arange(1000) + 0.5) / 1000
    names = LetterScale(("E", "D", "C", "B", "A"), (0.1, 0.2, 0.4, 0.2, 0.1))(grid)
    assert [int((names == name).sum()) for name in "EDCBA"] == [100, 200, 400, 200, 100]


def test_straight_anchors_give_a_straight_line():
    scale = AnchorScale.fit([0.3, 0.4, 0.6, 0.7], [3, 4, 6, 7])
    np.testing.assert_allclose(scale([0.0, 0.25, 0.5, 1.0]), [0, 2.5, 5, 10], atol=1e-6)


def test_curved_anchors_are_followed():
    at = np.linspace(0.05, 0.95, 10)
    scale = AnchorScale.fit(at, 100 * at**3)
    grid = np.linspace(0.1, 0.9, 50)
    line = np.polyval(np.polyfit(at, 100 * at**3, 1), grid)
    errors = np.abs(scale(grid) - 100 * grid**3).mean(), np.abs(line - 100 * grid**3).mean()
    assert errors[0] < 0.3 * errors[1]


def test_noisy_anchors_of_a_line_are_not_worse_than_a_line():
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        at = generator.uniform(0, 1, 10)
        marks = 1 + 4 * at + generator.normal(0, 0.4, 10)
        grid = np.linspace(0.05, 0.95, 50)
        line = np.polyval(np.polyfit(at, marks, 1), grid)
        errors.append(
            [np.abs(AnchorScale.fit(at, marks)(grid) - 1 - 4 * grid).mean(), np.abs(line - 1 - 4 * grid).mean()]
        )
    ours, straight = np.mean(errors, 0)
    assert ours < 1.35 * straight


def test_one_anchor_bends_the_range():
    scale = AnchorScale.fit([0.5], [90], range=(0, 100))
    assert scale([0.5])[0] == pytest.approx(90, abs=3)
    assert scale([0.0])[0] >= 0
    assert 90 < scale([0.999])[0] <= 100
    with pytest.raises(DataError, match="range: expected one where anchors have one mark or one score alone"):
        AnchorScale.fit([0.5], [90])
    with pytest.raises(DataError, match="range: expected one"):
        AnchorScale.fit([0.5, 0.5], [10, 90])


def test_equal_marks_are_nearly_level():
    scale = AnchorScale.fit([0.2, 0.5, 0.8], [3, 3, 3], range=(1, 5))
    low, middle, high = scale([0.2, 0.5, 0.8])
    assert 2.8 < low < middle < high < 3.2
    with pytest.raises(DataError, match="range: expected one"):
        AnchorScale.fit([0.2, 0.5], [3, 3])


def test_contradicting_anchors_are_averaged_and_counted():
    scale = AnchorScale.fit([0.1, 0.3, 0.5, 0.7, 0.9], [1, 4, 2, 3, 5], range=(1, 5))
    assert scale.contradictions == 2
    assert (np.diff(scale([0.1, 0.3, 0.5, 0.7, 0.9])) > 0).all()
    assert AnchorScale.fit([0.1, 0.9], [9, 1]).contradictions == 1
    against = AnchorScale.fit([0.1, 0.9], [9, 1])([0.1, 0.9])
    assert against == pytest.approx([5, 5], abs=0.5)
    assert against[0] < against[1]


def test_anchors_that_are_almost_one_are_one():
    scale = AnchorScale.fit([0.2, 0.5, 0.5 + 1e-12, 0.8], [2, 4, 6, 8], range=(0, 10))
    assert len(scale.knots) == 5
    assert scale([0.5])[0] == pytest.approx(5, abs=0.1)


def test_the_order_of_anchors_does_not_matter():
    at, marks = [0.1, 0.3, 0.3, 0.7, 0.9], [1, 4, 2, 3, 5]
    first, second = AnchorScale.fit(at, marks), AnchorScale.fit(at[::-1], marks[::-1])
    np.testing.assert_array_equal(first.marks, second.marks)


def test_json_keeps_every_bit():
    scale = AnchorScale.fit([0.1, 0.3, 0.7], [1, 4, 5], range=(0, 6))
    again = AnchorScale.from_dict(json.loads(json.dumps(scale.to_dict())))
    grid = np.linspace(0, 1, 99)
    np.testing.assert_array_equal(again(grid), scale(grid))
    with pytest.raises(ValueError, match="strictly ascending; got others"):
        AnchorScale.from_dict({"knots": [0, 1], "marks": [1, 1], "contradictions": 0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NumericScale(5, 1), r"range: expected \(low, high\), the better mark last; got \(5, 1\)"),
        (lambda: NumericScale(0, np.inf), "range: expected finite numbers; got inf in row 1"),
        (lambda: NumericScale(1, 5)([0.5, 1.1]), r"scores: expected numbers in \[0, 1\]; got 1.1 in row 1"),
        (lambda: LetterScale(("A",)), "names: expected two different ones at least"),
        (lambda: LetterScale(("B", "A"), (0.5, 0.6)), "shares: expected 2 above 0 whose sum is 1"),
        (lambda: LetterScale(("B", "A"), (1.0, 0.0)), "shares: expected 2 above 0"),
        (lambda: LetterScale(("B", "A"))([np.nan]), "scores: expected finite numbers; got nan in row 0"),
        (lambda: AnchorScale.fit([], []), "marks: expected one anchor at least"),
        (lambda: AnchorScale.fit([0.5], [1, 2]), "marks: expected one anchor at least, a mark a score; got 1 and 2"),
        (
            lambda: AnchorScale.fit([0.5, 0.6], [1, 7], range=(1, 5)),
            r"marks: expected marks in \[1, 5\]; got 7.0 in row 1",
        ),
        (lambda: AnchorScale.fit([0.5, 2.0], [1, 2]), "scores: expected numbers in .* got 2.0 in row 1"),
        (lambda: AnchorScale.fit([0.5], [1], range=(5, 1)), "range: expected"),
        (lambda: as_scale((1, 2, 3)), "scale: expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
