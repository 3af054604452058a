"""Decoders whose layers are not taken apart: their own forward, shared, cached, leaving early, with any batch mates."""

import numpy as np
import pytest
import torch
import transformers
from early_exit.tiny import SIZES, Letters

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.early_exit import EarlyExitModel, ExitPolicy
from reasonrec_fast.lm import Decoder, Embeddings, PackedBatch, PrefixCache

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {**EXPERTS, "head_dim": 8},
    "Olmoe": EXPERTS,
    "Olmo2": {},
    "Granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "SmolLM3": {},
    "Starcoder2": {},
    "Cohere": {},
    "Glm": {"head_dim": 8},
    "StableLm": {},
}
GROUPS = [
    ([5, 6, 7, 8, 9], [[10, 11], [12], [13, 14, 15]]),
    ([], [[20, 21, 22]]),
    ([30] * 17, [[31, 32]]),
    ([40], [[41], [42]]),
]
CLOSE = {"atol": 3e-5, "rtol": 3e-4}


def make(name, **more):
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(
            **{**SIZES, "bos_token_id": 1, "eos_token_id": 2, **MODELS.get(name, {}), **more}
        )
    ).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.add_(torch.randn_like(weight) * 0.1)
            elif weight.dim() > 1:
                weight.mul_(3.0)
    return model


@torch.no_grad()
def own_states(model, groups, depth):
    """Hidden states of last tokens by the model's own forward, text by text."""
    texts = [[*prefix, *suffix] for prefix, suffixes in groups for suffix in suffixes]
    base = model.model
    return torch.stack(
        [base(torch.tensor([t]), output_hidden_states=True, use_cache=False).hidden_states[depth][0, -1] for t in texts]
    )


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return make(request.param)


@torch.no_grad()
def test_packed_equals_own_forward(model):
    backbone = Decoder(model)
    assert not backbone.splits_layers
    cache = PrefixCache(1 << 20)
    expected = own_states(model, GROUPS, 4)
    assert expected.std() > 0.05
    for kept in (None, cache, cache):
        batch = PackedBatch(backbone, GROUPS, kept)
        for depth in (1, 2, 3):
            batch.layer(depth)
        torch.testing.assert_close(backbone.base.norm(batch.peek_last(4)), expected, **CLOSE)
        batch.end()
    assert cache.hits == 3


@torch.no_grad()
def test_rows_that_stay_equal_own_forward(model):
    backbone, generator, cache = Decoder(model), np.random.default_rng(0), PrefixCache(1 << 20)
    expected = {depth: own_states(model, GROUPS, depth) for depth in (1, 2, 3)}
    for kept in (None, cache, cache, cache):
        batch = PackedBatch(backbone, GROUPS, kept)
        alive = np.arange(batch.layout.num_rows)
        for depth in (1, 2, 3):
            torch.testing.assert_close(batch.peek_last(depth), expected[depth][alive], **CLOSE)
            staying = np.sort(generator.permutation(len(alive))[: max(1, len(alive) - 2)])
            batch.finish_layer(depth, staying)
            alive = alive[staying]
            torch.testing.assert_close(batch.hidden[batch.layout.last], expected[depth][alive], **CLOSE)
        batch.end()
    assert cache.hits


@torch.no_grad()
def test_batch_mates_change_no_score(model):
    """Experts have no capacity that others could use up: alone, with many like texts, and with other texts."""
    backbone = Decoder(model)
    text = ([5, 6, 7], [[8, 9]])

    def state(groups):
        batch = PackedBatch(backbone, groups)
        for depth in (1, 2, 3):
            batch.layer(depth)
        return batch.peek_last(4)[0]

    alone = state([text])
    others = [([index, index + 1], [[index + 2] * 7]) for index in range(3, 60, 3)]
    for groups in ([text] * 20, [text, *others], [text, ([8] * 40, [[9] * 40])]):
        torch.testing.assert_close(state(groups), alone, **CLOSE)


@torch.no_grad()
def test_the_models_own_forward_stays(model):
    ids = torch.tensor([[3, 4, 5]])
    before = model(ids).logits
    implementation = model.config._attn_implementation
    batch = PackedBatch(Decoder(model), GROUPS)
    batch.layer(1)
    assert torch.equal(model(ids).logits, before) and model.config._attn_implementation == implementation


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "Olmo2", "Granite", "SmolLM3", "Glm"])
@pytest.mark.parametrize("cached", [0, 1 << 20])
def test_the_rankers_full_depth_is_the_plain_model(name, cached):
    model = make(name)
    requests = [(prefix, row) for prefix, rows in GROUPS for row in rows]
    no, yes = (Letters()(answer, add_special_tokens=False)["input_ids"][0] for answer in "ny")
    with torch.no_grad():
        texts = [torch.tensor([[*prefix, *row]]) for prefix, row in requests]
        expected = torch.stack([model(text).logits[0, -1, [no, yes]].softmax(-1)[1] for text in texts])
    assert expected.std() > 0.02
    ranker = EarlyExitRanker.from_model(model, Letters(), ("n", "y"), exits=(1, 2), prefix_cache_bytes=cached)
    for _ in range(2):
        torch.testing.assert_close(ranker.predict(requests).probability, expected, **CLOSE)
    ranker.policy = ExitPolicy(((0.4, 0.2),))
    together = ranker.predict(requests)
    assert len(set(together.depth.tolist())) > 1
    for index, request in enumerate(requests):
        alone = ranker.predict([request])
        assert alone.depth[0] == together.depth[index]
        torch.testing.assert_close(alone.probability[0], together.probability[index], **CLOSE)


def test_logits_that_are_more_than_a_head_are_refused():
    model = make("Olmo2")
    own = type(model).forward

    class Scaled(type(model)):
        def forward(self, *args, **kwargs):
            output = own(self, *args, **kwargs)
            output.logits = output.logits * 0.5
            return output

    model.__class__ = Scaled
    with pytest.raises(
        TypeError, match="expected logits that lm_head makes of the final norm; the own forward of Scaled"
    ):
        EarlyExitRanker.from_model(model, Letters(), ("n", "y"))


@pytest.mark.parametrize("name", ["Starcoder2", "Cohere", "StableLm"])
def test_heads_that_cannot_answer_as_the_model_are_refused(name):
    with pytest.raises(TypeError, match=f"model: expected a final norm .*; got {name}.*LayerNorm"):
        EarlyExitRanker.from_model(make(name), Letters(), ("n", "y"))


def test_gradients_and_vectors():
    values = torch.randn(3, 32, requires_grad=True)
    backbone = Decoder(make("Mixtral"))
    model = EarlyExitModel(backbone, (2,)).train()
    exits = model.all_exits([([[1, 2], Embeddings(values, b"k")], [[3], [4, 5]])], targets=torch.tensor([0, 1]))
    sum(statistics.target_logprob.sum() for statistics in exits).backward()
    assert values.grad.abs().min() > 0
    assert all(layer.self_attn.q_proj.weight.grad.abs().sum() > 0 for layer in backbone.base.layers)


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (
            lambda: transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2)),
            "GPT2Model .* has no embed",
        ),
        (
            lambda: make("GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=8),
            "GptOssForCausalLM of model_type 'gpt_oss', whose attention has sinks",
        ),
        (
            lambda: make("Qwen3Next", layer_types=["linear_attention", "full_attention"] * 2, head_dim=8,
                         linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
                         linear_value_head_dim=8, **EXPERTS),
            "Qwen3NextForCausalLM of model_type 'qwen3_next', some of whose layers are linear_attention",
        ),
        (
            lambda: transformers.BloomModel(transformers.BloomConfig(hidden_size=8, n_layer=1, n_head=2)),
            "BloomModel of model_type 'bloom', which has no",
        ),
        (
            lambda: transformers.MambaModel(transformers.MambaConfig(hidden_size=8, num_hidden_layers=1, state_size=4)),
            "MambaModel of model_type 'mamba', which has no",
        ),
    ],
    ids=["gpt2", "sinks", "linear attention", "alibi", "state space"],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(make_model, message):
    with pytest.raises(TypeError, match=f"model: expected a decoder of one of .*; got {message}"):
        Decoder(make_model())


def test_a_model_that_does_more_is_refused():
    """Its own forward is tried, so that nothing is scored otherwise in silence."""
    model = make("Olmo2")
    own = type(model.model).forward

    class Louder(type(model.model)):
        def forward(self, *args, **kwargs):
            output = own(self, *args, **kwargs)
            output.last_hidden_state = output.last_hidden_state * 1.5
            return output

    model.model.__class__ = Louder
    with pytest.raises(TypeError, match="the own forward of Louder gives other hidden states"):
        Decoder(model)


def test_windows_bound_a_text():
    decoder = Decoder(make("Mixtral", sliding_window=16))
    assert decoder.max_length == 16
    with pytest.raises(ValueError, match="groups: expected at most 16 tokens a text; got 17"):
        PackedBatch(decoder, [([1] * 16, [[2]])])


@pytest.mark.parametrize("name", ["Mixtral", "Olmo2"])
@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head", "norm"]}], ids=str)
def test_adapters(name, more):
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False, **more)
    model = peft.get_peft_model(make(name), config).eval()
    requests = [(prefix, row) for prefix, rows in GROUPS for row in rows]
    no, yes = (Letters()(answer, add_special_tokens=False)["input_ids"][0] for answer in "ny")
    texts = [torch.tensor([[*prefix, *row]]) for prefix, row in requests]

    @torch.no_grad()
    def own():
        return torch.stack([model(text).logits[0, -1, [no, yes]].softmax(-1)[1] for text in texts])

    ranker = EarlyExitRanker.from_model(model, Letters(), ("n", "y"), exits=(1, 2), prefix_cache_bytes=1 << 20)
    first = own()
    for _ in range(2):
        torch.testing.assert_close(ranker.predict(requests).probability, first, **CLOSE)
    if "modules_to_save" not in more:  # the ranker's heads are copies
        with model.disable_adapter():
            assert (own() - first).abs().max() > 1e-3
            torch.testing.assert_close(ranker.predict(requests).probability, own(), **CLOSE)
        model.merge_adapter()
        torch.testing.assert_close(ranker.predict(requests).probability, first, **CLOSE)


def test_bfloat16():
    model = make("Olmoe").bfloat16()
    no, yes = (Letters()(answer, add_special_tokens=False)["input_ids"][0] for answer in "ny")
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7, 8]])).logits[0, -1, [no, yes]].float().softmax(-1)[1]
    result = EarlyExitRanker.from_model(model, Letters(), ("n", "y")).predict([([5, 6], [7, 8])]).probability[0]
    torch.testing.assert_close(result, expected, atol=0.05, rtol=0.1)
