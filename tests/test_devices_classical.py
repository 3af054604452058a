"""Classical models on a device that only pretends to be one: they give the CPU's results, and what a fit and a ranking
read back is listed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from pretended_device import DEVICE, all_on_device, pretended_device
from word_encoder import WordEncoder

from reasonrec_fast.data import Histories, Interactions, split_by_time
from reasonrec_fast.models import classical, item_texts

# They do have values here.
pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model:UserWarning")

QUICK = {"epochs": 2, "patience": 2, "batch": 128}
# What a fit reads back.
LOSS = Counter({"epochs.train_epochs": 2})  # once an epoch
GRAPH = Counter({"interaction._checked_count": 4, "sorting.graph_by_sorting": 2})  # once a graph
FIELDS = Counter({"fields.host": 3})  # what indices are made of, once a model
MODELS = {
    "Popularity": ({}, Counter()),
    "Bias": ({}, Counter()),
    "ItemKNN": ({}, Counter()),
    "DirectedItemKNN": ({}, Counter()),
    "AttributeKNN": ({}, Counter()),
    "EASE": ({}, Counter()),
    "SVD": ({"dim": 8}, Counter()),
    "BPR": ({"dim": 8, **QUICK}, LOSS),
    "BPR, softmax": ({"dim": 8, "loss": "softmax", "negatives": 0, **QUICK}, LOSS),
    "LightGCN": ({"dim": 8, "layers": 2, **QUICK}, LOSS + GRAPH),
    "SASRec": ({"dim": 8, "layers": 1, "dropout": 0.0, "precision": "float32", **QUICK}, LOSS),
    "SASRec, bias": ({"dim": 8, "layers": 1, "dropout": 0.0, "precision": "float32", "item_bias": True, **QUICK}, LOSS),
    "BSARec": ({"dim": 8, "layers": 1, "dropout": 0.0, "precision": "float32", **QUICK}, LOSS),
    "TextKNN": ({}, Counter()),
    "HybridKNN": ({}, Counter()),
    "TextTower": ({"dim": 8, "hidden": 8, "dropout": 0.0, "precision": "float32", **QUICK}, LOSS),
    "FM": ({"dim": 4, **QUICK}, LOSS + FIELDS),
    "DCNv2": ({"dim": 4, "deep": (8,), "dropout": 0.0, **QUICK}, LOSS + FIELDS),
}
ONCE_A_FIT = {
    "base._apply", "lightgcn.prepare", "sequence.fit_rows", "fields.describe", "item_to_item.fit_interactions",
    "sparse_items.keep", "svd.fit_closed_form", "text_knn.fit_closed_form", "text_tower.prepare",
    "bias.fit_closed_form", "popularity.fit_closed_form",
}  # fmt: skip
# What scores and recommendations read back: one array, and two; products of sparse matrices are the host's.
RESULTS = ("base.score", "vectors.score", "bias.score", "popularity.score", "ctr.score")


def made(name, device):
    kind = getattr(classical, name.split(",")[0])
    return kind(kind.config_type(**MODELS[name][0]), device=device)


@pytest.fixture(scope="module")
def clicks():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 30, 700), generator.integers(0, 25, 700)
    return Interactions.from_columns(
        [str(u) for u in users], [str(i) for i in items],
        ((users + items) % 3 > 0).astype(int).tolist(), range(700),
        titles={str(i): f"thing {i}" for i in range(25)},
        attributes={"kind": {str(i): (f"k{i % 2}",) for i in range(25)}},
    )  # fmt: skip


def outputs_of(model, data):
    users, items = np.array([0, 3, 3, 29]), np.array([1, 2, 24, 0])
    best = model.recommend(np.arange(30), 4)
    return model.score(users, items), best.scores, best.items


def same(result, expected):
    for first, second in zip(result[:2], expected[:2], strict=True):
        np.testing.assert_allclose(first, second, atol=2e-4, rtol=1e-3)
    assert (result[2] == expected[2]).mean() > 0.95  # except for near ties


@pytest.mark.parametrize("name", MODELS)
def test_a_classical_model_lives_on_a_device(clicks, name, tmp_path, monkeypatch):
    monkeypatch.setattr(item_texts, "TextEncoder", WordEncoder)
    parts = split_by_time(clicks, "global_time")
    cpu_model = made(name, "cpu").fit(clicks, parts.train, parts.validation)
    expected = outputs_of(cpu_model, clicks)
    with pretended_device() as device:
        device_model = made(name, DEVICE)
        device.forget()
        device_model.fit(clicks, parts.train, progress=lambda *report: None)
        assert device_model.device == DEVICE and all_on_device(device_model)
        assert device.reads <= MODELS[name][1], device.reads
        assert set(device.waits) <= ONCE_A_FIT, device.waits
        device_model = made(name, DEVICE).fit(clicks, parts.train, parts.validation)
        device.forget()
        same(outputs_of(device_model, clicks), expected)
        products = device.reads.pop("sparse_items.matrix", 0)
        wanted = {"ItemKNN": 6, "DirectedItemKNN": 6, "AttributeKNN": 6, "HybridKNN": 18}
        assert products == wanted.get(name, 0)
        (score,) = set(RESULTS) & set(device.reads)
        assert device.reads <= Counter({score: 1, "retrieval.retrieve": 2}) + GRAPH, device.reads
        assert set(device.waits) <= {"item_to_item.scores", "sparse_items.dense", "attribute_knn.scores"}, device.waits
        device_model.save_pretrained(tmp_path / "device")
        cpu_model.save_pretrained(tmp_path / "cpu")
        loaded = type(cpu_model).from_pretrained(tmp_path / "cpu", device=DEVICE)
        assert loaded.device == DEVICE and all_on_device(loaded)
        same(outputs_of(loaded, clicks), expected)
        same(outputs_of(cpu_model.to(DEVICE), clicks), expected)
        assert cpu_model.device == DEVICE
        assert cpu_model.to("cpu").device == torch.device("cpu")
    same(outputs_of(cpu_model, clicks), expected)
    loaded = type(cpu_model).from_pretrained(tmp_path / "device", device="cpu")
    same(outputs_of(loaded, clicks), expected)


def test_sampled_classes_are_counted_once_a_step(clicks):
    """The remaining reads from the device in a step; remove the entry when one is fixed."""
    kind = classical.SASRecConfig(**{**MODELS["SASRec"][0], "negatives": 8, "epochs": 1})
    with pretended_device() as device:
        rows = np.arange(len(clicks))
        classical.SASRec(kind, device=DEVICE).fit(clicks, rows, progress=lambda *report: None)
    assert set(device.reads) == {"sampled_softmax.item_cross_entropy", "epochs.train_epochs"}
    assert device.reads["epochs.train_epochs"] == 1


def test_new_users_are_folded_in_on_a_device(clicks):
    model = made("LightGCN", "cpu").fit(clicks, np.arange(len(clicks)))
    model.set_histories(Histories.from_lists([[1]] * 30 + [[2, 4, 6]]))
    expected = model.recommend(np.array([30, 2]), 3)
    with pretended_device() as device:
        model.to(DEVICE)
        device.forget()
        result = model.recommend(np.array([30, 2]), 3)
        assert device.reads <= Counter({"retrieval.retrieve": 2}) + GRAPH and not device.waits
    assert np.array_equal(result.items, expected.items)


def test_a_model_without_tensors_remembers_where_they_belong():
    with pretended_device():
        assert classical.BPR(device="cpu").to(DEVICE).device == DEVICE
    with pytest.raises(ValueError, match="device: expected"):
        classical.FM(device="gpu")
