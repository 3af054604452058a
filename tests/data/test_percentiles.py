"""Percentiles of scores within their scales."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.opinions import Opinions
from reasonrec_fast.data.percentiles import Percentiles


def opinions(scores, scales=None):
    scores = np.asarray(scores, dtype=float)
    return Opinions(tuple(map(str, range(len(scores)))), scores, Path(), scales=scales)


SCORES = st.lists(st.integers(-50, 50), min_size=2, max_size=30).filter(lambda scores: len(set(scores)) > 1)


@settings(max_examples=50, deadline=None)
@given(SCORES)
def test_mid_ranks_as_they_are_defined(scores):
    percentiles = Percentiles.fit(opinions(scores)).of(scores)
    expected = [(sum(b < a for b in scores) + sum(b == a for b in scores) / 2) / len(scores) for a in scores]
    assert percentiles.tolist() == expected


@settings(max_examples=50, deadline=None)
@given(SCORES, st.sampled_from([np.cbrt, np.exp, lambda x: 3 * x - 7, lambda x: x**3]))
def test_a_strictly_increasing_change_of_a_scale_changes_no_bit(scores, change):
    scores = np.array(scores, dtype=float)
    changed = change(scores)
    if len(np.unique(changed)) == len(np.unique(scores)):
        before, after = Percentiles.fit(opinions(scores)), Percentiles.fit(opinions(changed))
        np.testing.assert_array_equal(before.of(scores), after.of(changed))


@settings(max_examples=50, deadline=None)
@given(SCORES, st.lists(st.floats(-80, 80), min_size=2, max_size=20))
def test_better_is_higher_everywhere_and_back_is_the_inverse(scores, new):
    percentiles = Percentiles.fit(opinions(scores))
    new = np.unique(np.round(new, 3))
    values = percentiles.of(new)
    assert ((values > 0) & (values < 1)).all()
    assert (np.diff(values) >= 0).all()
    inside = (values > 1e-9) & (values < 1 - 1e-9)
    assert (np.diff(values[inside]) > 0).all()
    np.testing.assert_allclose(percentiles.back(values[inside]), new[inside], atol=1e-4)
    ascending = np.linspace(0.001, 0.999, 101)
    assert (np.diff(percentiles.back(ascending)) > 0).all()


def test_scales_do_not_see_each_other():
    both = Percentiles.fit(opinions([1, 2, 3, 10, 30], ("a", "a", "a", "b", "b")))
    assert both.of([2, 2], ("a", "b")).tolist()[0] == 0.5
    alone = Percentiles.fit(opinions([10, 30], ("b", "b")))
    assert both.of([12.5], ("b",)) == alone.of([12.5], ("b",))
    assert both.back([0.5], "b").tolist() == [20.0]


def test_json_keeps_every_bit():
    percentiles = Percentiles.fit(opinions(np.random.default_rng(0).normal(size=50)))
    again = Percentiles.from_dict(json.loads(json.dumps(percentiles.to_dict())))
    new = np.linspace(-5, 5, 77)
    np.testing.assert_array_equal(again.of(new), percentiles.of(new))


@pytest.mark.parametrize(
    ("values", "percentiles"),
    [([1, 1], [0.2, 0.8]), ([1, 2], [0.8, 0.2]), ([1, 2], [0.0, 0.8]), ([1], [0.5]), ([1, 2], [0.5])],
)
def test_a_broken_file_is_refused(values, percentiles):
    with pytest.raises(ValueError, match="expected ascending scores"):
        Percentiles.from_dict({"a": {"values": values, "percentiles": percentiles, "count": 2}})


def test_standard_errors_follow_the_local_slope():
    scores = np.concatenate([np.linspace(0, 1, 100), np.linspace(1, 11, 101)[1:]])  # dense, then ten times as sparse
    deviations = Percentiles.fit(opinions(scores)).deviations([0.5, 6.0, 6.0], [0.1, 0.1, np.nan])
    assert deviations[0] == pytest.approx(10 * deviations[1], rel=0.05)
    assert np.isnan(deviations[2])


@pytest.mark.parametrize(
    ("scores", "scales", "message"),
    [
        ([1, 1, 1], None, "expected two different scores at least on the scale; got only 1.0, first in row 0"),
        ([1, 2, 5, 5], ("a", "a", "b", "b"), "on scale 'b'; got only 5.0, first in row 2"),
        ([1, np.nan], None, "scores: expected finite numbers; got nan in row 1"),
        ([], None, "got none"),
    ],
)
def test_what_cannot_be_fitted_is_refused(scores, scales, message):
    with pytest.raises(DataError, match=message):
        Percentiles.fit(opinions(scores, scales))


def test_what_cannot_be_read_is_refused():
    percentiles = Percentiles.fit(opinions([1, 2, 3, 4], ("a", "a", "b", "b")))
    with pytest.raises(DataError, match="expected one of 'a', 'b'; got 'c' in row 1"):
        percentiles.of([1, 2], ("a", "c"))
    with pytest.raises(DataError, match="got '' in row 0"):
        percentiles.of([1, 2])
    with pytest.raises(DataError, match="expected finite numbers; got inf in row 1"):
        percentiles.of([1, np.inf], ("a", "a"))
    with pytest.raises(DataError, match="scales: expected 2, one a score; got 1"):
        percentiles.of([1, 2], ("a",))
    with pytest.raises(DataError, match=r"expected numbers in \(0, 1\); got 1.0 in row 1"):
        percentiles.back([0.5, 1.0], "a")
    with pytest.raises(DataError, match="scale: expected one of 'a', 'b'; got 'c'"):
        percentiles.back([0.5], "c")
    with pytest.raises(DataError, match="deviations: expected at least 0.*got -1.0 in row 1"):
        percentiles.deviations([1, 2], [0, -1], ("a", "a"))
