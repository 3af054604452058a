"""Full depth is the plain model: every family, adapters of every kind, cached and not, alone and in a mixed batch."""

import peft
import pytest
import torch
from early_exit.tiny import FAMILIES, Letters, tiny

from reasonrec_fast import EarlyExitRanker

ANSWERS = ("n", "y")
REQUESTS = [
    ([5, 6, 7, 8, 9], [10, 11]),
    ([5, 6, 7, 8, 9], [12]),
    ([], [20, 21, 22]),
    ([30] * 17, [31]),
    ([30] * 17, [32, 5]),
]
ADAPTERS = {
    "none": None,
    "lora": {"target_modules": "all-linear"},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "modules to save": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]},
    "lm head": {"target_modules": ["o_proj", "lm_head"]},
}


def adapted(family, kind):
    # Under transformers 5.17 the fused attention of Gemma 2 leaves its cap out.
    model = tiny(family, tie_word_embeddings=False, attn_implementation="eager")
    if ADAPTERS[kind] is None:
        return model
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **ADAPTERS[kind])).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


@torch.no_grad()
def own_scores(model, requests):
    tokens = [Letters()(answer, add_special_tokens=False)["input_ids"][0] for answer in ANSWERS]
    texts = [torch.tensor([[*prefix, *candidate]]) for prefix, candidate in requests]
    return torch.stack([model(text).logits[0, -1, tokens].softmax(-1)[1] for text in texts])


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_is_the_plain_model(family, kind):
    model = adapted(family, kind)
    expected = own_scores(model, REQUESTS)
    assert expected.std() > 0.003
    if kind != "none":
        assert (own_scores(adapted(family, "none"), REQUESTS) - expected).abs().max() > 1e-4
    for cached in (0, 1 << 20):
        ranker = EarlyExitRanker.from_model(model, Letters(), ANSWERS, exits=(1, 2), prefix_cache_bytes=cached)
        for _ in range(2):
            torch.testing.assert_close(ranker.predict(REQUESTS).probability, expected, atol=3e-5, rtol=3e-4)
        alone = torch.cat([ranker.predict([request]).probability for request in REQUESTS])
        torch.testing.assert_close(alone, expected, atol=3e-5, rtol=3e-4)
