"""The quickened interpreter of Triton against Triton's own."""

import pytest
import torch
from interpreted import VERSION, replaced

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
if isinstance(triton.jit(lambda: None), triton.runtime.JITFunction):
    pytest.skip("kernels run on a GPU here", allow_module_level=True)

from triton.runtime import interpreter  # noqa: E402

if not triton.__version__.startswith(VERSION):
    pytest.skip(f"the interpreter of Triton {triton.__version__} runs as it is", allow_module_level=True)


@triton.jit
def first_of_the_larger(x, index, other, other_index):
    """What ``tl.argmax`` does, in a function that the interpreter does not know, and roundings that tell the order."""
    larger = other > x
    return tl.where(larger, other, x) * 1.0000001 + 1e-7, tl.where(larger, other_index, index)


@triton.jit
def differ(x, y):
    return x ^ y


@triton.jit
def many_reductions(values, results, places, AXIS: tl.constexpr, KEEP: tl.constexpr):
    at = tl.arange(0, 8)[:, None] * 16 + tl.arange(0, 16)[None, :]
    x = tl.load(values + at)
    best, place = tl.reduce((x, at), AXIS, first_of_the_larger, keep_dims=KEEP)
    mixed = tl.reduce(at * 7919, AXIS, differ, keep_dims=True)
    tl.store(results + at, tl.sort(x) + best if KEEP else tl.sort(x))
    tl.store(places + at, mixed + at * 0)
    if not KEEP:
        tl.store(results + 128 + tl.arange(0, 16 if AXIS == 0 else 8), best)
        tl.store(places + 128 + tl.arange(0, 16 if AXIS == 0 else 8), place)


@triton.jit
def over_everything(values, results):
    x = tl.load(values + tl.arange(0, 128))
    at = tl.arange(0, 128)
    best, place = tl.reduce((x, at), 0, first_of_the_larger)
    tl.store(results, best + tl.cast(place, tl.float32))
    tl.store(results + 1, tl.cast(tl.xor_sum(at * 31 + 5, 0), tl.float32))


def results(seed):
    values = torch.randn(128, generator=torch.Generator().manual_seed(seed))
    values[5] = values[77]
    found = []
    for axis in (0, 1):
        for keep in (False, True):
            numbers, places = torch.zeros(144), torch.zeros(144, dtype=torch.int32)
            many_reductions[(1,)](values, numbers, places, axis, keep)
            found += [numbers, places]
    one = torch.zeros(2)
    over_everything[(1,)](values, one)
    return [*found, one]


def test_the_same_bits_as_of_tritons_own(monkeypatch):
    quick = results(0)
    for owner, name, _ in replaced(interpreter):
        monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    for first, second in zip(quick, results(0), strict=True):
        assert torch.equal(first, second) and first.any()


def test_what_was_replaced_is_restored_after_a_launch():
    before = tl.load, tl.tensor.__add__
    results(1)
    assert (tl.load, tl.tensor.__add__) == before
