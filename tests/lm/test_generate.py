"""Generation over shared prefixes, against transformers."""

import threading

import pytest
import torch
from early_exit.tiny import FAMILIES, tiny
from lm.tokenizers_of_tests import bytes_tokenizer
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare

from reasonrec_fast.lm.generate import TextGenerator
from reasonrec_fast.lm.inputs import Embeddings
from reasonrec_fast.lm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=24)


def random_ids(count, seed, vocabulary=97):
    return torch.randint(3, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


GROUPS = [
    (random_ids(20, 0), [random_ids(3, 1), random_ids(9, 2), random_ids(1, 3)]),
    ([], [random_ids(7, 4), random_ids(2, 5)]),
    (random_ids(5, 6), [random_ids(30, 7)]),
]
PROMPTS = [prefix + prompt for prefix, prompts in GROUPS for prompt in prompts]


def lively(family, **options):
    """A tiny model whose texts do not end in one token over and over."""
    model = tiny(family, tie_word_embeddings=False, **options)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (0.2 if "embed" in name else 0.5))
    return model


def of_transformers(model, ids, **options):
    """New tokens, and the log-probabilities of the whole vocabulary at each."""
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **options}
    with torch.inference_mode():
        result = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return result.sequences[0, len(ids) :].tolist(), torch.cat(result.logits).float().log_softmax(-1)


def model_logprobs(model, ids, new):
    """Log-probabilities of the whole vocabulary at each new token, by one pass of the model over all of them."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1].float()
    return logits.log_softmax(-1)


def check_statistics(result, logprobs, tolerance=3e-4):
    tokens = torch.tensor(result.token_ids)
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(torch.tensor(result.logprobs), logprobs.gather(1, tokens[:, None])[:, 0], **close)
    torch.testing.assert_close(torch.tensor(result.entropies), -(logprobs.exp() * logprobs).sum(-1), **close)


@pytest.fixture(scope="module")
def llama():
    return lively("Llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family):
    model = lively(family)
    generator = TextGenerator(model)
    expected = [of_transformers(model, ids) for ids in PROMPTS]
    assert len({token for tokens, _ in expected for token in tokens}) > 25
    results = generator.generate(GROUPS, GREEDY)
    assert [len(samples) for samples in results] == [1] * len(PROMPTS)
    for (result,), (tokens, logprobs) in zip(results, expected, strict=True):
        assert result.token_ids == tokens and result.finish_reason == "length" and result.text is None
        check_statistics(result, logprobs)
    for index, ids in enumerate(PROMPTS):  # alone, and without a prefix
        assert generator.generate([([], [ids])], GREEDY)[0][0].token_ids == expected[index][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_samples_are_the_models(family):
    model = lively(family)
    params = SamplingParams(num_samples=3, max_new_tokens=40, seed=5)
    results = TextGenerator(model).generate(GROUPS, params)
    for ids, samples in zip(PROMPTS, results, strict=True):
        assert len({tuple(sample.token_ids) for sample in samples}) == 3
        for sample in samples:
            check_statistics(sample, model_logprobs(model, ids, sample.token_ids))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.7, "top_p": 0.8}])
def test_statistics_at_another_temperature(llama, options):
    params = SamplingParams(max_new_tokens=8, statistics_temperature=0.7, **options)
    for ids, (sample,) in zip(PROMPTS, TextGenerator(llama).generate(GROUPS, params), strict=True):
        logprobs = (model_logprobs(llama, ids, sample.token_ids) / 0.7).log_softmax(-1)
        check_statistics(sample, logprobs)


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_adapters_are_the_models_own(target):
    model = get_peft_model(lively("Llama"), LoraConfig(r=4, init_lora_weights=False, target_modules=[target])).eval()
    generator = TextGenerator(model)
    first = generator.generate(GROUPS[:1], GREEDY)
    for ids, (result,) in zip(PROMPTS, first, strict=False):
        tokens, logprobs = of_transformers(model, ids)
        assert result.token_ids == tokens
        check_statistics(result, logprobs)
    with model.disable_adapter():
        assert generator.generate(GROUPS[:1], GREEDY)[0][0].token_ids == of_transformers(model, PROMPTS[0])[0]
    assert generator.generate(GROUPS[:1], GREEDY) == first


MIXED = [
    SamplingParams(num_samples=2, max_new_tokens=9, seed=1),
    SamplingParams(temperature=0.5, num_samples=3, max_new_tokens=40, seed=1),
    GREEDY,
    SamplingParams(top_p=0.5, max_new_tokens=20, num_samples=2, statistics_temperature=2.0),
    SamplingParams(top_k=4, temperature=1.5, max_new_tokens=33, num_samples=2),
    SamplingParams(temperature=0, max_new_tokens=5, num_samples=2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Phi3"])
def test_a_sequence_is_the_same_alone_and_in_any_batch(family, dtype):
    model = lively(family).to(dtype)
    together = TextGenerator(model).generate(GROUPS, MIXED)
    alone = TextGenerator(model, max_sequences=1)
    request = 0
    for prefix, prompts in GROUPS:
        for prompt in prompts:
            assert alone.generate([(prefix, [prompt])], MIXED[request])[0] == together[request]
            request += 1
    order = [GROUPS[2], GROUPS[0], GROUPS[1]]
    reordered = TextGenerator(model).generate(order, [MIXED[5], *MIXED[:5]])
    assert [*reordered[1:], reordered[0]] == together
    longer = SamplingParams(num_samples=5, max_new_tokens=9, seed=1)  # a sample does not depend on how many follow
    assert TextGenerator(model).generate(GROUPS[:1], [longer, *MIXED[1:3]])[0][:2] == together[0]


def test_seeds_and_samples_differ(llama):
    def tokens(seed):
        params = SamplingParams(temperature=1.5, num_samples=4, max_new_tokens=12, seed=seed)
        return [tuple(sample.token_ids) for sample in TextGenerator(llama).generate([([], [[5]])], params)[0]]

    assert tokens(3) == tokens(3)
    assert len({*tokens(3), *tokens(4)}) == 8


def test_pairs_of_tokens_are_distributed_as_the_model_says():
    model = lively("Llama", vocab_size=6, pad_token_id=None, bos_token_id=None)
    count = 6000
    generator = TextGenerator(model, max_sequences=count)
    params = SamplingParams(temperature=4.0, num_samples=count, max_new_tokens=2, seed=11)
    samples = generator.generate([([1, 2], [[3]])], params)[0]
    counts = torch.zeros(6, 6)
    for sample in samples:
        counts[tuple(sample.token_ids)] += 1
    with torch.inference_mode():
        texts = torch.tensor([[1, 2, 3, token] for token in range(6)])
        logprobs = (model(input_ids=texts).logits[:, 2:] / 4.0).log_softmax(-1)
    expected = (logprobs[0, 0][:, None] + logprobs[:, 1]).exp().double() * count
    assert expected.min() > 5
    assert chisquare(counts.flatten().numpy(), (expected / expected.sum() * count).flatten().numpy()).pvalue > 1e-3


def test_stop_tokens(llama):
    whole = TextGenerator(llama).generate(GROUPS, GREEDY)
    stop = whole[0][0].token_ids[6]
    params = SamplingParams(temperature=0, max_new_tokens=24, stop_token_ids=(stop,))
    for (full,), (result,) in zip(whole, TextGenerator(llama).generate(GROUPS, params), strict=True):
        end = full.token_ids.index(stop) + 1 if stop in full.token_ids else 24
        assert result.token_ids == full.token_ids[:end] and result.logprobs == full.logprobs[:end]
        assert result.finish_reason == ("stop" if stop in full.token_ids else "length")


@pytest.mark.parametrize("several", [False, True])
def test_the_models_own_stop_tokens_are_the_default(several):
    model = lively("Llama")
    tokens = of_transformers(model, PROMPTS[0])[0]
    model.generation_config.eos_token_id = [tokens[9], tokens[4]] if several else tokens[4]
    expected = of_transformers(model, PROMPTS[0])[0]
    assert 0 < len(expected) < 24
    result = TextGenerator(model).generate(GROUPS[:1], GREEDY)[0][0]
    assert result.token_ids == expected and result.finish_reason == "stop"
    model.generation_config.eos_token_id, model.config.eos_token_id = None, tokens[4]
    assert of_transformers(model, PROMPTS[0])[0] == tokens
    assert TextGenerator(model).generate(GROUPS[:1], GREEDY)[0][0].token_ids == tokens
    full = SamplingParams(temperature=0, max_new_tokens=24, stop_token_ids=())
    assert TextGenerator(model).generate(GROUPS[:1], full)[0][0].token_ids == tokens


@pytest.fixture(scope="module")
def writer():
    """A model over bytes, whose samples are any bytes: half characters, and what is no text."""
    return TextGenerator(lively("Llama", vocab_size=258), bytes_tokenizer())


LONG = SamplingParams(temperature=1.2, num_samples=4, max_new_tokens=60)


def test_pieces_make_up_the_texts(writer):
    pieces, groups = [], [("Once upon", [" a time", " the sea"]), ("", ["Hello"])]
    results = writer.generate(groups, LONG, on_piece=pieces.append)
    assert list(writer.stream(groups, LONG)) == pieces
    for request, samples in enumerate(results):
        for sample, result in enumerate(samples):
            own = [piece for piece in pieces if (piece.request, piece.sample) == (request, sample)]
            assert [piece.token_id for piece in own] == result.token_ids
            assert "".join(piece.text for piece in own) == result.text
            assert result.text == writer.tokenizer.decode(result.token_ids, skip_special_tokens=True)
            assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [result.finish_reason]
    assert len({(piece.request, piece.sample) for piece in pieces[:12]}) == 12  # a token each, in turns


def test_text_ends_before_a_stop_string(writer):
    groups = [("", ["Hello"])]
    for full in writer.generate(groups, LONG)[0]:
        text = full.text
        whole = [index for index, letter in enumerate(text) if "�" not in text[index : index + 3] and index > 9]
        stop = text[whole[0] : whole[0] + 3]
        index = writer.generate(groups, LONG)[0].index(full)
        params = SamplingParams(temperature=1.2, num_samples=4, max_new_tokens=60, stop=(stop, "never there"))
        result = writer.generate(groups, params)[0][index]
        assert result.finish_reason == "stop"
        assert result.text == text[: text.index(stop)]
        assert full.token_ids[: len(result.token_ids)] == result.token_ids
        assert stop in writer.tokenizer.decode(result.token_ids, skip_special_tokens=True)
        assert stop not in writer.tokenizer.decode(result.token_ids[:-1], skip_special_tokens=True)


def test_text_leaves_out_the_stop_token(writer):
    full = writer.generate([("", ["Hello"])], LONG)[0][0]
    index = next(i for i, token in enumerate(full.token_ids) if i > 3 and full.token_ids.index(token) == i)
    params = SamplingParams(temperature=1.2, max_new_tokens=60, stop_token_ids=(full.token_ids[index],))
    result = writer.generate([("", ["Hello"])], params)[0][0]
    assert result.token_ids == full.token_ids[: index + 1] and result.finish_reason == "stop"
    assert result.text == writer.tokenizer.decode(full.token_ids[:index], skip_special_tokens=True)


def test_streams_of_one_thread_do_not_touch_each_other(writer):
    groups = [("", ["Hello", "World"])]
    expected = list(writer.stream(groups, LONG))
    first, second = writer.stream(groups, LONG), writer.stream(groups, LONG)
    both = [(next(first), next(second)) for _ in range(len(expected))]
    assert [pair[0] for pair in both] == [pair[1] for pair in both] == expected
    third = writer.stream(groups, LONG)
    next(third)
    assert not torch.is_inference_mode_enabled()  # a mode that is on while it yields would be the reader's
    third.close()


def test_threads(llama):
    generator = TextGenerator(llama)
    expected, results = generator.generate(GROUPS, MIXED), {}

    def run(thread):
        results[thread] = [generator.generate(GROUPS, MIXED) == expected for _ in range(3)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [True] * 3 for number in range(6)}


def test_the_callers_random_numbers_and_model_stay(llama):
    before = {name: weight.clone() for name, weight in llama.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    TextGenerator(llama).generate(GROUPS, MIXED)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(weight, before[name]) for name, weight in llama.state_dict().items())
    llama(input_ids=torch.tensor([[5, 6]])).logits.sum().backward()  # no inference tensors are left in it
    llama.zero_grad()


@pytest.mark.parametrize(
    ("groups", "params", "message"),
    [
        ([([1], [[2], []])], None, "prompts of at least one token; got none in request 1"),
        ([([1], [])], None, "at least one prompt a group; got none in group 0"),
        ([([1], [[2]]), ([1], [[97]])], None, r"token ids in \[0, 97\); got 97 in request 1"),
        ([([-1], [[2]])], None, r"token ids in \[0, 97\); got -1 in request 0"),
        ([("text", [[2]])], None, "expected token ids, since there is no tokenizer; got a text in request 0"),
        ([([1], [[2], [3] * 200])], None, r"at most 256 tokens together; got 201 \+ 128 in request 1"),
        ([([1], [[2]])], [GREEDY, GREEDY], "one for all requests or 1, one a request; got 2"),
        ([([1], [[2]])], SamplingParams(stop=("a",)), "no tokenizer; got some in request 0"),
        ([([1], [[2]])], SamplingParams(stop_token_ids=(97,)), r"stop_token_ids in \[0, 97\); got 97 in request 0"),
    ],
)
def test_what_cannot_be_generated_is_refused(llama, groups, params, message):
    with pytest.raises(ValueError, match=message):
        TextGenerator(llama).generate(groups, params)


@pytest.mark.parametrize(
    "groups",
    [
        [([1], [[1.5]])], [([1], ["ab"]), ([1], "ab")], [([1], [3])], None, {"ab": [[1]]}, [([1], [[1]], 3)], ["ab"],
        [([1], {(1, 2), (3,)})], [([1], None)],
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(llama, groups):
    with pytest.raises(TypeError, match="groups: expected"):
        TextGenerator(llama, bytes_tokenizer()).generate(groups, GREEDY)


def test_settings_of_another_kind_are_refused(llama):
    for params in ("x", 5, {}):
        with pytest.raises(TypeError, match="params: expected SamplingParams"):
            TextGenerator(llama).generate([([1], [[2]])], params)
    for count in (0, 1.5, "a", None, True):
        with pytest.raises(ValueError, match="max_sequences: expected a whole number of at least 1; got"):
            TextGenerator(llama, max_sequences=count)
    with pytest.raises(ValueError, match="groups: request 1: expected Unicode without lone surrogates"):
        TextGenerator(llama, bytes_tokenizer()).generate([("a", ["b", "\ud800"])], GREEDY)


def test_no_groups_have_no_results(llama):
    assert TextGenerator(llama).generate([], GREEDY) == []


def test_the_longest_text_that_the_model_reads(llama):
    params = SamplingParams(temperature=0, max_new_tokens=56)
    ids = random_ids(200, 8)
    result = TextGenerator(llama).generate([(ids[:190], [ids[190:]])], params)[0][0]
    assert result.token_ids == of_transformers(llama, ids, max_new_tokens=56)[0]


def test_a_model_in_training_mode_is_refused(llama):
    with pytest.raises(ValueError, match="evaluation mode"):
        TextGenerator(lively("Llama").train()).generate(GROUPS, GREEDY)


def test_logits_that_are_not_finite_are_refused():
    model = lively("Llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    for kind in ({"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}):  # a draw among NaN was beyond the vocabulary
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(FloatingPointError, match="model: expected finite logits; .* request 0"):
                TextGenerator(model.to(dtype)).generate(GROUPS, SamplingParams(**kind))


@pytest.mark.parametrize("limit", [1, 4, 7])
def test_how_many_sequences_are_in_a_batch_changes_nothing(llama, limit):
    expected = TextGenerator(llama).generate(GROUPS, MIXED)
    assert TextGenerator(llama, max_sequences=limit).generate(GROUPS, MIXED) == expected


def test_positions_of_one_request_do_not_follow_another():
    """Phi-3's positions are others in texts of more than 64 tokens: no sequence has as many here, but one prompt and
    what another request may generate would have together."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "rope_theta": 1e4}
    rope |= {"original_max_position_embeddings": 64, "factor": 4.0}
    model = lively("Phi3", rope_parameters=rope, original_max_position_embeddings=64)
    groups = [([], [random_ids(50, 1)]), ([], [random_ids(5, 2)])]
    params = [SamplingParams(temperature=0, max_new_tokens=count) for count in (10, 50)]
    generator = TextGenerator(model)
    results = generator.generate(groups, params)
    for group, own, (result,) in zip(groups, params, results, strict=True):
        assert generator.generate([group], own)[0][0] == result
        assert result.token_ids == of_transformers(model, group[1][0], max_new_tokens=own.max_new_tokens)[0]
    with pytest.raises(ValueError, match=r"at most 64 tokens together; got 50 \+ 15 in request 0"):
        generator.generate(groups[:1], SamplingParams(max_new_tokens=15))


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Phi3"])
def test_embeddings_among_the_tokens(family):
    model = lively(family)
    generator = torch.Generator().manual_seed(2)
    vectors = [torch.randn(count, 32, generator=generator) * 0.2 for count in (4, 2)]
    groups = [([[5, 6], Embeddings.of(vectors[0])], [[[7, 8]], [[9], Embeddings.of(vectors[1])]]), ([], [[10, 11]])]
    embed, results = model.model.embed_tokens, TextGenerator(model).generate(groups, GREEDY)
    with torch.no_grad():
        begin = torch.cat([embed(torch.tensor([5, 6])), vectors[0]])
        texts = [
            torch.cat([begin, embed(torch.tensor([7, 8]))]),
            torch.cat([begin, embed(torch.tensor([9])), vectors[1]]),
            embed(torch.tensor([10, 11])),
        ]
    for text, (result,) in zip(texts, results, strict=True):
        expected = model.generate(inputs_embeds=text[None], max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert result.token_ids == expected[0].tolist()


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_prompts_shorter_than_the_padding_are_read(llama, new_tokens):
    """Unused rows of the processor's block had positions beyond the table of rotary positions."""
    params = SamplingParams(temperature=0, max_new_tokens=new_tokens, stop_token_ids=())
    [[result]] = [list(group) if isinstance(group, list) else [group]
                  for group in TextGenerator(llama).generate([([], [[5]])], params)]  # fmt: skip
    assert list(result.token_ids) == of_transformers(llama, [5], max_new_tokens=new_tokens)[0]
