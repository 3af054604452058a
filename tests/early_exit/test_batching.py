"""Micro-batching: nothing lost or answered twice, bounded waits, and errors for the waiting callers."""

import threading
import time
from collections import Counter

import numpy as np
import pytest

from reasonrec_fast.micro_batcher import MicroBatcher, QueueFullError, SharedBatcher


def test_many_clients_lose_nothing():
    """64 threads, mixed sizes, 20,000 requests."""
    handled, sizes = Counter(), np.random.default_rng(0).integers(1, 9, 20_000).tolist()
    lock = threading.Lock()

    def handle(batch):
        with lock:
            handled.update(batch)
            largest.append(sum(sizes[request] for request in batch))
        return [request * 3 + 1 for request in batch]

    largest: list[int] = []
    answers: dict[int, int] = {}

    def client(first):
        futures = {request: batcher.submit(request, size=sizes[request]) for request in range(first, 20_000, 64)}
        for request, future in futures.items():
            answers[request] = future.result(timeout=60)

    with MicroBatcher(handle, max_size=48, max_wait_ms=2.0, capacity=200_000, workers=2) as batcher:
        clients = [threading.Thread(target=client, args=(first,)) for first in range(64)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
    assert answers == {request: request * 3 + 1 for request in range(20_000)}
    assert set(handled.values()) == {1} and len(handled) == 20_000
    assert max(largest) <= 48


def test_waits_no_longer_than_the_bound_for_company():
    begun = []
    with MicroBatcher(lambda batch: begun.append(len(batch)) or batch, max_size=100, max_wait_ms=30.0) as batcher:
        begin = time.perf_counter()
        batcher.submit(1).result()
        waited = time.perf_counter() - begin
        futures = [batcher.submit(request) for request in range(100)]
        begin = time.perf_counter()
        for future in futures:
            future.result()
    assert 0.02 < waited < 10  # the bound, with a margin for a busy machine
    assert begun[0] == 1 and sum(begun) == 101


def test_full_queue_says_so_and_recovers():
    gate, started = threading.Event(), threading.Event()

    def handle(batch):
        started.set()
        gate.wait(30)
        return batch

    with MicroBatcher(handle, max_size=1, max_wait_ms=0.0, capacity=3) as batcher:
        running = batcher.submit("running")
        assert started.wait(30)
        queued = [batcher.submit(n) for n in range(3)]
        with pytest.raises(QueueFullError, match="expected room for 1 more; 3 of 3 taken"):
            batcher.submit("too much")
        gate.set()
        assert [running.result(), *(future.result() for future in queued)] == ["running", 0, 1, 2]
        assert batcher.submit("again").result() == "again"


def test_closing_answers_what_was_submitted():
    batcher = MicroBatcher(lambda batch: batch, max_size=10, max_wait_ms=60_000.0)
    futures = [batcher.submit(n) for n in range(3)]
    batcher.close()
    assert [future.result(timeout=0) for future in futures] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(4)


def test_errors_reach_those_who_wait_and_nobody_else():
    def handle(batch):
        if "bad" in batch:
            raise KeyError("bad")
        return batch

    with MicroBatcher(handle, max_size=1, max_wait_ms=0.0) as batcher:
        good, bad, after = (batcher.submit(request) for request in ("good", "bad", "after"))
        assert good.result() == "good"
        with pytest.raises(KeyError, match="bad"):
            bad.result()
        assert after.result() == "after"
    with (
        MicroBatcher(lambda batch: [], max_wait_ms=0.0) as short,
        pytest.raises(ValueError, match="expected 1 results, one a request; got 0"),
    ):
        short.submit(1).result()


def test_cancelled_requests_are_left_out():
    gate, seen = threading.Event(), []

    def handle(batch):
        gate.wait(30)
        seen.extend(batch)
        return batch

    with MicroBatcher(handle, max_size=1, max_wait_ms=0.0) as batcher:
        first = batcher.submit("first")
        while not first.running():
            time.sleep(0.001)
        second = batcher.submit("second")
        assert second.cancel()
        gate.set()
    assert seen == ["first"]


@pytest.mark.parametrize("name", ["max_size", "capacity", "workers"])
def test_bad_bounds(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1; got 0"):
        MicroBatcher(lambda batch: batch, **{name: 0})
    with pytest.raises(ValueError, match="max_wait_ms"):
        MicroBatcher(lambda batch: batch, max_wait_ms=-1.0)


def test_a_request_larger_than_the_queue_is_refused():
    with (
        MicroBatcher(lambda batch: batch, capacity=5) as batcher,
        pytest.raises(ValueError, match="size: expected 1 to 5; got 6"),
    ):
        batcher.submit(1, size=6)


def test_several_are_taken_together_or_not_at_all():
    gate, batches = threading.Event(), []

    def handle(batch):
        gate.wait()
        batches.append(batch)
        return batch

    with MicroBatcher(handle, max_size=4, max_wait_ms=0.0, capacity=8) as batcher:
        first = batcher.submit(0)
        while batcher._queue.queued:
            time.sleep(0.001)
        futures = batcher.submit_all([1, 2, 3, 4, 5], [1, 1, 2, 1, 1])
        with pytest.raises(QueueFullError, match="room for 3 more; 6 of 8 taken"):
            batcher.submit_all([6, 7, 8], [1, 1, 1])
        with pytest.raises(ValueError, match="sizes: expected 2, one a request; got 1"):
            batcher.submit_all([6, 7], [1])
        gate.set()
        assert [future.result() for future in (first, *futures)] == [0, 1, 2, 3, 4, 5]
    assert batches == [[0], [1, 2, 3], [4, 5]]


def test_shared_by_users_at_a_time_and_gone_after_them():
    barrier, seen, before = threading.Barrier(8), set(), threading.active_count()

    def user(number):
        with shared.use() as batcher:
            seen.add(id(batcher))
            barrier.wait()
            assert batcher.submit(number).result() == number

    shared = SharedBatcher(lambda batch: batch, max_wait_ms=1.0)
    for _ in range(3):
        users = [threading.Thread(target=user, args=(number,)) for number in range(8)]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
        assert len(seen) == 1 and threading.active_count() == before
        seen.clear()
