"""Layers in graphs against single layers. Without a GPU a graph calls the recorded function, and its attention runs in
Triton's interpreter: buffers, padding and the cache of graphs are the same."""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny import tiny

from reasonrec_fast.early_exit import EarlyExitModel, ExitPolicy, engine
from reasonrec_fast.lm import Decoder, layer_graphs
from reasonrec_fast.lm.layer_graphs import LayerGraphs, padded_size, weights_mark
from reasonrec_fast.lm.prefix_cache import PrefixCache

pytest.importorskip("triton")
GROUPS = [([5, 6, 7, 8, 9], [[10, 11], [12], [13, 14, 15]]), ([], [[20, 21, 22]]), ([30] * 6, [[31, 32]])]
OTHERS = [([50] * 9, [[51], [52, 53]]), ([60], [[61, 62]]), ([], [[70], [71, 72]])]
LARGE = [([7] * 20, [[8, 9], [10]]), ([80, 81], [[82] * 12])]


class Recorder:
    """Counts what is recorded and replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, run):
        run()
        self.recorded += 1

        def replay():
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def recorder(monkeypatch):
    result = Recorder()
    graphs = {}
    monkeypatch.setattr(layer_graphs, "_LEAST", 24)
    monkeypatch.setattr(layer_graphs, "_LEAST_TILES", 8)  # empty tiles take the interpreter as long as others

    def of(backbone):
        if not layer_graphs.usable(backbone):
            return None
        return graphs.setdefault(id(backbone), LayerGraphs(result))

    monkeypatch.setattr(engine, "layer_graphs", of)
    return result


def ranker(family="Llama", layers=2):
    """Of few layers: the interpreter is slow."""
    torch.manual_seed(1)
    model = EarlyExitModel(Decoder(tiny(family, num_hidden_layers=layers)), range(1, layers)).eval()
    with torch.no_grad():
        for head in model.heads:
            head.weight.mul_(20.0)
    return model


def alone(model, groups, policy=None):
    model.cuda_graphs = False
    result = model.predict(groups, policy=policy)
    model.cuda_graphs = True
    return result


def same(result, expected):
    assert torch.equal(result.depth, expected.depth)
    torch.testing.assert_close(result.probability, expected.probability, atol=2e-5, rtol=2e-4)


def halving(model, groups):
    """A policy by which about half of the rows leave at each exit."""
    with torch.no_grad():
        confidence = [result.confidence.sort().values for result in model.all_exits(groups)[:-1]]
    return ExitPolicy((tuple(float(values[len(values) // 2 - 1 :][:2].mean()) for values in confidence),))


@pytest.mark.parametrize("family", ["Llama", "Gemma3Text", "Phi3"])
@pytest.mark.parametrize("exits", [False, True])
def test_scores_are_those_of_layers_one_by_one(recorder, family, exits):
    """At first sight, while it is recorded, replayed, and with other texts of the same size between."""
    model = ranker(family, layers=3)
    for groups in (GROUPS, OTHERS, GROUPS, LARGE, LARGE, OTHERS):
        policy = halving(model, groups) if exits else None
        expected = alone(model, groups, policy)
        assert not exits or len(expected.depth.unique()) > 1
        same(model.predict(groups, policy=policy), expected)
    assert recorder.recorded >= 2
    assert recorder.replayed > recorder.recorded


def test_the_first_sight_of_a_size_records_nothing(recorder):
    model = ranker()
    model.predict(GROUPS)
    assert recorder.recorded == 0
    model.predict(OTHERS)  # of the same size
    assert recorder.recorded == 1
    model.predict(LARGE)
    model.predict(GROUPS)
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_what_is_not_finite_in_the_padding_reaches_nobody(recorder):
    model = ranker()
    longer = [([5] * 12, [[90] * 10])]
    for _ in range(2):
        model.predict(longer)
    weight = model.backbone.base.embed_tokens.weight
    with torch.no_grad():
        weight[90] = torch.nan
    assert model.predict(longer).probability.isnan().all()
    assert recorder.replayed == 2
    same(model.predict(GROUPS), alone(model, GROUPS))
    assert recorder.replayed == 3


def test_other_weights_are_recorded_anew(recorder):
    model = ranker()
    for _ in range(2):
        model.predict(GROUPS)
    projection = model.backbone.base.layers[0].mlp.down_proj
    with torch.no_grad():
        projection.weight.mul_(3.0)  # in place: the graph reads it
    same(model.predict(GROUPS), alone(model, GROUPS))
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    projection.weight = torch.nn.Parameter(projection.weight.detach() * 2)
    for _ in range(2):
        same(model.predict(GROUPS), alone(model, GROUPS))
    assert recorder.recorded == 2
    model.backbone.base.layers[0].mlp.down_proj = torch.nn.Linear(*reversed(projection.weight.shape), bias=False).eval()
    for _ in range(2):
        same(model.predict(GROUPS), alone(model, GROUPS))
    assert recorder.recorded == 3


@contextmanager
def everywhere(hook):
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    with torch.inference_mode():
        yield
    handle.remove()


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_a_graph_would_not_do_runs(recorder):
    """Hooks, modules of others and dropout are not recorded, and count at once."""
    model = ranker()
    for _ in range(2):
        model.predict(GROUPS)
    before = recorder.replayed
    layer = model.backbone.base.layers[0]
    hook = layer.mlp.register_forward_hook(lambda module, inputs, output: output * 2)
    same(model.predict(GROUPS), alone(model, GROUPS))
    hook.remove()
    other = Doubled(*reversed(layer.mlp.down_proj.weight.shape), bias=False).eval()
    layer.mlp.down_proj = other
    same(model.predict(GROUPS), alone(model, GROUPS))
    assert recorder.replayed == before
    layer.mlp.down_proj = torch.nn.Linear(*reversed(other.weight.shape), bias=False).eval()
    assert weights_mark(model.backbone) is not None
    layer.mlp.forward = lambda x: x  # as hooks of accelerate and patches set it
    same(model.predict(GROUPS), alone(model, GROUPS))
    assert recorder.replayed == before
    del layer.mlp.forward
    with everywhere(lambda module, inputs, output: None):
        assert not layer_graphs.usable(model.backbone)
    with torch.inference_mode():
        assert layer_graphs.usable(model.backbone)
    layer.train()
    assert weights_mark(model.backbone) is None
    model.train()
    assert not layer_graphs.usable(model.backbone)


def test_adapters_are_recorded_once_they_are_merged(recorder):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        tiny("Llama", num_hidden_layers=2), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    model = EarlyExitModel(Decoder(adapted), (1,)).eval()
    expected = alone(model, GROUPS)
    for _ in range(3):
        same(model.predict(GROUPS), expected)
    assert recorder.recorded == 0
    adapted.merge_adapter()
    for _ in range(3):
        torch.testing.assert_close(model.predict(GROUPS).probability, expected.probability, atol=1e-4, rtol=1e-3)
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    adapted.unmerge_adapter()
    with adapted.disable_adapter():
        plain = alone(model, GROUPS)
        for _ in range(2):
            same(model.predict(GROUPS), plain)
    assert (plain.probability - expected.probability).abs().max() > 1e-3
    same(model.predict(GROUPS), alone(model, GROUPS))
    assert recorder.recorded == 1


def test_the_least_recently_used_graph_goes(recorder, monkeypatch):
    monkeypatch.setattr(layer_graphs, "MOST_GRAPHS", 1)
    model = ranker()
    expected = [alone(model, groups) for groups in (GROUPS, LARGE)]
    for which in (0, 0, 1, 1, 0, 0):
        same(model.predict((GROUPS, LARGE)[which]), expected[which])
    assert recorder.recorded == 3


def test_a_recording_that_fails_is_reported_once(monkeypatch, caplog):
    def fails(run):
        run()
        raise torch.OutOfMemoryError("tried to allocate 2 GiB\nmore")

    graphs = LayerGraphs(fails)
    monkeypatch.setattr(engine, "layer_graphs", lambda backbone: graphs)
    model = ranker()
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            same(model.predict(GROUPS), alone(model, GROUPS))
    assert [record.message for record in caplog.records] == [
        "early_exit: no CUDA graph (tried to allocate 2 GiB); layers run one by one (slower)"
    ]


def test_a_cache_of_prefixes_goes_layer_by_layer(recorder):
    model, cache = ranker(), PrefixCache(2**20)
    for _ in range(3):
        same(model.predict(GROUPS, cache=cache), alone(model, GROUPS))
    assert recorder.recorded == 0
    assert cache.hits > 0


def test_threads_do_not_meet(recorder):
    model = ranker()
    batches = [GROUPS, OTHERS, LARGE]
    expected = [alone(model, groups) for groups in batches]

    def work(index):
        for turn in range(4):
            which = (index + turn) % 3
            same(model.predict(batches[which]), expected[which])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert recorder.replayed >= 6


def test_the_padding_is_an_eighth_at_most():
    counts = np.arange(1, 70_000)
    sizes = np.array([padded_size(int(count)) for count in counts])
    assert (sizes >= counts).all()
    assert (np.diff(sizes) >= 0).all()
    assert (sizes[counts > 64] <= 1.125 * counts[counts > 64]).all()
    assert len(np.unique(sizes)) < 90


@torch.inference_mode()
def test_there_are_none_on_the_cpu():
    assert layer_graphs.layer_graphs(ranker().backbone) is None
