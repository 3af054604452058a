"""Tiny models of every family, text and vision-language, with random weights, for tests everywhere."""

import torch
import transformers

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "Phi3": {},
}


def tiny(family, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **more})
    prefix = family.removesuffix("Text")
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():  # norms and the head are all but constant at first
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
        model.lm_head.weight.mul_(5.0)
    return model


IMAGE_TOKEN = 90
VISION_LANGUAGE = ("Llava", "LlavaQwen2", "LlavaMistral", "Idefics3", "SmolVLM", "Qwen2VL", "Qwen2_5_VL")


def tiny_vlm(kind):
    """A vision-language model whose image token is :data:`IMAGE_TOKEN`; see :func:`vlm_inputs`."""
    torch.manual_seed(0)
    text = {**SIZES, "tie_word_embeddings": False}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2}
    if kind.startswith("Llava"):
        family = {"Llava": "Llama", "LlavaQwen2": "Qwen2", "LlavaMistral": "Mistral"}[kind]
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision, image_size=12, patch_size=4, projection_dim=16),
            text_config=getattr(transformers, f"{family}Config")(**text, **FAMILIES[family]),
            image_token_index=IMAGE_TOKEN,
        )
        model = transformers.LlavaForConditionalGeneration(config)
    elif kind in ("Idefics3", "SmolVLM"):
        part = getattr(transformers, f"{kind}VisionConfig")(**vision, image_size=16, patch_size=4)
        config = getattr(transformers, f"{kind}Config")(
            vision_config=part,
            text_config=transformers.LlamaConfig(**text),
            image_token_id=IMAGE_TOKEN,
            scale_factor=2,
            tie_word_embeddings=False,
        )
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    else:
        if kind == "Qwen2VL":
            part = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
        else:
            part = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
                    "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}  # fmt: skip
        part |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        config = getattr(transformers, f"{kind}Config")(
            vision_config=part,
            text_config={**text, **special, "rope_parameters": rope, "use_sliding_window": False},
            image_token_id=IMAGE_TOKEN, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    model = model.eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
            elif "vision" in name or "visual" in name or "connector" in name or "projector" in name:
                weight.mul_(4.0)  # images should differ much
        model.lm_head.weight.mul_(5.0)
    return model


def vlm_inputs(kind, texts, seed=0):
    """What a processor would make of texts: lists of ids, in which ``"image"`` stands for a random image. Padded on the
    left.

    Idefics3's images have two tiles, with a token between; those of Qwen have grids of different sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, pixels, grids = [], [], []
    for text in texts:
        ids, tiles = [], []
        for part in text:
            if part != "image":
                ids.append(part)
            elif kind.startswith("Llava"):
                pixels.append(torch.randn(3, 12, 12, generator=generator))
                ids += [IMAGE_TOKEN] * 9
            elif kind in ("Idefics3", "SmolVLM"):
                tiles += list(torch.randn(2, 3, 16, 16, generator=generator))
                ids += [94, *[IMAGE_TOKEN] * 4, 95, *[IMAGE_TOKEN] * 4, 94]
            else:
                high, wide = (2 * int(size) for size in torch.randint(1, 4, (2,), generator=generator))
                pixels.append(torch.randn(high * wide, 3 * 2 * 4 * 4, generator=generator))
                grids.append([1, high, wide])
                ids += [92, *[IMAGE_TOKEN] * (high * wide // 4), 93]
        rows.append(ids)
        if kind in ("Idefics3", "SmolVLM"):
            pixels.append(tiles)
    longest = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    }
    if kind in ("Idefics3", "SmolVLM"):
        most = max(map(len, pixels))
        if most:
            padded = torch.zeros(len(rows), most, 3, 16, 16)
            for row, tiles in enumerate(pixels):
                padded[row, : len(tiles)] = torch.stack(tiles) if tiles else 0
            inputs["pixel_values"] = padded
    elif grids:
        inputs |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).int()
    elif pixels:
        inputs["pixel_values"] = torch.stack(pixels)
    return inputs


class Letters:
    """A tokenizer of letters, with a token at the beginning."""

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [1] * add_special_tokens + [2 + ord(letter) % 90 for letter in text]}
