"""CUDA graphs of whole layers: the scores of single layers, on any stream and from any thread."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from on_gpu import ON_GPU

from reasonrec_fast.benchmarking.stored import random_ranker, spread_policy, stored_work
from reasonrec_fast.lm import layer_graphs

pytestmark = pytest.mark.skipif(not ON_GPU, reason="CUDA graphs want a GPU; tests/early_exit has the rest")


@pytest.fixture(scope="module")
def model():
    return random_ranker("cuda", torch.float32)


def alone(model, work, policy=None):
    model.cuda_graphs = False
    result = model.predict(work.groups, work.features, policy)
    model.cuda_graphs = True
    return result


def same(result, expected):
    assert torch.equal(result.depth, expected.depth)
    torch.testing.assert_close(result.probability, expected.probability, atol=2e-3, rtol=0)


def graphs_of(model):
    state = layer_graphs._of_backbones[model.backbone]._state
    return [graph for graph in state.graphs.values() if graph is not None]


@pytest.mark.parametrize("exits", [False, True])
def test_scores_are_those_of_layers_one_by_one(model, exits):
    works = [stored_work("slates", groups=1), stored_work("texts")]
    policies = [spread_policy(model, work) if exits else None for work in works]
    expected = [alone(model, work, policy) for work, policy in zip(works, policies, strict=True)]
    for _ in range(3):
        for work, policy, wanted in zip(works, policies, expected, strict=True):
            same(model.predict(work.groups, work.features, policy), wanted)
    assert len(graphs_of(model)) >= 2
    assert not exits or len(expected[0].depth.unique()) > 1


def test_streams_and_threads(model):
    works = [stored_work("slates", groups=1), stored_work("texts")]
    expected = [alone(model, work) for work in works]
    torch.cuda.synchronize()

    def rank(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(8):
                which = (index + turn) % 2
                result = model.predict(works[which].groups, works[which].features)
                torch.cuda.current_stream().synchronize()
                same(result, expected[which])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rank, range(4)))


def test_two_models_are_recorded_and_replayed_at_once():
    work = stored_work("slates", groups=1)
    models = [random_ranker("cuda", torch.float32) for _ in range(2)]
    expected = [alone(model, work) for model in models]
    torch.cuda.synchronize()

    def rank(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(6):
                result = models[index].predict(work.groups, work.features)
                torch.cuda.current_stream().synchronize()
                same(result, expected[index])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rank, range(2)))
    assert all(len(graphs_of(model)) == 1 for model in models)


def test_a_recording_that_fails_leaves_a_device_that_works(model, caplog):
    """A layer that waits for the host, in the middle of a capture."""
    other, work = random_ranker("cuda", torch.float32), stored_work("slates", groups=1)
    expected, before = alone(other, work), torch.cuda.current_stream()
    recorder = layer_graphs._CudaGraphs()
    waits = layer_graphs.LayerGraphs(lambda run: recorder(lambda: (run(), torch.ones(1, device="cuda").item())))
    layer_graphs._of_backbones[other.backbone] = waits
    for _ in range(3):
        same(other.predict(work.groups, work.features), expected)
    assert torch.cuda.current_stream() == before
    assert not torch.cuda.is_current_stream_capturing()
    assert sum("no CUDA graph" in record.message for record in caplog.records) == 1
    for _ in range(3):
        model.predict(work.groups, work.features)  # others are recorded as ever
    assert len(graphs_of(model)) >= 1


def test_a_second_device():
    """While the first device is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    work, results = stored_work("slates", groups=1), []
    models = [random_ranker(kind, torch.float32) for kind in ("cuda:0", "cuda:1")]
    for model in models:
        results += [model.predict(work.groups, work.features).cpu() for _ in range(3)]
    for other in results[1:]:
        same(other, results[0])
    assert all(len(graphs_of(model)) == 1 for model in models)


def test_other_weights_and_copies():
    model, work = random_ranker("cuda", torch.float32), stored_work("slates", groups=1)
    for _ in range(3):
        first = model.predict(work.groups, work.features).probability
    other = copy.deepcopy(model)
    layer = model.backbone.base.layers[3].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 4)
    for _ in range(3):
        same(model.predict(work.groups, work.features), alone(model, work))
    for _ in range(3):
        torch.testing.assert_close(other.predict(work.groups, work.features).probability, first, atol=2e-3, rtol=0)
    assert (model.predict(work.groups, work.features).probability - first).abs().max() > 1e-2
    del model
    assert len(graphs_of(other)) == 1
