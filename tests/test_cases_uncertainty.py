"""Confidences, losses and labels in any form; what has no meaning among them is refused with its name and row."""

import numpy as np
import pandas as pd
import pytest
import torch

from reasonrec_fast import uncertainty as un

NAN, INF = float("nan"), float("inf")
GENERATOR = np.random.default_rng(0)
SURE, LOST = GENERATOR.random(40), GENERATOR.random(40)
YES = (GENERATOR.random(40) < SURE).astype(np.int64)
EXITS = np.stack([SURE, GENERATOR.random(40), np.ones(40)])


def shuffled(array):
    """By position what was given, by index the other way round."""
    index = np.arange(array.shape[0])[::-1]
    return pd.Series(array, index=index) if array.ndim == 1 else pd.DataFrame(array, index=index)


FORMS = {
    "pandas": shuffled,
    "list": np.ndarray.tolist,
    "tensor": torch.from_numpy,
    "object": lambda a: a.astype(object),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_values_are_read_by_position(form):
    assert un.aurc(form(SURE), form(LOST)) == un.aurc(SURE, LOST)
    assert un.ece(form(SURE), form(YES)) == un.ece(SURE, YES)
    assert un.fit_temperature(form(SURE), form(YES)) == un.fit_temperature(SURE, YES)
    assert un.fit_temperature(form(EXITS.T), form(YES)) == un.fit_temperature(EXITS.T, YES)
    for given, expected in zip(
        un.simulate(form(EXITS), form(EXITS), form(np.array([0.5, 0.8]))),
        un.simulate(EXITS, EXITS, [0.5, 0.8]),
        strict=True,
    ):
        assert np.array_equal(given, expected)
    limit = un.Limit(lambda scores: float(scores.mean()), 0.2)
    chosen = un.choose_thresholds(EXITS, EXITS, [1, 2, 3], [limit])
    assert un.choose_thresholds(form(EXITS), form(EXITS), [1, 2, 3], [limit]) == chosen
    groups = np.arange(40) // 2
    results = [
        un.guarantee_thresholds(as_given(EXITS / 2), as_given(EXITS), [1, 2, 3], alpha=0.4, groups=as_given(groups))
        for as_given in (form, np.asarray)
    ]
    assert results[0] == results[1]


def test_groups_have_any_keys():
    names = np.array([f"user {row // 2}" for row in range(40)])
    results = [
        un.guarantee_thresholds(EXITS / 2, EXITS, [1, 2, 3], alpha=0.4, groups=groups).loss
        for groups in (names, names.astype(object), pd.Series(names))
    ]
    assert results[0] == results[1] == results[2]


def test_scores_keep_their_type_and_confidence_may_be_infinite():
    scores = EXITS.astype(np.float32)
    assert un.simulate(scores, scores, [0.5, 0.8])[0].dtype == np.float32
    sure = np.array([[INF, 0.1, -INF, 0.2], [1.0, 1.0, 1.0, 1.0]])
    chosen = un.choose_thresholds(sure, sure, [1, 2], [un.Limit(lambda scores: 0.0, 0.0)])
    assert chosen == (-INF,) and un.simulate(sure, sure, chosen)[1].tolist() == [0, 0, 0, 0]


def exits(value):
    changed = EXITS.copy()
    changed[1, 7] = value
    return changed


def guaranteed(losses=EXITS, confidence=EXITS, **options):
    return lambda: un.guarantee_thresholds(losses, confidence, [1, 2, 3], alpha=0.1, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: un.aurc([0.1, NAN], [0, 1]), "confidence: expected numbers; got nan in row 1"),
        (lambda: un.aurc([0.1, 0.2], [0, INF]), "losses: expected finite numbers; got inf in row 1"),
        (lambda: un.aurc([0.1, 0.2], [0]), "losses: expected a vector like confidence, of 2 rows; got 1"),
        (lambda: un.aurc([], []), "losses: expected at least one; got none"),
        (lambda: un.aurc(["a"], [0]), "confidence: expected numbers; got <U1 'a'"),
        (lambda: un.ece([0.1, 0.2], [0, 2]), "labels: expected 0 or 1; got 2.0 in row 1"),
        (lambda: un.ece([0.1, 0.2], [0, None]), "labels: expected 0 or 1; got nan in row 1"),
        (lambda: un.ece([0.1, NAN], [0, 1]), "probability: expected finite numbers; got nan in row 1"),
        (lambda: un.ece([0.1, 1.5], [0, 1]), r"probability: expected numbers in \[0, 1\]; got 1.5 in row 1"),
        (lambda: un.ece([0.1], [0, 1]), "labels: expected a vector like probability, of 1 rows; got 2"),
        (lambda: un.ece([0.1], [0], 0), "bins: expected a whole number of at least 1; got 0"),
        (lambda: un.fit_temperature([0.1, NAN], [0, 1]), "logits: expected numbers; got nan in row 1"),
        (lambda: un.fit_temperature([[0.1, 0.2], [NAN, 0.1]], [0, 1]), "logits: .* got nan in row 1, column 0"),
        (lambda: un.fit_temperature([0.1, 0.2], [0, -1]), "labels: expected 0 or 1; got -1.0 in row 1"),
        (lambda: un.fit_temperature([0.1], [0, 1]), "logits: expected a vector like labels, of 2 rows; got 1"),
        (lambda: un.simulate(exits(NAN), EXITS, [0, 0]), "scores: expected numbers; got nan in row 1, column 7"),
        (lambda: un.simulate(EXITS, exits(NAN), [0, 0]), "confidence: expected numbers; got nan in row 1, column 7"),
        (lambda: un.simulate(EXITS, EXITS, [0, NAN]), "thresholds: expected numbers; got nan in row 1"),
        (lambda: un.simulate(EXITS, EXITS, [0]), r"scores, confidence: expected \[2, N\]; got \(3, 40\)"),
        (lambda: un.simulate(EXITS, EXITS[:, 1:], [0, 0]), "scores, confidence: expected"),
        (lambda: un.choose_thresholds(EXITS, exits(NAN), [1, 2, 3], []), "confidence: .* got nan in row 1, column 7"),
        (lambda: un.choose_thresholds(EXITS[:, :0], EXITS[:, :0], [1, 2, 3], []), "scores: expected at least one row"),
        (guaranteed(losses=exits(NAN)), "losses: expected finite numbers; got nan in row 1, column 7"),
        (guaranteed(losses=exits(1.5)), r"losses: expected values in \[0, 1\]"),
        (guaranteed(confidence=exits(NAN)), "confidence: expected numbers; got nan in row 1, column 7"),
        (guaranteed(groups=[1, 2]), r"groups: expected \[40\]; got \[2\]"),
        (guaranteed(groups=[*range(39), None]), "groups: expected identifiers; got None in row 39"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
