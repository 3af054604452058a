"""Vision-language models load by folder with their processors, and what those make of images goes into the core."""

import numpy as np
import pytest
import torch
import transformers
from early_exit.tiny import tiny, tiny_vlm
from PIL import Image
from vlm_processors import processor, tokenizer

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.lm import segments_of
from reasonrec_fast.lm.loading import is_image_text_to_text, load_language_model


def pictures(count):
    generator = np.random.default_rng(0)
    shapes = [(20, 30, 3), (32, 32, 3), (16, 40, 3)]
    return [Image.fromarray(generator.integers(0, 256, shapes[i % 3], dtype=np.uint8)) for i in range(count)]


@pytest.mark.parametrize("kind", ["Llava", "Idefics3"])
def test_from_a_folder_to_scores(kind, tmp_path):
    tiny_vlm(kind).save_pretrained(tmp_path)
    processor(kind).save_pretrained(tmp_path)
    model, loaded = load_language_model(str(tmp_path), torch.float32, device="cpu")
    assert type(model).__name__ == f"{kind}ForConditionalGeneration" and not model.training
    texts = ["look at <image> the film is", "<image> and <image> is good and", "the film is bad"]
    first, *others = pictures(3)
    inputs = loaded(text=texts, images=[[first], others, []] if kind == "Idefics3" else [first, *others],
                    return_tensors="pt", padding=True)  # fmt: skip
    yes, no = (loaded.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1, [no, yes]].softmax(-1)[:, 1]
    assert expected.std() > 0.02
    ranker = EarlyExitRanker.from_model(model, loaded.tokenizer, exits=(2,), prefix_cache_bytes=1 << 20)
    requests = [([], text) for text in segments_of(model, inputs)]
    torch.testing.assert_close(ranker.predict(requests).probability, expected, atol=3e-5, rtol=3e-4)


def test_a_language_model_comes_with_its_tokenizer(tmp_path):
    tiny("Qwen2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model, loaded = load_language_model(str(tmp_path), torch.float32, device="cpu")
    assert type(model).__name__ == "Qwen2ForCausalLM" and isinstance(loaded, transformers.PreTrainedTokenizerBase)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(), False),
        (transformers.LlavaConfig(), True),
        (transformers.Qwen2_5_VLConfig(), True),
        (transformers.Gemma3TextConfig(), False),
        (transformers.Gemma3Config(), True),
        (transformers.Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]), True),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_what_a_configuration_is(config, expected):
    assert is_image_text_to_text(config) is expected


def test_other_models_are_refused(tmp_path):
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="expected a causal language model or an image-text-to-text model .*got .*'vit'"
    ):
        load_language_model(str(tmp_path), device="cpu")
