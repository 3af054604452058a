"""Vision-language models: their own forward over images equals the core's, shared, cached, alone and in mixtures."""

import numpy as np
import peft
import pytest
import torch
from early_exit.tiny import VISION_LANGUAGE, Letters, tiny, tiny_vlm, vlm_inputs

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.early_exit import ExitPolicy
from reasonrec_fast.lm import Decoder, Embeddings, PackedBatch, segments_of, text_of
from reasonrec_fast.lm.inputs import extent
from reasonrec_fast.serving import RankingService

ANSWERS = ("n", "y")
CLOSE = {"atol": 3e-5, "rtol": 3e-4}
TEXTS = [
    [1, 5, "image", 6, 7],
    [1, 5, "image", 6, 8, 9],
    [1, "image", 3, "image", 8, 9, 11],
    ["image", 4],
    [1, 2, 3],
    [1, "image", 39, "image", 40, "image", 41],
]


@torch.no_grad()
def own_scores(model, inputs):
    """Probability of the second answer by the model's own forward over a processor's output."""
    tokens = [Letters()(answer, add_special_tokens=False)["input_ids"][0] for answer in ANSWERS]
    return model(**inputs).logits[:, -1, tokens].softmax(-1)[:, 1]


def examples(kind, model, count=2):
    """Texts with images, each image another in every example; their own scores, each by a forward of its own."""
    texts, scores = [], []
    for seed in range(count):
        for number, text in enumerate(TEXTS):
            inputs = vlm_inputs(kind, [text], seed=100 * seed + number)
            texts += segments_of(model, inputs)
            scores.append(own_scores(model, inputs))
    return texts, torch.cat(scores)


def requests_of(texts, seed=0):
    """Each text divided at random, where it may be."""
    generator = np.random.default_rng(seed)
    requests = []
    for text in texts:
        at = int(generator.integers(0, len(text)))
        at = text.boundary(at) if hasattr(text, "boundary") else at
        requests.append((text[:at], text[at:]))
    return requests


@pytest.fixture(scope="module", params=VISION_LANGUAGE)
def example(request):
    model = tiny_vlm(request.param)
    return request.param, model, *examples(request.param, model)


def ranker_of(model, **options):
    return EarlyExitRanker.from_model(model, Letters(), ANSWERS, exits=(1, 2, 3), **options)


@pytest.mark.parametrize("options", [{}, {"prefix_cache_bytes": 1 << 20}, {"max_tokens": 40}], ids=str)
def test_full_depth_is_the_model_itself(example, options):
    _, model, texts, expected = example
    assert expected.std() > 0.05
    ranker = ranker_of(model, **options)
    for seed in range(2):
        for _ in range(2):
            result = ranker.predict(requests_of(texts, seed)).probability
            torch.testing.assert_close(result, expected, **CLOSE)
    for request, score in zip(requests_of(texts), expected, strict=True):
        torch.testing.assert_close(ranker.predict([request]).probability[0], score, **CLOSE)


def test_images_change_the_scores(example):
    """Else the comparison with the model would prove nothing."""
    _, _, _, expected = example
    first, second = expected.reshape(2, -1)
    same = (first - second).abs()
    assert same[4] == 0 and same[[0, 2, 3, 5]].min() > 1e-3


def test_a_padded_batch_gives_each_text_its_own_images(example):
    kind, model, _, _ = example
    inputs = vlm_inputs(kind, TEXTS, seed=5)
    expected = own_scores(model, inputs)
    result = ranker_of(model).predict([([], text) for text in segments_of(model, inputs)]).probability
    torch.testing.assert_close(result, expected, **CLOSE)


def test_candidates_share_images_before_them(example):
    """Several candidates behind one prefix with two images; what a cache holds is read on by others."""
    kind, model, _, _ = example
    inputs = vlm_inputs(kind, [[1, "image", 7, "image", 8]], seed=3)
    (prefix,) = segments_of(model, inputs)
    candidates = [[9], [10, 11], [12, 13, 14], [9, 10]]
    expected = []
    for candidate in candidates:
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([candidate])], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        if "mm_token_type_ids" in whole:
            more = torch.zeros(1, len(candidate), dtype=torch.int32)
            whole["mm_token_type_ids"] = torch.cat([whole["mm_token_type_ids"], more], 1)
        expected.append(own_scores(model, whole))
    expected = torch.cat(expected)
    for options in ({}, {"prefix_cache_bytes": 1 << 20}):
        ranker = ranker_of(model, **options)
        for some in (slice(0, 2), slice(0, 4), slice(2, 4)):
            result = ranker.predict([(prefix, candidate) for candidate in candidates[some]]).probability
            torch.testing.assert_close(result, expected[some], **CLOSE)
    assert ranker.cache.hits == 2


def test_rows_leave_early_as_they_would_alone(example):
    _, model, texts, _ = example
    requests = requests_of(texts)
    policy = ExitPolicy(((0.5, 0.3, 0.1),))
    alone, together = ranker_of(model), ranker_of(model, prefix_cache_bytes=1 << 20)
    alone.policy = together.policy = policy
    result = together.predict(requests)
    assert len(set(result.depth.tolist())) > 1
    for index, request in enumerate(requests):
        expected = alone.predict([request])
        assert expected.depth[0] == result.depth[index]
        torch.testing.assert_close(expected.probability[0], result.probability[index], **CLOSE)


@torch.no_grad()
def test_hidden_states_of_every_layer(example):
    kind, model, _, _ = example
    inputs = vlm_inputs(kind, [TEXTS[2]], seed=1)
    own = model(**inputs, output_hidden_states=True).hidden_states
    (text,) = segments_of(model, inputs)
    batch = PackedBatch(Decoder(model), [([], [text])])
    torch.testing.assert_close(batch.hidden, own[0][0], **CLOSE)
    for depth in range(1, 4):
        batch.layer(depth)
        torch.testing.assert_close(batch.hidden, own[depth][0], **CLOSE)


@pytest.mark.parametrize("kind", ["Idefics3", "Qwen2_5_VL"])
def test_adapters_of_vision_language_models(kind):
    model = peft.get_peft_model(
        tiny_vlm(kind), peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    texts, expected = examples(kind, model, count=1)
    with model.disable_adapter():
        plain = examples(kind, model, count=1)[1]
    assert (plain - expected).abs().max() > 1e-3
    for options in ({}, {"prefix_cache_bytes": 1 << 20}):
        torch.testing.assert_close(
            ranker_of(model, **options).predict(requests_of(texts)).probability, expected, **CLOSE
        )


def test_positions_follow_the_models_own_rule():
    model = tiny_vlm("Qwen2_5_VL")
    inputs = vlm_inputs("Qwen2_5_VL", [TEXTS[2]], seed=2)
    (text,) = segments_of(model, inputs)
    more = {name: inputs[name] for name in ("mm_token_type_ids", "image_grid_thw")}
    positions, delta = model.model.get_rope_index(inputs["input_ids"], **more)
    layout = PackedBatch(Decoder(model), [(text[:2], [text[2:]])]).layout
    assert np.array_equal(layout.positions, positions[:, 0].numpy())
    assert extent(text) == len(text) + int(delta)


def test_what_does_not_fit_is_refused():
    model = tiny_vlm("Llava")
    inputs = vlm_inputs("Llava", [TEXTS[0]])
    with pytest.raises(ValueError, match="pixel_values: expected as many images as the texts have; got 1 more"):
        segments_of(model, {**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
    with pytest.raises(ValueError, match="one image token for each of the 0 vectors of images; got 9 in text 0"):
        segments_of(model, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    with pytest.raises(TypeError, match=r"inputs: expected texts and images .*; got pixel_values_videos"):
        segments_of(model, {**inputs, "pixel_values_videos": torch.zeros(1)})
    with pytest.raises(
        TypeError, match="model: expected an image-text-to-text model of one of idefics3, .*; got Llama"
    ):
        segments_of(tiny("Llama"), inputs)


@pytest.mark.parametrize("kind", ["Llava", "Qwen2_5_VL"])
def test_vectors_of_another_model_spoil_no_other_call(kind):
    ranker, good = ranker_of(tiny_vlm(kind)), ([1, 2], [3])
    expected = ranker.predict([good]).probability
    narrow = Embeddings(torch.zeros(3, 16), b"narrow")
    axes = np.zeros((2 if kind == "Qwen2_5_VL" else 3, 3), dtype=np.int64)
    turned = Embeddings(torch.zeros(3, 32), b"turned", positions=axes)
    wanted = "with 3 axes of positions, as those of qwen2_5_vl_text; got 2" if len(axes) == 2 else (
        "without positions, as those of llama; got 3"
    )  # fmt: skip
    with RankingService(ranker, max_wait_ms=50.0) as service:
        future = service.submit([good])
        with pytest.raises(ValueError, match="requests: request 1: expected embeddings of width 32.*; got 16"):
            service.submit([good, ([1], [narrow, [2]])])
        with pytest.raises(ValueError, match=f"requests: request 0: expected embeddings {wanted} axes"):
            service.submit([([turned], [2])])
        torch.testing.assert_close(future.result(60).probability, expected)
    with pytest.raises(ValueError, match=r"groups: expected embeddings of width 32, as the model's; got 16"):
        PackedBatch(ranker.model.backbone, [([1], [[narrow, [2]]])])


def test_a_vision_model_around_another_text_model_is_refused():
    import transformers
    from early_exit.tiny import SIZES

    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=12,
            patch_size=4,
        ),
        text_config=transformers.Gemma2Config(**SIZES, head_dim=8),
    )
    with pytest.raises(TypeError, match="got LlavaForConditionalGeneration of model_type 'gemma2'"):
        Decoder(transformers.LlavaForConditionalGeneration(config))


@pytest.mark.parametrize("family", ["Llama", "Gemma", "Gemma2"])
def test_vectors_in_place_of_embeddings_of_text_models(family):
    """A token's own embedding as a vector is the token: among ids, at the end, as a whole text."""
    model = tiny(family)
    backbone = Decoder(model)
    ids = [3, 4, 5, 6, 7]
    vectors = backbone.embed(torch.tensor(ids)).detach()
    ranker = ranker_of(model, prefix_cache_bytes=1 << 20)
    (expected,) = ranker.predict([(ids[:2], ids[2:])]).probability
    for begin, end in ((0, 2), (1, 4), (3, 5), (0, 5)):
        text = text_of([ids[:begin], Embeddings.of(vectors[begin:end]), ids[end:]])
        for at in {text.boundary(at) for at in range(5)}:
            result = ranker.predict([(text[:at], text[at:])] * 2).probability
            torch.testing.assert_close(result, expected.expand(2), **CLOSE)


def test_gradients_reach_the_vectors():
    """What a projector makes can be trained through the core."""
    from reasonrec_fast.early_exit import EarlyExitModel

    values = torch.randn(3, 32, requires_grad=True)
    model = EarlyExitModel(Decoder(tiny("Llama")), (2,)).train()
    group = ([[1, 2], Embeddings(values, b"trained")], [[3], [4, 5]])
    exits = model.all_exits([group], targets=torch.tensor([0, 1]))
    sum(statistics.target_logprob.sum() for statistics in exits).backward()
    assert values.grad is not None and values.grad.abs().min() > 0


def test_images_that_are_read_both_ways_are_refused():
    import transformers
    from early_exit.tiny import SIZES

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**SIZES, "head_dim": 8}, vision_config={**vision, "image_size": 16, "patch_size": 4}
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    with pytest.raises(TypeError, match="got Gemma3ForConditionalGeneration of model_type 'gemma3', which has no"):
        Decoder(model)
    with pytest.raises(TypeError, match="model: expected an image-text-to-text model of one of .*; got Gemma3For"):
        segments_of(model, {"input_ids": torch.ones(1, 2, dtype=torch.int64)})
