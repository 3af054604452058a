"""The early-exit engine with random weights of SmolLM2-135M's shape, against the CPU."""

import pytest
import torch
from on_gpu import ON_GPU

from reasonrec_fast.benchmarking.stored import random_ranker, spread_policy, stored_work
from reasonrec_fast.lm.prefix_cache import PrefixCache


@pytest.fixture(scope="module")
def work():
    return stored_work("slates", groups=1, tiny=not ON_GPU)


@pytest.fixture(scope="module")
def models():
    """On the CPU and on the device, with the same weights."""
    kinds = ("cpu", "cuda" if ON_GPU else "cpu")
    return [random_ranker(kind, tiny=not ON_GPU) for kind in kinds]


@pytest.mark.parametrize("exits", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_scores_are_those_of_the_cpu(models, work, exits, cached):
    cpu_model, gpu_model = models
    policy = spread_policy(cpu_model, work) if exits else None
    expected = cpu_model.predict(work.groups, work.features, policy)
    cache = PrefixCache(2**30) if cached else None
    for _ in range(2 if cached or not ON_GPU else 3):  # without a cache the third replays a graph
        result = gpu_model.predict(work.groups, work.features, policy, cache=cache)
        assert torch.equal(result.depth.cpu(), expected.depth)
        torch.testing.assert_close(result.probability.cpu(), expected.probability, atol=2e-3, rtol=0)
    assert cache is None or cache.hits == len(work.groups)
    assert not exits or len(expected.depth.unique()) > 1


def test_bfloat16_stays_near(models, work):
    model = random_ranker("cuda" if ON_GPU else "cpu", torch.bfloat16, tiny=not ON_GPU)
    expected = models[0].predict(work.groups, work.features).probability
    for _ in range(3 if ON_GPU else 1):
        difference = (model.predict(work.groups, work.features).probability.cpu() - expected).abs()
        assert difference.mean() < 0.03
        assert difference.max() < 0.3


def test_gradients_are_those_of_the_cpu(models, work):
    """Of the heads, through every exit."""
    results = []
    for model in models:
        device = model.backbone.device
        statistics = model.all_exits(work.groups, work.features.to(device), torch.ones(work.rows).long().to(device))
        loss = -sum(s.target_logprob.mean() for s in statistics)
        weights = [head.weight for head in model.heads]
        results.append([gradient.cpu() for gradient in torch.autograd.grad(loss, weights)])
    for actual, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=0)
