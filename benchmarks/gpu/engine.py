"""The engine at 1,000 and 4,096 tokens per batch against transformers: tokens and requests per second, and a profile by
torch's profiler. A unit is a batch and a contender."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import Cuda, Run
from benchmarks.gpu.worker import Emit
from reasonrec_fast.benchmarking import engine_stored
from reasonrec_fast.benchmarking.stored import StoredWork, random_ranker, spread_policy, stored_work
from reasonrec_fast.early_exit.engine import EarlyExitModel

BATCHES = {"1000": 1, "4096": 4}
"""Groups of 1,000 tokens by the name of the batch."""
CONTENDERS = (
    "reasonrec_fast", "reasonrec_fast_exits", "transformers_prefix_cache", "transformers", "reasonrec_fast_eager",
)  # fmt: skip
"""The last is ours without CUDA graphs."""
TOP = 12
"""Kernels of a profile's table."""


def units(device: Cuda) -> list[str]:
    return [f"{batch}/{contender}" for batch in BATCHES for contender in CONTENDERS]


def run(unit: str, device: Cuda, emit: Emit, done: set[str]) -> None:
    batch, contender = unit.split("/")
    model, work = _model(device), stored_work("slates", groups=BATCHES[batch], tiny=device.tiny)
    record = {"batch": batch, "contender": contender, "tokens": work.tokens, "requests": work.rows}
    try:
        step, layers = _step(contender, model, work)
        emit(record | timed(step, work, device) | profiled(step, layers, device))
    except torch.OutOfMemoryError as problem:
        raise torch.OutOfMemoryError(
            f"a batch of {work.tokens} tokens and {work.rows} requests did not fit: {problem}"
        ) from problem


@cache
def _model(device: Cuda) -> EarlyExitModel:
    return random_ranker(device.kind, torch.bfloat16 if device.kind == "cuda" else torch.float32, tiny=device.tiny)


def _step(contender: str, model: EarlyExitModel, work: StoredWork) -> tuple[Run, int]:
    """A function to time, and the number of layers that it computes."""
    model.cuda_graphs = contender != "reasonrec_fast_eager"
    if contender == "reasonrec_fast_exits":
        policy = spread_policy(model, work)
        deepest = int(model.predict(work.groups, work.features, policy).depth.max())
        return lambda: engine_stored.ours(model, work, policy), deepest
    runs = {
        "reasonrec_fast": engine_stored.ours,
        "reasonrec_fast_eager": engine_stored.ours,
        "transformers_prefix_cache": engine_stored.transformers_prefix_cache,
        "transformers": engine_stored.transformers,
    }
    return lambda: runs[contender](model, work), model.backbone.num_layers


def timed(step: Run, work: StoredWork, device: Cuda) -> dict[str, Any]:
    """Wall-clock times with a synchronisation after each run: a run takes milliseconds and includes the host's work, as
    in service. ``host_ms`` is the time until the call returns."""
    for _ in range(3):
        step()
    device.synchronize()
    times, host = [], []
    for _ in range(device.replays):
        begin = time.perf_counter()
        step()
        host.append(time.perf_counter() - begin)
        device.synchronize()
        times.append(time.perf_counter() - begin)
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "ms": median * 1000,
        "host_ms": statistics.median(host) * 1000,
        "spread": (high - low) / median,
        "tokens_a_second": work.tokens / median,
        "requests_a_second": work.rows / median,
    }


def profiled(step: Run, layers: int, device: Cuda) -> dict[str, Any]:
    """Profile of one run: kernel launches, GPU time, and the longest kernels."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.kind == "cuda" else [])]
    for _ in range(2):  # the first includes the start of the profiler
        with profile(activities=activities) as profiler:
            step()
            device.synchronize()
    events = profiler.key_averages()
    for column in ("self_cpu_time_total", *(["self_device_time_total"] if device.kind == "cuda" else [])):
        print(events.table(sort_by=column, row_limit=40, max_name_column_width=70))
    return {"layers": layers, **summary(events, layers)}


def summary(events: Iterable[Any], layers: int) -> dict[str, Any]:
    """Summary of a profile's events.

    Args:
        events: with ``key``, ``count``, ``device_type`` and ``self_device_time_total`` in microseconds.
        layers: of the model that ran.
    """
    launches, copies, kernels = 0, 0, []
    for event in events:
        if str(event.device_type).endswith("CUDA"):
            if event.self_device_time_total > 0:
                kernels.append((event.self_device_time_total, event.count, event.key))
        elif "LaunchKernel" in event.key or "GraphLaunch" in event.key:
            launches += event.count
        elif event.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize"):
            copies += event.count
    kernels.sort(reverse=True)
    top = [{"kernel": key[:120], "us": time, "count": count} for time, count, key in kernels[:TOP]]
    return {
        "device_ms": sum(time for time, _, _ in kernels) / 1000,
        "launches": launches,
        "launches_a_layer": launches / layers,
        "synchronisations": copies,
        "kernels": top,
    }
