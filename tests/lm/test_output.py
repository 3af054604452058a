"""The final norm and LM head, against the model's own logits."""

import pytest
import torch
from early_exit.tiny import FAMILIES, tiny
from peft import LoraConfig, get_peft_model

from reasonrec_fast.lm.output import CPU_ROWS, OutputHead


def last_hidden_and_logits(model, rows):
    """Input of the final norm for the last token of some random texts, and the logits there, float32."""
    hidden = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = base.model.norm.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0][:, -1]))
    ids = torch.randint(3, 97, (rows, 9), generator=torch.Generator().manual_seed(rows))
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, -1].float()
    handle.remove()
    return hidden[0], logits


def check(model, rows=5, temperature=0.7):
    hidden, expected = last_hidden_and_logits(model, rows)
    head = OutputHead(model)
    logprobs = (expected / temperature).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    tokens = torch.randint(0, expected.shape[1], (rows,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        normalized = head.normalize(hidden)
        close = {"atol": 2e-5, "rtol": 2e-5}
        torch.testing.assert_close(head.logits(normalized), expected, **close)
        best = head.most_likely(normalized, temperature)
        assert best.tokens.tolist() == expected.argmax(-1).tolist()
        torch.testing.assert_close(best.logprobs, logprobs.max(-1).values, **close)
        torch.testing.assert_close(best.entropies, entropy, **close)
        for logits in (None, expected):
            values, entropies = head.statistics(normalized, tokens, temperature, logits)
            torch.testing.assert_close(values, logprobs.gather(1, tokens[:, None])[:, 0], **close)
            torch.testing.assert_close(entropies, entropy, **close)
    return head


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    assert check(tiny(family)).fused == (family != "Gemma2")  # which caps its logits


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_tied_head(family):
    check(tiny(family, tie_word_embeddings=True))


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text"])
@pytest.mark.parametrize("rows", [1, 5])
def test_logits_of_gemma_are_capped(family, rows):
    head = check(tiny(family, final_logit_softcapping=3.0), rows)
    assert not head.fused and head.softcap == 3.0


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
)
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_the_head(options, dora):
    model = get_peft_model(tiny("Llama"), LoraConfig(r=4, use_dora=dora, init_lora_weights=False, **options)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight))
    assert not check(model).fused
    adapted = last_hidden_and_logits(model, 5)[1]
    with model.disable_adapter():
        assert (last_hidden_and_logits(model, 5)[1] - adapted).abs().max() > 0.1
        check(model)


def test_a_hook_on_the_head_is_called():
    model = tiny("Qwen2")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 0.5)
    assert not check(model).fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_row_has_the_same_bits_alone_and_among_others(dtype, softcap):
    head = OutputHead(tiny("Gemma2", vocab_size=40_000, final_logit_softcapping=softcap).to(dtype))
    normalized = torch.randn(19, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = torch.arange(19)

    def results(rows):
        some = normalized[rows]
        return [
            head.logits(some),
            *head.most_likely(some),
            *head.statistics(some, tokens[rows]),
            *head.statistics(some, tokens[rows], 1.0, head.logits(some)),
        ]

    with torch.inference_mode():
        whole = results(slice(None))
        for rows in (slice(3, 4), slice(2, 5), slice(0, 4), slice(4, 9), slice(0, CPU_ROWS + 1)):
            for some, all_rows in zip(results(rows), whole, strict=True):
                assert torch.equal(some, all_rows[rows])


def test_a_base_model_is_refused():
    with pytest.raises(TypeError, match="lm_head"):
        OutputHead(tiny("Llama").model)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_the_temperature_of_statistics_does_not_change_the_token(family):
    """Log-probabilities at a high temperature are rounded alike; the token was the first of them."""
    model = tiny(family)
    if family == "Llama":  # logits are formed
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)).eval()
    hidden, logits = last_hidden_and_logits(model, 9)
    head = OutputHead(model)
    with torch.inference_mode():
        for temperature in (1e-20, 1.0, 1e7, 1e30):
            assert torch.equal(head.most_likely(head.normalize(hidden), temperature).tokens, logits.argmax(-1))
