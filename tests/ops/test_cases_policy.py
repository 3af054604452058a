"""Policy losses where numbers are extreme, missing or without meaning."""

import pytest
import torch

from reasonrec_fast import ops

NAN, INF = float("nan"), float("inf")
T = torch.tensor


def lost(**change):
    """The loss and the gradient of the hidden states of three tokens."""
    hidden = torch.eye(3).requires_grad_()
    given = {"advantages": torch.ones(3), "old_logprobs": torch.full((3,), -1.1), **change}
    loss, statistics = ops.policy_loss(hidden, torch.eye(3), T([0, 1, 2]), **given)
    loss.backward()
    return loss.detach(), hidden.grad, statistics


@pytest.mark.parametrize("old", [-100.0, -1000.0, -INF])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_old_logprob_far_below_gives_finite_gradients(old, advantage):
    loss, gradient, statistics = lost(old_logprobs=T([old, -1.1, -1.1]), advantages=torch.full((3,), advantage))
    assert (
        loss.isfinite() and gradient.isfinite().all() and not gradient[0].any() and gradient[1].any() == (advantage < 0)
    )
    assert float(statistics.ratio_max) == pytest.approx(torch.e**20, rel=1e-5)


def test_a_reference_far_above_is_bounded_and_one_far_below_is_exact():
    loss, gradient, _ = lost(reference_logprobs=T([100.0, -1.0, -1.0]), beta=0.1)
    assert loss.isfinite() and gradient.isfinite().all()
    plain, without, _ = lost()
    loss, gradient, statistics = lost(reference_logprobs=T([-100.0, -0.5514447, -0.5514447]), beta=0.3)
    assert float(statistics.kl) == pytest.approx((100 - 0.5514447 - 1) / 3, rel=1e-5)
    assert float(loss - plain) == pytest.approx(0.3 * float(statistics.kl), rel=1e-4)
    assert (gradient - without)[0].abs().max() > 0.02


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
def test_what_does_not_count_reaches_nothing(wrong, kind):
    options = {
        "kind": kind,
        "normalizer": 2.0 if kind == "dr_grpo" else None,
        "mask": T([True, True, False]),
        "beta": 0.1,
    }
    expected = lost(reference_logprobs=torch.full((3,), -1.0), **options)
    result = lost(
        advantages=T([1.0, 1.0, wrong]), old_logprobs=T([-1.1, -1.1, wrong]),
        reference_logprobs=T([-1.0, -1.0, wrong]), **options,
    )  # fmt: skip
    for actual, wanted in zip((*result[:2], *result[2]), (*expected[:2], *expected[2]), strict=True):
        assert torch.equal(actual, wanted)
    by_sequence = {**options, "sequence_ids": T([0, 0, 1]), "reference_logprobs": torch.full((3,), -1.0)}
    assert lost(advantages=T([1.0, wrong]), **by_sequence)[0] == lost(advantages=T([1.0, 5.0]), **by_sequence)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number; got 0.0"),
        ({"temperature": T(0.0)}, "temperature: expected a positive number; got 0.0"),
        ({"beta": NAN, "reference_logprobs": torch.zeros(3)}, "beta: expected a number of at least 0; got nan"),
        ({"beta": -1.0, "reference_logprobs": torch.zeros(3)}, "beta: expected a number of at least 0; got -1.0"),
        ({"clip": (NAN, 0.2)}, "clip: expected two numbers of at least 0"),
        ({"clip": (-0.2, 0.2)}, "clip: expected two numbers of at least 0"),
        ({"kind": "dr_grpo", "normalizer": 0.0}, "normalizer: expected a positive number; got 0.0"),
        ({"mask": T([1.0, 0.5, 0.0])}, "mask: expected torch.bool; got torch.float32"),
        (
            {"sequence_ids": T([0, 1, -1]), "kind": "dapo"},
            r"sequence_ids: expected sequences in \[0, 3\); got -1 in row 2",
        ),
        ({"sequence_ids": T([0, 1, 7]), "advantages": T([1.0, 5.0])}, r"sequence_ids: .* \[0, 2\); got 7 in row 2"),
        ({"sequence_ids": T([True, False, True])}, "sequence_ids: expected integers; got torch.bool"),
        ({"sequence_ids": T([0.0, 1.0, 1.0])}, "sequence_ids: expected integers; got torch.float32"),
    ],
)
def test_numbers_without_meaning_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        lost(**change)


def test_a_mask_of_integers_counts_and_does_not_weigh():
    assert torch.equal(lost(mask=T([1, 2, 0]))[0], lost(mask=T([True, True, False]))[0])
    assert torch.equal(lost(clip=[0.2, 0.2])[0], lost()[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("reward", [931, 931.1, 1e-3, -60000])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_equal_rewards_have_no_advantage(dtype, reward, size):
    rewards, groups = torch.full((size,), reward).to(dtype), torch.zeros(size, dtype=torch.int64)
    for kind in ("grpo", "dr_grpo"):
        result = ops.group_advantages(rewards, groups, kind=kind)
        assert not result.any() and result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_as_exact_as_float32(dtype):
    rewards = T([60000.0, 50000.0, 40000.0, 0.1, 0.2, 0.4]).to(dtype)
    groups = T([4, 4, 4, -1, -1, -1])
    torch.testing.assert_close(ops.group_advantages(rewards, groups), ops.group_advantages(rewards.float(), groups))


def test_large_rewards_have_advantages_and_broken_ones_stay_in_their_group():
    result = ops.group_advantages(T([1e30, 2e30, 3e30]), T([0, 0, 0]))
    torch.testing.assert_close(result, T([-1.0, 0.0, 1.0]))
    result = ops.group_advantages(T([NAN, 1.0, 2.0, 3.0]), T([0, 0, 1, 1]))
    assert result[:2].isnan().all() and result[2:].isfinite().all()
    for groups in (T([0.0, 1.0]), T([0.0, NAN]), ["a", "b"]):
        with pytest.raises(ValueError, match="groups: expected"):
            ops.group_advantages([1.0, 2.0], groups)
