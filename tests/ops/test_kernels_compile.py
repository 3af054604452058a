"""Every Triton kernel compiled offline for three generations of GPUs, within a static budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BUDGET = json.loads((Path(__file__).resolve().parents[1] / "static_budget.json").read_text())
SCRIPT = Path(__file__).resolve().parents[1] / "compile_kernels.py"
KERNELS = {kernel for kernels in BUDGET.values() for kernel in kernels}


def triton_version():
    triton = pytest.importorskip("triton")
    return ".".join(triton.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def compiled():
    """The compiler's statistics of each kernel, type and target, from a process without the interpreter."""
    if triton_version() not in BUDGET:
        pytest.skip(f"no budget for triton {triton_version()}; there are {sorted(BUDGET)}")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", [80, 90, 100])
@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_kernel_keeps_its_budget(compiled, kernel, target):
    """At most so many registers and so much shared memory; at least so many 128-bit loads and tensor-core products."""
    result = compiled[f"{kernel}/sm_{target}"]
    budget = BUDGET[triton_version()][kernel]
    assert result["stack"] == 0, "spills"
    assert result["registers"] <= budget["registers"]
    assert result["shared"] <= budget["shared"]
    assert result["wide_loads"] >= budget["wide_loads"]
    assert result["tensor_core"] >= budget["tensor_core"]


def test_every_kernel_has_a_budget(compiled):
    assert {name.rsplit("/", 1)[0] for name in compiled} == set(BUDGET[triton_version()])
