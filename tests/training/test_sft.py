"""Packed supervised fine-tuning against transformers' own loss on padded batches."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from causal_models import FAMILIES, causal_model, with_lora
from peft import PeftModel

from reasonrec_fast.training.curriculum import Curriculum, CurriculumSampler
from reasonrec_fast.training.packed import OutputWeights, next_tokens, token_logprobs
from reasonrec_fast.training.sft import SupervisedGroup, SupervisedTraining, supervised_loss, train_supervised

GROUPS = [
    SupervisedGroup([5, 6, 7], [[8, 9], [10, 11, 12, 13], [14]]),
    SupervisedGroup([20, 21], [[22, 23, 24]], [[False, True, True]]),
    SupervisedGroup([], [[30, 31, 32], [33, 34]]),
    SupervisedGroup([40], [[41, 42, 43], [44, 45]], [[True, False, True], [False, False]]),
]


def padded_loss(model, groups):
    """transformers' own, on a padded batch with labels of -100."""
    texts, labels = [], []
    for group in groups:
        chosen = group.chosen or [[True] * len(row) for row in group.continuations]
        for row, mask in zip(group.continuations, chosen, strict=True):
            texts.append([*group.prefix, *row])
            labels.append([-100] * len(group.prefix) + [t if m else -100 for t, m in zip(row, mask, strict=True)])
    width = max(map(len, texts))
    return model(
        input_ids=torch.tensor([text + [0] * (width - len(text)) for text in texts]),
        attention_mask=torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts]),
        labels=torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    ).loss


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_loss_and_gradients(model, groups, **tolerance):
    model.zero_grad()
    expected = padded_loss(model, groups)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    loss = supervised_loss(model, groups)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    result = gradients(model)
    assert result.keys() == wanted.keys() and wanted
    assert max(float(value.abs().max()) for value in wanted.values()) > 1e-3
    for name, value in wanted.items():
        torch.testing.assert_close(result[name], value, rtol=2e-3, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_of_lora_are_those_of_transformers(family):
    same_loss_and_gradients(with_lora(causal_model(family)), GROUPS)


@pytest.mark.parametrize("family", ["Qwen2", "Gemma2"])
def test_loss_and_gradients_of_all_weights_are_those_of_transformers(family):
    same_loss_and_gradients(causal_model(family, tie_word_embeddings=True), GROUPS)


@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), ("lm_head",)])
def test_adapters_of_the_lm_head_learn(targets):
    model = with_lora(causal_model(), targets)
    same_loss_and_gradients(model, GROUPS)
    assert OutputWeights.of(model).weight.requires_grad
    with model.disable_adapter():
        weights = OutputWeights.of(model)
        assert weights.weight is model.get_base_model().lm_head.base_layer.weight
    same_loss_and_gradients(with_lora(causal_model(), ("q_proj",), modules_to_save=["lm_head"]), GROUPS)


def test_lm_heads_that_are_not_one_matrix_are_refused():
    dropping = with_lora(causal_model(), ("lm_head",), lora_dropout=0.5)
    supervised_loss(dropping.eval(), GROUPS)
    with pytest.raises(TypeError, match=r"LoRA on lm_head without dropout.*got 0\.5 \(adapter 'default'\)"):
        supervised_loss(dropping.train(), GROUPS)
    with pytest.raises(TypeError, match="got DoRA"):
        supervised_loss(with_lora(causal_model(), ("lm_head",), use_dora=True), GROUPS)
    with pytest.raises(TypeError, match="expected a causal model with an lm_head; got LlamaModel"):
        OutputWeights.of(causal_model().model)


def test_a_loss_depends_on_no_neighbour():
    """Nothing leaks between continuations of a prefix, nor between groups."""
    model = causal_model()
    group = SupervisedGroup([5, 6, 7], [[8, 9], [10, 11, 12]])
    alone = token_logprobs(model, [(group.prefix, group.continuations)], group.flat_chosen())
    for other in ([50, 51], [60, 61, 62, 63]):
        neighbours = [([1, 2], [[3]]), (group.prefix, [group.continuations[0], other, group.continuations[1]])]
        chosen = np.array([False] + [True] * 2 + [False] * len(other) + [True] * 3)
        torch.testing.assert_close(token_logprobs(model, neighbours, chosen), alone, rtol=1e-5, atol=1e-6)


def test_how_a_step_is_divided_does_not_matter():
    """Micro-batches with different numbers of chosen tokens; the loss is over all of the step's tokens."""
    trained, losses = [], []
    for max_tokens in (4096, 1):
        model, reports = with_lora(causal_model()), []
        train_supervised(model, GROUPS, SupervisedTraining(max_tokens=max_tokens, epochs=2, clip=0.0),
                         progress=lambda done, total, metrics, log=reports: log.append(metrics["loss"]))  # fmt: skip
        losses.append(reports)
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 2
    assert losses[0][0] == pytest.approx(float(padded_loss(with_lora(causal_model()), GROUPS).detach()), rel=1e-5)
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-4, atol=1e-5)


@pytest.fixture
def cycle():
    """After token t comes t + 1; reasoning of two tokens, then the answer."""
    generator = np.random.default_rng(0)
    starts = generator.integers(10, 60, 24).tolist()
    return [SupervisedGroup([1, s], [[s + 1, s + 2], [s + 1, s + 2, s + 3]]) for s in starts]


def test_what_is_chosen_is_learnt(cycle):
    model = causal_model()
    settings = SupervisedTraining(epochs=15, learning_rate=5e-3, groups_per_step=8)
    with torch.no_grad():
        before = float(supervised_loss(model, cycle))
        train = copy.deepcopy(model)
    train_supervised(train, cycle, settings)
    with torch.no_grad():
        assert float(supervised_loss(train, cycle)) < 0.5 * before
    assert not train.training


def test_a_killed_fine_tuning_ends_as_a_whole_one(cycle, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total, metrics):
        if done == 4:
            raise Killed

    def lora():
        return with_lora(causal_model(), lora_dropout=0.2)

    settings = SupervisedTraining(epochs=2, groups_per_step=5, max_tokens=20)
    whole, killed, resumed = lora(), lora(), lora()
    train_supervised(whole, cycle, settings)
    options = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 3}
    with pytest.raises(Killed):
        train_supervised(killed, cycle, settings, progress=kill, **options)
    steps = []
    torch.rand(7)
    train_supervised(resumed, cycle, settings, progress=lambda done, *_: steps.append(done), **options)
    assert steps == list(range(4, 11))
    for expected, value in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, expected)
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        train_supervised(lora(), cycle[1:], settings, **options)
    assert isinstance(resumed, PeftModel)


def test_a_curriculum_draws_the_groups(cycle, tmp_path):
    """Warm samples first; what is drawn is reported, and is part of the identity of a run."""
    horizons = np.linspace(0, 1, len(cycle))
    sampler = CurriculumSampler(Curriculum(), horizons)
    settings = SupervisedTraining(epochs=4, groups_per_step=4)
    seen, model = [], causal_model()
    options = {"checkpoint": tmp_path / "state.safetensors"}
    train_supervised(model, cycle, settings, sampler=sampler, progress=lambda *a: seen.append(a[2]), **options)
    limits = [metrics["horizon_limit"] for metrics in seen]
    assert len(seen) == 24 and limits[0] == 0.3 and limits[-1] == 1.0 and limits == sorted(limits)
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        reversed_ = CurriculumSampler(Curriculum(reverse=True), horizons)
        train_supervised(causal_model(), cycle, settings, sampler=reversed_, **options)
    with pytest.raises(ValueError, match="sampler: expected 23 samples, one a group; got 24"):
        train_supervised(model, cycle[1:], settings, sampler=sampler)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (SupervisedGroup([1], [[2, 97]]), r"groups\[1\]\.continuations\[0\]: expected token ids in \[0, 97\); got 97"),
        (SupervisedGroup([-1], [[2]]), r"groups\[1\]\.prefix: expected token ids in \[0, 97\); got -1 at position 0"),
        (SupervisedGroup([1], [[2], []]), r"groups\[1\]\.continuations: expected at least one, .*got \[1, 0\]"),
        (SupervisedGroup([1], []), r"groups\[1\]\.continuations: expected at least one, .*got \[\]"),
        (
            SupervisedGroup([1], [[2, 3]], [[True]]),
            r"groups\[1\]\.chosen: expected one value a token.*got \[1\]",
        ),
        (SupervisedGroup([1], [[2, 3]], [[False, False]]), r"groups\[1\]: expected at least one chosen token"),
        (SupervisedGroup([], [[2]]), r"groups\[1\]: expected at least one chosen token, with one before it"),
        (SupervisedGroup([], [[2, 3]], [[True, True]]), r"groups\[1\]\.chosen: expected no first token"),
        (SupervisedGroup([1] * 250, [[2] * 20]), r"groups\[1\]: expected at most 256 tokens a text; got 270"),
    ],
)
def test_groups_that_do_not_fit_are_refused_before_the_first_step(group, message):
    model = causal_model()
    with pytest.raises(ValueError, match=message):
        train_supervised(model, [GROUPS[0], group])


def test_wrong_choices_are_refused():
    model = causal_model()
    with pytest.raises(ValueError, match="got the first of row 1, without a prefix"):
        next_tokens(model, [([1], [[2]]), ([], [[3, 4]])], np.array([False, True, True]))
    with pytest.raises(ValueError, match=r"chosen: expected bool \[1\]"):
        next_tokens(model, [([1], [[2]])], np.array([True, True]))
    with pytest.raises(ValueError, match="expected at least one chosen token; got none in 1 groups"):
        supervised_loss(model, [replace(GROUPS[1], chosen=[[False] * 3])])
    with pytest.raises(ValueError, match="groups: expected at least one; got none"):
        train_supervised(model, [])
