"""The packed engine against transformers' own forward, for every family, and early exit against all exits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tiny import FAMILIES, tiny

from reasonrec_fast.early_exit import EarlyExitModel, ExitPolicy, exit_layers
from reasonrec_fast.lm import Decoder, PackedLayout
from reasonrec_fast.lm.layout import flat_ids
from reasonrec_fast.lm.packed_batch import PackedBatch

GROUPS = [
    ([5, 6, 7, 8, 9], [[10, 11], [12], [13, 14, 15]]),
    ([], [[20, 21, 22]]),
    ([30] * 17, [[31, 32]]),
    ([40], [[41], [42]]),
]


@pytest.fixture
def model():
    torch.manual_seed(1)
    return EarlyExitModel(Decoder(tiny("Llama")), (1, 2, 3), num_features=3).eval()


def plain_states(backbone, groups, depth=None):
    """Hidden states of last tokens by transformers' own forward, text by text: of a layer, or the normed output."""
    texts = [[*prefix, *suffix] for prefix, suffixes in groups for suffix in suffixes]
    states = []
    for text in texts:
        result = backbone.base(torch.tensor([text]), output_hidden_states=True, use_cache=False)
        states.append((result.last_hidden_state if depth is None else result.hidden_states[depth])[0, -1])
    return torch.stack(states)


def random_groups(seed):
    """Mixtures of group sizes and lengths, down to empty prefixes and suffixes of one token."""
    generator = np.random.default_rng(seed)

    def ids(least, most):
        return generator.integers(1, 97, generator.integers(least, most)).tolist()

    return [(ids(0, 40), [ids(1, 12) for _ in range(generator.integers(1, 7))]) for _ in range(6)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_packed_equals_plain(family, seed):
    backbone = Decoder(tiny(family))
    groups = GROUPS if seed is None else random_groups(seed)
    with torch.inference_mode():
        batch = PackedBatch(backbone, groups)
        for depth in range(1, backbone.num_layers):
            batch.layer(depth)
        packed = backbone.base.norm(batch.peek_last(backbone.num_layers))
        plain = plain_states(backbone, groups)
    torch.testing.assert_close(packed, plain, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_stay_equal_plain(family):
    backbone, generator = Decoder(tiny(family)), np.random.default_rng(0)
    groups = random_groups(2)
    with torch.inference_mode():
        batch, plain = PackedBatch(backbone, groups), {d: plain_states(backbone, groups, d) for d in (1, 2, 3)}
        alive = np.arange(batch.layout.num_rows)
        for depth in (1, 2, 3):
            torch.testing.assert_close(batch.peek_last(depth), plain[depth][alive], atol=2e-5, rtol=2e-4)
            staying = np.flatnonzero(generator.random(len(alive)) < 0.6)
            batch.finish_layer(depth, staying)
            alive = alive[staying]
            torch.testing.assert_close(batch.hidden[batch.layout.last], plain[depth][alive], atol=2e-5, rtol=2e-4)
        assert 0 < len(alive) < 10


def test_other_architectures_are_refused():
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)
    with pytest.raises(TypeError, match="model: expected a decoder of one of gemma.*got GPT2LMHeadModel"):
        Decoder(transformers.GPT2LMHeadModel(config))


def features(rows=7):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(2))


def test_rows_leave_with_the_scores_of_their_exit(model):
    with torch.no_grad():
        every = model.all_exits(GROUPS, features())
    scores = torch.stack([s.positive_probability for s in every])
    sure = (scores.log() - (-scores).log1p()).abs()
    thresholds = (float(sure[0].median()), float(sure[1].median()), float("inf"))
    ranked = model.predict(GROUPS, features(), ExitPolicy((thresholds,)))
    for row in range(7):
        index = next((p for p, t in enumerate(thresholds) if sure[p, row] >= t - 1e-6), 3)
        assert int(ranked.depth[row]) == model.exits[index]
        torch.testing.assert_close(ranked.probability[row], scores[index, row])
    assert len(set(ranked.depth.tolist())) > 1


def test_without_a_policy_all_read_all_layers(model):
    ranked = model.predict(GROUPS, features())
    with torch.no_grad():
        last = model.all_exits(GROUPS, features())[-1].positive_probability
    torch.testing.assert_close(ranked.probability, last)
    assert (ranked.depth == 4).all()


def test_everyone_may_leave_at_once(model):
    ranked = model.predict(GROUPS, features(), ExitPolicy(((0.0, 0.0, 0.0),)))
    assert (ranked.depth == 1).all()


def test_strata_have_their_own_thresholds(model):
    inf = float("inf")
    strata = torch.tensor([0, 1, 0, 1, 0, 0, 1])
    ranked = model.predict(GROUPS, features(), ExitPolicy(((0.0, 0.0, 0.0), (inf, inf, inf))), strata)
    assert torch.equal(ranked.depth, torch.where(strata == 1, 4, 1))


def test_trend_keeps_rows_whose_confidence_falls(model):
    with torch.no_grad():
        every = model.all_exits(GROUPS, features())
    sure = torch.stack([(s.positive_probability.logit()).abs() for s in every])
    ranked = model.predict(GROUPS, features(), ExitPolicy(((1e9, 0.0, 0.0),), trend=True))
    grown = sure[1] >= sure[0]
    assert torch.equal(ranked.depth[grown], torch.full((int(grown.sum()),), 2))
    assert (ranked.depth[~grown] > 2).all()


@pytest.mark.parametrize("rows", [[0], [1, 3], [0, 2, 4, 6], list(range(7))])
def test_keep_gives_the_layout_of_what_stays(rows):
    ids, layout = flat_ids(GROUPS), PackedLayout.of(GROUPS)
    flat = [(group, suffix) for group, (_, suffixes) in enumerate(GROUPS) for suffix in suffixes]
    staying: dict[int, list] = {}
    for row in rows:
        staying.setdefault(flat[row][0], []).append(flat[row][1])
    expected = [(GROUPS[group][0], kept) for group, kept in staying.items()]
    indices, groups, kept = layout.keep(np.array(rows))
    assert np.array_equal(ids[indices], flat_ids(expected))
    assert groups.tolist() == list(staying)
    assert np.array_equal(kept.positions, PackedLayout.of(expected).positions)
    assert np.array_equal(kept.last, PackedLayout.of(expected).last)


@pytest.mark.parametrize("cached", [[0], [2, 3], [0, 2, 3]])
def test_restore_makes_cached_prefixes_resident(cached):
    ids, layout = flat_ids(GROUPS), PackedLayout.of(GROUPS)
    resident = np.ones(4, dtype=bool)
    resident[cached] = False
    fewer = replace(layout, resident=resident)
    rest = flat_ids([(prefix if kept else (), rows) for kept, (prefix, rows) in zip(resident, GROUPS, strict=True)])
    assert fewer.num_tokens == len(rest)
    indices, whole = fewer.restore(np.array(cached))
    assert np.array_equal(np.concatenate([rest, *(GROUPS[group][0] for group in cached)])[indices], ids)
    assert np.array_equal(whole.positions, layout.positions)
    assert np.array_equal(ids[layout.last], rest[fewer.last])


@pytest.mark.parametrize("groups", [[], [([1], [])], [([1], [[]])]])
def test_bad_groups(groups):
    with pytest.raises(ValueError, match="groups: expected"):
        PackedLayout.of(groups)


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_texts_beyond_the_window_are_refused(family):
    model = EarlyExitModel(Decoder(tiny(family, **({"sliding_window": 8} if family == "Mistral" else {}))))
    with pytest.raises(ValueError, match="groups: expected at most .* tokens a text"):
        model.predict([([5] * (8 if family == "Mistral" else 256), [[6]])])


def test_training_reaches_prefix_suffix_and_features(model):
    statistics = model.all_exits(GROUPS, features(), torch.ones(7, dtype=torch.int64))
    (-sum(s.target_logprob.mean() for s in statistics)).backward()
    embedded = model.backbone.base.embed_tokens.weight.grad.abs().sum(1)
    assert all(embedded[token] > 0 for token in (5, 10, 20, 30, 41))
    assert all(head.units.weight.grad.abs().sum() > 0 for head in model.heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gradients_equal_plain(family):
    backbone = Decoder(tiny(family))

    def gradient(last):
        backbone.zero_grad()
        last.square().sum().backward()
        return backbone.base.embed_tokens.weight.grad.clone()

    batch = PackedBatch(backbone, GROUPS)
    for depth in range(1, backbone.num_layers):
        batch.layer(depth)
    packed = gradient(batch.peek_last(backbone.num_layers))
    torch.testing.assert_close(packed, gradient(plain_last_layer(backbone)), atol=1e-5, rtol=1e-3)


def plain_last_layer(backbone):
    caught = []

    def catch(module, inputs, output):
        caught.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    hook = backbone.base.layers[-1].register_forward_hook(catch)
    for prefix, suffixes in GROUPS:
        for suffix in suffixes:
            backbone.base(torch.tensor([[*prefix, *suffix]]))
    hook.remove()
    return torch.stack(caught)


def test_skipped_layers_are_left_out(model):
    with torch.no_grad():
        skipped = model.all_exits(GROUPS, features(), skip={1, 3})
        model.backbone.base.layers = torch.nn.ModuleList(model.backbone.base.layers[i] for i in (1, 3))
        plain = plain_last_layer(model.backbone)
    expected = model.heads[-1](plain, features()).probability
    torch.testing.assert_close(skipped[-1].probability, expected)


def test_exit_layers():
    assert exit_layers(4, (2,)) == (2, 4)
    assert exit_layers(2) == (1, 2)
    assert exit_layers(4, np.array([3, 1])) == (1, 3, 4)
    for strange in (9, 0, -1, 1.5, True):  # 0 and -1 were the first layer
        with pytest.raises(ValueError, match=rf"exits: expected layers in \[1, 4\]; got {strange}"):
            exit_layers(4, (2, strange))
    for strange in ("12", 3):
        with pytest.raises(TypeError, match="exits: expected a list of layers; got"):
            exit_layers(4, strange)
