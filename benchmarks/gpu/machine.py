"""The machine: versions, the card, and the measured ceilings to which times are compared."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from benchmarks.gpu.device import Cuda, Run
from benchmarks.gpu.tools import ROOT
from benchmarks.gpu.worker import Emit

PACKAGES = (
    "torch", "triton", "transformers", "cupy-cuda13x", "numba", "numpy", "scipy", "peft", "pytest", "pytest-xdist",
    "liger-kernel",
)  # fmt: skip
OLDEST_CAPABILITY = (8, 0)


def units(device: Cuda) -> list[str]:
    return ["versions", "copy", "product-bfloat16", "product-float32", "launch"]


def run(unit: str, device: Cuda, emit: Emit, done: set[str]) -> None:
    emit(versions() if unit == "versions" else {unit: CEILINGS[unit](device)})


def versions() -> dict[str, Any]:
    """Versions of the software and properties of the card, and a line for each that is missing or too old."""
    record: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "packages": _packages()}
    record["cuda_of_torch"] = torch.version.cuda
    for tool, argument in (("nvcc", "--version"), ("ncu", "--version"), ("compute-sanitizer", "--version")):
        record[tool] = _last_line(tool, argument)
    record["driver"] = _last_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    record["revision"] = _last_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown"
    lines = [f"{tool} is not there" for tool in ("nvcc", "ncu", "compute-sanitizer") if record[tool] is None]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        record |= {
            "device": properties.name,
            "count": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20),
        }
        if (properties.major, properties.minor) < OLDEST_CAPABILITY:
            lines.append(f"capability: expected at least 8.0; got {record['capability']}: kernels may not run")
    else:
        record["device"] = f"cpu-{platform.machine()}"
    return {"versions": record, "lines": lines}


def _packages() -> dict[str, str | None]:
    installed: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def _last_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[-1] if lines and done.returncode == 0 else None


def why_no_gpu() -> str:
    """The reason why torch cannot use a GPU, in one line."""
    driver = _last_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if driver is not None:
        return f"driver {driver} is older than torch's CUDA {torch.version.cuda} needs, or torch may not use the GPU"
    return "torch sees no GPU here"


def _best(device: Cuda, run: Run, rounds: int) -> float:
    """Median seconds of a run, after three warm-up runs."""
    for _ in range(3):
        run()
    times = sorted(device.seconds(run) for _ in range(rounds))
    return times[len(times) // 2]


def copy(device: Cuda) -> float:
    """Bytes read and written per second by a copy of 2 GiB."""
    source = torch.empty((2**18 if device.tiny else 2**31) // 4, device=device.kind).uniform_()
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best(device, lambda: target.copy_(source), 10)


def product(device: Cuda, dtype: torch.dtype, side: int) -> float:
    """Operations per second of a product of random square matrices (zeros would be faster)."""
    side = 64 if device.tiny else side
    a, b = (torch.randn(side, side, device=device.kind).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _best(device, lambda: torch.mm(a, b, out=out), 10)


def launch(device: Cuda) -> float:
    """Seconds per trivial kernel in a graph of many: a lower bound of the time of any kernel."""
    tiny, count = torch.zeros(32, device=device.kind), 10 * device.runs
    runs = [lambda: tiny.add_(1)] * count
    device.warm_up(runs[:2])
    return _best(device, device.capture(runs), 10) / count


CEILINGS = {
    "copy": copy,
    "product-bfloat16": lambda device: product(device, torch.bfloat16, 8192),
    "product-float32": lambda device: product(device, torch.float32, 4096),
    "launch": launch,
}
