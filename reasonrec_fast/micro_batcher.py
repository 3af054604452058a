"""Micro-batching: gathers concurrent requests into batches under a latency bound."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any, Generic, TypeVar

_logger = logging.getLogger("reasonrec_fast")

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def has_host_library() -> bool:
    """Whether the native queue was built; logs one warning if not."""
    if importlib.util.find_spec("reasonrec_fast._host") is not None:
        return True
    _logger.warning("the host library is not there (it needs Python's headers); callers do not share batches")
    return False


class QueueFullError(RuntimeError):
    """The queue is at its capacity; retry later or elsewhere."""


class MicroBatcher(Generic[Item, Result]):
    """Gathers requests of any number of threads and answers them in batches (queue: ``csrc/host/batcher.h``).

    A batch starts when it is full, or before its oldest request has waited ``max_wait_ms`` (the queue releases it after
    four fifths of that time). Each request is released once, oldest first.

    Args:
        handle: computes a batch and returns one result per request, in the same order; called by ``workers`` threads.
        max_size: of a batch, in the units of ``size`` of :meth:`submit`.
        max_wait_ms: longest wait for a batch to fill, in milliseconds, while a worker is free.
        capacity: of the queue, in the same units; beyond it :class:`QueueFullError` is raised.
        workers: number of threads.

    Raises:
        ValueError: a bound that is not positive (argument, expected, got).
        ImportError: the host library was not built.

    >>> with MicroBatcher(lambda batch: [2 * value for value in batch], max_wait_ms=1.0) as double:
    ...     double.submit(21).result()
    42
    """

    def __init__(
        self,
        handle: Callable[[list[Item]], Sequence[Result]],
        *,
        max_size: int = 64,
        max_wait_ms: float = 5.0,
        capacity: int = 4096,
        workers: int = 1,
    ) -> None:
        for name, value in (("max_size", max_size), ("capacity", capacity), ("workers", workers)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1; got {value}")
        if max_wait_ms < 0:
            raise ValueError(f"max_wait_ms: expected at least 0; got {max_wait_ms}")
        try:
            from reasonrec_fast import _host
        except ImportError as missing:
            raise ImportError(
                "MicroBatcher: the host library is not there; it needs Python's headers to be built"
            ) from missing

        self._handle, self._capacity = handle, capacity
        self._queue = _host.Batcher(max_size, max_wait_ms / 1000, capacity)
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[Item, Future[Result]]] = {}
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Item, *, size: int = 1) -> Future[Result]:
        """A future of the result.

        Args:
            request: anything that ``handle`` accepts.
            size: its size in a batch and in the queue; at most the capacity.

        Raises:
            QueueFullError: the queue is full.
            RuntimeError: closed.
        """
        return self.submit_all([request], [size])[0]

    def submit_all(self, requests: Sequence[Item], sizes: Sequence[int]) -> list[Future[Result]]:
        """Futures of several results. Either all requests enter the queue or none, next to each other.

        Raises:
            ValueError: a size out of range, or another number of sizes than requests.
            QueueFullError, RuntimeError: as :meth:`submit`.
        """
        if len(requests) != len(sizes):
            raise ValueError(f"sizes: expected {len(requests)}, one a request; got {len(sizes)}")
        for size in sizes:
            if not 1 <= size <= self._capacity:
                raise ValueError(f"size: expected 1 to {self._capacity}; got {size}")
        futures: list[Future[Result]] = [Future() for _ in requests]
        ids = [next(self._ids) for _ in requests]
        self._waiting.update(zip(ids, zip(requests, futures, strict=True), strict=True))
        status = self._queue.put(ids, list(sizes))
        if status == "taken":
            return futures
        for request_id in ids:
            del self._waiting[request_id]
        if status == "full":
            raise QueueFullError(
                f"queue: expected room for {sum(sizes)} more; {self._queue.queued} of {self._capacity} taken"
            )
        raise RuntimeError("MicroBatcher: closed; it takes no more requests")

    def close(self) -> None:
        """Answer all submitted requests, then end the threads."""
        self._queue.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> MicroBatcher[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while ids := self._queue.take():
            taken = [self._waiting.pop(request_id) for request_id in ids]
            # Skip requests whose callers have cancelled their futures.
            batch = [(request, future) for request, future in taken if future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _answer(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        try:
            results = self._handle([request for request, _ in batch])
            if len(results) != len(batch):
                raise ValueError(f"handle: expected {len(batch)} results, one a request; got {len(results)}")
        except BaseException as problem:  # raised by the futures of the batch
            for _, future in batch:
                future.set_exception(problem)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


class SharedBatcher(Generic[Item, Result]):
    """A :class:`MicroBatcher` that exists while it is in use: concurrent users share it, and its threads end with the
    last of them.

    Args:
        handle: as of :class:`MicroBatcher`.
        options: the bounds of :class:`MicroBatcher`.

    >>> shared = SharedBatcher(lambda batch: batch, max_wait_ms=0.0)
    >>> with shared.use() as batcher:
    ...     batcher.submit(1).result()
    1
    """

    def __init__(self, handle: Callable[[list[Item]], Sequence[Result]], **options: Any) -> None:
        self._handle, self._options = handle, options
        self._lock, self._users = threading.Lock(), 0
        self._batcher: MicroBatcher[Item, Result] | None = None

    @contextmanager
    def use(self) -> Iterator[MicroBatcher[Item, Result]]:
        """A context with the shared batcher; the last one to leave closes it."""
        with self._lock:
            if self._batcher is None:
                self._batcher = MicroBatcher(self._handle, **self._options)
            batcher = self._batcher
            self._users += 1
        try:
            yield batcher
        finally:
            with self._lock:
                self._users -= 1
                is_last = self._users == 0
                if is_last:
                    self._batcher = None
            if is_last:
                batcher.close()
