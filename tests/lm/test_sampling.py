"""Draws: their distribution against transformers' logits processors, and what they depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from reasonrec_fast.lm import sampling
from reasonrec_fast.lm.sampling import SamplingParams, draw_tokens, uniform_numbers


def expected_probabilities(logits, params):
    """As transformers' ``generate`` samples."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(params.temperature))])
    if params.top_k is not None:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    return warpers(None, logits[None].clone())[0].softmax(-1)


def fits(tokens, probabilities, level=1e-3):
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    some = probabilities > 0
    if some.sum() == 1:
        return
    expected = probabilities[some].double()
    assert chisquare(counts[some].numpy(), (expected / expected.sum() * counts.sum()).numpy()).pvalue > level


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_p": 0.7},
    {"top_p": 0.31, "temperature": 1.5},
    {"top_k": 3},
    {"top_k": 5, "top_p": 0.8, "temperature": 1.3},
    {"top_k": 1},
    {"top_p": 1e-9},
    {"top_k": 100},
]


@pytest.mark.parametrize("candidates", [4, 1024])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_distribution_is_that_of_transformers(options, candidates, monkeypatch):
    monkeypatch.setattr(sampling, "_CANDIDATES", candidates)
    count, params = 20_000, SamplingParams(**options)
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    uniform = torch.from_numpy(uniform_numbers(7, 0, count))
    tokens = draw_tokens(logits.expand(count, -1), [params] * count, uniform)
    fits(tokens, expected_probabilities(logits, params))


def test_equally_likely_tokens_stay_together_as_in_transformers():
    logits, count = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0]), 5000
    params = SamplingParams(top_k=2)
    tokens = draw_tokens(logits.expand(count, -1), [params] * count, torch.from_numpy(uniform_numbers(0, 0, count)))
    assert sorted(set(tokens.tolist())) == [1, 2, 3, 4]
    fits(tokens, expected_probabilities(logits, params))


def test_rows_of_a_batch_do_not_touch_each_other(monkeypatch):
    monkeypatch.setattr(sampling, "_CANDIDATES", 16)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 300, generator=generator) * 2
    uniform = torch.rand(40, generator=generator, dtype=torch.float64)
    params = [SamplingParams(**SETTINGS[row % len(SETTINGS)]) for row in range(40)]
    together = draw_tokens(logits, params, uniform)
    for row in range(40):
        alone = draw_tokens(logits[row : row + 1], params[row : row + 1], uniform[row : row + 1])
        assert alone[0] == together[row], params[row]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.floats(1e-3, 1),
    st.none() | st.integers(1, 40),
)
def test_what_is_drawn_may_be_drawn(values, number, top_p, top_k):
    logits, params = torch.tensor([values]), SamplingParams(top_p=top_p, top_k=top_k)
    for uniform in (number, 0.0, 1 - 2**-53):
        token = draw_tokens(logits, [params], torch.tensor([uniform], dtype=torch.float64))
        assert 0 <= int(token) < len(values)
        # transformers' sums are float32: at the edge of the nucleus a token may stay or go, and which of equals
        widened = SamplingParams(top_p=min(1.0, top_p + 1e-5), top_k=top_k)
        assert logits[0, token] >= logits[0, expected_probabilities(logits[0], widened) > 0].min()


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.full((1, 50), -torch.inf)
    logits[0, [10, 20]] = 0.0
    for uniform in (0.0, 0.49, 0.51, 1 - 2**-53):
        token = int(draw_tokens(logits, [SamplingParams()], torch.tensor([uniform], dtype=torch.float64)))
        assert token == (10 if uniform < 0.5 else 20)


def test_numbers_depend_on_seed_and_sample():
    assert uniform_numbers(5, 2, 100)[:10].tolist() == uniform_numbers(5, 2, 10).tolist()
    series = {tuple(uniform_numbers(seed, sample, 4)) for seed in (0, 1, -1, 2**63, 2**64 - 2) for sample in (0, 1)}
    assert len(series) == 10
    assert uniform_numbers(2**64 + 5, 0, 3).tolist() == uniform_numbers(5, 0, 3).tolist()
    assert ((uniform_numbers(0, 0, 10_000) >= 0) & (uniform_numbers(0, 0, 10_000) < 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, r"temperature: expected a finite number that is 0 or in \[1e-30, 1e30\]; got -1"),
        ({"temperature": 1e-39}, "temperature"),  # float32 has no quotients
        ({"temperature": 1e39}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, r"top_p: expected a finite number in \(0, 1\]; got 0"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"num_samples": 0}, "num_samples"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": "end"}, "stop"),
        ({"stop": ("",)}, "stop: expected texts of at least one character"),
        ({"stop_token_ids": (1.5,)}, "stop_token_ids"),
        ({"seed": 0.5}, "seed"),
        ({"statistics_temperature": 0}, "statistics_temperature"),
        ({"statistics_temperature": 1e-46}, r"statistics_temperature: expected a finite number in \[1e-30, 1e30\]"),
        ({"statistics_temperature": 1e300}, "statistics_temperature"),  # all logits were one
    ],
)
def test_settings_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**options)


def test_lists_will_do_for_tuples():
    assert SamplingParams(stop=["a"], stop_token_ids=[1, 2]) == SamplingParams(stop=("a",), stop_token_ids=(1, 2))
