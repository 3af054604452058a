"""Generation with random weights of SmolLM2-135M's shape, against the CPU and the model's own forward."""

import pytest
import torch
from on_gpu import ON_GPU
from transformers import LlamaConfig, LlamaForCausalLM

from reasonrec_fast.benchmarking.stored import decoder_shape, stored_work
from reasonrec_fast.lm.generate import TextGenerator
from reasonrec_fast.lm.sampling import SamplingParams

DEVICE = "cuda" if ON_GPU else "cpu"
PARAMS = [
    SamplingParams(temperature=0, max_new_tokens=20),
    SamplingParams(num_samples=3, max_new_tokens=40),
    SamplingParams(top_p=0.9, temperature=0.8, num_samples=2, max_new_tokens=12),
]


@pytest.fixture(scope="module")
def groups():
    prefix, prompts = stored_work("slates", groups=1, tiny=not ON_GPU).groups[0]
    return [(prefix, prompts[:2]), ([], prompts[2:3])]


def model(dtype):
    shape = decoder_shape(tiny=not ON_GPU)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        causal = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=shape["hidden_size"] ** -0.5))
    causal.generation_config.eos_token_id = None
    return causal.to(DEVICE, dtype).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 0.3)])
def test_statistics_are_those_of_the_model(groups, dtype, tolerance):
    causal = model(dtype)
    results = TextGenerator(causal).generate(groups, PARAMS)
    prompts = [[*prefix, *prompt] for prefix, of_prefix in groups for prompt in of_prefix]
    for ids, samples, params in zip(prompts, results, PARAMS, strict=True):
        for sample in samples:
            with torch.inference_mode():
                text = torch.tensor([ids + sample.token_ids], device=DEVICE)
                logits = causal(input_ids=text).logits[0, len(ids) - 1 : -1].float().cpu()
            logprobs, tokens = logits.log_softmax(-1), torch.tensor(sample.token_ids)
            expected = logprobs.gather(1, tokens[:, None])[:, 0]
            assert (torch.tensor(sample.logprobs) - expected).abs().max() < tolerance
            assert (torch.tensor(sample.entropies) + (logprobs.exp() * logprobs).sum(-1)).abs().max() < tolerance
            if params.greedy:
                assert (logprobs.max(-1).values - expected).max() < tolerance


def test_seeds_repeat(groups):
    generator = TextGenerator(model(torch.float32))
    assert generator.generate(groups, PARAMS) == generator.generate(groups, PARAMS)
