"""Models on a GPU against the CPU, moved between both, and the number of synchronisations of a ranking."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from early_exit.tiny import Letters, tiny
from models.conftest import config  # noqa: F401
from on_gpu import ON_GPU

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.data import Interactions, split_by_time
from reasonrec_fast.devices import device_name, resolve_device
from reasonrec_fast.early_exit import EarlyExitModel, ExitPolicy
from reasonrec_fast.lm import Decoder
from reasonrec_fast.models import classical
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag import scorer as optirag_scorer
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.training import epochs

QUICK = {"epochs": 2, "patience": 2, "batch": 128}
MODELS = {
    "Popularity": {},
    "Bias": {},
    "ItemKNN": {},
    "EASE": {},
    "BPR": {"dim": 16, **QUICK},
    "LightGCN": {"dim": 16, "layers": 2, **QUICK},
    "SASRec": {"dim": 16, "layers": 1, "dropout": 0.0, "precision": "float32", **QUICK},
    "FM": {"dim": 8, **QUICK},
    "DCNv2": {"dim": 8, "deep": (8,), "dropout": 0.0, **QUICK},
}


def made(name, device):
    kind = getattr(classical, name)
    return kind(kind.config_type(**MODELS[name]), device=device)


@pytest.fixture(scope="module")
def clicks():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 40, 900), generator.integers(0, 30, 900)
    labels = ((users + items) % 3 > 0).astype(int).tolist()
    kinds = {str(item): (f"k{item % 2}",) for item in range(30)}
    return Interactions.from_columns(
        [str(u) for u in users], [str(i) for i in items], labels, range(900), attributes={"kind": kinds}
    )


def scores_of(model):
    users, items = np.repeat(np.arange(40), 30), np.tile(np.arange(30), 40)
    return model.score(users, items)


def same(result, expected, atol=2e-3):
    np.testing.assert_allclose(result, expected, atol=atol, rtol=atol)


def test_the_device_is_there(device):
    result = resolve_device()
    assert result.type == device and result == resolve_device(device)
    assert device_name(result)["device"] == ("cuda:0" if ON_GPU else "cpu")
    wrong = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match="device: expected .* got"):
        resolve_device(wrong)
    if ON_GPU and torch.cuda.get_device_capability() >= (8, 0):
        assert fast_dtype() == torch.bfloat16


@pytest.mark.parametrize("name", MODELS)
def test_a_classical_model_is_the_same_on_both(clicks, name, device, tmp_path):
    parts = split_by_time(clicks, "global_time")
    cpu_model, gpu_model = (made(name, kind).fit(clicks, parts.train, parts.validation) for kind in ("cpu", device))
    expected = scores_of(cpu_model)
    assert gpu_model.device.type == device
    same(scores_of(gpu_model), expected, 2e-2)  # two trainings
    assert np.isfinite(gpu_model.recommend(np.arange(40), 5).scores).any()
    for model, other in ((cpu_model, device), (gpu_model, "cpu")):
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, device=other)
        assert loaded.device.type == other
        same(scores_of(loaded), scores_of(model))
    fitted = scores_of(gpu_model)
    same(scores_of(gpu_model.to("cpu")), fitted)
    same(scores_of(cpu_model.to(device)), expected)


@pytest.mark.parametrize("name", ["LightGCN", "SASRec", "FM"])
@pytest.mark.parametrize("gpu_first", [False, True])
def test_a_killed_training_goes_on_on_the_other(clicks, name, gpu_first, device, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(epoch, *report):
        raise Killed

    monkeypatch.setattr(epochs, "_SECONDS_BETWEEN_SAVES", 0.0)
    rows, state = np.arange(len(clicks)), tmp_path / "state.safetensors"
    expected = scores_of(made(name, "cpu").fit(clicks, rows))
    first, second = (device, "cpu") if gpu_first else ("cpu", device)
    with pytest.raises(Killed):
        made(name, first).fit(clicks, rows, checkpoint=state, progress=kill)
    same(scores_of(made(name, second).fit(clicks, rows, checkpoint=state)), expected, 2e-2)


def test_a_training_on_the_gpu_goes_on_to_the_same_weights(clicks, device, tmp_path, monkeypatch):
    """With dropout: a step's random numbers come from its number."""
    kind = classical.SASRecConfig(**{**MODELS["SASRec"], "dropout": 0.4})
    monkeypatch.setattr(epochs, "_SECONDS_BETWEEN_SAVES", 0.0)

    class Killed(Exception):
        pass

    def kill(epoch, *report):
        raise Killed

    rows, state = np.arange(len(clicks)), tmp_path / "state.safetensors"
    before = torch.cuda.get_rng_state() if ON_GPU else torch.get_rng_state()
    whole = classical.SASRec(kind, device=device).fit(clicks, rows)
    with pytest.raises(Killed):
        classical.SASRec(kind, device=device).fit(clicks, rows, checkpoint=state, progress=kill)
    resumed = classical.SASRec(kind, device=device).fit(clicks, rows, checkpoint=state)
    assert torch.equal(before, torch.cuda.get_rng_state() if ON_GPU else torch.get_rng_state())
    same(scores_of(resumed), scores_of(whole), 1e-3)  # index_add on a GPU sums in any order


def test_optirag_is_the_same_on_both(events, config, device, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(optirag_scorer, "fast_dtype", lambda device: torch.float32)
    split = split_by_time(events)
    settings = replace(
        config, boosted=find_spec("lightgbm") is not None, samples=16, warm_start_steps=5, calibration_requests=20,
        prefix_tokens=120, suffix_tokens=60,
        retriever=EmbeddingConfig(dim=8, steps=5, batch=64),
    )  # fmt: skip
    cpu_model, gpu_model = (
        OptiRAG(settings, device=kind).fit(events, split.train, split.validation) for kind in ("cpu", device)
    )
    prepared = cpu_model.requests(events, split.test[:24])
    assert gpu_model.device.type == device
    same(
        gpu_model.predict(prepared, early_exit=False).probability,
        cpu_model.predict(prepared, early_exit=False).probability,
        1e-2,
    )
    for model, other in ((cpu_model, device), (gpu_model, "cpu")):
        expected = model.predict(prepared, early_exit=False).probability
        assert set(model.predict(prepared).depth) <= {0, 1, 2, 4}
        model.save_pretrained(tmp_path / other)
        loaded = OptiRAG.from_pretrained(tmp_path / other, device=other)
        assert loaded.device.type == other and loaded.policy == model.policy
        same(loaded.predict(prepared, early_exit=False).probability, expected, 5e-3)  # adapters in bfloat16
        same(model.to(other).predict(prepared, early_exit=False).probability, expected, 5e-3)


def test_optirag_in_the_type_of_its_device(config, device):  # noqa: F811
    model = OptiRAG(config, device="cpu").to(device)
    assert model.ranker.model.backbone.dtype == fast_dtype(device)
    assert model.to("cpu").ranker.model.backbone.dtype == fast_dtype("cpu")


def requests(count=60):
    generator = np.random.default_rng(0)
    prefixes = [generator.integers(1, 97, generator.integers(1, 20)).tolist() for _ in range(9)]
    return [
        (prefixes[index % 9], generator.integers(1, 97, generator.integers(1, 6)).tolist()) for index in range(count)
    ]


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_a_ranker_moves(family, device, tmp_path):
    cpu_model = EarlyExitRanker.from_model(
        tiny(family), Letters(), ("n", "y"), exits=(1, 2, 3), prefix_cache_bytes=1 << 20
    )
    cpu_model.calibrate(requests(), alpha=0.2)
    cpu_model.save_pretrained(tmp_path)
    expected = cpu_model.predict(requests(), early_exit=False).probability
    gpu_model = EarlyExitRanker.from_pretrained(tmp_path, tiny(family), device=device)
    assert gpu_model.device.type == device and gpu_model.policy == cpu_model.policy
    for ranker in (gpu_model, cpu_model.to(device)):
        for _ in range(2):
            result = ranker.predict(requests(), early_exit=False).probability
            assert result.device.type == device
            torch.testing.assert_close(result.cpu(), expected, atol=2e-3, rtol=0)
    gpu_model.calibrate(requests(), alpha=0.2)
    assert gpu_model.predict(requests()).depth.float().mean() <= 4
    torch.testing.assert_close(gpu_model.to("cpu").predict(requests(), early_exit=False).probability, expected)


def test_an_exit_waits_once(device):
    """torch warns of every synchronisation: the only ones are the copies of the staying rows, one at each exit."""
    if not ON_GPU:
        pytest.skip("the CPU waits for nothing")
    torch.manual_seed(1)
    model = EarlyExitModel(Decoder(tiny("Llama")), (1, 2, 3)).eval().to(device)
    groups = [([5, 6, 7, 8, 9], [[10, 11], [12], [13, 14, 15]]), ([], [[20, 21, 22]]), ([30] * 17, [[31, 32]])]
    policy = ExitPolicy(((0.0001, 1e9, 1e9),))
    for _ in range(3):
        model.predict(groups, policy=policy)  # compiles, records, replays
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = model.predict(groups, policy=policy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}: {w.message}" for w in caught if "synchroniz" in str(w.message)]
    exits = sum(bool((result.depth >= depth).any()) for depth in (1, 2, 3))
    assert len(waits) == exits, waits
