"""Models on a device that is not the CPU, without a GPU: devices are not mixed, and all reads from the device are
listed.

Whole fits and rankings run on the pretended device of ``pretended_device.py`` and must give the CPU's results; the
functions that read values back are listed here, and any other fails.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from early_exit.tiny import Letters, tiny
from models.conftest import config  # noqa: F401
from pretended_device import DEVICE, OnDevice, all_on_device, pretended_device

from reasonrec_fast import EarlyExitRanker, InteractionGraph
from reasonrec_fast.data import split_by_time
from reasonrec_fast.devices import on_device, resolve_device, to_device
from reasonrec_fast.early_exit import EarlyExitModel, ExitPolicy
from reasonrec_fast.early_exit.requests import GroupInputs, request_batches
from reasonrec_fast.lm import Decoder
from reasonrec_fast.lm.prefix_cache import weights_mark
from reasonrec_fast.models import classical
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag import scorer as optirag_scorer
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig, GraphEmbeddings
from reasonrec_fast.precision import fast_dtype
from reasonrec_fast.training import epochs
from reasonrec_fast.training.epochs import EpochTraining, train_epochs
from reasonrec_fast.training.exits import Batch, ExitTraining, train_exits

# They do have values here.
pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model:UserWarning")

GROUPS = [([5, 6, 7, 8, 9], [[10, 11], [12], [13, 14, 15]]), ([], [[20, 21, 22]]), ([30] * 17, [[31, 32]])]
ROWS = 5


# Which device is meant


def test_the_device_that_is_meant(monkeypatch):
    assert resolve_device("cpu") == resolve_device(torch.device("cpu", 0)) == torch.device("cpu")
    for wrong in ("gpu", "mps", "cuda:x", "cuda:-1", 1.5):
        with pytest.raises(ValueError, match=r"device: expected 'cpu', 'cuda' or 'cuda:N'; got"):
            resolve_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="device: expected 'cpu', since this build of torch has no CUDA; got 'cuda'"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match="device: expected 'cpu', since torch finds no GPU; got 'cuda:1'"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device() == resolve_device("cuda") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device: expected one of 'cuda:0' to 'cuda:1'; got 'cuda:7'"):
        resolve_device("cuda:7")


def test_the_fast_type_is_that_of_the_requested_device(monkeypatch):
    expected = fast_dtype("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((9, 0), (7, 5))[device.index])
    assert (fast_dtype(), fast_dtype("cuda:1")) == (torch.bfloat16, torch.float32)
    assert fast_dtype("cpu") == expected


def test_what_the_pretended_device_finds():
    """The pretended device detects the faults that the tests below check for."""
    with pretended_device() as device:
        tensor = torch.arange(4.0, device=DEVICE)
        with pytest.raises(AssertionError, match="tensors of the CPU and of the device"):
            tensor + torch.ones(4)
        with pytest.raises(AssertionError, match="tensors of the CPU and of the device"):
            tensor[torch.tensor([1])]
        with pytest.raises(AssertionError, match=r"torch\.tensor"):
            tensor + torch.tensor([1.0, 1, 1, 1], device=DEVICE)
        with pytest.raises(RuntimeError, match="numpy"):
            tensor.numpy()
        for read in (lambda: tensor.to("cpu", non_blocking=True), lambda: torch.empty(4).copy_(tensor, True)):
            with pytest.raises(AssertionError, match="an asynchronous copy to the CPU"):
                read()
        assert not device.reads and not device.waits
        for read in (lambda: bool(tensor.sum()), tensor.tolist, tensor.cpu, tensor.nonzero, lambda: tensor[tensor > 1]):
            device.forget()
            read()
            assert device.reads.total() == 1
        device.forget()
        torch.ones(4).to(DEVICE)
        assert device.waits.total() == 1
        on_device(np.ones(4), DEVICE)
        assert device.waits.total() == 1 and not device.reads


# How tensors get there


@pytest.fixture
def copies(monkeypatch):
    """Redirects copies to a GPU to the CPU; the fixture is their list of (pinned, asynchronous)."""
    transfers, pinned, plain = [], [], torch.Tensor.to

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    def copy(tensor, device, *, non_blocking=False):
        transfers.append((any(tensor is pinned_tensor for pinned_tensor in pinned), non_blocking))
        return plain(tensor, "cpu", copy=True)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return transfers


@pytest.mark.parametrize(("size", "pinned"), [(0, False), (8192, False), (8193, True)])
def test_large_arrays_are_pinned_on_their_way_to_a_gpu(copies, size, pinned):
    """64 KiB are staged by CUDA itself; above that its driver may wait for the stream."""
    array = np.arange(size)
    result = on_device(array, torch.device("cuda", 0))
    assert copies == [(pinned, True)] and np.array_equal(result, array)
    to_device(torch.from_numpy(array), torch.device("cuda", 0))
    assert copies == [(pinned, True)] * 2


def test_arrays_are_not_copied_on_a_cpu(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a GPU was asked for")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", refuse)
    array = np.zeros(1 << 16)
    result = on_device(array, torch.device("cpu"))
    array[3] = 1.0
    assert (
        result[3] == 1.0
        and to_device(result, torch.device("cpu")) is result
        and to_device(None, torch.device("cpu")) is None
    )


@pytest.mark.parametrize("size", [3, 1 << 16])
def test_a_captured_copy_to_a_gpu_is_refused(copies, monkeypatch, size):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=rf"\[{size}\] to cuda:1: expected before the CUDA graph is captured; got"):
        on_device(np.zeros(size), torch.device("cuda", 1))
    assert not copies
    assert on_device(np.ones(size), torch.device("cpu")).sum() == size


# Early exit


def exiting(family):
    torch.manual_seed(1)
    return EarlyExitModel(Decoder(tiny(family)), (1, 2, 3), num_features=3).eval()


def dense_features():
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", ["Llama", "Gemma", "Gemma2"])
@pytest.mark.parametrize("strata", [None, torch.tensor([0, 1, 0, 1, 1])])
def test_an_exit_reads_back_once(family, strata):
    model, inf = exiting(family), float("inf")
    policies = [None, ExitPolicy(((0.01, 0.02, 0.0), (inf, 0.0, 0.0))), ExitPolicy(((0.01, inf, inf), (inf,) * 3))]
    expected = [model.predict(GROUPS, dense_features(), policy, strata) for policy in policies]
    with pretended_device() as device:
        model.to(DEVICE)
        for policy, wanted, exits in zip(policies, expected, (0, 3, 3), strict=True):
            device.forget()
            result = model.predict(GROUPS, dense_features().to(DEVICE, non_blocking=True), policy, strata)
            looked = len([depth for depth in (1, 2, 3) if policy and (wanted.depth >= depth).any()])
            assert device.reads == Counter({"engine._predict": looked} if looked else {}) and looked <= exits
            assert not device.waits
            assert isinstance(result.probability, OnDevice) and isinstance(result.depth, OnDevice)
            assert torch.equal(result.depth.cpu(), wanted.depth)
            torch.testing.assert_close(result.probability.cpu(), wanted.probability)


def test_a_model_on_the_cpu_takes_tensors_of_a_gpu():
    """It must not read them before they have arrived."""
    model, targets, strata = exiting("Llama"), torch.ones(ROWS, dtype=torch.int64), torch.tensor([0, 1, 0, 1, 1])
    policy = ExitPolicy(((0.01, 0.02, 0.0), (float("inf"), 0.0, 0.0)))
    expected = model.predict(GROUPS, dense_features(), policy, strata)
    with torch.no_grad():
        of_exits = model.all_exits(GROUPS, dense_features(), targets)
    with pretended_device() as device, torch.no_grad():
        inputs = [tensor.to(DEVICE, non_blocking=True) for tensor in (dense_features(), targets, strata)]
        result = model.predict(GROUPS, inputs[0], policy, inputs[2])
        assert torch.equal(result.depth, expected.depth) and torch.equal(result.probability, expected.probability)
        for first, second in zip(model.all_exits(GROUPS, *inputs[:2]), of_exits, strict=True):
            assert torch.equal(first.target_logprob, second.target_logprob)
        assert device.reads == Counter({"engine.predict": 2, "engine.all_exits": 2})


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_all_exits_read_nothing_back(family):
    model = exiting(family)
    with torch.no_grad():
        expected = model.all_exits(GROUPS, dense_features(), torch.ones(ROWS, dtype=torch.int64), skip={2})
    with pretended_device() as device, torch.no_grad():
        model.to(DEVICE)
        device.forget()
        results = model.all_exits(GROUPS, dense_features(), torch.ones(ROWS, dtype=torch.int64), skip={2})
        assert not device.reads and not device.waits
        for first, second in zip(results, expected, strict=True):
            torch.testing.assert_close(first.target_logprob.cpu(), second.target_logprob)


def requests(count=30):
    generator = np.random.default_rng(0)
    prefixes = [generator.integers(1, 97, generator.integers(1, 20)).tolist() for _ in range(4)]
    return [
        (prefixes[index % 4], generator.integers(1, 97, generator.integers(1, 6)).tolist()) for index in range(count)
    ]


def ranker(**options):
    return EarlyExitRanker.from_model(tiny("Gemma2"), Letters(), ("n", "y"), exits=(1, 2, 3), **options)


def test_a_ranker_moves_ranks_and_is_calibrated_anywhere(tmp_path):
    cpu_model = ranker(max_tokens=100)
    bound = cpu_model.calibrate(requests(200), alpha=0.2)
    expected = cpu_model.predict(requests())
    with pretended_device() as device:
        device_model = ranker(max_tokens=100, device=DEVICE)
        assert device_model.device == DEVICE and all_on_device(device_model.model)
        device.forget()
        assert device_model.calibrate(requests(200), alpha=0.2) == bound
        assert set(device.reads) == {"scorer.all_exits"} and not device.waits
        batches = device.reads.total()
        assert batches == len(
            list(request_batches(device_model.encode(requests(200)), device_model.max_tokens, cached=False))
        )
        device.forget()
        result = device_model.predict(requests()).cpu()
        assert set(device.reads) == {"engine._predict", "scores.cpu"} and not device.waits
        torch.testing.assert_close(result.probability, expected.probability)
        device_model.save_pretrained(tmp_path)
        to_device = EarlyExitRanker.from_pretrained(tmp_path, tiny("Gemma2"), device=DEVICE)
        torch.testing.assert_close(to_device.predict(requests()).cpu().probability, expected.probability)
    loaded = EarlyExitRanker.from_pretrained(tmp_path, tiny("Gemma2"))
    assert loaded.policy == cpu_model.policy
    assert torch.equal(loaded.predict(requests()).depth, expected.depth)
    with pytest.raises(ValueError, match="device: expected"):
        loaded.to("gpu")


def test_answers_of_several_tokens_move_with_their_ranker():
    """The LM head, which is none of the ranker's layers, stayed where it was."""

    def whole(**options):
        return EarlyExitRanker.from_model(tiny("Llama"), Letters(), ("no", "na", "yes"), exits=(1, 2), **options)

    cpu_model = whole()
    expected = cpu_model.predict(requests()).probabilities
    with pretended_device():
        for moved in (whole(device=DEVICE), cpu_model.to(DEVICE)):
            torch.testing.assert_close(moved.predict(requests()).cpu().probabilities, expected)
        cpu_model.to("cpu")
    assert torch.equal(cpu_model.predict(requests()).probabilities, expected)


def test_callers_with_features_on_different_devices_share_a_batch():
    """Columns of two devices failed every caller of the batch."""
    model = EarlyExitRanker(exiting("Llama"))
    pieces = []
    model._shared = lambda given: (pieces.extend(given), iter(()))[1]
    given, groups = GroupInputs(dense_features()), list(GROUPS)
    model.predict_groups(groups, given)
    expected = [scores.probability for scores in model._predict_pieces(pieces)]
    with pretended_device():
        model.to(DEVICE)
        model.predict_groups(groups, GroupInputs(dense_features().to(DEVICE, non_blocking=True)))
        for order in (pieces, pieces[::-1]):
            scores = model._predict_pieces(order)
            for result, index in zip(scores, range(len(order)), strict=True):
                wanted = expected[index % 3] if order is pieces else expected[::-1][index % 3]
                torch.testing.assert_close(result.cpu().probability, wanted)
        model.to("cpu")


def test_a_ranker_that_moves_forgets_cached_prefixes():
    cached_ranker = ranker(prefix_cache_bytes=1 << 20)
    expected = cached_ranker.predict(requests())
    for move in (cached_ranker.to, cached_ranker.model.to):  # the second behind the ranker's back
        cached_ranker.predict(requests())
        assert len(cached_ranker.cache)
        with pretended_device():
            move(DEVICE)
            torch.testing.assert_close(cached_ranker.predict(requests()).cpu().probability, expected.probability)
            torch.testing.assert_close(cached_ranker.predict(requests()).cpu().probability, expected.probability)
            cached_ranker.to("cpu")
        assert torch.equal(cached_ranker.predict(requests()).probability, expected.probability)


def test_the_same_weights_elsewhere_are_others(monkeypatch):
    """Even where two devices give out the same address."""
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(4, 4))])
    with pretended_device():
        monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: 4096)
        before = weights_mark(module)
        assert weights_mark(module) == before
        assert weights_mark(module.to(DEVICE)) != before
        assert weights_mark(module.to("cpu")) == before


# Training of exits


def exit_batch(seed):
    generator = np.random.default_rng(seed)
    groups = [
        (generator.integers(1, 50, 5).tolist(), [[int(token)] for token in generator.integers(1, 50, 4)])
        for _ in range(3)
    ]
    labels = torch.tensor([suffix[0] % 2 == 0 for _, suffixes in groups for suffix in suffixes]).long()
    return Batch(groups, labels, torch.randn(12, 3, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("mode", ["joint", "heads", "distil"])
def test_training_of_exits_reads_nothing_back(mode):
    settings = ExitTraining(mode=mode, learning_rate=1e-3, head_learning_rate=1e-2)
    cpu_model, device_model = exiting("Gemma2"), exiting("Gemma2")
    train_exits(cpu_model, range(3), exit_batch, settings)
    with pretended_device() as device:
        device_model.to(DEVICE)
        device.forget()
        train_exits(device_model, range(3), exit_batch, settings)
        assert not device.reads
        # The exits' weights, once; how packed_attention's differentiable path copies its indices is its own matter.
        waits = {name for name in device.waits if not name.startswith("packed_attention.")}
        assert waits <= {"exits.train_exits"}, waits
        device.forget()
        train_exits(device_model, range(2), exit_batch, replace(settings, learning_rate=0.0, head_learning_rate=0.0),
                    progress=lambda *report: None)  # fmt: skip
        assert device.reads == Counter({"loop.read_metrics": 2})
        device_model.to("cpu")
    for (name, first), second in zip(cpu_model.named_parameters(), device_model.parameters(), strict=True):
        torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("own_slates", [False, True])
def test_exits_on_the_cpu_are_trained_from_tensors_of_a_gpu(own_slates):
    def on_a_gpu(seed):
        batch = exit_batch(seed)
        slates = torch.arange(12).div(4, rounding_mode="floor").to(DEVICE) if own_slates else None
        return Batch(batch.groups, batch.labels.to(DEVICE), batch.features.to(DEVICE), slates)

    cpu_model, device_model = exiting("Llama"), exiting("Llama")
    train_exits(cpu_model, range(2), exit_batch)
    with pretended_device() as device:
        train_exits(device_model, range(2), on_a_gpu)
        assert set(device.reads) == {"exits._losses", "exits._pairs"}, device.reads
    for first, second in zip(cpu_model.parameters(), device_model.parameters(), strict=True):
        torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-3)


class Killed(Exception):
    pass


def test_training_of_exits_with_dropout_goes_on_to_the_same_weights(tmp_path):
    """A step's random numbers are its own: none are kept in the checkpoint."""

    def dropping():
        model = exiting("Llama")
        for layer in model.backbone.base.layers:
            layer.self_attn.attention_dropout = 0.3
        return model

    def die(step, steps, loss):
        if step == 5:
            raise Killed

    options = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 2}
    whole = dropping()
    train_exits(whole, range(8), exit_batch)
    with pytest.raises(Killed):
        train_exits(dropping(), range(8), exit_batch, progress=die, **options)
    torch.rand(100)
    resumed = dropping()
    train_exits(resumed, range(8), exit_batch, **options)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("there_first", [False, True])
def test_training_goes_on_on_another_device(tmp_path, monkeypatch, caplog, there_first):
    """Parameters, averages and the optimiser's state are moved; a message warns that the result differs slightly."""
    monkeypatch.setattr(epochs, "_SECONDS_BETWEEN_SAVES", 0.0)
    settings = EpochTraining(epochs=4, patience=9, learning_rate=0.05, average=0.5)

    def train(device, kill_at=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 1)
        x = torch.randn(60, 4)
        module.to(device)
        steps = iter(range(100))

        def loss(rows):
            if next(steps) == kill_at:
                raise Killed
            part = on_device(x[rows].numpy(), device)
            return (module(part) - part.sum(1, keepdim=True)).square().mean()

        def validate():
            with torch.no_grad():
                return -float(loss(slice(None)))

        train_epochs(
            module, lambda epoch: iter([slice(0, 30), slice(30, 60)]), loss, settings, validate=validate,
            checkpoint=None if kill_at is None else tmp_path / "state.safetensors", fingerprint={"run": 1},
        )  # fmt: skip
        return module.to("cpu").weight.detach()

    expected = train(torch.device("cpu"))
    first, second = (DEVICE, torch.device("cpu")) if there_first else (torch.device("cpu"), DEVICE)
    with pretended_device():
        with pytest.raises(Killed):
            train(first, kill_at=5)
        with caplog.at_level(logging.WARNING, "reasonrec_fast"):
            result = train(second, kill_at=99)
    torch.testing.assert_close(result, expected)
    (line,) = caplog.messages
    assert f"was written on {first.type} and resumes on {second.type}" in line


# OptiRAG


@pytest.fixture
def labelled(events, monkeypatch):
    monkeypatch.setattr(optirag_scorer, "fast_dtype", lambda device: torch.float32)
    return events, split_by_time(events)


OPTIRAG_FIT = {
    "embeddings.__init__",  # the graph of likes, once
    "retriever.train",  # item embeddings, once a retriever
    "interaction.to",  # the same graph
    "loop.read_metrics",  # the loss, for progress
    "scorer.exit_logits",  # once a batch of calibration
    "adapters._weights_to_merge_into",  # each adapted weight, once a merge
}


def test_optirag_is_fitted_calibrated_and_saved_on_a_device(labelled, config, tmp_path):  # noqa: F811
    events, split = labelled
    settings = replace(config, samples=24, retriever=EmbeddingConfig(dim=8, steps=3, batch=64))
    rows = split.test[:60]
    cpu_model = OptiRAG(settings, device="cpu").fit(events, split.train, split.validation)
    prepared = cpu_model.requests(events, rows)
    expected = cpu_model.predict(prepared), cpu_model.predict(prepared, early_exit=False)
    with pretended_device() as device:
        device_model = OptiRAG(settings, device=DEVICE)
        assert (
            device_model.device == DEVICE
            and all_on_device(device_model.peft)
            and all_on_device(device_model.ranker.model)
        )
        device.forget()
        device_model.fit(events, split.train, split.validation, progress=lambda *report: None)
        assert set(device.reads) <= OPTIRAG_FIT, device.reads
        nobody_at_zero = tuple((float("inf"), *row[1:]) for row in device_model.policy.thresholds)
        device_model.ranker.policy = replace(device_model.policy, thresholds=nobody_at_zero)
        device_model.save_pretrained(tmp_path / "device")
        np.testing.assert_allclose(
            device_model.requests(events, rows).dense_features, prepared.dense_features, atol=1e-4
        )
        # Callers of other threads share batches; the mode is of this thread.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("reasonrec_fast.early_exit.ranker.has_host_library", lambda: False)
            device.forget()
            full = device_model.predict(prepared, early_exit=False)
            assert set(device.reads) == {"scores.cpu"} and not device.waits
            early = device_model.predict(prepared)
            assert set(device.reads) == {"scores.cpu", "engine._predict"} and not device.waits
            loaded = OptiRAG.from_pretrained(tmp_path / "device", device=DEVICE)
            np.testing.assert_allclose(loaded.predict(prepared).probability, early.probability, atol=5e-3)
        np.testing.assert_allclose(full.probability, expected[1].probability, atol=5e-3)
        logits = device_model.to("cpu").exit_logits(prepared)
        assert device_model.device == torch.device("cpu")
    np.testing.assert_allclose(
        device_model.predict(prepared, early_exit=False).probability, full.probability, atol=1e-5
    )
    assert logits.shape[1] == len(rows)
    loaded = OptiRAG.from_pretrained(tmp_path / "device", device="cpu")
    assert loaded.policy == device_model.policy
    np.testing.assert_allclose(
        loaded.predict(prepared).probability, early.probability, atol=5e-3
    )  # adapters in bfloat16


def test_the_language_model_takes_the_type_of_its_device(config, monkeypatch):  # noqa: F811
    kinds = {"cpu": torch.float32, "meta": torch.bfloat16}
    monkeypatch.setattr(optirag_scorer, "fast_dtype", lambda device: kinds[device.type])
    model = OptiRAG(config, device="cpu")
    assert model.ranker.model.backbone.dtype == torch.float32
    with pretended_device():
        model.to(DEVICE)
        assert model.ranker.model.backbone.dtype == torch.bfloat16 and all_on_device(model.peft)
        types = {name: p.dtype for name, p in model.peft.named_parameters()}
        assert {kind for name, kind in types.items() if "lora_" in name} == {torch.float32}
        assert {p.dtype for p in model.ranker.model.heads.parameters()} == {torch.float32}
        assert model.to("cpu").ranker.model.backbone.dtype == torch.float32


def test_making_a_model_leaves_the_callers_random_numbers_alone(config):  # noqa: F811
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    OptiRAG(config, device="cpu")
    classical.SASRec(device="cpu").build({"users": 2, "items": 3})
    classical.DCNv2(device="cpu").build({"users": 2, "items": 3, "attributes": 0, "values": 0, "entries": 0})
    assert torch.equal(torch.rand(3), expected)


def test_graph_embeddings_train_where_their_graph_is():
    generator = np.random.default_rng(0)
    graphs = [
        InteractionGraph.from_edges(generator.integers(0, 20, 90), generator.integers(0, 15, 90), num_users=20,
                                    num_items=15) for _ in range(2)
    ]  # fmt: skip
    settings, pairs = EmbeddingConfig(dim=4, steps=4, batch=64), (torch.arange(10), torch.arange(10))
    expected = GraphEmbeddings(graphs[0], settings).fit(graphs[1]).score(*pairs)
    with pretended_device() as device:
        model = GraphEmbeddings(graphs[0].to(DEVICE), settings)
        device.forget()
        model.fit(graphs[1])
        assert set(device.reads) == {"interaction.to"}
        torch.testing.assert_close(model.score(*pairs).cpu(), expected)
        to_device = GraphEmbeddings(graphs[0], settings).fit(graphs[1]).to(DEVICE)
        torch.testing.assert_close(to_device.score(*pairs).cpu(), expected)


def test_out_of_memory_names_the_batch(monkeypatch):
    model = exiting("Llama")

    def too_small(*arguments):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(Decoder, "embed", too_small)
    with pytest.raises(torch.OutOfMemoryError, match=r"a batch of 5 rows with 33 tokens did not fit .* 2 GiB"):
        model.predict(GROUPS, dense_features())
