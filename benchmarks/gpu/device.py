"""The GPU under test, and the CPU in its place in a rehearsal: clocks and graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Run = Callable[[], Any]


class CaptureFailed(RuntimeError):
    """A capture that broke off: this process's stream and allocator are still in it, so no more can be timed here."""


class Cuda:
    """Attributes: ``runs`` in one graph; replays that are timed; bytes of inputs that rotate; bytes that are written to
    empty the second cache."""

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
        """Of the GPU, by events around a run."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def flush(self) -> None:
        """Write more than the second cache holds."""
        if self._scratch is None:
            self._scratch = torch.empty(self.flush_bytes // 4, dtype=torch.int32, device="cuda")
        self._scratch.zero_()

    def capture(self, runs: Sequence[Run]) -> Run:
        """One graph of all runs, which have been warmed up.

        Raises:
            CaptureFailed: with the reason; this process must end.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for run in runs:
                    run()
        except Exception as problem:
            cause: BaseException = problem  # the end of the capture fails for what failed in it
            while cause.__context__ is not None:
                cause = cause.__context__
            raise CaptureFailed(one_line(cause)) from problem
        return graph.replay

    def warm_up(self, runs: Sequence[Run]) -> None:
        """On a stream beside, as captures want it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for run in runs:
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def healthy(self) -> bool:
        """False after an error that the CUDA context does not survive."""
        try:
            torch.cuda.synchronize()
            return float(torch.ones(2, device="cuda").sum()) == 2.0
        except Exception:
            return False


class Rehearsal(Cuda):
    """The CPU, with sizes and counts that only walk the code."""

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
    """A problem in one line, without what follows its message.

    >>> one_line(ValueError("x: expected 1\\nmore"))
    'ValueError: x: expected 1'
    """
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"[:400]
