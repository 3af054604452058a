"""``python -m benchmarks.scheduler``: measures how long requests of 64 client threads wait for their batch."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from reasonrec_fast.files import write_json
from reasonrec_fast.micro_batcher import MicroBatcher

CLIENTS, REQUESTS = 64, 20_000


def main(
    max_wait_ms: Annotated[float, typer.Option(help="the bound")] = 5.0,
    pause_ms: Annotated[float, typer.Option(help="mean pause of a client between two requests")] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="where to write the figures")] = None,
) -> None:
    """Submit requests of mixed sizes; handling takes 0.01 ms per unit, which is within the batcher's capacity."""
    sizes = np.random.default_rng(0).integers(1, 9, REQUESTS)
    submitted, begun, answers = np.zeros(REQUESTS), np.zeros(REQUESTS), {}

    def handle(batch: list[int]) -> list[int]:
        begun[batch] = time.perf_counter()
        time.sleep(1e-5 * int(sizes[batch].sum()))
        return [3 * request + 1 for request in batch]

    def client(first: int) -> None:
        generator = np.random.default_rng(first)
        for request in range(first, REQUESTS, CLIENTS):
            time.sleep(generator.exponential(pause_ms / 1000))
            submitted[request] = time.perf_counter()
            answers[request] = batcher.submit(request, size=int(sizes[request])).result()

    with MicroBatcher(handle, max_size=64, max_wait_ms=max_wait_ms) as batcher:
        threads = [threading.Thread(target=client, args=(first,)) for first in range(CLIENTS)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
    if answers != {request: 3 * request + 1 for request in range(REQUESTS)}:
        raise SystemExit("scheduler: a request was lost or answered wrongly")
    waits = (begun - submitted) * 1000
    figures = {
        "requests": REQUESTS,
        "clients": CLIENTS,
        "max_wait_ms": max_wait_ms,
        "requests_per_s": REQUESTS / seconds,
        "wait_ms": {f"p{p}": float(np.percentile(waits, p)) for p in (50, 90, 99)} | {"max": float(waits.max())},
    }
    print(figures)
    if json_file is not None:
        write_json(json_file, figures)


if __name__ == "__main__":
    typer.run(main)
