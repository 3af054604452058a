"""Rotary parts that depend on the longest text of a batch."""

import pytest
import torch
from tiny import tiny

from reasonrec_fast.early_exit import EarlyExitModel
from reasonrec_fast.lm import Decoder
from reasonrec_fast.lm.prefix_cache import PrefixCache

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
    result = EarlyExitModel(Decoder(model), ()).eval()
    with torch.no_grad():
        result.heads[0].weight.mul_(20.0)
    return result


@pytest.mark.parametrize("cached", [False, True])
def test_a_long_text_does_not_turn_its_company(cached):
    """Phi-3 of 128k turns texts of more than 4,096 tokens otherwise; one long text would turn all of its batch so, and
    keys of a cache were turned as those of short texts."""
    model, more = ranker(), {"cache": PrefixCache(2**24)} if cached else {}
    alone = model.predict([SHORT], **more).probability
    with pytest.raises(ValueError, match="groups: expected at most 16 tokens a text.*'longrope'.*; got 3"):
        model.predict([SHORT, LONG], **more)
    torch.testing.assert_close(model.predict([SHORT, SHORT], **more).probability[:1], alone, atol=1e-5, rtol=0)
