"""The CUDA kernel of partition, compiled by the C++ compiler and run on the host."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from reasonrec_fast.ops.route import route_to

SOURCES = Path(__file__).resolve().parents[1] / "cuda_host"
CSRC = SOURCES.parents[1] / "csrc" / "cuda"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda_host") / "partition.so"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", SOURCES / "partition.cpp", "-o", path]
    subprocess.run([str(part) for part in command], check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 5000, 65_536])
@pytest.mark.parametrize("destinations", [1, 2, 32])
def test_kernel_on_host_equals_operator(library, rows, destinations):
    destination = torch.randint(destinations, (rows,), generator=torch.Generator().manual_seed(rows))
    order, inverse = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.int64)
    offsets = torch.empty(destinations + 1, dtype=torch.int64)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (destination, order, inverse, offsets)]
    library.run_partition(pointers[0], ctypes.c_int64(rows), destinations, *pointers[1:])
    expected = route_to(destination, destinations)
    assert torch.equal(order, expected.order)
    assert torch.equal(inverse, expected.inverse)
    assert torch.equal(offsets, expected.offsets)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_kernel_compiles_without_spills(architecture, tmp_path):
    source = tmp_path / "kernel.cu"
    source.write_text(f'#include "{CSRC / "partition.cuh"}"\n')
    done = subprocess.run(
        ["nvcc", f"-arch={architecture}", "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "kernel.cubin"), str(source)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
