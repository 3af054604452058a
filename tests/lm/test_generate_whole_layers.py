"""Generation with decoders whose layers run whole, mixtures of experts among them."""

import pytest
import torch
from lm.test_generate import GREEDY, GROUPS, PROMPTS, check_statistics, of_transformers
from lm.test_whole_layers import make

from reasonrec_fast.lm.generate import TextGenerator


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "Olmo2", "Granite"])
def test_greedy_tokens_are_those_of_transformers(name):
    model = make(name)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    results = TextGenerator(model).generate(GROUPS, GREEDY)
    for ids, (result,) in zip(PROMPTS, results, strict=True):
        tokens, logprobs = of_transformers(model, ids)
        assert result.token_ids == tokens
        check_statistics(result, logprobs)
    assert not torch.is_inference_mode_enabled()
