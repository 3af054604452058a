"""Time of loading ten million rows of CSV, against pandas, and of one request on ten million events.

``python -m benchmarks.data_scale [--rows N] [--rounds R] [--json FILE]``: the readers run in turns, each in a process
of its own, so that its memory can be measured; then requests of single users are built on an index of as many events.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from reasonrec_fast.data import Interactions, load_interactions
from reasonrec_fast.data.interactions import Catalog
from reasonrec_fast.experiments.runner import machine, versions
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.knowledge import Knowledge
from reasonrec_fast.models.optirag.packaged import MOVIELENS
from reasonrec_fast.models.optirag.retriever import Retriever

READERS = ("pandas", "reasonrec_fast")


def main(
    rows: Annotated[int, typer.Option(help="of the file, and events of the index")] = 10_000_000,
    rounds: Annotated[int, typer.Option(help="turns of every reader")] = 5,
    output: Annotated[Path | None, typer.Option("--json", help="file of the figures")] = None,
    quoted: Annotated[bool, typer.Option(help="every text between quotes")] = False,
    reader: Annotated[str, typer.Option(help="one of the readers alone, on --file; for a process of its own")] = "",
    file: Annotated[Path | None, typer.Option(help="of --reader")] = None,
) -> None:
    """Measure, print and write the times and memory of both."""
    if reader and file is not None:
        return print(json.dumps(read(reader, file)))
    record: dict[str, Any] = {"rows": rows, "quoted": quoted, "machine": machine("cpu"), "versions": versions()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.csv"
        write(path, rows, quoted=quoted)
        record["megabytes"] = path.stat().st_size / 1e6
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
        for _ in range(rounds):
            for name in READERS:
                command = [sys.executable, "-m", "benchmarks.data_scale", "--reader", name, "--file", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                turns[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, measurements in turns.items():
        record[name] = {key: [turn[key] for turn in measurements] for key in measurements[0]}
        print(f"{name}: {summary(record[name]['seconds'])} s, {summary(record[name]['gib'])} GiB")
    ratios = [
        our_seconds / peer_seconds
        for our_seconds, peer_seconds in zip(*(record[name]["seconds"] for name in READERS[::-1]), strict=True)
    ]
    print(f"reasonrec_fast over pandas: {summary(ratios)}")
    record["request"] = one_request(rows)
    print(
        f"index: {record['request']['index_seconds']:.1f} s; a request: {summary(record['request']['milliseconds'])} ms"
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def write(path: Path, rows: int, *, quoted: bool) -> None:
    """Write a table of users, items with leading zeros, epoch seconds and ratings, a million rows at a time."""
    generator = np.random.default_rng(0)
    mark = '"' if quoted else ""
    with path.open("w", encoding="utf-8") as file:
        file.write("user,item,timestamp,rating\n")
        for first in range(0, rows, 1_000_000):
            count = min(1_000_000, rows - first)
            columns = (
                generator.integers(0, max(rows // 10, 1), count).tolist(),
                generator.integers(0, max(rows // 50, 1), count).tolist(),
                generator.integers(1_600_000_000, 1_700_000_000, count).tolist(),
                generator.integers(1, 6, count).tolist(),
            )
            lines = (f"{mark}u{u}{mark},{mark}{i:07d}{mark},{t},{r}\n" for u, i, t, r in zip(*columns, strict=True))
            file.writelines(lines)


def read(reader: str, path: Path) -> dict[str, float]:
    begin = time.perf_counter()
    if reader == "pandas":
        pd.read_csv(path, dtype=str)
    else:
        load_interactions(path)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def one_request(rows: int, requests: int = 200) -> dict[str, Any]:
    """Time of :meth:`OptiRAG.requests` (evidence and prompts, without the language model) for single requests of users
    with a history. Item embeddings are random, which costs the same."""
    generator = np.random.default_rng(0)
    users, items = max(rows // 100, 1), max(rows // 500, 1)
    catalog = Catalog(
        [f"{item:07d}" for item in range(items)],
        [f"Thing {item}" for item in range(items)],
        {"genres": [(f"kind {item % 20}",) for item in range(items)]},
    )
    # Popularity is skewed: the first item has some hundred times the mean number of events.
    popular = (items * generator.random(rows) ** 2).astype(np.int64)
    times = np.sort(generator.integers(1_600_000_000, 1_700_000_000, rows))
    labels = generator.integers(0, 2, rows)
    events = Interactions(
        generator.integers(0, users, rows), popular, labels, times, [f"u{user}" for user in range(users)], catalog,
        time_unit="s",
    )  # fmt: skip
    graph = InteractionGraph.from_edges(
        events.users[labels == 1], events.items[labels == 1], num_users=users, num_items=items
    )
    vectors = torch.randn(items, 64, generator=torch.Generator().manual_seed(0))
    model = OptiRAG.from_pretrained(MOVIELENS, device="cpu")
    model.knowledge = Knowledge(events, Retriever.from_items(graph, vectors, torch.zeros(items)))
    requests_of_users = [
        Interactions.from_columns([f"u{user}"], [catalog.ids[item]], [None], [1_700_000_001])
        for user, item in zip(generator.integers(0, users, requests), popular[:requests], strict=True)
    ]
    begin = time.perf_counter()
    model.requests(requests_of_users[0])
    index = time.perf_counter() - begin
    milliseconds = []
    for request in requests_of_users:
        begin = time.perf_counter()
        model.requests(request)
        milliseconds.append(1e3 * (time.perf_counter() - begin))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"users": users, "items": items, "index_seconds": index, "milliseconds": milliseconds, "peak_gib": peak}


if __name__ == "__main__":
    typer.run(main)
