"""Generation with vision-language models: what their own ``generate`` makes of images."""

import pytest
import torch
from early_exit.tiny import VISION_LANGUAGE, tiny_vlm, vlm_inputs

from reasonrec_fast.lm import segments_of
from reasonrec_fast.lm.generate import TextGenerator
from reasonrec_fast.lm.sampling import SamplingParams

TEXTS = [[1, 5, "image", 6, 7], [1, "image", 3, "image", 8, 9, 11], ["image", 4], [1, 2, 3]]
GREEDY = SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=())


@pytest.mark.parametrize("kind", VISION_LANGUAGE)
def test_greedy_tokens_after_images_are_those_of_transformers(kind):
    model = tiny_vlm(kind)
    model.generation_config.eos_token_id = None
    groups, expected = [], []
    for seed, text in enumerate(TEXTS):
        inputs = vlm_inputs(kind, [text], seed=seed)
        (own,) = segments_of(model, inputs)
        groups += [([], [own]), (own[:-1], [own[-1:]])]
        with torch.inference_mode():
            whole = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
        expected += [whole[0, inputs["input_ids"].shape[1] :].tolist()] * 2
    assert len({tuple(tokens) for tokens in expected}) > 1
    results = TextGenerator(model).generate(groups, GREEDY)
    assert [result.token_ids for (result,) in results] == expected
