"""The GPU under test, or the CPU instead of it in a rehearsal: timing and CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Run = Callable[[], Any]


class CaptureFailed(RuntimeError):
    """A capture was aborted: the stream and allocator of this process are still capturing, so it can time no more."""


class Cuda:
    """A GPU.

    Attributes:
        runs: in one graph.
        replays: least number of timed replays of a graph.
        eager_runs: timed runs without a graph.
        rotating_bytes: size of all copies of the inputs, which take turns.
        flush_bytes: bytes that are written to flush the L2 cache.
    """

    kind = "cuda"
    tiny = False
    runs, replays, eager_runs = 20, 9, 30
    rotating_bytes = flush_bytes = 256 * 2**20

    def __init__(self) -> None:
        self._scratch: torch.Tensor | None = None

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def seconds(self, run: Run) -> float:
        """GPU time of a run, by events around it."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def flush(self) -> None:
        """Write more than the L2 cache holds."""
        if self._scratch is None:
            self._scratch = torch.empty(self.flush_bytes // 4, dtype=torch.int32, device="cuda")
        self._scratch.zero_()

    def capture(self, runs: Sequence[Run]) -> Run:
        """Capture all runs, which have been warmed up, in one graph.

        Raises:
            CaptureFailed: with the reason; the process must end.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for run in runs:
                    run()
        except Exception as problem:
            cause: BaseException = problem  # the last error is that of the capture's end; its context has the cause
            while cause.__context__ is not None:
                cause = cause.__context__
            raise CaptureFailed(one_line(cause)) from problem
        return graph.replay

    def warm_up(self, runs: Sequence[Run]) -> None:
        """Run on a side stream, as captures require."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for run in runs:
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def healthy(self) -> bool:
        """Whether the CUDA context still works; it does not survive some errors."""
        try:
            torch.cuda.synchronize()
            return float(torch.ones(2, device="cuda").sum()) == 2.0
        except Exception:
            return False


class Rehearsal(Cuda):
    """The CPU, with sizes and counts that only exercise the code."""

    kind = "cpu"
    tiny = True
    runs, replays, eager_runs = 2, 3, 3
    rotating_bytes = flush_bytes = 2**16

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def seconds(self, run: Run) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    def flush(self) -> None:
        pass

    def capture(self, runs: Sequence[Run]) -> Run:
        def replay() -> None:
            for run in runs:
                run()

        return replay

    def warm_up(self, runs: Sequence[Run]) -> None:
        for run in runs:
            run()

    def healthy(self) -> bool:
        return True


def one_line(problem: BaseException) -> str:
    """The type and the first line of the message of an exception.

    >>> one_line(ValueError("x: expected 1\\nmore"))
    'ValueError: x: expected 1'
    """
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"[:400]
