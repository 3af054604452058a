"""``python -m benchmarks.scale lightgcn sasrec``: time and memory of an epoch of LightGCN and SASRec as the data grow.

The data are synthetic: ten events and 0.3 items per user, with power laws of user activity and item popularity. The
order of events is random, so only popularity can be learnt. Each case runs in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from reasonrec_fast.data import Catalog, Interactions
from reasonrec_fast.experiments.runner import machine, revision, versions
from reasonrec_fast.files import read_json, write_json
from reasonrec_fast.memory import peak_bytes, reset_peak_memory, resident_bytes
from reasonrec_fast.models.classical import ClassicalRecommender, LightGCN, LightGCNConfig, SASRec, SASRecConfig

STEPS = 40
"""Steps of LightGCN per epoch: each propagates over the whole graph, so the batch grows with the data."""


def power_law(events: int, seed: int = 0) -> Interactions:
    """Distinct pairs of ``events / 10`` users and three tenths as many items, in random order.

    Users have at least three events each, in a Pareto distribution of exponent 10 / 7 (whose mean is ten), cut at 500;
    the item of rank ``r`` is drawn with a weight of ``1 / (r + 10)``.

    >>> data = power_law(1000)
    >>> len(data), data.num_users, data.num_items, bool(np.bincount(data.users).min() >= 3)
    (1000, 100, 30, True)
    """
    generator = np.random.default_rng(seed)
    num_users, num_items = events // 10, events * 3 // 100
    max_length = min(500, num_items // 2)
    activity = np.minimum(3 * generator.random(num_users) ** -0.7, max_length)
    lengths = 3 + ((activity - 3) * (events - 3 * num_users) / (activity - 3).sum()).astype(np.int64)
    lengths = np.minimum(lengths, max_length)
    while missing := events - lengths.sum():
        below = np.flatnonzero(lengths < max_length)
        lengths[generator.choice(below, min(missing, len(below)), replace=False)] += 1
    users = generator.permutation(np.repeat(np.arange(num_users), lengths))
    popularity = np.cumsum(1 / (generator.permutation(num_items) + 10))
    items = np.full(events, -1)
    duplicates = np.arange(events)
    while len(duplicates):
        drawn = np.searchsorted(popularity, generator.random(len(duplicates)) * popularity[-1])
        items[duplicates] = np.minimum(drawn, num_items - 1)
        keys = users * num_items + items
        duplicates = np.setdiff1d(np.arange(events), np.unique(keys, return_index=True)[1], assume_unique=True)
    names = [str(item) for item in range(num_items)]
    return Interactions(
        users, items, np.ones(events, dtype=np.int64), np.arange(events), [str(user) for user in range(num_users)],
        Catalog(names, names),
    )  # fmt: skip


def lightgcn(events: int, epochs: int) -> ClassicalRecommender:
    return LightGCN(LightGCNConfig(batch=-(-events // STEPS), epochs=epochs))


def sasrec(events: int, epochs: int) -> ClassicalRecommender:
    return SASRec(SASRecConfig(batch=512, negatives=2048, precision="float32", epochs=epochs))


MODELS = {"lightgcn": lightgcn, "sasrec": sasrec}


def measure(name: str, events: int, epochs: int) -> dict[str, Any]:
    """Fit a model to synthetic data and recommend to some users."""
    began = time.perf_counter()
    data = power_law(events)
    rows = np.arange(len(data))
    generated = time.perf_counter() - began
    model = MODELS[name](events, epochs)
    config = model.config
    model.config = replace(config, epochs=0)
    model.fit(data, rows)  # a first call, for numba's compilation
    reset_peak_memory()
    resident_before = resident_bytes()
    began = time.perf_counter()
    model.fit(data, rows)
    prepared = time.perf_counter() - began
    model.config = config
    ends = [time.perf_counter() + prepared]
    model.fit(data, rows, progress=lambda *_: ends.append(time.perf_counter()))
    peak = peak_bytes()
    users = np.random.default_rng(0).choice(data.num_users, min(10_000, data.num_users), replace=False)
    began = time.perf_counter()
    model.recommend(users, 20)
    seconds = np.diff(ends).tolist()
    return {
        "model": name, "events": events, "users": data.num_users, "items": data.num_items, "batch": config.batch,
        "seconds_to_generate": generated, "seconds_to_prepare": prepared, "seconds_of_epochs": seconds,
        "resident_bytes_before": resident_before, "peak_bytes": peak, "recommended_users": len(users),
        "seconds_to_recommend": time.perf_counter() - began,
    }  # fmt: skip


def main(
    models: Annotated[list[str], typer.Argument(help="lightgcn, sasrec")],
    events: Annotated[list[int], typer.Option(help="sizes")] = [10**5, 10**6, 10**7],  # noqa: B006
    epochs: Annotated[int, typer.Option(help="the median is taken")] = 3,
    output: Annotated[Path | None, typer.Option("--json", help="record; cases of before are kept")] = None,
) -> None:
    """Measure every model at every size."""
    if unknown := set(models) - set(MODELS):
        raise typer.BadParameter(f"models: expected {' or '.join(MODELS)}; got {', '.join(sorted(unknown))}")
    cases: dict[tuple[str, int], dict[str, Any]] = {}
    if output is not None and output.exists():
        cases = {(case["model"], case["events"]): case for case in read_json(output)}
    for name in models:
        for size in events:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                case = alone.submit(measure, name, size, epochs).result()
            cases[name, size] = {**case, "revision": revision(), "versions": versions(), "machine": machine()}
            print(
                f"{name}, {size:,} events: {case['seconds_to_prepare']:.1f} s to prepare, an epoch in "
                f"{statistics.median(case['seconds_of_epochs']):.1f} s, at most {case['peak_bytes'] / 2**30:.2f} GiB, "
                f"{case['recommended_users'] / case['seconds_to_recommend']:,.0f} users a second",
                flush=True,
            )
            if output is not None:
                write_json(output, [cases[key] for key in sorted(cases)])


if __name__ == "__main__":
    typer.run(main)
