"""Timelines of arrays in any form, and what cannot be one."""

import numpy as np
import pandas as pd
import pytest
import torch

from reasonrec_fast.data import DataError, Timeline

KEYS, TIMES = np.array([1, 0, 1, 1, 0]), np.array([10, 20, 20, 30, 40])
FORMS = {
    "list": list,
    "series": lambda a: pd.Series(a, index=range(len(a))[::-1]),
    "tensor": torch.from_numpy,
    "object": lambda a: a.astype(object),
    "negative stride": lambda a: np.ascontiguousarray(a[::-1])[::-1],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_vectors_are_read_by_position(form):
    line = Timeline(form(KEYS), form(TIMES), 2, form(np.array([3, 4, 0, 2])))
    assert [line.all(key).tolist() for key in (0, 1)] == [[4], [0, 2, 3]]
    assert line.before(1, 30).tolist() == [0, 2]
    assert line.count_before(1, form(np.array([30, 10, 31]))).tolist() == [2, 0, 3]
    assert line.positions_before(form(np.array([1, 0, 1])), form(np.array([11, 50, 31]))).tolist() == [2, 1, 4]


def test_nothing_at_all_has_a_timeline():
    line = Timeline([], [], 2)
    assert line.all(1).tolist() == [] and line.before(0, 5).tolist() == []
    assert line.count_before(0, []).tolist() == [] and line.positions_before([0, 1], 7).tolist() == [0, 0]


LINE = Timeline(KEYS, TIMES, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Timeline([0, 2], [1, 2], 2), r"keys: expected indices in \[0, 2\); got 2 in row 1"),
        (lambda: Timeline([0, -1], [1, 2], 2), "keys: .* got -1 in row 1"),
        (lambda: Timeline([0.0, 1.0], [1, 2], 2), "keys: expected whole numbers; got float64 0.0"),
        (lambda: Timeline([0, 1], [1, float("nan")], 2), "timestamps: expected whole numbers"),
        (lambda: Timeline([0, 1], [1], 2), "timestamps: expected a vector like keys, of 2 rows; got 1"),
        (lambda: Timeline([0, 1, 0], [1, 3, 2], 2), "timestamps: expected ascending ones; got 2 in row 2"),
        (lambda: Timeline([0, 1], [1, 2], 2, [0, 5]), r"rows: expected indices in \[0, 2\); got 5 in row 1"),
        (lambda: Timeline([0, 1], [1, 2], 2, [True, False]), "rows: expected whole numbers; got bool"),
        (lambda: Timeline([0, 1], [1, 2], 1.5), "num_keys: expected a whole number"),
        (lambda: LINE.all(-1), r"key: expected one in \[0, 2\); got -1"),
        (lambda: LINE.before(2, 1), r"key: expected one in \[0, 2\); got 2"),
        (lambda: LINE.before(0, float("nan")), "moments: expected whole numbers"),
        (lambda: LINE.count_before(0, [1.5]), "moments: expected whole numbers; got float64 1.5"),
        (lambda: LINE.positions_before([0, 9], [1, 1]), r"keys: expected indices in \[0, 2\); got 9 in row 1"),
    ],
)
def test_what_is_no_timeline_is_refused(call, message):
    with pytest.raises(DataError, match=f"^{message}"):
        call()
