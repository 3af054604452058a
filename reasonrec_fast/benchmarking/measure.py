"""Measures the times of contenders in turns, and the extra memory of each."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from reasonrec_fast.memory import peak_bytes, reset_peak_memory, resident_bytes

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Attributes: ``median_ms``; ``spread``, the interquartile range over the median; ``rounds``."""

    median_ms: float
    spread: float
    rounds: int


def interleave(
    contenders: Mapping[str, Run],
    *,
    seconds: float = 10.0,
    least: int = 5,
    most: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time contenders in rounds, so that a slow phase of the machine affects all of them.

    Args:
        contenders: functions by name; each is called once before the first round.
        seconds: time after which no further round starts.
        least, most: bounds of the number of rounds, regardless of the time.
        clock: in seconds; ``time.process_time`` on a machine that others use too (with a single thread, since waiting
            threads use the processor too).

    >>> sorted(interleave({"a": lambda: 1, "b": lambda: 2}, seconds=0.01))
    ['a', 'b']
    """
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    begin, rounds = time.perf_counter(), 0
    while rounds < least or (rounds < most and time.perf_counter() - begin < seconds):
        for name, run in contenders.items():
            times[name].append(_seconds(run, clock))
        rounds += 1
    return {name: _timing(values) for name, values in times.items()}


def _seconds(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elapsed = clock() - begin
    del result
    return elapsed


def _timing(seconds: list[float]) -> Timing:
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4)
    return Timing(median * 1000, (high - low) / median if median > 0 else 0.0, len(seconds))


def peak_extra_bytes(run: Run, results: int = 0, device: str = "cpu") -> int | None:
    """Peak memory of a run above the memory held before it, in bytes.

    On a CPU it is read from the operating system's peak of this process, which includes the allocations of all
    libraries; None where that is not available (it needs Linux). On a GPU it is torch's own count.

    Args:
        run: the function to measure; it is called once before, so that its caches are not counted.
        results: bytes of its outputs and gradients, which are subtracted.
    """
    if device != "cpu":
        return _peak_on_gpu(run, results)
    run()
    if not reset_peak_memory():
        return None
    before = resident_bytes()
    result = run()
    peak = peak_bytes()
    del result
    return max(peak - before - results, 0)


def _peak_on_gpu(run: Run, results: int) -> int:
    run()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return max(peak - before - results, 0)


def copy_bandwidth(device: str = "cpu", megabytes: int = 256, rounds: int = 7) -> float:
    """Bytes read and written per second by a copy that does not fit into the caches."""
    source = torch.empty(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    source.fill_(1.0)
    times = sorted(_seconds(lambda: target.copy_(source)) for _ in range(rounds + 1))
    return 2 * source.numel() * 4 / times[len(times) // 2]
