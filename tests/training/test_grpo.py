"""GRPO on packed groups against a plain float64 loss on padded batches; toy rewards are learnt; killed runs resume."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from causal_models import causal_model, with_lora

from reasonrec_fast.training.grpo import GRPOTraining, train_grpo
from reasonrec_fast.training.policy import PolicyBatch, PolicyGroup, packed_policy_loss
from reasonrec_fast.training.sft import SupervisedGroup, supervised_loss


@dataclass(frozen=True)
class Sampled:
    token_ids: list
    logprobs: list | None


def sampler(model, count=4, length=3, *, logprobs=True, calls=None):
    """Completions of ``length`` tokens by transformers' forward."""

    @torch.no_grad()
    def generate(prompts, seeds):
        if calls is not None:
            calls.append((prompts, seeds))
        results = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            ids, known = torch.tensor([prompt] * count), []
            for _ in range(length):
                distribution = model(input_ids=ids).logits[:, -1].float().log_softmax(-1)
                token = torch.multinomial(distribution.exp(), 1, generator=generator)
                known.append(distribution.gather(1, token))
                ids = torch.cat([ids, token], 1)
            known = torch.cat(known, 1).tolist()
            results.append([
                Sampled(row[len(prompt) :], of_row if logprobs else None)
                for row, of_row in zip(ids.tolist(), known, strict=True)
            ])  # fmt: skip
        return results

    return generate


def small_tokens(index, rollouts):
    """Share of tokens below 48 of 97."""
    return [np.mean([token < 48 for token in rollout.token_ids]) for rollout in rollouts]


def trained_weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


# The loss


def groups():
    generator = np.random.default_rng(0)

    def group(prompt, lengths, chosen=None):
        rows = [generator.integers(1, 97, n) for n in lengths]
        return PolicyGroup(
            np.array(prompt), rows, chosen or [np.ones(n, dtype=bool) for n in lengths],
            generator.normal(size=len(lengths)), [generator.normal(-4.5, 0.3, n).astype(np.float32) for n in lengths],
        )  # fmt: skip

    masks = [np.array([True, False, True]), np.array([False])]
    return [group([1, 2, 3], [2, 4, 1]), group([9], [3, 1], masks), group([7, 7], [5, 5])]


def plain_loss(model, reference, batch_groups, kind, clip, beta, temperature, longest):
    """GRPO, DAPO and Dr. GRPO as their papers write them, with padded batches, all logits and float64."""

    def logprobs(of, group):
        width = max(map(len, group.completions))
        ids = torch.tensor([[*group.prompt, *row, *[0] * (width - len(row))] for row in group.completions])
        logits = of(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.double()[:, len(group.prompt) - 1 : -1]
        return (logits / temperature).log_softmax(-1).gather(2, ids[:, len(group.prompt) :, None])[..., 0]

    per_sequence, tokens = [], 0
    for group in batch_groups:
        policy_logprobs = logprobs(model, group)
        with torch.no_grad():
            reference_logprobs = logprobs(reference, group)
        for row, (chosen, old) in enumerate(zip(group.chosen, group.old_logprobs, strict=True)):
            mask, length = torch.from_numpy(chosen), len(chosen)
            ratio = (policy_logprobs[row, :length] - torch.from_numpy(old).double()).exp()
            advantage = float(group.advantages[row])
            objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantage)
            gap = reference_logprobs[row, :length] - policy_logprobs[row, :length]
            losses = (beta * (gap.exp() - gap - 1) - objective)[mask]
            if len(losses):
                per_sequence.append(losses)
                tokens += len(losses)
    if kind == "grpo":
        return torch.stack([losses.mean() for losses in per_sequence]).mean()
    return torch.cat(per_sequence).sum() / (tokens if kind == "dapo" else longest)


@pytest.mark.parametrize("kind", ["grpo", "dapo"])
def test_as_many_chosen_tokens_as_completions_are_advantages_of_completions_still(kind):
    """Two chosen tokens in one of two completions: advantages a completion were read as advantages a token."""
    model, old = causal_model("Llama"), np.full(2, -4.0, dtype=np.float32)

    def loss(completions, chosen, advantages):
        group = PolicyGroup(
            np.array([1, 2]), [np.array(row) for row in completions], [np.array(row) for row in chosen],
            np.array(advantages), [old[: len(row)] for row in completions],
        )  # fmt: skip
        batch = PolicyBatch([group])
        batch.set_logprobs(model, 1.0, None)
        return packed_policy_loss(model, batch, kind=kind)[0]

    alone = loss([[4, 5]], [[True, True]], [1.0])
    assert torch.allclose(loss([[4, 5], [6, 7]], [[True, True], [False, False]], [1.0, -1.0]), alone)
    assert torch.allclose(loss([[6, 7], [4, 5]], [[False, False], [True, True]], [-1.0, 1.0]), alone)


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma3Text"])
def test_loss_and_gradients_are_those_of_the_papers(kind, family):
    model, beta, temperature, clip = with_lora(causal_model(family)), 0.1, 0.7, (0.2, 0.28)
    options = {"kind": kind, "clip": clip, "beta": beta, "temperature": temperature}
    expected = plain_loss(model, causal_model(family), groups(), kind, clip, beta, temperature, 7 * 5)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batch = PolicyBatch(groups())
    batch.set_logprobs(model, temperature, model)
    normalizer = 7 * 5 if kind == "dr_grpo" else None
    loss, statistics = packed_policy_loss(model, batch, normalizer=normalizer, **options)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert 0 < float(statistics.clipped_share) < 1 and float(statistics.kl) > 0
    results = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert results.keys() == wanted.keys() and wanted
    for name, value in wanted.items():
        torch.testing.assert_close(results[name], value, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
def test_how_an_iteration_is_divided_does_not_matter(kind):
    """Micro-batches with other numbers of tokens and completions; some prompts are skipped, some completions empty."""

    def reward(index, rollouts):
        return [float(len(r.token_ids)) if index != 1 else 1.0 for r in rollouts]

    def generate(prompts, seeds):
        rows = {2: [[], [3, 4]], 3: [[8, 9], [1]], 4: [[5], [6]], 5: [[7, 8, 9], [1, 2], []]}
        return [[Sampled(ids, None) for ids in rows[prompt[0]]] for prompt in prompts]

    results = []
    for max_tokens in (4096, 1):
        model, reports = with_lora(causal_model()), []
        settings = GRPOTraining(
            iterations=2, prompts_per_iteration=4, kind=kind, max_tokens=max_tokens, gradient_clip=0.0, updates=2,
            learning_rate=1e-3, beta=0.1, max_completion_tokens=6 if kind == "dr_grpo" else None,
        )  # fmt: skip
        train_grpo(model, [[2], [3], [4, 1], [5, 5]], generate, reward, settings,
                   progress=lambda *values, reports=reports: reports.append(values))  # fmt: skip
        results.append((reports, trained_weights(model)))
    (whole, expected), (divided, weights) = results
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    for first, second in zip(whole, divided, strict=True):
        assert first[:2] == second[:2] and first[2] == pytest.approx(second[2], rel=1e-4, abs=1e-6)
    metrics = whole[0][2]
    assert metrics["zero_variance"] == 0.5 and metrics["empty"] == pytest.approx(2 / 9)
    assert metrics["completion_tokens"] == pytest.approx(12 / 9)
    assert set(metrics) == {
        "reward", "reward_std", "zero_variance", "empty", "completion_tokens", "loss", "entropy", "ratio", "ratio_max",
        "clipped", "kl",
    }  # fmt: skip


def test_a_first_step_is_the_policy_gradient():
    """Ratios are 1: the loss is minus the mean advantage, its gradient that of advantage-weighted log-probabilities."""
    model, rewards = with_lora(causal_model()), {}

    def remember(index, rollouts):
        rewards[index] = (rollouts, small_tokens(index, rollouts))
        return rewards[index][1]

    reports = []
    before = trained_weights(model)
    settings = GRPOTraining(iterations=1, prompts_per_iteration=2, kind="dapo", learning_rate=1e-3)
    train_grpo(
        model, [[5], [6, 7]], sampler(model), remember, settings, progress=lambda *values: reports.append(values)
    )
    (values,) = reports
    assert values[:2] == (1, 1) and values[2]["ratio"] == pytest.approx(1, abs=1e-5)
    assert values[2]["reward"] == pytest.approx(np.mean([r for _, of in rewards.values() for r in of]))
    assert not torch.equal(trained_weights(model), before)


# Training


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_a_toy_reward_is_learnt(kind):
    model, reports = causal_model(), []
    settings = GRPOTraining(
        iterations=40, prompts_per_iteration=4, learning_rate=1e-2, updates=2, kind=kind, max_tokens=64,
        max_completion_tokens=3 if kind == "dr_grpo" else None,
    )  # fmt: skip
    train_grpo(model, [[5], [6, 7], [8], [9]], sampler(model), small_tokens, settings,
               progress=lambda done, total, metrics: reports.append(metrics["reward"]))  # fmt: skip
    assert np.mean(reports[:3]) < 0.7 and np.mean(reports[-3:]) > 0.9
    assert not model.training


def test_the_divergence_keeps_the_policy_near_its_reference():
    """Of the same run, with a heavy weight on it; the reference is the model without its adapters."""
    kl = {}
    for beta in (0.01, 10.0):
        model, reports = with_lora(causal_model()), []
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.zero_()
        settings = GRPOTraining(iterations=8, learning_rate=1e-2, prompts_per_iteration=2, updates=2, beta=beta)
        train_grpo(model, [[5], [6, 7]], sampler(model), small_tokens, settings,
                   progress=lambda done, total, metrics, reports=reports: reports.append(metrics["kl"]))  # fmt: skip
        kl[beta] = np.mean(reports[-3:])
    assert 0 <= kl[10.0] < 0.3 * kl[0.01]


def test_a_reference_of_its_own_is_as_good():
    runs = []
    for reference in (None, causal_model()):
        model = with_lora(causal_model())
        train_grpo(model, [[5], [6]], sampler(model), small_tokens,
                   GRPOTraining(iterations=2, learning_rate=1e-3, beta=0.5), reference=reference)  # fmt: skip
        runs.append(trained_weights(model))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kill_at", [1, 3])
def test_a_killed_run_ends_as_a_whole_one(tmp_path, kill_at):
    class Killed(Exception):
        pass

    def dying(generate):
        calls = iter(range(100))

        def generate_or_die(prompts, seeds):
            if next(calls) == kill_at:
                raise Killed
            return generate(prompts, seeds)

        return generate_or_die

    settings = GRPOTraining(iterations=5, prompts_per_iteration=3, learning_rate=1e-3, updates=2)
    prompts = [[5], [6, 7], [8], [9]]

    def run(wrap=lambda generate: generate, **options):
        model = with_lora(causal_model())
        train_grpo(model, prompts, wrap(sampler(model)), small_tokens, settings, **options)
        return trained_weights(model)

    expected = run()
    options = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 1}
    with pytest.raises(Killed):
        run(dying, **options)
    done = []
    assert torch.equal(run(progress=lambda iteration, *_: done.append(iteration), **options), expected)
    assert done == list(range(kill_at + 1, 6))
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        train_grpo(with_lora(causal_model()), prompts[:2], None, small_tokens, settings, **options)


def test_prompts_come_in_a_seeded_order_each_once_before_any_comes_again():
    model, calls = with_lora(causal_model()), []
    prompts = [[i + 1] for i in range(5)]
    settings = GRPOTraining(iterations=5, prompts_per_iteration=3, learning_rate=0.0)
    train_grpo(model, prompts, sampler(model, length=1, calls=calls), small_tokens, settings)
    seen = [prompt[0] for batch, _ in calls for prompt in batch]
    orders = [seen[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(order) == [1, 2, 3, 4, 5] for order in orders) and len({tuple(order) for order in orders}) > 1
    seeds = [seed for _, of_call in calls for seed in of_call]
    assert len(set(seeds)) == len(seeds)


def test_an_iteration_without_variance_takes_no_step(tmp_path):
    model, reports = with_lora(causal_model()), []
    before = trained_weights(model)
    train_grpo(model, [[5], [6]], sampler(model), lambda index, rollouts: [1.0] * len(rollouts),
               GRPOTraining(iterations=3, learning_rate=1e-2, updates=2, beta=0.1),
               progress=lambda *values: reports.append(values))  # fmt: skip
    assert torch.equal(trained_weights(model), before)
    assert [values[:2] for values in reports] == [(1, 3), (2, 3), (3, 3)]
    assert reports[0][2]["zero_variance"] == 1.0 and "loss" not in reports[0][2]


def test_masked_and_empty_completions_teach_nothing_by_themselves():
    """All tokens masked, or no token at all: no step; tokens that do not count change nothing."""
    settings = GRPOTraining(iterations=1, prompts_per_iteration=1, learning_rate=1e-2)

    def train(rows, mask):
        model = with_lora(causal_model())
        before = trained_weights(model)
        train_grpo(model, [[5]], lambda prompts, seeds: [[Sampled(ids, None) for ids in rows]],
                   lambda index, rollouts: [1.0, 0.0], settings, token_mask=mask)  # fmt: skip
        return trained_weights(model) - before

    assert not train([[3, 4], [6]], lambda index, rollout: [False] * len(rollout.token_ids)).any()
    assert not train([[], []], None).any()
    first = train([[3, 4], [6]], lambda index, rollout: [token == 3 for token in rollout.token_ids])
    other = train([[3, 9], [11]], lambda index, rollout: [token == 3 for token in rollout.token_ids])
    assert first.any() and torch.allclose(first, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("rows", "rewards", "message"),
    [
        ([[3]], [1.0], "expected at least 2 completions a prompt, .*got 1 of prompt 0"),
        ([[3], [97]], [1.0, 0.0], r"completion 1 of prompt 0: expected token ids in \[0, 97\); got 97 at position 0"),
        ([[3], [4]], [1.0], r"reward: expected 2 finite numbers for prompt 0; got \[1.0\]"),
        ([[3], [4]], [1.0, float("nan")], r"reward: expected 2 finite numbers for prompt 0; got \[nan\]"),
        ([[3] * 300, [4]], [1.0, 0.0], "completion 0 of prompt 0: expected at most 256 tokens a text"),
    ],
)
def test_rollouts_that_do_not_fit_are_refused(rows, rewards, message):
    model = with_lora(causal_model())
    with pytest.raises(ValueError, match=message):
        train_grpo(model, [[5]], lambda prompts, seeds: [[Sampled(ids, None) for ids in rows]],
                   lambda index, rollouts: rewards, GRPOTraining(iterations=1, prompts_per_iteration=1))  # fmt: skip


def test_wrong_logprobs_masks_and_settings_are_refused():
    model, settings = with_lora(causal_model()), GRPOTraining(iterations=1, prompts_per_iteration=1)

    def run(*, logprobs=(-1.0,), rollouts=1, **options):
        def generate(prompts, seeds):
            return [[Sampled([3], list(logprobs)), Sampled([4], [-1.0])]] * rollouts

        train_grpo(model, [[5]], generate, lambda index, result: [1.0, 0.0], settings, **options)

    for logprobs in ((), (float("nan"),), (-1.0, -1.0)):
        with pytest.raises(ValueError, match="completion 0 of prompt 0: expected 1 finite log-probabilities"):
            run(logprobs=logprobs)
    with pytest.raises(ValueError, match="generate: expected completions of 1 prompts; got 2"):
        run(rollouts=2)
    with pytest.raises(ValueError, match="token_mask: expected 1 values for completion 0 of prompt 0; got .2."):
        run(token_mask=lambda index, rollout: [True, False])
    with pytest.raises(ValueError, match="prompts: expected at least one, of at least one token each"):
        train_grpo(model, [[5], []], None, None, settings)
    with pytest.raises(TypeError, match="reference: expected a model since beta is 0.1"):
        train_grpo(causal_model(), [[5]], None, None, replace(settings, beta=0.1))
    with pytest.raises(TypeError, match="got a cap of 3.0"):
        train_grpo(with_lora(causal_model("Gemma2")), [[5]], None, None, settings)
    with pytest.raises(ValueError, match="max_completion_tokens: expected a number for 'dr_grpo'"):
        GRPOTraining(iterations=1, kind="dr_grpo")
    with pytest.raises(ValueError, match="max_completion_tokens: expected a number for 'dr_grpo' and None otherwise"):
        GRPOTraining(iterations=1, max_completion_tokens=3)


def test_completions_of_the_text_generator_fit():
    """Its log-probabilities are those of training: ratios are 1 in the first update."""
    from reasonrec_fast.lm.generate import TextGenerator
    from reasonrec_fast.lm.sampling import SamplingParams

    model, reports = with_lora(causal_model()), []
    generator = TextGenerator(model)

    def generate(prompts, seeds):
        params = [
            SamplingParams(num_samples=4, max_new_tokens=3, seed=seed, temperature=0.8, statistics_temperature=0.8,
                           stop_token_ids=(3,))
            for seed in seeds
        ]  # fmt: skip
        return generator.generate([((), [prompt]) for prompt in prompts], params)

    before = trained_weights(model)
    settings = GRPOTraining(iterations=2, prompts_per_iteration=2, learning_rate=1e-3, temperature=0.8)
    train_grpo(model, [[5, 6], [7]], generate, small_tokens, settings, progress=lambda *values: reports.append(values))
    assert len(reports) == 2 and not torch.equal(trained_weights(model), before)
    for _, _, metrics in reports:
        assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["ratio_max"] == pytest.approx(1, abs=1e-4)


def test_logprobs_of_rollouts_are_those_of_training():
    """Log-probabilities of the sampler and recomputed ones give the same steps."""
    runs = []
    for known in (True, False):
        model = with_lora(causal_model())
        train_grpo(model, [[5], [6]], sampler(model, logprobs=known), small_tokens,
                   GRPOTraining(iterations=2, learning_rate=1e-3, updates=2))  # fmt: skip
        runs.append(trained_weights(model))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6)


def test_supervised_loss_is_the_policy_loss_of_advantage_one():
    """At a ratio of 1 the gradients agree: both stand on the same packed pass."""
    model = causal_model()
    rows = [np.array([8, 9]), np.array([10, 11, 12])]
    group = PolicyGroup(np.array([5, 6]), rows, [np.ones(len(r), dtype=bool) for r in rows], np.ones(2))
    batch = PolicyBatch([group])
    batch.set_logprobs(model, 1.0, None)
    packed_policy_loss(model, batch, kind="dapo")[0].backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    supervised_loss(model, [SupervisedGroup([5, 6], [row.tolist() for row in rows])]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_under_autocast_the_old_policy_is_computed_as_the_loss_is(known):
    """Otherwise the ratio of the first update, which must be 1, differs by bfloat16's rounding, and may be clipped."""
    model, ratios = with_lora(causal_model()), []
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    settings = GRPOTraining(iterations=1, prompts_per_iteration=2, learning_rate=0.01)
    train_grpo(
        model, [[5, 3, 8, 1], [6, 7, 2, 4]], sampler(model, logprobs=known), small_tokens, settings,
        accelerator=accelerator, progress=lambda done, total, metrics: ratios.append(metrics["ratio_max"]),
    )  # fmt: skip
    assert len(ratios) == 1
    assert ratios[0] == 1.0 if not known else ratios[0] != 1.0
