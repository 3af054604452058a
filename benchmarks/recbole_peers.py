"""``python -m benchmarks.recbole_peers lightgcn|dcnv2``: our models against RecBole's, one epoch of each in turns.

Both are trained on the same events with the same hyper-parameters for the same number of epochs, and evaluated by the
same code. Needs RecBole (``make recbole``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from reasonrec_fast.data import Interactions, Split, load_movielens_small, load_sequences, split_by_time
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.held_out import compared_on_test, metrics_on_test
from reasonrec_fast.experiments.runner import machine, revision, versions
from reasonrec_fast.files import write_json
from reasonrec_fast.models.classical import ClassicalRecommender, DCNv2, DCNv2Config, LightGCN, LightGCNConfig
from reasonrec_fast.models.classical.recbole import RecBole, RecBoleConfig


def lightgcn(epochs: int, seed: int) -> tuple[ClassicalRecommender, RecBole]:
    """RecBole's defaults, except three layers and the paper's regulariser (squared norms)."""
    ours = LightGCNConfig(
        dim=64, layers=3, batch=2048, learning_rate=1e-3, regularisation=1e-4, epochs=epochs, seed=seed
    )
    peer_settings = {
        "embedding_size": 64,
        "n_layers": 3,
        "train_batch_size": 2048,
        "learning_rate": 1e-3,
        "reg_weight": 1e-4,
        "require_pow": True,
    }
    return LightGCN(ours), RecBole(RecBoleConfig(model="LightGCN", settings=peer_settings, epochs=epochs, seed=seed))


def dcnv2(epochs: int, seed: int) -> tuple[ClassicalRecommender, RecBole]:
    """Each with its own defaults; RecBole's model does not use histories."""
    ours = DCNv2(DCNv2Config(epochs=epochs, patience=3, seed=seed))
    return ours, RecBole(RecBoleConfig(model="DCNV2", epochs=epochs, patience=3, seed=seed))


def in_turns(ours: ClassicalRecommender, peer: RecBole, data: Interactions, split: Split) -> dict[str, list[float]]:
    """Seconds of each epoch of both, without validation."""
    seconds: dict[str, list[float]] = {"ours": [], "recbole": []}
    peer.begin(data, split.train)
    peer_epochs = peer.epochs()
    began = 0.0

    def turn(epoch: int, epochs: int, message: str) -> None:
        nonlocal began
        seconds["ours"].append(time.perf_counter() - began)
        begin = time.perf_counter()
        next(peer_epochs)
        seconds["recbole"].append(time.perf_counter() - begin)
        print(f"{epoch}/{epochs}: ours {seconds['ours'][-1]:.2f} s, RecBole {seconds['recbole'][-1]:.2f} s", flush=True)
        began = time.perf_counter()

    began = time.perf_counter()
    ours.fit(data, split.train, progress=turn)
    peer.eval()
    return seconds


def best_of_both(ours: ClassicalRecommender, peer: RecBole, data: Interactions, split: Split) -> dict[str, list[float]]:
    """Seconds of the epochs of both, each with early stopping; the times include validation."""
    seconds: dict[str, list[float]] = {}
    for name, model in (("ours", ours), ("recbole", peer)):
        ends = [time.perf_counter()]
        model.fit(data, split.train, split.validation, progress=lambda *_, e=ends: e.append(time.perf_counter()))
        seconds[name] = np.diff(ends).tolist()
    return seconds


def main(
    case: Annotated[str, typer.Argument(help="lightgcn or dcnv2")],
    data: Annotated[Path, typer.Option(help="folder of the data sets")] = Path("data"),
    epochs: Annotated[int, typer.Option(help="of both")] = 30,
    seeds: Annotated[int, typer.Option(help="how many")] = 3,
    output: Annotated[Path | None, typer.Option("--json", help="where to write the record")] = None,
) -> None:
    """Train, time and test both."""
    make: Callable[[int, int], tuple[ClassicalRecommender, RecBole]]
    if case == "lightgcn":
        make, train, task = lightgcn, in_turns, "ranking"
        events = load_sequences(data / "amazon" / "beauty")
        split = split_by_time(events, "leave_one_out")
    elif case == "dcnv2":
        make, train, task = dcnv2, best_of_both, "ctr"
        events = load_movielens_small()
        split = split_by_time(events)
    else:
        raise typer.BadParameter(f"case: expected lightgcn or dcnv2; got {case!r}")
    settings = EvaluationConfig(task=task)
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        np.random.seed(seed)  # RecBole draws its negatives from the global generator
        ours, peer = make(epochs, seed)
        seconds = train(ours, peer, events, split)
        run: dict[str, Any] = {"seed": seed, "seconds": seconds}
        for name, model in (("ours", ours), ("recbole", peer)):
            run[name] = metrics_on_test(model, events, split, settings)
            print(seed, name, {k: round(v, 4) for k, v in run[name].items() if "/" not in k}, flush=True)
        gaps = compared_on_test(ours, peer, events, split, settings)
        run["differences"] = {name: asdict(gap) for name, gap in gaps.items()}
        print(seed, "ours - RecBole's", {name: str(gap) for name, gap in gaps.items()}, flush=True)
        medians = {
            name: statistics.median(epoch_seconds[1:] or epoch_seconds) for name, epoch_seconds in seconds.items()
        }
        run["ratio"] = medians["recbole"] / medians["ours"]
        print(f"{seed}: medians of an epoch {medians}, ratio {run['ratio']:.2f}", flush=True)
        runs.append(run)
        if output is not None:
            write_json(
                output,
                {"case": case, "epochs": epochs, "runs": runs, "revision": revision(), "versions": _versions(),
                 "machine": machine()},
            )  # fmt: skip


def _versions() -> dict[str, str]:
    import recbole

    return versions() | {"recbole": recbole.__version__}


if __name__ == "__main__":
    typer.run(main)
