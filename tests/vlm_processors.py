"""Processors of the tiny vision-language models, which read real images."""

import pytest
import transformers
from early_exit.tiny import IMAGE_TOKEN
from packaging.version import Version
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["the", "film", "is", "good", "bad", "Yes", "No", "look", "at", "and"]
SPECIAL = {
    "<image>": IMAGE_TOKEN, "<fake_token_around_image>": 80, "<global-img>": 81, "<end_of_utterance>": 82,
    "<row_1_col_1>": 83, "<row_1_col_2>": 84, "<row_2_col_1>": 85, "<row_2_col_2>": 86,
}  # fmt: skip


def tokenizer():
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{word: 4 + i for i, word in enumerate(WORDS)}}
    vocabulary |= {f"<{number}>": number for number in range(len(vocabulary), 97)}
    names = {number: word for word, number in vocabulary.items()}
    for token, number in SPECIAL.items():
        del vocabulary[names[number]]
        vocabulary[token] = number
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", extra_special_tokens={"image_token": "<image>"},
        additional_special_tokens=[token for token in SPECIAL if token != "<image>"],
    )  # fmt: skip


def processor(kind):
    size = {"height": 12, "width": 12}
    if kind == "Llava":
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 12}, crop_size=size)
        return transformers.LlavaProcessor(
            images, tokenizer(), patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
    if kind == "Qwen2_5_VL":
        pytest.importorskip(
            "torchvision", reason="transformers reads Qwen2.5-VL's videos, and so its processor, with it"
        )
        images = transformers.Qwen2VLImageProcessor(patch_size=4, temporal_patch_size=2, merge_size=2)
        return transformers.Qwen2_5_VLProcessor(images, tokenizer(), transformers.Qwen2VLVideoProcessor())
    if Version(transformers.__version__) < Version("5.18"):
        pytest.importorskip("torchvision", reason="transformers before 5.18 reads Idefics3's images with torchvision")
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return transformers.Idefics3Processor(images, tokenizer(), image_seq_len=4)
