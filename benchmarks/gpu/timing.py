"""Times of the operators' cases: CUDA graph replays over rotating inputs, and eager times.

A unit is a case; a part of it is one contender with a record of its own. Each result is checked before it is timed.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
import traceback
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from benchmarks.gpu.device import CaptureFailed, Cuda, Run
from benchmarks.gpu.worker import Emit
from reasonrec_fast.benchmarking.case import FLOOR, Bound, Case
from reasonrec_fast.benchmarking.suites import WORK, make_cases

# By importance: there may be no time for the last ones. benchmarks.run has the other sizes of `aggregate`.
CASES = (
    "exit-128-bf16", "attention-shared", "aggregate-gowalla-fp32", "topk-64", "route-65536-alone",
    "exit-4096-c2k4-bf16", "logprobs-4096-bf16", "exit-16-152k-bf16", "aggregate-gowalla-bf16", "route-65536",
    "attention-shared-4", "attention-texts", "topk-8192", "exit-1-bf16", "exit-16-bf16", "policy-4096-bf16",
    "aggregate-gowalla-fp32-train", "aggregate-1e6", "aggregate-1e7",
)  # fmt: skip
COMPILED = ("exit-128-bf16", "exit-4096-c2k4-bf16", "logprobs-4096-bf16")
"""Cases in which ``torch.compile`` is timed: compilation takes some ten seconds each."""
LEAST_SECONDS = 0.15
"""A contender is replayed until both this time and the device's number of replays are reached."""


def units(device: Cuda) -> list[str]:
    return list(CASES)


def run(unit: str, device: Cuda, emit: Emit, done: set[str]) -> None:
    case = _case(unit, device)
    compiled = COMPILED[1:2] if device.tiny else COMPILED
    runs = {name: run for name, run in case.contenders.items() if name != "torch_compile" or unit in compiled}
    if callable(case.floor):
        runs[FLOOR] = case.floor
    first_problem: Exception | None = None
    # Contenders that may abort a capture come last.
    for name in sorted(runs, key=lambda name: (name in case.read_back, list(runs).index(name))):
        if f"{unit}/{name}" in done:
            continue
        record: dict[str, Any] = {"part": name, "dtype": str(case.dtype).removeprefix("torch.")}
        try:
            if name != FLOOR:
                case.check(name, runs[name]())
            record |= measured(runs[name], device, read_back=name in case.read_back)
        except CaptureFailed as problem:
            emit(record | problem.args[1] | {"problem": f"no graph: {problem.args[0]}"})
            raise
        except Exception as problem:
            emit(record | {"problem": f"{type(problem).__name__}: {problem}"[:400]})
            if not device.healthy():
                raise
            first_problem = first_problem or problem  # continue with the other contenders
            _forget(problem)
        else:
            emit(record)
        device.empty_cache()
    if isinstance(case.floor, float):
        emit({"part": FLOOR, "dtype": "", "graph_us": case.floor * 1e6, "computed": True})
    if first_problem is not None:
        raise first_problem


def _forget(problem: BaseException) -> None:
    """Free the tensors in the frames of an exception's traceback, and of those of its causes."""
    current: BaseException | None = problem
    while current is not None:
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__


@lru_cache(maxsize=1)
def _case(name: str, device: Cuda) -> Case:
    (case,) = make_cases([name], device.kind, tiny=device.tiny)
    return case


def measured(run: Run, device: Cuda, *, read_back: bool = False) -> dict[str, Any]:
    """Times in microseconds per run: ``eager_us`` on the GPU, ``host_us`` of the calls, ``graph_us`` in a graph's
    replay; ``spread``, the interquartile range of the replays over their median; and ``copies`` of the inputs.

    Raises:
        CaptureFailed: its second argument is what was measured before.
    """
    copies = rotating(run, device)
    device.warm_up(copies)
    record: dict[str, Any] = {"copies": len(copies), **_eager(copies, device)}
    if read_back:
        return record | {"problem": "no graph: it waits for values on the host"}
    try:
        replay = device.capture([copies[index % len(copies)] for index in range(device.runs)])
    except CaptureFailed as problem:
        raise CaptureFailed(problem.args[0], record) from problem
    return record | _replays(replay, device)


def rotating(run: Run, device: Cuda) -> list[Run]:
    """The run over copies of its inputs: so many that none is still in the L2 cache at its next turn, or one for every
    run of a graph (the cache is flushed before each replay)."""
    if not isinstance(run, Bound):
        return [run]
    count = min(-(-device.rotating_bytes // max(run.num_bytes, 1)), device.runs)
    return [run, *(run.copy() for _ in range(count - 1))]


def _eager(copies: list[Run], device: Cuda) -> dict[str, float]:
    host = 0.0

    def all_runs() -> None:
        nonlocal host
        begin = time.perf_counter()
        for index in range(device.eager_runs):
            copies[index % len(copies)]()
        host = time.perf_counter() - begin

    device.flush()
    device.synchronize()
    seconds = device.seconds(all_runs)
    return {"eager_us": seconds / device.eager_runs * 1e6, "host_us": host / device.eager_runs * 1e6}


def _replays(replay: Run, device: Cuda) -> dict[str, float]:
    replay()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < device.replays or (not device.tiny and time.perf_counter() - begin < LEAST_SECONDS):
        device.flush()
        times.append(device.seconds(replay) / device.runs)
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return {"graph_us": median * 1e6, "spread": (high - low) / median, "replays": len(times)}


def least_seconds(case: str, copy: float, product: dict[str, float]) -> float:
    """Least seconds of a case at the ceilings: the larger of its memory traffic at the bandwidth of a copy and its
    operations at the rate of a product in its dtype.

    >>> least_seconds("topk-64", 3.0e12, {"float32": 5e13}) < 1e-5
    True
    """
    work = WORK[case]
    rate = product[str(work.dtype).removeprefix("torch.")]
    return max(work.num_bytes / copy, work.operations / rate)


def run_once(names: Sequence[str], device: Cuda, end: float) -> None:
    """Run our implementation of some cases once each, for ``ncu``, which profiles from ``cudaProfilerStart`` on.

    A ``spin_kernel`` is launched before each case. At ``end`` (in terms of ``time.monotonic``) the process exits, even
    in the middle of a case: ``ncu`` prints its counters only after the profiled process has ended.
    """
    last = threading.Timer(max(end - time.monotonic(), 0.0), _no_time)
    last.daemon = True
    last.start()
    for name in names:
        run: Run = _case(name, device).contenders["reasonrec_fast"]
        for _ in range(3):
            run()
        device.synchronize()
        if device.kind == "cuda":
            torch.cuda.profiler.start()
            torch.cuda._sleep(1)
        run()
        device.synchronize()
        if device.kind == "cuda":
            torch.cuda.profiler.stop()
        print(f"{name}: ran", flush=True)
    last.cancel()


def _no_time() -> None:
    print("no time for more", flush=True)
    os._exit(0)
