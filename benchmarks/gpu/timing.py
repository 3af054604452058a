"""Times of the operators' cases: replays of graphs over inputs that rotate, eager times beside them.

A unit is a case; a part of it is one contender, recorded by itself. Each answer is checked before it is timed.
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

# By importance: what is last may have no time. The other sizes of `aggregate` are left to benchmarks.run.
CASES = (
    "exit-128-bf16", "attention-shared", "aggregate-gowalla-fp32", "topk-64", "route-65536-alone",
    "exit-4096-c2k4-bf16", "logprobs-4096-bf16", "exit-16-152k-bf16", "aggregate-gowalla-bf16", "route-65536",
    "attention-shared-4", "attention-texts", "topk-8192", "exit-1-bf16", "exit-16-bf16", "policy-4096-bf16",
    "aggregate-gowalla-fp32-train", "aggregate-1e6", "aggregate-1e7",
)  # fmt: skip
COMPILED = ("exit-128-bf16", "exit-4096-c2k4-bf16", "logprobs-4096-bf16")
"""Cases with ``torch.compile`` among the peers: each costs some ten seconds."""
LEAST_SECONDS = 0.15
"""That a contender's replays take together, or as many replays as the device asks for."""


def units(device: Cuda) -> list[str]:
    return list(CASES)


def run(unit: str, device: Cuda, emit: Emit, done: set[str]) -> None:
    case = _case(unit, device)
    compiled = COMPILED[1:2] if device.tiny else COMPILED
    runs = {name: run for name, run in case.contenders.items() if name != "torch_compile" or unit in compiled}
    if callable(case.floor):
        runs[FLOOR] = case.floor
    first: Exception | None = None
    # Contenders that may break a capture come last.
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
            first = first or problem  # of this contender alone: the others have their turn
            _forget(problem)
        else:
            emit(record)
        device.empty_cache()
    if isinstance(case.floor, float):
        emit({"part": FLOOR, "dtype": "", "graph_us": case.floor * 1e6, "computed": True})
    if first is not None:
        raise first


def _forget(problem: BaseException) -> None:
    """Let go of the tensors in the frames that an exception, and those behind it, came through."""
    behind: BaseException | None = problem
    while behind is not None:
        traceback.clear_frames(behind.__traceback__)
        behind = behind.__cause__ or behind.__context__


@lru_cache(maxsize=1)
def _case(name: str, device: Cuda) -> Case:
    (case,) = make_cases([name], device.kind, tiny=device.tiny)
    return case


def measured(run: Run, device: Cuda, *, read_back: bool = False) -> dict[str, Any]:
    """Times in microseconds a run: ``eager_us`` of the GPU, ``host_us`` of the caller, ``graph_us`` of a graph's
    replay, with the interquartile ``spread`` of the replays over their median; and ``copies`` of the inputs.

    Raises:
        CaptureFailed: with what was measured before it as second argument.
    """
    copies = rotating(run, device)
    device.warm_up(copies)
    found: dict[str, Any] = {"copies": len(copies), **_eager(copies, device)}
    if read_back:
        return found | {"problem": "no graph: it waits for values on the host"}
    try:
        replay = device.capture([copies[place % len(copies)] for place in range(device.runs)])
    except CaptureFailed as problem:
        raise CaptureFailed(problem.args[0], found) from problem
    return found | _replays(replay, device)


def rotating(run: Run, device: Cuda) -> list[Run]:
    """The run over copies of its inputs, so many that none is still in the second cache when its turn comes, or one
    for every run of a graph (the cache is emptied before each replay)."""
    if not isinstance(run, Bound):
        return [run]
    count = min(-(-device.rotating_bytes // max(run.num_bytes, 1)), device.runs)
    return [run, *(run.copy() for _ in range(count - 1))]


def _eager(copies: list[Run], device: Cuda) -> dict[str, float]:
    host = 0.0

    def all_runs() -> None:
        nonlocal host
        begin = time.perf_counter()
        for place in range(device.eager_runs):
            copies[place % len(copies)]()
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
    """What a case needs at the ceilings: the larger of its bytes over those of a copy and its operations over those of
    a product in its dtype.

    >>> least_seconds("topk-64", 3.0e12, {"float32": 5e13}) < 1e-5
    True
    """
    work = WORK[case]
    rate = product[str(work.dtype).removeprefix("torch.")]
    return max(work.num_bytes / copy, work.operations / rate)


def run_once(names: Sequence[str], device: Cuda, end: float) -> None:
    """Our side of some cases once each under a profiler that waits for ``cudaProfilerStart``; for ``ncu``.

    A kernel called ``spin_kernel`` stands before each case. At ``end`` of ``time.monotonic`` the process ends, in the
    middle of a case too: ``ncu`` prints what it has seen when the process that it watches has ended, not before.
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
