"""Training of exits: what each mode changes, and what it learns."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonrec_fast.early_exit import EarlyExitModel
from reasonrec_fast.lm import Decoder
from reasonrec_fast.training.exits import Batch, ExitTraining, dropped_layers, train_exits


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, pad_token_id=0
    )
    return EarlyExitModel(Decoder(LlamaForCausalLM(config)), (1, 2), ensemble_size=2).eval()


def batch(seed):
    """The label is whether the candidate's token is even."""
    generator = np.random.default_rng(seed)
    groups = [
        (generator.integers(1, 50, 5).tolist(), [[int(token)] for token in generator.integers(1, 50, 4)])
        for _ in range(4)
    ]
    return Batch(groups, torch.tensor([suffix[0] % 2 == 0 for _, suffixes in groups for suffix in suffixes]).long())


def weights_of(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(module, before):
    return [torch.equal(value, before[name]) for name, value in module.named_parameters()]


SETTINGS = ExitTraining(learning_rate=1e-3, head_learning_rate=1e-2)


@pytest.mark.parametrize("mode", ["joint", "heads", "distil"])
def test_modes_change_what_they_should(model, mode):
    backbone, heads = weights_of(model.backbone.base.layers), weights_of(model.heads)
    train_exits(model, range(3), batch, replace(SETTINGS, mode=mode))
    assert all(same(model.backbone.base.layers, backbone)) == (mode == "heads")
    assert not any(same(model.heads, heads))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("mode", ["joint", "distil"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_every_exit_learns(model, mode, dropout):
    losses = []
    settings = replace(SETTINGS, mode=mode, layer_dropout=dropout)
    train_exits(model, range(150), batch, settings, progress=lambda *report: losses.append(report[2]["loss"]))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    held_out = batch(1000)
    with torch.no_grad():
        for statistics in model.all_exits(held_out.groups):
            assert (statistics.prediction == held_out.labels).float().mean() > 0.7


def one_of_four(seed):
    """Of four candidates the one with the largest token is the right one."""
    generator = np.random.default_rng(seed)
    tokens = [generator.permutation(np.arange(1, 50))[:4] for _ in range(4)]
    labels = np.concatenate([values == values.max() for values in tokens])
    return Batch([([7, 8], [[int(token)] for token in values]) for values in tokens], torch.tensor(labels).long())


def test_a_softmax_over_the_rows_of_a_slate(model):
    """The loss that is reported is that of a softmax over log-odds, computed here from the heads' probabilities."""
    made = one_of_four(0)
    with torch.no_grad():
        exits = model.all_exits(made.groups)
    expected = []
    for statistics in exits:
        log_odds = torch.logit(statistics.positive_probability.double()).reshape(4, 4)
        expected.append(-log_odds.log_softmax(1)[made.labels.reshape(4, 4) == 1].mean())
    weights = torch.tensor([1.0, 2.0, 4.0]) / 7
    seen = []
    settings = ExitTraining(loss="listwise", pairwise_weight=0.0, learning_rate=0.0, head_learning_rate=0.0)
    train_exits(model, [0], one_of_four, settings, progress=lambda *report: seen.append(report[2]["loss"]))
    assert seen[0] == pytest.approx(float((weights * torch.stack(expected)).sum()), rel=1e-4)


def test_a_slate_without_one_right_row_is_refused(model):
    settings = ExitTraining(loss="listwise", pairwise_weight=0.0)
    for labels in (torch.zeros(16, dtype=torch.int64), torch.ones(16, dtype=torch.int64)):
        with pytest.raises(ValueError, match="one row of label 1 in each slate; got"):
            train_exits(model, [0], lambda _, labels=labels: replace(one_of_four(0), labels=labels), settings)
    with pytest.raises(ValueError, match="got 'distil'"):
        ExitTraining(loss="listwise", mode="distil")


@pytest.mark.parametrize("mode", ["joint", "distil"])
def test_distilled_exits_do_not_see_the_labels(model, mode):
    def flipped(seed):
        return replace(batch(seed), labels=1 - batch(seed).labels)

    settings = replace(SETTINGS, mode=mode, learning_rate=0.0, pairwise_weight=0.0)
    results = []
    for load in (batch, flipped):
        copied = copy.deepcopy(model)
        train_exits(copied, range(1), load, settings)
        results.append([head.weight.detach() for head in copied.heads])
    same = [torch.allclose(first, second, atol=1e-5) for first, second in zip(*results, strict=True)]
    assert same == ([True, True, False] if mode == "distil" else [False, False, False])


def test_distilled_exits_come_closer_to_the_last_layer(model):
    def gap():
        with torch.no_grad():
            first, *_, last = (s.positive_probability for s in model.all_exits(batch(1).groups))
        return float((first - last).abs().mean())

    torch.nn.init.normal_(model.heads[-1].weight, std=0.5)
    before = gap()
    train_exits(model, range(100), batch, replace(SETTINGS, mode="distil"))
    assert gap() < 0.7 * before


def test_the_rate_falls_with_depth(model):
    moved = {}
    for decay in (0.5, 1.0):
        torch.manual_seed(0)
        before = weights_of(model.backbone.base.layers)
        settings = replace(SETTINGS, depth_decay=decay)
        train_exits(model, range(1), batch, settings)  # a first step of Adam is as long as its rate
        moved[decay] = [
            float((layer.self_attn.v_proj.weight.detach() - before[f"{index}.self_attn.v_proj.weight"]).abs().median())
            for index, layer in enumerate(model.backbone.base.layers)
        ]
    ratios = np.array(moved[0.5]) / np.array(moved[1.0])
    np.testing.assert_allclose(ratios / ratios[-1], [1 / 8, 1 / 4, 1 / 2, 1], rtol=0.2)


def test_layer_dropout_grows_with_depth():
    drawn = [dropped_layers(30, 0.4, (0, step)) for step in range(2000)]
    share = np.array([sum(layer in layers for layers in drawn) / 2000 for layer in range(1, 31)])
    assert share[0] == 0 and share[29] == 0
    assert share[28] == pytest.approx(0.4, abs=0.04)
    assert share[14] == pytest.approx(0.4 * math.expm1(14 / 28 * math.log(2)), abs=0.04)
    assert dropped_layers(30, 0.4, (0, 7)) == drawn[7]


def test_killed_training_goes_on_to_the_same_weights(model, tmp_path):
    class Killed(Exception):
        pass

    def die(step, steps, loss):
        if step == 7:
            raise Killed

    settings = replace(SETTINGS, layer_dropout=0.3)
    whole, killed = copy.deepcopy(model), copy.deepcopy(model)
    train_exits(whole, range(12), batch, settings)
    options = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 3}
    with pytest.raises(Killed):
        train_exits(killed, range(12), batch, settings, progress=die, **options)
    resumed = copy.deepcopy(model)
    train_exits(resumed, range(12), batch, settings, **options)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("mode", "dropout", "expected"),
    [
        ("joint", 0.0, (1.36286, 0.56627, 0.37442)),
        ("joint", 0.3, (1.36286, 0.57341, 0.37099)),
        ("heads", 0.0, (1.36398, 1.15127, 1.25302)),
        ("heads", 0.3, (1.36398, 1.15007, 1.23138)),
        ("distil", 0.0, (1.36836, 0.69916, 0.45881)),
        ("distil", 0.3, (1.36836, 0.70928, 0.45370)),
    ],
)
def test_losses_are_those_from_before_the_shared_loop(mode, dropout, expected):
    """Recorded of steps 1, 7 and 12 when exits had a loop of their own; with dropout in the attention and of layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, pad_token_id=0,
        attention_dropout=0.1,
    )  # fmt: skip
    model = EarlyExitModel(Decoder(LlamaForCausalLM(config)), (1, 2), ensemble_size=2).eval()
    losses = []
    train_exits(model, range(12), batch, replace(SETTINGS, mode=mode, layer_dropout=dropout, seed=3),
                progress=lambda *report: losses.append(report[2]["loss"]))  # fmt: skip
    assert [losses[0], losses[6], losses[11]] == pytest.approx(expected, rel=2e-3)


def test_bad_settings():
    with pytest.raises(ValueError, match="mode: expected 'joint', 'heads' or 'distil'; got 'none'"):
        ExitTraining(mode="none")
    with pytest.raises(ValueError, match="layer_dropout: expected a finite number in .0, 1.; got 1.0"):
        ExitTraining(layer_dropout=1.0)


@pytest.fixture
def corrected(model):
    """Heads that correct a logit."""
    return EarlyExitModel(model.backbone, (2,), offset=True).eval()


@pytest.mark.parametrize("shift", [-60.0, 12.0, 40.0])
def test_a_softmax_over_a_slate_does_not_see_what_all_its_rows_have_in_common(corrected, shift):
    """Log-odds that were taken from float32 probabilities had a hundredth of error at 12 and no gradient beyond 14."""
    made = one_of_four(0)
    offset = torch.tensor([1.0, -1.0, 0.5, 2.0] * 4)
    settings = ExitTraining(loss="listwise", pairwise_weight=0.0, mode="heads")
    losses, weights = [], []
    for by in (0.0, shift):
        trained = copy.deepcopy(corrected)
        train_exits(
            trained, [0, 1], lambda _, by=by: replace(made, offset=offset + by), settings,
            progress=lambda *report: losses.append(report[2]["loss"]),
        )  # fmt: skip
        weights.append(trained.heads[0].weight.detach()[..., :-1])  # Adam's steps are as long for any gradient
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] == pytest.approx(losses[1], rel=1e-4) and losses[1] < losses[0]
    assert float(weights[0].abs().max()) > 1e-3


@pytest.mark.parametrize("ensemble_size", [1, 2])
def test_exits_that_are_too_sure_learn_from_the_last(model, ensemble_size):
    """A member whose probability is 1 in float32 had no gradient."""
    model = EarlyExitModel(model.backbone, (1,), ensemble_size=ensemble_size).eval()
    with torch.no_grad():
        model.heads[0].bias.copy_(torch.tensor([-15.0, 15.0]).expand(ensemble_size, 2))
    settings = ExitTraining(mode="distil", pairwise_weight=0.0, learning_rate=0.0, head_learning_rate=0.1)
    train_exits(model, range(2), batch, settings)
    assert (model.heads[0].bias.abs() < 14.9).all()  # weight decay alone takes 0.03
