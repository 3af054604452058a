"""policy_loss and group_advantages against loops over tokens and sequences in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import ops


def problem(rows, sequences, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64).to(dtype)
    tokens = torch.randint(11, (rows,), generator=generator)
    ids = torch.randint(sequences, (rows,), generator=generator)
    logprobs = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    old = logprobs + 0.3 * torch.randn(rows, generator=generator, dtype=torch.float64)
    reference = logprobs + 0.3 * torch.randn(rows, generator=generator, dtype=torch.float64)
    advantages = torch.randn(sequences, generator=generator, dtype=torch.float64)
    return hidden, weight, tokens, ids, advantages, old, reference


def loop(hidden, weight, tokens, ids, advantages, old, reference, mask, clip, beta, kind, normalizer):
    """The definition, one token at a time."""
    logprobs = (hidden @ weight.T).log_softmax(-1)
    losses: dict[int, list[torch.Tensor]] = {}
    for t in range(len(tokens)):
        if not mask[t]:
            continue
        logprob = logprobs[t, tokens[t]]
        ratio, advantage = (logprob - old[t]).exp(), advantages[ids[t]]
        gain = torch.min(ratio * advantage, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantage)
        gap = reference[t] - logprob
        losses.setdefault(int(ids[t]), []).append(-gain + beta * (gap.exp() - gap - 1))
    if not losses:
        return hidden.sum() * 0
    if kind == "grpo":
        return torch.stack([torch.stack(part).mean() for part in losses.values()]).mean()
    flat = torch.stack([loss for part in losses.values() for loss in part])
    return flat.mean() if kind == "dapo" else flat.sum() / normalizer


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 12),
    sequences=st.integers(1, 13),
    kind=st.sampled_from(["grpo", "dapo", "dr_grpo"]),
    beta=st.sampled_from([0.0, 0.1]),
    masked=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_equals_the_definition(rows, sequences, kind, beta, masked):
    hidden, weight, tokens, ids, advantages, old, reference = problem(rows, sequences)
    mask = torch.rand(rows) >= masked
    normalizer = 17.0 if kind == "dr_grpo" else None
    if sequences == rows:
        advantages = torch.cat([advantages, advantages[:1]])  # [T] would mean one a token
    inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss, _ = ops.policy_loss(
        *inputs, tokens, advantages, old, sequence_ids=ids, mask=mask, reference_logprobs=reference,
        clip=(0.2, 0.28), beta=beta, kind=kind, normalizer=normalizer,
    )  # fmt: skip
    exact = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = loop(*exact, tokens, ids, advantages, old, reference, mask, (0.2, 0.28), beta, kind, normalizer)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(expected, exact, allow_unused=True)
    for actual, wanted in zip(torch.autograd.grad(loss, inputs), gradients, strict=True):
        torch.testing.assert_close(actual, torch.zeros_like(actual) if wanted is None else wanted)


def test_statistics():
    hidden, weight, tokens, ids, advantages, old, reference = problem(40, 5, torch.float32)
    mask = torch.arange(40) % 3 > 0
    _, results = ops.policy_loss(
        hidden, weight, tokens, advantages, old, sequence_ids=ids, mask=mask, reference_logprobs=reference
    )
    logprobs = (hidden.double() @ weight.double().T).log_softmax(-1)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0]
    ratio, advantage = (chosen - old).exp(), advantages[ids]
    clipped = ((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
    gap = reference - chosen
    expected = {
        "ratio_mean": ratio[mask].mean(),
        "ratio_max": ratio[mask].max(),
        "clipped_share": clipped[mask].double().mean(),
        "kl": (gap.exp() - gap - 1)[mask].mean(),
        "entropy": -(logprobs.exp() * logprobs).sum(1)[mask].mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(results, name).double(), value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results.logprobs.double(), chosen, atol=1e-5, rtol=1e-5)
    assert not any(tensor.requires_grad for tensor in results)


def test_what_does_not_count_may_be_infinite():
    hidden, weight, tokens, _, _, old, _ = problem(4, 1)
    old[2] = -torch.inf
    hidden.requires_grad_()
    loss, _ = ops.policy_loss(hidden, weight, tokens, torch.ones(4), old, mask=torch.tensor([1, 1, 0, 1]).bool())
    loss.backward()
    assert loss.isfinite() and hidden.grad.isfinite().all()


def test_compiles_in_one_graph():
    hidden, weight, tokens, ids, advantages, old, _ = problem(8, 3, torch.float32)

    def step(hidden):
        return ops.policy_loss(hidden, weight, tokens, advantages, old, sequence_ids=ids)[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), step(hidden))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ppo"}, "kind: expected one of"),
        ({"kind": "dr_grpo"}, "normalizer: expected one"),
        ({"normalizer": 2.0}, "normalizer: expected one"),
        ({"beta": 0.1}, "reference_logprobs: expected"),
        ({"mask": torch.ones(3).bool()}, r"mask: expected \[4\]; got \[3\]"),
        ({"advantages": torch.ones(2)}, r"advantages: expected \[4\], or \[S\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    hidden, weight, tokens, _, _, old, _ = problem(4, 1)
    arguments = {"advantages": torch.ones(4), "old_logprobs": old, **change}
    with pytest.raises(ValueError, match=message):
        ops.policy_loss(hidden, weight, tokens, **arguments)


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
def test_group_advantages(kind):
    rewards, groups = torch.randn(50, dtype=torch.float64), torch.randint(-5, 5, (50,)) * 1000
    groups[0] = 77
    result = ops.group_advantages(rewards, groups, kind=kind)
    for group in groups.unique():
        part = rewards[groups == group]
        expected = part - part.mean()
        if kind != "dr_grpo":
            expected = expected / ((part.std() if len(part) > 1 else 0.0) + 1e-4)
        torch.testing.assert_close(result[groups == group], expected)
    assert ops.group_advantages(torch.empty(0), torch.empty(0, dtype=torch.int64)).shape == (0,)
