"""CUDA graphs of layers: what changes after a recording, what fails in it, several models, devices and threads."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny

from reasonrec_fast.early_exit import EarlyExitModel, engine
from reasonrec_fast.lm import Decoder, layer_graphs
from reasonrec_fast.lm.layer_graphs import LayerGraphs, weights_mark

pytest.importorskip("triton")
GROUPS = [([5, 6, 7, 8, 9], [[10, 11], [12], [13, 14, 15]]), ([], [[20, 21, 22]])]


def again(run):
    """A recording on the CPU: the function as it was, with the weights that it had."""
    run()
    return run


@pytest.fixture
def graphs(monkeypatch):
    result = LayerGraphs(again)
    monkeypatch.setattr(layer_graphs, "_LEAST", 24)
    monkeypatch.setattr(layer_graphs, "_LEAST_TILES", 8)
    monkeypatch.setattr(engine, "layer_graphs", lambda backbone: result if layer_graphs.usable(backbone) else None)
    return result


def ranker(family="Llama", **options):
    model = EarlyExitModel(Decoder(tiny(family, num_hidden_layers=1, **options)), ()).eval()
    with torch.no_grad():
        for head in model.heads:
            head.weight.mul_(20.0)
    return model


def same(model):
    model.cuda_graphs = False
    expected = model.predict(GROUPS).probability
    model.cuda_graphs = True
    torch.testing.assert_close(model.predict(GROUPS).probability, expected, atol=2e-5, rtol=2e-4)


def changes_the_mark(model, change):
    before = weights_mark(model.backbone)
    change()
    after = weights_mark(model.backbone)
    return after is None or after != before


def test_a_weight_seen_otherwise_in_the_same_memory():
    """A graph has sizes and strides in it, not only addresses."""
    model = ranker()
    attention = model.backbone.base.layers[0].self_attn
    turned = torch.nn.Parameter(attention.o_proj.weight.detach().t())
    assert turned.data_ptr() == attention.o_proj.weight.data_ptr()
    assert changes_the_mark(model, lambda: setattr(attention.o_proj, "weight", turned))


def test_pruned_columns_in_the_same_memory():
    model = ranker()
    mlp = model.backbone.base.layers[0].mlp

    def prune():
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight = torch.nn.Parameter(linear.weight.detach()[:20])
        mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight.detach()[:, :20])

    assert changes_the_mark(model, prune)


def test_another_module_where_one_was():
    """The address of a module that is gone is soon that of another."""
    model = ranker()
    mlp = model.backbone.base.layers[0].mlp
    mlp.act_fn = torch.nn.SiLU().eval()
    before, address = weights_mark(model.backbone), id(mlp.act_fn)
    del mlp.act_fn
    others = [torch.nn.ReLU().eval() for _ in range(200)]
    mlp.act_fn = next((other for other in others if id(other) == address), None)
    if mlp.act_fn is None:
        pytest.skip("the address was not given again")
    assert weights_mark(model.backbone) != before


def test_a_class_that_is_exchanged():
    model = ranker()
    mlp = model.backbone.base.layers[0].mlp
    mlp.act_fn = torch.nn.SiLU().eval()
    assert changes_the_mark(model, lambda: setattr(mlp.act_fn, "__class__", torch.nn.ReLU))


def test_modules_that_peft_saves_are_switched(graphs):
    """``modules_to_save`` are wrappers of peft without a merge: a setting decides which module runs."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        tiny("Llama", num_hidden_layers=1),
        peft.LoraConfig(r=2, target_modules=["lm_head"], modules_to_save=["down_proj"]),
    )
    model = EarlyExitModel(Decoder(adapted), ()).eval()
    saved = model.backbone.base.layers[0].mlp.down_proj
    with torch.no_grad():
        saved.modules_to_save["default"].weight.mul_(-5.0)
        model.heads[0].weight.mul_(20.0)
    assert weights_mark(model.backbone) is not None
    assert changes_the_mark(model, lambda: saved.enable_adapters(False))


class Quantised(torch.Tensor):
    """A weight as quantisers make them: it has no memory of its own."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value):
        result = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype)
        result.value = value
        return result

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].value)
        values = torch.utils._pytree.tree_map(lambda x: x.value if isinstance(x, cls) else x, args)
        return function(*values, **(kwargs or {}))


def test_weights_without_memory_of_their_own():
    model = ranker()
    projection = model.backbone.base.layers[0].mlp.down_proj
    projection.weight = torch.nn.Parameter(Quantised(projection.weight.detach()), requires_grad=False)
    try:
        before = weights_mark(model.backbone)
    except RuntimeError as problem:
        pytest.fail(f"weights_mark: {problem}")
    other = torch.nn.Parameter(Quantised(projection.weight.value * 2), requires_grad=False)
    projection.weight = other
    assert before is None or weights_mark(model.backbone) != before


@pytest.mark.parametrize(
    "setting",
    [
        'torch.backends.cuda.matmul.fp32_precision = "tf32"',
        'torch.backends.fp32_precision = "tf32"',
        'torch.set_float32_matmul_precision("high")',
    ],
)
def test_the_newer_setting_of_precision(setting):
    """After it torch refuses to read the older setting."""
    script = f"""
import torch
from types import SimpleNamespace
from reasonrec_fast.lm.layer_graphs import weights_mark
none = SimpleNamespace(base=SimpleNamespace(layers=[]))
before = weights_mark(none)
{setting}
assert weights_mark(none) != before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-400:]


def test_the_weight_of_a_norm_may_have_strides(graphs):
    model = ranker()
    norm = model.backbone.base.layers[0].post_attention_layernorm
    wide = torch.stack([norm.weight.detach(), torch.full_like(norm.weight, 7.0)], 1)
    norm.weight = torch.nn.Parameter(wide[:, 0])
    for _ in range(3):
        same(model)


class OutOfResources(Exception):
    """As Triton's is: no RuntimeError."""


def test_any_failure_of_a_recording_is_reported_and_layers_run(monkeypatch, caplog):
    def fails(run):
        raise OutOfResources("out of resource: shared memory")

    result = LayerGraphs(fails)
    monkeypatch.setattr(engine, "layer_graphs", lambda backbone: result)
    model = ranker()
    for _ in range(3):
        same(model)
    assert [record.message for record in caplog.records] == [
        "early_exit: no CUDA graph (out of resource: shared memory); layers run one by one (slower)"
    ]


def test_a_batch_that_could_not_be_copied_leaves_nothing_behind(graphs, monkeypatch):
    """Of the buffers nothing is known after a copy that failed half-way."""
    model = ranker()
    for _ in range(2):
        model.predict(GROUPS)
    (buffers,) = graphs._state.buffers.values()
    prepared, rotary = buffers.holds
    other = layer_graphs.Prepared(prepared.size, prepared.tiles, prepared.plan.clone().zero_(), prepared.blocks)
    broken = {kind: (cosines[:, :1], sines[:, :3]) for kind, (cosines, sines) in rotary.items()}
    hidden = torch.zeros(len(next(iter(rotary.values()))[0]), model.backbone.hidden_size)
    with torch.inference_mode():
        with pytest.raises(RuntimeError):
            graphs._fill(hidden, broken, other)
        graphs._fill(hidden, rotary, prepared)
    assert torch.equal(buffers.plan, prepared.plan)


@contextmanager
def torch_cuda(monkeypatch, streams):
    """As much of ``torch.cuda`` as a recording takes, which minds what torch minds: one capture at a time."""
    inside = []

    class Graph:
        default_capture_stream = None

        def __init__(self, graph, pool=None, stream=None, **options):
            streams.append(stream)

        def __enter__(self):
            inside.append(self)
            if len(inside) > 1:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

        def __exit__(self, *problem):
            inside.remove(self)

    class Stream:
        device = torch.device("cuda", 0)

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "graph", Graph)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        patch.setattr(torch.cuda, "current_stream", lambda *device: Stream())
        patch.setattr(torch.cuda, "Stream", lambda *device: Stream())
        patch.setattr(torch.cuda, "set_stream", lambda stream: None)
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        yield


def test_models_are_recorded_one_after_the_other(monkeypatch):
    """``torch.cuda.graph``: "only one capture may be underway at a time in the process"."""
    with torch_cuda(monkeypatch, []):
        start = threading.Barrier(2)

        def record(recorder):
            start.wait()
            recorder(lambda: time.sleep(0.2))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(record, [layer_graphs._CudaGraphs(), layer_graphs._CudaGraphs()]))


def test_each_model_is_recorded_on_a_stream_of_its_own(monkeypatch):
    """cuBLAS has a workspace for each stream that it is recorded on: models that share it may not be replayed side by
    side. The stream that torch takes by itself is one for all models, and of the device that was first."""
    streams = []
    with torch_cuda(monkeypatch, streams):
        first, second = layer_graphs._CudaGraphs(), layer_graphs._CudaGraphs()
        for recorder in (first, second, first):
            recorder(lambda: None)
    assert None not in streams
    assert streams[0] is streams[2]
    assert streams[0] is not streams[1]


class There(torch.Tensor):
    """Says that it is on the second GPU."""

    @property
    def device(self):
        return torch.device("cuda", 1)


def test_the_device_of_a_model_is_the_present_one(monkeypatch):
    """Triton launches on the present device, and a capture is of its stream."""
    present = [0]

    @contextmanager
    def device(result):
        before, present[0] = present[0], torch.device(result).index
        yield
        present[0] = before

    class Stream:
        def record_event(self):
            return SimpleNamespace(synchronize=lambda: None)

        def wait_event(self, event):
            pass

    seen = []

    def record(run):
        seen.append(present[0])
        return lambda: seen.append(present[0])

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: present[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: Stream())
    result, hidden = LayerGraphs(record), torch.zeros(3, 4).as_subclass(There)
    monkeypatch.setattr(result, "_fill", lambda *arguments: SimpleNamespace(hidden=torch.zeros(8, 4)))
    prepared = layer_graphs.Prepared(8, 32, torch.zeros(1), None)
    for _ in range(2):
        result.run(None, 1, 1, hidden, {}, prepared)
    assert seen == [1, 1]
    assert present == [0]


def test_a_model_that_leaves_the_gpu_leaves_no_graphs_there():
    backbone = ranker().backbone
    layer_graphs._of_backbones[backbone] = LayerGraphs(again)
    assert layer_graphs.layer_graphs(backbone) is None  # it is on the CPU now
    assert backbone not in layer_graphs._of_backbones


def test_a_default_device_is_not_where_plans_are_made():
    """Scripts set ``torch.set_default_device("cuda")``; plans are made on the host, in pinned memory."""
    from reasonrec_fast.kernels.packed_attention import make_plan

    backbone = ranker().backbone
    segments = torch.tensor([[0, 5, 0, 0, 0, 1]])
    with torch.device("meta"):
        assert LayerGraphs(again).prepare(backbone, segments, 5).plan.device.type == "cpu"
        assert make_plan(segments, 5, 5, 4, torch.device("cpu")).tiles.device.type == "cpu"


def test_a_default_type_changes_no_scores():
    model = ranker()
    expected = model.predict(GROUPS).probability
    torch.set_default_dtype(torch.float64)
    try:
        result = model.predict(GROUPS).probability
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("family", ["Gemma", "Gemma2", "Gemma3Text"])
def test_a_model_that_reads_both_ways_is_refused(family):
    """Its tokens see what follows them, and with it every suffix would change its prefix."""
    model = tiny(family, use_bidirectional_attention=True, num_hidden_layers=1)
    with pytest.raises(TypeError, match="bidirectional"):
        Decoder(model)
