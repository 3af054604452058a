"""The CUDA kernels of route, compiled by the C++ compiler and run on the host; and compiled by nvcc."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reasonrec_fast.ops.route import _partition, _route_to, route, route_to

SOURCES = Path(__file__).resolve().parents[1] / "cuda_host"
CSRC = SOURCES.parents[1] / "csrc" / "cuda"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda_host") / "route.so"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", SOURCES / "route.cpp", "-o", path]
    subprocess.run([str(part) for part in command], check=True)
    return ctypes.CDLL(str(path))


def call(function, source, *sizes, outputs):
    results = [torch.full((size,), -7, dtype=torch.int64) for size in outputs]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in results]
    function(ctypes.c_void_p(source.data_ptr()), *map(ctypes.c_int64, sizes), *pointers)
    return results


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 5000, 65_536])
@pytest.mark.parametrize("destinations", [1, 2, 32, 300])
def test_partition_on_host_equals_operator(library, rows, destinations):
    destination = torch.randint(destinations, (rows,), generator=torch.Generator().manual_seed(rows))
    results = call(library.run_partition, destination, rows, destinations, outputs=(rows, rows, destinations + 1))
    expected = route_to(destination, destinations)
    for actual, wanted in zip(results, (expected.order, expected.inverse, expected.offsets), strict=True):
        assert torch.equal(actual, wanted)


GUARD, MARGIN = -0x5A5A5A5A5A5A5A5A, 64


def guarded(function, source, *sizes, outputs):
    """As :func:`call`, and nothing may be written before or behind the outputs."""
    held = [torch.full((size + 2 * MARGIN,), GUARD, dtype=torch.int64) for size in outputs]
    results = [whole[MARGIN : MARGIN + size] for whole, size in zip(held, outputs, strict=True)]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in results]
    function(ctypes.c_void_p(source.data_ptr()), *map(ctypes.c_int64, sizes), *pointers)
    for whole, size in zip(held, outputs, strict=True):
        assert (whole[:MARGIN] == GUARD).all() and (whole[MARGIN + size :] == GUARD).all()
    return results


@pytest.mark.parametrize("destinations", [1, 2, 5, 32, 300])
@pytest.mark.parametrize("rows", [1, 257, 5000])
def test_destinations_out_of_range_stay_within_memory(library, rows, destinations):
    """5 and 300 are no powers of two: of 7 and of 511 the sort keeps every bit, and they are out of range still."""
    longs = torch.iinfo(torch.int64)
    wrong = [
        longs.min,
        longs.max,
        -1,
        -destinations,
        destinations,
        destinations + 1,
        2**31,
        2**32,
        -(2**32) + 1,
        7,
        511,
    ]
    choices = torch.tensor([*wrong, *range(destinations)])
    picked = torch.randint(len(choices), (rows,), generator=torch.Generator().manual_seed(rows))
    picked[: len(wrong)] = torch.arange(len(wrong))[:rows]
    destination = choices[picked]
    results = guarded(library.run_partition, destination, rows, destinations, outputs=(rows, rows, destinations + 1))
    order, inverse, offsets = results
    assert torch.equal(order.sort().values, torch.arange(rows))
    assert torch.equal(order[inverse], torch.arange(rows))
    assert offsets[0] == 0 and offsets[-1] == rows and (offsets.diff() >= 0).all()
    # The operator on a CPU with the same rows clamped, and the plain torch that runs where the CUDA library is not.
    clamped = route_to(destination.clamp(0, destinations - 1), destinations)
    for actual, wanted, plain in zip(results, clamped[:3], _partition(destination, destinations), strict=True):
        assert torch.equal(actual, wanted) and torch.equal(plain, wanted)


@pytest.mark.parametrize("value", [-1, 3, 4, torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max])
@pytest.mark.parametrize("capacity", [None, torch.tensor([1, 1, 1])])
def test_destinations_out_of_range_are_refused_on_a_cpu(value, capacity):
    with pytest.raises(RuntimeError, match=rf"destination: expected values in \[0, 3\); got {value} in row 2"):
        route_to(torch.tensor([0, 1, value, 2]), 3, capacity=capacity)


@pytest.mark.parametrize("capacity", [0, 4])
def test_path_of_a_gpu_reads_nothing_back(capacity):
    """The steps on tensors without values: reading a value fails, and so does a tensor on another device."""
    with FakeTensorMode():
        empty = [torch.empty(size, dtype=torch.int64, device="cuda") for size in (9, capacity)]
        score = torch.empty(9 if capacity else 0, device="cuda")
        results = _route_to(empty[0], 4, empty[1], score)
    assert [tuple(part.shape) for part in results] == [(9,), (9,), (5,), (9,)]
    assert {part.device.type for part in results} == {"cuda"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 5000])
@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("kind", ["distinct", "ties", "special"])
def test_budget_on_host_equals_operator(library, dtype, rows, share, kind):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, generator=generator, dtype=dtype)
    if kind == "ties":
        values = (values * 2).round()
    if kind == "special":
        choices = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0], dtype=dtype)
        values = choices[torch.randint(len(choices), (rows,), generator=generator)]
    expected = route(values, budget=share)
    function = library.run_route_budget if dtype == torch.float32 else library.run_route_budget_double
    count = int(expected.destination.sum())
    for actual, wanted in zip(
        call(function, values, rows, count, outputs=(rows, rows, 3, rows)), expected, strict=True
    ):
        assert torch.equal(actual, wanted)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_without_spills(architecture, tmp_path):
    source = tmp_path / "kernel.cu"
    source.write_text(
        f'#include "{CSRC / "route.cuh"}"\n'
        "template __global__ void reasonrec::key_kernel<float>(const float*, int64_t, uint32_t*, int64_t*);\n"
        "template __global__ void reasonrec::key_kernel<double>(const double*, int64_t, uint64_t*, int64_t*);\n"
    )
    done = subprocess.run(
        ["nvcc", f"-arch={architecture}", "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "kernel.cubin"), str(source)],
        capture_output=True,
        text=True,
        check=True,
    )
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == 7
    assert set(spills) == {("0", "0")}
