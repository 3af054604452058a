"""The CUDA kernels of route, compiled by the C++ compiler and run on the host; and compiled by nvcc."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from reasonrec_fast.ops.route import route, route_to

SOURCES = Path(__file__).resolve().parents[1] / "cuda_host"
CSRC = SOURCES.parents[1] / "csrc" / "cuda"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda_host") / "route.so"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", SOURCES / "route.cpp", "-o", path]
    subprocess.run([str(part) for part in command], check=True)
    return ctypes.CDLL(str(path))


def call(function, source, *numbers, outputs):
    found = [torch.full((size,), -7, dtype=torch.int64) for size in outputs]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in found]
    function(ctypes.c_void_p(source.data_ptr()), *map(ctypes.c_int64, numbers), *pointers)
    return found


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 5000, 65_536])
@pytest.mark.parametrize("destinations", [1, 2, 32, 300])
def test_partition_on_host_equals_operator(library, rows, destinations):
    destination = torch.randint(destinations, (rows,), generator=torch.Generator().manual_seed(rows))
    found = call(library.run_partition, destination, rows, destinations, outputs=(rows, rows, destinations + 1))
    expected = route_to(destination, destinations)
    for ours, theirs in zip(found, (expected.order, expected.inverse, expected.offsets), strict=True):
        assert torch.equal(ours, theirs)


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
    for ours, theirs in zip(call(function, values, rows, count, outputs=(rows, rows, 3, rows)), expected, strict=True):
        assert torch.equal(ours, theirs)


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
