"""The AMX tile, compiled against an emulation of its instructions: most machines have none."""

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).resolve().parents[1] / "amx_host" / "product.cpp"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if platform.machine() != "x86_64":
        pytest.skip("AMX belongs to x86-64")
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    path = tmp_path_factory.mktemp("amx_host") / "product.so"
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", SOURCE, "-o", path], check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("lanes", [16, 32])
@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 64, 90])
def test_tile_equals_product(library, lanes, width):
    generator = torch.Generator().manual_seed(width)
    hidden = torch.randn(lanes, width, generator=generator).bfloat16()
    weight = torch.randn(32, width, generator=generator).bfloat16()
    result = torch.full((32, lanes), torch.nan)
    library.run_product(
        ctypes.c_void_p(hidden.data_ptr()),
        ctypes.c_int64(lanes),
        ctypes.c_void_p(weight.data_ptr()),
        ctypes.c_int64(width),
        ctypes.c_void_p(result.data_ptr()),
    )
    torch.testing.assert_close(result.double(), weight.double() @ hidden.double().T, atol=1e-4, rtol=1e-4)
