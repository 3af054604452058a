"""Shared code of the operators: cached constants, devices, and recompilation by Triton."""

import pytest
import torch

from reasonrec_fast import ops
from reasonrec_fast.ops import library

CPU = torch.device("cpu")


def test_settings_are_made_once_and_hold_their_value():
    first = library.setting(0.7, CPU, library.may_keep(CPU))
    assert library.setting(0.7, CPU, True) is first
    assert float(library.setting(0.8, CPU, True)) == 0.8 and float(first) == 0.7
    given = torch.tensor(0.5)
    assert library.setting(given, CPU, True).dtype == torch.float64
    assert library.nothing(torch.int64, CPU, True) is library.nothing(torch.int64, CPU, True)
    assert library.nothing(torch.int64, CPU, True).dtype == torch.int64


def test_a_constant_made_in_inference_mode_serves_training():
    library._kept.cache_clear()
    hidden, heads = torch.randn(2, 4), torch.randn(3, 4)
    with torch.inference_mode():
        ops.exit_confidence(hidden, heads, temperature=0.123)
    heads.requires_grad_()
    ops.exit_confidence(hidden, heads, temperature=0.123).entropy.sum().backward()
    assert heads.grad.isfinite().all()


def test_nothing_is_kept_under_a_compiler_a_mode_a_transform_or_a_capture(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert library.may_keep(CPU)
    with FakeTensorMode():
        assert not library.may_keep(CPU)
    seen = []
    torch.vmap(lambda x: (seen.append(library.may_keep(CPU)), x)[1])(torch.zeros(2))
    assert seen == [False]
    assert not library.may_keep(torch.device("meta"))
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda now=capturing: now)
        assert library.may_keep(torch.device("cuda", 0)) is not capturing
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not library.may_keep(CPU)


def test_a_call_without_gradients_gives_the_same_and_one_with_them_has_them():
    hidden, heads, tokens = torch.randn(5, 8), torch.randn(9, 8), torch.arange(5)
    expected = torch.ops.reasonrec_fast.exit_confidence(
        hidden, heads[None], hidden[:0, 0], torch.ones((), dtype=torch.float64), "margin", 1, tokens[:0]
    )
    with torch.no_grad():
        without = ops.exit_confidence(hidden, heads.requires_grad_(), measure="margin")
    with torch.inference_mode():
        inference = ops.exit_confidence(hidden, heads, measure="margin")
    result = ops.exit_confidence(hidden, heads, measure="margin")
    for statistics in (without, inference, result):
        assert torch.equal(statistics.probability, expected[0]) and torch.equal(statistics.entropy, expected[3])
    assert not without.entropy.requires_grad and result.entropy.requires_grad
    assert not without.entropy.is_inference() and inference.entropy.is_inference()
    assert ops.token_logprobs(hidden, heads, tokens).logprobs.requires_grad
    assert not ops.token_logprobs(hidden, heads.detach(), tokens).logprobs.requires_grad


class Placed:
    """Something on a device, for a rule that reads nothing else."""

    def __init__(self, device, count=1):
        self.device, self._count = torch.device(device), count

    def numel(self):
        return self._count


def test_an_operator_runs_on_the_device_of_its_tensors(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or library.nullcontext())
    with library.device_of("topk", [Placed("cuda:0"), Placed("cpu", 0)]):
        assert entered == []
    with library.device_of("topk", [Placed("cuda:1"), Placed("cuda:1")]):
        assert entered == [torch.device("cuda:1")]
    with pytest.raises(ValueError, match=r"topk: expected all tensors on one device; got \['cpu', 'cuda:1'\]"):
        library.device_of("topk", [Placed("cuda:1"), Placed("cpu")])


def test_every_implementation_for_a_gpu_asks_for_the_device(monkeypatch):
    """A Triton kernel is launched on the current device, whatever the device of its tensors."""
    requested = []

    def device_of(name, tensors):
        requested.append(name)
        raise InterruptedError

    monkeypatch.setattr(library, "device_of", device_of)
    x = torch.zeros(2, 1, 2, dtype=torch.float64)
    for name, run in library.ON_GPU.items():
        with pytest.raises(InterruptedError):
            run(*([x] * 3 if name == "packed_attention" else [x] * 6), torch.zeros(1, 6), 1.0, 0.0)
    assert requested == list(library.ON_GPU)


SPECIALISED = {"width", "block_classes", "query_stride", "key_stride", "value_stride", "gate_stride", "up_stride"}
"""Sizes whose multiples of 16 make loads and stores wide; a model has one or two of them."""


def test_no_kernel_is_compiled_again_for_another_count():
    """Triton recompiles for integers that are 1 or multiples of 16, unless they are excluded: seconds during
    service."""
    pytest.importorskip("triton")
    from compile_kernels import cases

    kernels = {
        kernel.fn.__qualname__ + kernel.fn.__module__: (kernel, kinds)
        for element in ("bf16", "fp32")
        for _, (kernel, kinds, *_) in cases(element)
    }
    assert len(kernels) == 17
    for kernel, kinds in kernels.values():
        if hasattr(kernel, "params"):
            free = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
        else:  # in the interpreter
            free = set(kernel.kwargs.get("do_not_specialize") or ())
        integers = {name for name, kind in kinds.items() if kind in ("i32", "i64")}
        assert free <= integers
        assert integers - free <= SPECIALISED, kernel.fn.__qualname__
