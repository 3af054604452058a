"""The ranker against transformers' own forward: every family, mixtures of requests, caches, threads."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import FAMILIES, Letters, tiny

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.early_exit import ExitPolicy
from reasonrec_fast.lm import Decoder, PrefixCache, TextGenerator
from reasonrec_fast.lm.decoder import recorder
from reasonrec_fast.lm.prefix_cache import PrefixState
from reasonrec_fast.serving import RankingService
from reasonrec_fast.uncertainty import Limit

ANSWERS = ("n", "y")


def requests_of(seed, count=24):
    """Token ids: users with few or many candidates, prefixes of any length, candidates with common beginnings;
    shuffled."""
    generator = np.random.default_rng(seed)

    def ids(least, most):
        return generator.integers(1, 97, generator.integers(least, most)).tolist()

    results = []
    while len(results) < count:
        prefix, alike = ids(0, 30), ids(0, 3)
        results += [(prefix, [*alike, *ids(1, 9)]) for _ in range(generator.integers(1, 9))]
    return [results[index] for index in generator.permutation(count)]


@torch.no_grad()
def plain(model, texts):
    """Probability of the second answer by the causal model itself."""
    tokens = [Letters()(answer, add_special_tokens=False)["input_ids"][0] for answer in ANSWERS]
    return torch.stack([model(torch.tensor([text])).logits[0, -1, tokens].softmax(-1)[1] for text in texts])


@pytest.fixture(scope="module")
def llama():
    return tiny("Llama")


def ranker_of(model, **options):
    return EarlyExitRanker.from_model(model, Letters(), ANSWERS, exits=(1, 2, 3), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"prefix_cache_bytes": 1 << 20}, {"max_tokens": 40}])
def test_full_depth_is_the_plain_model(family, options):
    model = tiny(family)
    ranker = ranker_of(model, **options)
    for seed in range(2):
        requests = requests_of(seed)
        expected = plain(model, [[*prefix, *candidate] for prefix, candidate in requests])
        assert expected.std() > 0.05
        for _ in range(2):
            torch.testing.assert_close(ranker.predict(requests).probability, expected, atol=2e-5, rtol=2e-4)


def test_texts_are_tokenized_whole(llama):
    ranker = ranker_of(llama)
    requests = [("abc", "de"), ("abc", "dx"), ("", "q"), ("abc", ""), ("zz", "abc")]
    expected = plain(llama, [Letters()(prefix + candidate)["input_ids"] for prefix, candidate in requests])
    torch.testing.assert_close(ranker.predict(requests).probability, expected, atol=2e-5, rtol=2e-4)


def test_bfloat16(llama):
    requests = requests_of(0)
    expected = plain(llama, [[*prefix, *candidate] for prefix, candidate in requests])
    result = ranker_of(tiny("Llama").bfloat16()).predict(requests).probability
    torch.testing.assert_close(result, expected, atol=0.05, rtol=0.1)


def test_lora_merged_and_not(llama):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        tiny("Llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    requests = requests_of(1)
    texts = [[*prefix, *candidate] for prefix, candidate in requests]
    expected = plain(adapted, texts)
    assert (expected - plain(llama, texts)).abs().max() > 1e-3
    ranker = ranker_of(adapted, prefix_cache_bytes=1 << 20)
    torch.testing.assert_close(ranker.predict(requests).probability, expected, atol=2e-5, rtol=2e-4)
    adapted.merge_adapter()
    torch.testing.assert_close(ranker.predict(requests).probability, expected, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_cache_changes_nothing(llama, seed):
    """Calls with other policies in turn, so that prefixes stop at many depths and are read on."""
    uncached, cached = ranker_of(llama), ranker_of(llama, prefix_cache_bytes=1 << 20)
    generator = np.random.default_rng(seed)
    requests = requests_of(seed, 40)
    for _ in range(6):
        confidences = [float(generator.choice([0.0, 0.3, 1.0, np.inf])) for _ in range(3)]
        policy = None if generator.random() < 0.2 else ExitPolicy((tuple(confidences),))
        uncached.policy = cached.policy = policy
        some = [requests[index] for index in generator.permutation(40)[:20]]
        expected, result = uncached.predict(some), cached.predict(some)
        assert torch.equal(result.depth, expected.depth)
        torch.testing.assert_close(result.probability, expected.probability, atol=1e-5, rtol=1e-4)
    assert cached.cache.hits > 0


def test_a_cached_prefix_is_not_read_again(llama, monkeypatch):
    ranker = ranker_of(llama, prefix_cache_bytes=1 << 20)
    read, embed = [], ranker.model.backbone.embed
    monkeypatch.setattr(Decoder, "embed", lambda _, ids, *more: read.append(ids.numel()) or embed(ids, *more))
    requests = [([3] * 30, [5, 6]), ([3] * 30, [7])]
    ranker.predict(requests)
    ranker.predict(requests)
    assert read == [33, 3]


@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward", "module", "buffer"])
def test_other_modules_empty_the_cache(how):
    model = tiny("Llama")
    ranker, requests = ranker_of(model, prefix_cache_bytes=1 << 20), requests_of(0)
    ranker.predict(requests)
    mlp, factor = model.model.layers[0].mlp, torch.tensor(3.0)
    if how == "hook":
        mlp.register_forward_hook(lambda module, inputs, output: output * factor)
    elif how == "pre-hook":
        mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factor,))
    elif how == "forward":
        plain_forward = mlp.forward
        mlp.forward = lambda x: plain_forward(x) * factor
    elif how == "module":
        mlp.act_fn = torch.nn.Tanh()
    else:
        model.model.rotary_emb.inv_freq.mul_(0.5)
    for _ in range(2):  # a hook may do something else the next time
        result, expected = ranker.predict(requests).probability, ranker_of(model).predict(requests).probability
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
        factor.mul_(0.1)


@pytest.mark.parametrize("part", ["layer", "attention", "text model"])
def test_hooks_that_would_not_run_are_refused(part):
    """They were left out without a word."""
    model = tiny("Llama")
    ranker, generator = ranker_of(model), TextGenerator(model)
    module = {"layer": model.model.layers[1], "attention": model.model.layers[1].self_attn, "text model": model.model}
    model(torch.tensor([[1, 2]]), output_hidden_states=True, output_attentions=True)  # transformers keeps its hooks
    expected = ranker.predict(requests_of(0)).probability
    hook = module[part].register_forward_hook(lambda module, inputs, output: None)
    for work in (lambda: ranker.predict(requests_of(0)), lambda: generator.generate([([1], [[2]])])):
        with pytest.raises(TypeError, match=f"model: expected no hooks on modules .* got one on {HOOKED[part]}"):
            work()
    hook.remove()
    module[part].register_forward_hook(recorder(lambda module, inputs, output: None))  # while a peer is measured
    assert torch.equal(ranker.predict(requests_of(0)).probability, expected)
    if part != "text model":
        module[part].forward = module[part].forward
        with pytest.raises(TypeError, match=f"expected layers that run their own forward; {HOOKED[part]} was given"):
            ranker.predict(requests_of(0))


def test_autocast_in_another_type_is_refused(llama):
    ranker, generator = ranker_of(llama), TextGenerator(llama)
    for work in (lambda: ranker.predict(requests_of(0)), lambda: generator.generate([([1], [[2]])])):
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.raises(ValueError, match="model: expected no autocast .* torch.float32; got torch.bfloat16"),
        ):
            work()


HOOKED = {"layer": r"layers\.1", "attention": r"layers\.1\.self_attn", "text model": "the text model"}


@pytest.mark.parametrize("how", ["in place", "data", "load", "replaced"])
def test_other_weights_empty_the_cache(how):
    model = tiny("Llama")
    ranker = ranker_of(model, prefix_cache_bytes=1 << 20)
    requests = requests_of(0)
    before = ranker.predict(requests).probability
    projection = model.model.layers[1].self_attn.v_proj
    with torch.no_grad():
        if how == "in place":
            projection.weight.mul_(3.0)
        elif how == "data":
            projection.weight.data += 1.0
        elif how == "load":
            projection.load_state_dict({"weight": projection.weight * 2 + 0.1})
        else:
            projection.weight = torch.nn.Parameter(projection.weight * 2 + 0.1)
    result = ranker.predict(requests).probability
    assert not torch.allclose(result, before, atol=1e-4)
    expected = plain(model, [[*prefix, *candidate] for prefix, candidate in requests])
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=2e-4)


def test_the_cache_is_bounded_and_forgets_the_oldest():
    def state(depth):
        return PrefixState([torch.zeros(100)] * depth, [torch.zeros(100)] * depth, torch.zeros(100))

    cache = PrefixCache(2 * 1200)
    for prefix in ([1], [2]):
        cache.put(prefix, state(1))
    assert cache.get([1]) is not None
    cache.put([3], state(1))
    assert cache.get([2]) is None and cache.get([1]) is not None and len(cache) == 2
    cache.put([1], state(2))  # deeper: takes the room of two
    assert cache.get([1]).depth == 2 and len(cache) == 1 and cache.num_bytes <= cache.max_bytes
    cache.put([1], state(1))
    assert cache.get([1]).depth == 2
    cache.put([4], state(9))
    assert cache.get([4]) is None
    with pytest.raises(ValueError, match="max_bytes: expected at least 1; got 0"):
        PrefixCache(0)


def test_calibration_keeps_its_promise_on_the_rows_that_test(llama):
    ranker = ranker_of(llama)
    requests = requests_of(0, 400)
    result = ranker.calibrate(requests, alpha=0.2)
    assert ranker.policy.thresholds == (result.thresholds,)
    full, early = ranker.predict(requests, early_exit=False), ranker.predict(requests)
    assert early.depth.float().mean() < 4
    assert ((full.probability > 0.5) != (early.probability > 0.5)).float().mean() <= 0.25


def test_calibration_within_limits(llama):
    ranker = ranker_of(llama)
    requests = requests_of(0, 200)
    full = ranker.predict(requests, early_exit=False).probability.numpy()
    limit = Limit(lambda scores: -float(np.abs(scores - full).mean()), 0.02)
    ranker.calibrate_within(requests, [limit])
    early = ranker.predict(requests)
    assert np.abs(early.probability.numpy() - full).mean() <= 0.021
    assert early.depth.float().mean() < 4


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_save_and_load(family, tmp_path):
    model = tiny(family)
    ranker = ranker_of(model, prefix_cache_bytes=1 << 20, max_tokens=500)
    with torch.no_grad():
        ranker.model.heads[0].weight.mul_(3.0)  # as training would have moved it
    ranker.policy = ExitPolicy(((0.2, float("inf"), 0.5),), "margin", True)
    ranker.save_pretrained(tmp_path)
    loaded = EarlyExitRanker.from_pretrained(tmp_path, model, Letters())
    requests = requests_of(3)
    expected, result = ranker.predict(requests), loaded.predict(requests)
    assert torch.equal(result.probability, expected.probability) and torch.equal(result.depth, expected.depth)
    assert loaded.policy == ranker.policy and loaded.max_tokens == 500 and loaded.cache.max_bytes == 1 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "heads.safetensors"]


def test_what_cannot_be_loaded(llama, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: expected a saved ranker with config\.json"):
        EarlyExitRanker.from_pretrained(tmp_path, llama)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="folder: expected an early-exit-ranker of format 1; .* holds 'llama'"):
        EarlyExitRanker.from_pretrained(tmp_path, llama)
    ranker_of(llama).save_pretrained(tmp_path)
    other = tiny("Llama")
    del other.model.layers[2:]
    with pytest.raises(ValueError, match="model: expected a backbone of .*'num_layers': 4.*; got .*'num_layers': 2"):
        EarlyExitRanker.from_pretrained(tmp_path, other)


def test_service_equals_serial(llama):
    ranker = ranker_of(llama, max_tokens=300)
    calls = [requests_of(seed, int(size)) for seed, size in enumerate(np.random.default_rng(0).integers(1, 7, 640))]
    expected = [ranker.predict(call) for call in calls]
    results, answered = {}, Counter()

    def client(first):
        futures = {index: service.submit(calls[index]) for index in range(first, len(calls), 64)}
        for index, future in futures.items():
            results[index] = future.result(timeout=60)
            answered[index] += 1

    with RankingService(ranker, max_wait_ms=2.0) as service:
        threads = [threading.Thread(target=client, args=(first,)) for first in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(answered) == set(range(len(calls))) and set(answered.values()) == {1}
    for index, scores in enumerate(expected):
        torch.testing.assert_close(results[index].probability, scores.probability, atol=1e-5, rtol=1e-4)
        assert torch.equal(results[index].depth, scores.depth)


def test_service_refuses_what_would_spoil_a_batch(llama):
    with RankingService(ranker_of(llama), queue_tokens=100, max_wait_ms=0.0) as service:
        with pytest.raises(ValueError, match="requests: expected at most 256 tokens a text; got 300"):
            service.submit([([1] * 299, [2])])
        with pytest.raises(ValueError, match="requests: expected at least one; got none"):
            service.submit([])
        with pytest.raises(ValueError, match="size: expected 1 to 100; got 200"):
            service.submit([([1] * 99, [2]), ([1] * 99, [3])])
        assert service.submit([([1, 2], [3])]).result().depth.tolist() == [4]
    with pytest.raises(RuntimeError, match="closed"):
        service.submit([([1, 2], [3])])


def test_bad_requests_are_refused(llama):
    ranker = ranker_of(llama)
    with pytest.raises(ValueError, match="requests: expected .* at least one token; got an empty one"):
        ranker.predict([([], [])])
    with pytest.raises(ValueError, match="at most 256 tokens a text; got 257"):
        ranker.predict([([1] * 256, [2])])
    with pytest.raises(ValueError, match="requests: expected two texts or two lists of token ids; got one of each"):
        ranker.predict([("a", [2])])
    ranker.tokenizer = None
    with pytest.raises(ValueError, match="requests: expected token ids"):
        ranker.predict([("a", "b")])
    with pytest.raises(ValueError, match="answers: expected words that begin with different tokens"):
        EarlyExitRanker.from_model(llama, Letters(), ("yes", "yellow"), reading="first_token")
    with pytest.raises(TypeError, match="model: expected a causal model with lm_head; got LlamaModel"):
        EarlyExitRanker.from_model(llama.model, Letters())
    with pytest.raises(ValueError, match="max_tokens: expected a whole number of at least 1; got 0"):
        ranker_of(llama, max_tokens=0)
