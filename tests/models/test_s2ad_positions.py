"""Stage 1: soft positions among references, their losses, and what is read from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reasonrec_fast.models.s2ad.gaussian import mean_probability
from reasonrec_fast.models.s2ad.losses import fidelity, position_loss, position_loss_reference
from reasonrec_fast.models.s2ad.positions import (
    PositionConfig,
    average_draws,
    local_gap,
    position_sigma,
    presented,
    read_positions,
    restored,
    soft_positions,
)

EVEN = torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9]], dtype=torch.float64)
SOME = torch.tensor([[0.15, 0.2, 0.55, 0.7, 0.95]], dtype=torch.float64)


def test_targets_are_those_of_the_normal_distribution():
    query, sigma = torch.tensor([0.42]), 0.07
    edges = np.array([-np.inf, *SOME[0].tolist(), np.inf])
    expected = np.diff(stats.norm.cdf((edges - query.double().item()) / sigma))
    np.testing.assert_allclose(soft_positions(query, SOME, sigma)[0].numpy(), expected, atol=1e-15)


def test_both_tails_are_exact():
    far = soft_positions(torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.4, 1.0]] * 2).double(), 0.02)
    assert far[0, 2].item() == pytest.approx(stats.norm.sf(20), rel=1e-9)
    assert far[1, 1].item() == pytest.approx(stats.norm.sf(30), rel=1e-9)


def test_hard_positions_are_the_limit_of_small_sigma():
    references = torch.tensor([[0.25, 0.5, 0.5]]).double()
    for query in (0.1, 0.25, 0.3, 0.5, 0.8):
        queries = torch.tensor([query]).double()
        hard, nearly = soft_positions(queries, references, 0.0), soft_positions(queries, references, 1e-9)
        assert hard.tolist() == nearly.tolist()
    assert soft_positions(torch.tensor([0.5]), references, 0.0).tolist() == [[0, 0.5, 0, 0.5]]


def test_sigma_follows_gap_and_standard_error():
    query = torch.tensor([0.5])
    assert position_sigma(query, EVEN).item() == pytest.approx(0.1)
    assert position_sigma(query, EVEN, torch.tensor([torch.nan])).item() == pytest.approx(0.1)
    assert position_sigma(query, EVEN, torch.tensor([0.24])).item() == pytest.approx(0.26)
    close = torch.tensor([[0.49, 0.5, 0.51]]).double()
    assert position_sigma(query, close).item() == 0.02  # the floor
    assert position_sigma(query, EVEN, torch.tensor([0.3]), PositionConfig(kind="static", sigma=0.2)).item() == 0.2
    assert position_sigma(query, EVEN, torch.tensor([0.3]), PositionConfig(kind="hard")).item() == 0.0


def test_the_local_gap_does_not_jump():
    queries = torch.linspace(0, 1, 2001).double()
    gaps = local_gap(queries, SOME.expand(2001, -1))
    assert (gaps.diff().abs() < 0.005).all()
    assert gaps[[0, -1]].tolist() == pytest.approx([0.15, 0.05])
    assert gaps[1100].item() == pytest.approx((0.7 - 0.2) / 2)  # at 0.55


@pytest.mark.parametrize(("sigma", "error"), [(0.006, 1e-9), (0.01, 1e-9), (0.03, 1e-9), (0.05, 1e-9), (0.1, 5e-4)])
def test_a_query_between_references_reads_back(sigma, error):
    queries = torch.linspace(0.3, 0.7, 81).double()
    many = EVEN.expand(81, -1)
    read = read_positions(soft_positions(queries, many, sigma), many)
    assert (read - queries).abs().max() < error


@pytest.mark.parametrize(("sigma", "error"), [(0.01, 1e-6), (0.02, 1e-7), (0.05, 2e-3)])
def test_a_query_between_uneven_references_reads_back(sigma, error):
    queries = torch.linspace(0.25, 0.65, 81).double()
    many = SOME.expand(81, -1)
    read = read_positions(soft_positions(queries, many, sigma), many)
    assert (read - queries).abs().max() < error


def test_dynamic_positions_read_back_over_the_whole_scale():
    queries = torch.linspace(0.001, 0.999, 400).double()
    many = EVEN.expand(400, -1)
    read = read_positions(soft_positions(queries, many, position_sigma(queries, many)), many)
    assert (read.diff() > 0).all()
    middle = (queries > 0.15) & (queries < 0.85)
    assert (read - queries)[middle].abs().max() < 0.006
    assert (read - queries).abs().max() < 0.025  # in the open slots


def test_open_slots_do_not_saturate():
    """However sure the judge is that an image is below all references, one of which it is surer reads lower."""
    logits = torch.zeros(9, 6).double()
    logits[:, 0] = torch.tensor([0, 2, 4, 8, 16, 32, 64, 128, 256])
    read = read_positions(logits.softmax(-1), EVEN.expand(9, -1))
    assert (read.diff() < 0).all()
    assert (read > 0).all()
    mirrored = read_positions(logits.flip(-1).softmax(-1), EVEN.expand(9, -1))
    np.testing.assert_allclose(mirrored, 1 - read, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_reading_is_strictly_increasing_in_the_probabilities(data):
    count = data.draw(st.integers(1, 6))
    references = sorted(data.draw(st.lists(st.integers(1, 99), min_size=count, max_size=count, unique=True)))
    weights = np.array(data.draw(st.lists(st.floats(-12, 12), min_size=count + 1, max_size=count + 1)))
    low, high = sorted(data.draw(st.lists(st.integers(0, count), min_size=2, max_size=2, unique=True)))
    before = torch.tensor(weights).softmax(-1)
    moved = before.clone()
    mass = before[low] * data.draw(st.floats(0.05, 1.0))
    moved[low], moved[high] = before[low] - mass, before[high] + mass
    table = torch.tensor(references).double()[None] / 100
    first, second = read_positions(before[None], table), read_positions(moved[None], table)
    assert 0 < first < second < 1


def test_absent_references_change_nothing():
    padded = torch.cat([SOME, torch.full((1, 2), torch.inf)], -1).double()
    query, sigma = torch.tensor([0.97]), torch.tensor([0.05])
    targets = soft_positions(query, padded, sigma)
    assert targets[0, 6:].tolist() == [0, 0]
    assert targets[:, :6].tolist() == soft_positions(query, SOME, sigma).tolist()
    assert position_sigma(query, padded).tolist() == position_sigma(query, SOME).tolist()
    assert read_positions(targets, padded).item() == pytest.approx(
        read_positions(targets[:, :6], SOME).item(), abs=1e-15
    )
    logits, same = torch.randn(1, 8, generator=torch.manual_seed(0)).double(), torch.tensor([[True] * 4 + [False] * 3])
    for mask in (None, same):
        short = position_loss(logits[:, :6], targets[:, :6], SOME, same_scale=None if mask is None else mask[:, :5])
        assert position_loss(logits, targets, padded, same_scale=mask).item() == pytest.approx(short.item(), abs=1e-15)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)))
def test_any_order_of_presentation_reads_the_same(permutation):
    order = torch.tensor([permutation])
    queries = torch.tensor([0.33])
    shown = soft_positions(queries, SOME, 0.1, order=order)
    plain = soft_positions(queries, SOME, 0.1)
    assert shown[0].tolist() == [plain[0, slot].item() for slot in permutation]
    assert restored(shown, order).tolist() == plain.tolist()
    assert presented(plain, order).tolist() == shown.tolist()
    assert read_positions(shown, SOME, order=order).tolist() == read_positions(plain, SOME).tolist()


def cases(batch=7):
    generator = torch.manual_seed(1)
    references = torch.rand(batch, 4, generator=generator, dtype=torch.float64).sort(-1).values
    references[0, 2:] = torch.inf
    targets = soft_positions(torch.rand(batch, generator=generator).double(), references, 0.05)
    targets[1] = soft_positions(torch.tensor([0.5]), references[1:2], 0.0)
    logits = 3 * torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    same = torch.rand(batch, 4, generator=generator) < 0.7
    same[2] = True
    same[3] = False
    return logits, targets, references, same


def test_the_loss_is_its_definition():
    logits, targets, references, same = cases()
    for weight in (0.0, 0.5, 1.0):
        loss = position_loss(logits, targets, references, same_scale=same, fidelity_weight=weight)
        arrays = (logits.numpy(), targets.numpy(), references.numpy(), same.numpy())
        np.testing.assert_allclose(loss.numpy(), position_loss_reference(*arrays, weight), atol=1e-12)
    everything = position_loss_reference(*arrays[:3], np.ones_like(arrays[3]))
    np.testing.assert_allclose(position_loss(logits, targets, references).numpy(), everything, atol=1e-12)


def test_the_loss_of_other_scales_is_nothing():
    logits, targets, references, same = cases()
    loss = position_loss(logits, targets, references, same_scale=same)
    assert loss[3] == 0  # no reference of its scale
    changed = references.clone()
    changed[4, ~same[4]] = changed[4, ~same[4]]  # only the targets tell of them
    assert loss[2] == position_loss(logits, targets, references)[2]


def test_gradients():
    logits, targets, references, same = cases()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: position_loss(x, targets, references, same_scale=same), logits)
    probabilities = logits[1:].detach().softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: read_positions(x, references[1:]), probabilities)


def test_gradients_are_finite_where_the_judge_is_sure_and_wrong():
    logits = torch.tensor([[0.0, 300.0, 0.0, -300.0]], requires_grad=True)
    references = torch.tensor([[0.2, 0.4, 0.6]])
    loss = position_loss(logits, soft_positions(torch.tensor([0.9]), references, 0.0), references).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 3] < 0 < logits.grad[0, 1]
    assert fidelity(torch.tensor(-torch.inf), torch.tensor(0.0), torch.tensor(1.0)) == 1


def test_the_loss_is_least_at_the_target():
    _, targets, references, _ = cases()
    loss = position_loss(targets[2:].log(), targets[2:], references[2:])
    assert loss.abs().max() < 1e-12


def test_the_mean_of_probabilities_is_an_integral():
    starts = torch.tensor([-37, -2.0, -0.1, 0.3, 1.0, 30.0]).double()
    for difference in (0.0, 1e-9, 0.1, 0.249, 0.251, 3.0, 60.0):
        line = starts[:, None] + difference * (torch.arange(200_000).double() + 0.5) / 200_000
        expected = torch.special.ndtr(line).mean(-1)
        np.testing.assert_allclose(mean_probability(starts, starts + difference), expected, atol=1e-10)


def test_draws_are_averaged_without_those_that_are_absent():
    assert average_draws(torch.tensor([[0.2, 0.4], [0.2, torch.nan]])).tolist() == pytest.approx([0.3, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: soft_positions(torch.tensor([1.5]), EVEN, 0.1),
            r"queries: expected percentiles in \[0, 1\]; got 1.5 in",
        ),
        (lambda: soft_positions(torch.tensor([0.5]), EVEN.flip(-1), 0.1), "references: expected ascending"),
        (lambda: soft_positions(torch.tensor([0.5]), EVEN[:, :0], 0.1), "references: expected one at least"),
        (lambda: soft_positions(torch.tensor([0.5]), EVEN + torch.inf, 0.1), "references: expected ascending"),
        (
            lambda: soft_positions(torch.tensor([0.5]), EVEN, torch.tensor([-1.0])),
            "sigma: expected at least 0; got -1.0 in row 0",
        ),
        (lambda: soft_positions(torch.tensor([0.5]), EVEN, torch.nan), "sigma: expected at least 0; got nan"),
        (
            lambda: soft_positions(torch.tensor([0.5, 0.5]), EVEN, 0.1),
            r"queries: expected \[1\], as references; got \[2\]",
        ),
        (lambda: read_positions(torch.full((1, 5), 0.2), EVEN), "probabilities: expected one a slot"),
        (
            lambda: read_positions(torch.full((1, 6), torch.nan), EVEN),
            "probabilities: expected at least 0; got others in row 0",
        ),
        (
            lambda: read_positions(torch.ones(1, 6), EVEN, order=torch.tensor([[0, 1, 2, 3, 4, 4]])),
            "expected permutations of 6",
        ),
        (lambda: position_loss(torch.ones(1, 5), torch.ones(1, 6), EVEN), "logits: expected one a slot"),
        (lambda: position_loss(torch.ones(1, 6), torch.ones(1, 5), EVEN), "targets: expected"),
        (lambda: PositionConfig(floor=0.0), "floor: expected a finite number above 0; got 0.0"),
        (lambda: PositionConfig(kind="soft"), "kind: expected 'dynamic', 'static' or 'hard'; got 'soft'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
