"""Native libraries that cannot be used: one clear message, and a fallback."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from reasonrec_fast.ops import native

PACKAGE = native.FOLDER
NOT_A_LIBRARY = b"\x7fELF but nothing else"
# A torch that has started CUDA on one GPU, as the package sees it.
WITH_GPU = """
import torch
torch.version.cuda = "13.0"
torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda index=None: {capability}
torch.cuda.get_device_name = lambda index=None: "a GPU"
"""
SAY = """
import reasonrec_fast
print([torch._C._dispatch_has_kernel_for_dispatch_key(f"reasonrec_fast::{name}", "CUDA")
       for name in ("route_budget", "partition")])
print(reasonrec_fast.ops.route(torch.tensor([0.1, 0.9, 0.5]), budget=1).order.tolist())
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package without native libraries, and a function that runs code in it."""
    copied = tmp_path / "reasonrec_fast"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("*.so", "__pycache__"))

    def run(code: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return copied, run


def warnings_about_route(done):
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("route: plain torch runs on the GPU (slower)")]


@pytest.mark.parametrize("library", [NOT_A_LIBRARY, None])
def test_cuda_library_that_does_not_load_costs_one_line(package, library):
    folder, run = package
    shutil.copy2(PACKAGE / "_C.so", folder)
    if library is not None:
        (folder / "_C_cuda.so").write_bytes(library)
    done = run(WITH_GPU.format(capability=(9, 0)) + SAY)
    (line,) = warnings_about_route(done)
    assert str(folder / "_C_cuda.so") in line and "build it again" in line
    # With the loader's message, not only that torch could not load it.
    assert (
        ("is not there" in line) if library is None else ("does not load beside torch" in line and "too short" in line)
    )
    assert done.stdout.splitlines()[-2:] == ["[True, True]", "[0, 2, 1]"]


def test_gpu_older_than_the_kernels_costs_one_line(package):
    folder, run = package
    shutil.copy2(PACKAGE / "_C.so", folder)
    (folder / "_C_cuda.so").write_bytes(NOT_A_LIBRARY)  # not even tried
    done = run(WITH_GPU.format(capability=(7, 5)) + SAY)
    (line,) = warnings_about_route(done)
    assert "expects GPUs of compute capability 8.0 or newer; cuda:0 (a GPU) has 7.5" in line
    assert done.stdout.splitlines()[-2:] == ["[True, True]", "[0, 2, 1]"]


@pytest.mark.parametrize(
    ("capabilities", "loads", "expected"),
    [
        ([(9, 0)], True, None),
        ([(9, 0), (10, 0)], True, None),
        ([(7, 5), (9, 0)], True, "route: does not run on cuda:0 (GPU 0) with 7.5: the CUDA library expects"),
        ([(6, 1), (8, 0), (7, 5)], True, "run on cuda:0 (GPU 0) with 6.1, cuda:2 (GPU 2) with 7.5: the CUDA library"),
        ([(6, 1), (7, 5)], False, "8.0 or newer; cuda:0 (GPU 0) has 6.1, cuda:1 (GPU 1) has 7.5"),
    ],
)
def test_an_old_gpu_beside_a_new_one(monkeypatch, tmp_path, caplog, capabilities, loads, expected):
    """It does not switch off the CUDA library for the new one, and is named."""
    (tmp_path / "_C_cuda.so").touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    with caplog.at_level(logging.INFO, logger="reasonrec_fast"):
        assert native.load_cuda(tmp_path) is loads
    assert loaded == ([str(tmp_path / "_C_cuda.so")] if loads else [])
    assert len(caplog.messages) == (expected is not None)
    if expected is not None:
        assert expected in caplog.messages[0]


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch for CUDA (make verify-oldest has one)")
def test_cuda_library_loads_beside_a_torch_for_cuda(cuda_library):
    """When torch initialises CUDA, which is mocked without a GPU."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_GPU.format(capability=(9, 0)) + SAY], capture_output=True, text=True
    )
    assert not warnings_about_route(done)
    assert done.stdout.splitlines()[-2:] == ["[True, True]", "[0, 2, 1]"]


@pytest.mark.parametrize("library", [NOT_A_LIBRARY, None])
def test_cpu_library_that_does_not_load_says_why(package, library):
    folder, run = package
    if library is not None:
        (folder / "_C.so").write_bytes(library)
    done = run("import reasonrec_fast")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: reasonrec_fast: the native library {folder / '_C.so'} ")
    assert "pip install --no-build-isolation ." in last
    assert ("is not there" in last) if library is None else (f"beside torch {torch.__version__}" in last)


def test_importing_starts_no_cuda():
    """The import does not query devices: a process that has done so may not fork and use the GPU."""
    code = """
import torch
torch.version.cuda = "13.0"
def refuse(*arguments):
    raise AssertionError("CUDA was queried")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.get_device_capability = torch.cuda._lazy_init = refuse
import reasonrec_fast.ops
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def driver(version: int, error: int = 0) -> types.SimpleNamespace:
    def ask(pointer):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = version
        return error

    return types.SimpleNamespace(cuDriverGetVersion=ask)


@pytest.mark.parametrize(
    ("installed", "old"),
    [
        (driver(12080), True),
        (driver(13000), False),
        (driver(13020), False),
        (driver(14000), False),
        (driver(0, 3), False),
    ],
)
def test_driver_older_than_torch(monkeypatch, installed, old):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native.ctypes, "CDLL", lambda name: installed)
    problem = native.driver_problem()
    assert (problem is not None) == old
    if problem is not None:
        assert problem.startswith("the NVIDIA driver serves CUDA 12.8, and torch")
        assert "for CUDA 13.0: the GPU cannot be used and the CPU goes on; update the driver" in problem


def test_no_driver_is_no_problem(monkeypatch):
    def none(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native.ctypes, "CDLL", none)
    assert native.driver_problem() is None


def test_torch_for_another_gpu_says_so(monkeypatch, caplog):
    monkeypatch.setattr(torch.version, "cuda", None)
    with caplog.at_level(logging.WARNING, logger="reasonrec_fast"):
        assert native.load_cuda() is False
    assert "the CUDA library needs a torch for CUDA" in caplog.text


@pytest.fixture
def cuda_library() -> Path:
    library = PACKAGE / "_C_cuda.so"
    if not library.is_file():
        pytest.skip("needs _C_cuda.so, which is built where nvcc is")
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    return library


def read(*command: object) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def test_cuda_library_finds_torchs_cuda_symbols_by_libtorch(cuda_library):
    """Built with a torch for the CPU, it loads with a torch for CUDA only if it links libtorch.so."""
    assert "[libtorch.so]" in read("readelf", "-d", "-W", cuda_library)


def test_cuda_library_makes_the_tensors_device_current(cuda_library):
    symbols = read("readelf", "--dyn-syms", "-W", cuda_library)
    assert "UND aoti_torch_create_device_guard" in symbols
