"""The packed engine against transformers' own forward, for every family, and early exit against all exits."""

import pytest
import torch
import transformers

from reasonrec_fast.early_exit import Backbone, EarlyExitModel, ExitPolicy, PackedLayout, exit_layers

TINY = {
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
GROUPS = [
    ([5, 6, 7, 8, 9], [[10, 11], [12], [13, 14, 15]]),
    ([], [[20, 21, 22]]),
    ([30] * 17, [[31, 32]]),
    ([40], [[41], [42]]),
]


def tiny(family, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**TINY, **{**FAMILIES[family], **more})
    prefix = family.removesuffix("Text")
    return getattr(transformers, f"{prefix}ForCausalLM")(config).eval()


@pytest.fixture
def model():
    torch.manual_seed(1)
    return EarlyExitModel(Backbone(tiny("Llama")), (1, 2, 3), num_numbers=3).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_plain(family):
    language_model = tiny(family)
    backbone = Backbone(language_model)
    with torch.inference_mode():
        ids, layout = PackedLayout.pack(GROUPS)
        hidden = backbone.embed(ids)
        rotary = backbone.rotary(hidden, layout)
        for index in range(backbone.num_layers):
            hidden = backbone.layer(index, hidden, layout, rotary)
        packed = backbone.base.norm(hidden)[0, layout.last]
        backbone.use_own_attention()
        plain = [
            backbone.base(torch.tensor([[*prefix, *suffix]])).last_hidden_state[0, -1]
            for prefix, suffixes in GROUPS
            for suffix in suffixes
        ]
    torch.testing.assert_close(packed, torch.stack(plain), atol=2e-5, rtol=2e-4)


def test_other_architectures_are_refused():
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)
    with pytest.raises(TypeError, match="model: expected a decoder with embed_tokens"):
        Backbone(transformers.GPT2LMHeadModel(config))


def numbers(rows=7):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(2))


def test_rows_leave_with_the_scores_of_their_exit(model):
    with torch.no_grad():
        every = model.all_exits(GROUPS, numbers())
    scores = torch.stack([s.positive_probability for s in every])
    sure = (scores.log() - (-scores).log1p()).abs()
    thresholds = (float(sure[0].median()), float(sure[1].median()), float("inf"))
    ranked = model.rank(GROUPS, numbers(), ExitPolicy((thresholds,)))
    for row in range(7):
        place = next((p for p, t in enumerate(thresholds) if sure[p, row] >= t - 1e-6), 3)
        assert int(ranked.depth[row]) == model.exits[place]
        torch.testing.assert_close(ranked.probability[row], scores[place, row])
    assert len(set(ranked.depth.tolist())) > 1


def test_without_a_policy_all_read_all_layers(model):
    ranked = model.rank(GROUPS, numbers())
    with torch.no_grad():
        last = model.all_exits(GROUPS, numbers())[-1].positive_probability
    torch.testing.assert_close(ranked.probability, last)
    assert (ranked.depth == 4).all()


def test_everyone_may_leave_at_once(model):
    ranked = model.rank(GROUPS, numbers(), ExitPolicy(((0.0, 0.0, 0.0),)))
    assert (ranked.depth == 1).all()


def test_strata_have_their_own_thresholds(model):
    inf = float("inf")
    strata = torch.tensor([0, 1, 0, 1, 0, 0, 1])
    ranked = model.rank(GROUPS, numbers(), ExitPolicy(((0.0, 0.0, 0.0), (inf, inf, inf))), strata)
    assert torch.equal(ranked.depth, torch.where(strata == 1, 4, 1))


def test_trend_keeps_rows_whose_confidence_falls(model):
    with torch.no_grad():
        every = model.all_exits(GROUPS, numbers())
    sure = torch.stack([(s.positive_probability.logit()).abs() for s in every])
    ranked = model.rank(GROUPS, numbers(), ExitPolicy(((1e9, 0.0, 0.0),), trend=True))
    grown = sure[1] >= sure[0]
    assert torch.equal(ranked.depth[grown], torch.full((int(grown.sum()),), 2))
    assert (ranked.depth[~grown] > 2).all()


@pytest.mark.parametrize("rows", [[0], [1, 3], [0, 2, 4, 6], list(range(7))])
def test_keep_gives_the_layout_of_what_stays(rows):
    ids, layout = PackedLayout.pack(GROUPS)
    flat = [(group, suffix) for group, (_, suffixes) in enumerate(GROUPS) for suffix in suffixes]
    staying: dict[int, list] = {}
    for row in rows:
        staying.setdefault(flat[row][0], []).append(flat[row][1])
    expected_ids, expected = PackedLayout.pack([(GROUPS[group][0], kept) for group, kept in staying.items()])
    places, kept = layout.keep(rows)
    assert torch.equal(ids[places], expected_ids)
    assert torch.equal(kept.positions, expected.positions)
    assert torch.equal(kept.last, expected.last)


@pytest.mark.parametrize("groups", [[], [([1], [])], [([1], [[]])]])
def test_bad_groups(groups):
    with pytest.raises(ValueError, match="groups: expected"):
        PackedLayout.pack(groups)


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_texts_beyond_the_window_are_refused(family):
    model = EarlyExitModel(Backbone(tiny(family, **({"sliding_window": 8} if family == "Mistral" else {}))))
    with pytest.raises(ValueError, match="groups: expected at most .* tokens a text"):
        model.rank([([5] * (8 if family == "Mistral" else 256), [[6]])])


def test_training_reaches_prefix_suffix_and_numbers(model):
    statistics = model.all_exits(GROUPS, numbers(), torch.ones(7, dtype=torch.int64))
    (-sum(s.target_logprob.mean() for s in statistics)).backward()
    embedded = model.backbone.base.embed_tokens.weight.grad.abs().sum(1)
    assert all(embedded[token] > 0 for token in (5, 10, 20, 30, 41))
    assert all(head.units.weight.grad.abs().sum() > 0 for head in model.heads)


def test_packed_gradients_equal_plain():
    language_model = tiny("Llama")
    backbone = Backbone(language_model)
    ids, layout = PackedLayout.pack(GROUPS)

    def gradient(last):
        backbone.zero_grad()
        last.square().sum().backward()
        return backbone.base.embed_tokens.weight.grad.clone()

    hidden = backbone.embed(ids)
    rotary = backbone.rotary(hidden, layout)
    for index in range(backbone.num_layers):
        hidden = backbone.layer(index, hidden, layout, rotary)
    packed = gradient(hidden[0, layout.last])
    backbone.use_own_attention()
    caught = []
    backbone.base.layers[-1].register_forward_hook(lambda m, i, o: caught.append(o[0, -1]))
    for prefix, suffixes in GROUPS:
        for suffix in suffixes:
            backbone.base(torch.tensor([[*prefix, *suffix]]))
    torch.testing.assert_close(packed, gradient(torch.stack(caught)), atol=1e-5, rtol=1e-3)


def test_exit_layers():
    assert exit_layers(4, (2,)) == (2, 4)
    assert exit_layers(2) == (1, 2)
    with pytest.raises(ValueError, match="exits: expected layers"):
        exit_layers(4, (9,))
