"""Adapters of every kind against transformers' own forward: switched, cached, merged; and invalid requests in
batches."""

import copy

import peft
import pytest
import torch
from test_ranker import ANSWERS, plain, ranker_of, requests_of
from tiny import Letters, tiny

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.serving import RankingService

KINDS = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    "lora on the LM head": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    "lora on embeddings": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True, init_lora_weights=False),
    "dora on the LM head": lambda: peft.LoraConfig(
        r=2, target_modules=["v_proj", "lm_head"], use_dora=True, init_lora_weights=False
    ),
    "rslora": lambda: peft.LoraConfig(r=4, target_modules=["o_proj"], use_rslora=True, init_lora_weights=False),
    "modules to save": lambda: peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"], init_lora_weights=False
    ),
    "trained tokens": lambda: peft.LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices=[5, 6, 7, 20], init_lora_weights=False
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


def adapted(kind, family="Llama", seed=0):
    model = peft.get_peft_model(tiny(family), KINDS[kind]()).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def check(ranker, model, requests):
    expected = plain(model, [[*prefix, *candidate] for prefix, candidate in requests])
    torch.testing.assert_close(ranker.predict(requests).probability, expected, atol=3e-5, rtol=3e-4)
    return expected


@pytest.mark.parametrize("cached", [0, 1 << 20], ids=["uncached", "cached"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_plain_model(kind, cached):
    model, requests = adapted(kind), requests_of(1)
    ranker = ranker_of(model, prefix_cache_bytes=cached)
    result = check(ranker, model, requests)
    without = plain(tiny("Llama"), [[*prefix, *candidate] for prefix, candidate in requests])
    assert (result - without).abs().max() > 1e-3, "the adapter does nothing"


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text", "Phi3", "Qwen3"])
def test_adapters_on_the_lm_head_of_other_families(family):
    model = adapted("dora on the LM head" if family != "Phi3" else "lora", family)
    check(ranker_of(model), model, requests_of(2))


def test_the_cache_follows_what_is_switched():
    """Other, disabled, scaled and merged adapters: the base weights stay the same."""
    model = adapted("lora")
    model.add_adapter("other", KINDS["lora"]())
    requests, ranker = requests_of(3), ranker_of(model, prefix_cache_bytes=1 << 20)
    first = check(ranker, model, requests)
    model.set_adapter("other")
    second = check(ranker, model, requests)
    assert (first - second).abs().max() > 1e-3
    with model.disable_adapter():
        assert (check(ranker, model, requests) - second).abs().max() > 1e-3
    check(ranker, model, requests)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("other", 3.0)
    assert (check(ranker, model, requests) - second).abs().max() > 1e-3
    model.merge_adapter()
    check(ranker, model, requests)


def test_the_cache_follows_modules_to_save():
    model = adapted("modules to save")
    requests, ranker = requests_of(3), ranker_of(model, prefix_cache_bytes=1 << 20)
    ranker.predict(requests)
    with model.disable_adapter():  # the heads are those of the ranker; the rest follows
        result = ranker.predict(requests).probability
        fresh = ranker_of(model)
        fresh.model.heads = copy.deepcopy(ranker.model.heads)
        torch.testing.assert_close(result, fresh.predict(requests).probability, atol=3e-5, rtol=3e-4)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
    ],
    ids=lambda config: str(config.peft_type),
)
def test_what_lies_beside_the_layers_is_refused(config):
    model = peft.get_peft_model(tiny("Llama"), config)
    kind = config.peft_type.value
    with pytest.raises(TypeError, match=f"model: expected adapters inside the layers, as LoRA's; got {kind}"):
        EarlyExitRanker.from_model(model, Letters(), ANSWERS)


def test_gemma_3_caps_as_its_own_forward_does():
    model = tiny("Gemma3Text", attn_logit_softcapping=0.05, final_logit_softcapping=3.0)
    check(ranker_of(model), model, requests_of(4))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([97], ValueError, r"requests: expected token ids in \[0, 97\); got 97 in request 1"),
        ([-1], ValueError, r"requests: expected token ids in \[0, 97\); got -1 in request 1"),
        ([1.5], TypeError, r"requests: expected token ids, whole numbers; got 1\.5 in request 1"),
        (
            [torch.tensor(2.0)],
            TypeError,
            r"requests: expected token ids, whole numbers; got tensor\(2\.\) in request 1",
        ),
    ],
)
def test_one_bad_token_spoils_no_other_call(ids, error, message):
    ranker = ranker_of(tiny("Llama"))
    good = [([1, 2], [3]), ([4], [5])]
    expected = ranker.predict(good).probability
    with RankingService(ranker, max_wait_ms=50.0) as service:
        futures = [service.submit(good)]
        with pytest.raises(error, match=message):
            service.submit([([1], [2]), ([1, 2], ids)])
        futures.append(service.submit(good))
        for future in futures:
            torch.testing.assert_close(future.result(60).probability, expected)
    assert torch.equal(ranker.predict([(torch.tensor([1, 2]), [torch.tensor(3)]), good[1]]).probability, expected)


def test_a_text_that_a_rope_turns_otherwise_spoils_no_other_call():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 16}  # fmt: skip
    ranker = ranker_of(tiny("Phi3", rope_parameters=rope, original_max_position_embeddings=16))
    with (
        RankingService(ranker) as service,
        pytest.raises(ValueError, match="requests: expected at most 16 tokens a text.*got 31"),
    ):
        service.submit([([1] * 30, [2])])
