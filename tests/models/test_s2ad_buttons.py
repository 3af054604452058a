"""Stage 2: levels as tokens, soft targets over them, and scores that are their expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reasonrec_fast.models.s2ad.buttons import DEFAULT_NAMES, Buttons
from reasonrec_fast.models.s2ad.losses import divergence

FIVE = Buttons(DEFAULT_NAMES, (10, 11, 12, 13, 14))


class WordTokenizer:
    """Words are tokens; "very" and whatever follows it are two, and a colon sticks to "best"."""

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        text = text.replace(": best", ":best").replace(":", " :" if ":best" not in text else ":")
        return {"input_ids": [sum(map(ord, word)) for word in text.split()]}


@pytest.mark.parametrize("levels", [2, 3, 5, 9])
def test_the_expectation_of_a_target_is_its_percentile(levels):
    buttons = Buttons(tuple(map(str, range(levels))), tuple(range(levels)))
    percentiles = torch.linspace(0, 1, 101).double()
    sharp = buttons.targets(percentiles, 0.0)
    np.testing.assert_allclose((sharp * buttons.values).sum(-1), percentiles, atol=1e-12)
    inside = torch.linspace(0.3, 0.7, 41).double()
    soft = buttons.targets(inside, 0.04)
    np.testing.assert_allclose((soft * buttons.values).sum(-1), inside, atol=1e-12)
    everywhere = (buttons.targets(percentiles, 0.2) * buttons.values).sum(-1)
    assert (everywhere.diff() > 0).all()  # the ends pull inward, but never make two alike


def test_targets_are_expectations_over_a_normal_distribution():
    draws = 0.35 + 0.2 * torch.from_numpy(np.random.default_rng(0).normal(size=400_000))
    hats = (1 - 4 * (draws.clamp(0, 1)[:, None] - FIVE.values).abs()).clamp_min(0).mean(0)
    np.testing.assert_allclose(FIVE.targets(torch.tensor([0.35]).double(), 0.2)[0], hats, atol=2e-3)


def test_targets_are_distributions_in_the_tails_too():
    targets = FIVE.targets(torch.tensor([0.0, 1e-9, 0.5, 1.0]), torch.tensor([0.0, 1e-6, 30.0, 0.01]))
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-12)
    assert targets[2, [0, 4]].tolist() == pytest.approx([0.5, 0.5], abs=0.02)  # wider than the scale


def test_scores_are_expectations_and_repeat_to_the_bit():
    logits = torch.randn(33, 5, generator=torch.manual_seed(0))
    reading = FIVE.read_logits(logits)
    expected = logits.double().softmax(-1)
    np.testing.assert_allclose(reading.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(reading.scores, expected @ FIVE.values, atol=1e-6)
    assert reading.levels.tolist() == logits.argmax(-1).tolist()
    assert ((reading.scores > 0) & (reading.scores < 1)).all()
    for row in (0, 7, 32):
        assert FIVE.read_logits(logits[row : row + 1]).scores.item() == reading.scores[row].item()
    assert FIVE.read_logits(logits[:0]).scores.shape == (0,)


def test_scores_of_hidden_states():
    generator = torch.manual_seed(1)
    hidden, heads, bias = (torch.randn(*shape, generator=generator) for shape in ((7, 16), (5, 16), (5,)))
    reading = FIVE.read(hidden, heads, bias=bias, temperature=2.0)
    np.testing.assert_allclose(reading.probabilities, ((hidden @ heads.T + bias) / 2).softmax(-1), atol=1e-5)


def test_gradients():
    logits = torch.randn(3, 5, generator=torch.manual_seed(2), dtype=torch.float64, requires_grad=True)
    targets = FIVE.targets(torch.tensor([0.1, 0.5, 0.99]), torch.tensor([0.0, 0.1, 0.3]))
    assert torch.autograd.gradcheck(lambda x: FIVE.read_logits(x).scores, logits)
    assert torch.autograd.gradcheck(lambda x: divergence(x, targets), logits)


def test_learning_a_target_learns_its_percentile():
    percentiles = torch.tensor([0.03, 0.4, 0.97]).double()
    targets = FIVE.targets(percentiles, 0.0)
    logits = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = divergence(logits, targets).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (FIVE.read_logits(logits).scores - percentiles).abs().max() < 1e-3


def test_names_are_one_token_in_their_place():
    buttons = Buttons.of(WordTokenizer(), ("bad", "good"), before="Quality:")
    assert buttons.names == ("bad", "good")
    assert Buttons.from_dict(buttons.to_dict()) == buttons
    assert buttons.named(torch.tensor([1, 0])) == ["good", "bad"]
    with pytest.raises(ValueError, match="expected one token each behind 'Quality:'; got 'very good', which is 2"):
        Buttons.of(WordTokenizer(), ("bad", "very good"), before="Quality:")
    with pytest.raises(ValueError, match="got 'best'"):  # it changes the tokens before it
        Buttons.of(WordTokenizer(), ("bad", "best"), before="Quality:")
    with pytest.raises(ValueError, match="expected different tokens; got that of 'bad' twice"):
        Buttons.of(WordTokenizer(), ("bad", "bad"))
    with pytest.raises(ValueError, match="expected 2 to 64 levels; got 1"):
        Buttons.of(WordTokenizer(), ("bad",))
    with pytest.raises(TypeError, match="got 'bad'"):
        Buttons.of(WordTokenizer(), "bad")
    with pytest.raises(ValueError, match="got ' '"):
        Buttons.of(WordTokenizer(), ("bad", " "))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: FIVE.targets(torch.tensor([0.5, 1.5]), 0.1),
            r"percentiles: expected numbers in \[0, 1\]; got 1.5 in row 1",
        ),
        (lambda: FIVE.targets(torch.tensor([torch.nan]), 0.1), "percentiles: expected .* got nan in row 0"),
        (lambda: FIVE.targets(torch.tensor([0.5]), -0.1), "sigma: expected finite numbers of at least 0; got -0.1"),
        (lambda: FIVE.read(torch.ones(1, 3), torch.ones(4, 3)), r"heads: expected one a level, \[5, D\]; got \[4, 3\]"),
        (lambda: Buttons(("a", "b"), (1,)), "token_ids: expected 2, one a level; got 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_default_levels_are_words_of_smollm2(smollm2_tokenizer):
    buttons = Buttons.of(smollm2_tokenizer, before="The quality of this image is")
    decoded = [smollm2_tokenizer.decode([token]) for token in buttons.token_ids]
    assert decoded == [f" {name}" for name in DEFAULT_NAMES]
    with pytest.raises(ValueError, match="expected one token each behind 'Quality:'; got 'mediocre', which is 3"):
        Buttons.of(smollm2_tokenizer, ("mediocre", "good"), before="Quality:")
