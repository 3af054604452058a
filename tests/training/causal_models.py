"""Tiny causal models with random weights, and LoRA on them."""

import torch
import transformers
from peft import LoraConfig, get_peft_model

FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "Gemma3Text": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "Phi3": {},
}


def causal_model(family="Llama", **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, attn_implementation="eager",
        **FAMILIES[family], **more,
    )  # fmt: skip
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # all but constant at first
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def with_lora(model, targets=("q_proj", "v_proj", "qkv_proj", "down_proj"), **more):
    """LoRA whose update is not zero."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=[t for t in targets if t in names], **more))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
    return model
