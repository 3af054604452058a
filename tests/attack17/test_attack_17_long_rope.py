"""Rotary parts that depend on the longest text of a batch."""

import torch
from tiny import tiny

from reasonrec_fast.early_exit import Backbone, EarlyExitModel
from reasonrec_fast.early_exit.prefix_cache import PrefixCache

ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip
SHORT = ([*range(5, 15)], [[30, 31]])
LONG = ([5, 6, 7], [[40] * 30])


def ranker():
    model = tiny(
        "Phi3",
        num_hidden_layers=2,
        rope_parameters=ROPE,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
    )
    found = EarlyExitModel(Backbone(model), ()).eval()
    with torch.no_grad():
        found.heads[0].weight.mul_(20.0)
    return found


def test_a_text_has_the_same_score_in_any_company():
    """Phi-3 of 128k turns texts of more than 4,096 tokens otherwise: here one long text turns all of its batch so."""
    model = ranker()
    alone = model.rank([SHORT]).probability
    torch.testing.assert_close(model.rank([SHORT, LONG]).probability[:1], alone, atol=1e-5, rtol=0)


def test_a_cache_changes_no_score():
    """Its keys were turned as those of a batch of short texts."""
    model, cache = ranker(), PrefixCache(2**24)
    model.rank([SHORT], cache=cache)
    expected = model.rank([SHORT, LONG]).probability
    torch.testing.assert_close(model.rank([SHORT, LONG], cache=cache).probability, expected, atol=1e-5, rtol=0)
