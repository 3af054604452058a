"""``python -m benchmarks.residual_ctr``: what OptiRAG's language model adds to CTRStack on MovieLens.

The packaged OptiRAG's heads correct the logit of its own trees. Here these corrections, of every head, are columns of a
logistic regression beside the logits of CTRStack and of OptiRAG's trees; it is fitted on the validation part, and
compared on the test part with the same regression without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from reasonrec_fast import evaluation
from reasonrec_fast.data import Interactions, load_movielens_small, split_by_time
from reasonrec_fast.experiments.config import load_experiment
from reasonrec_fast.experiments.runner import machine, revision, versions
from reasonrec_fast.files import read_tensors, write_json, write_tensors
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.packaged import MOVIELENS
from reasonrec_fast.models.optirag.rows import user_chunks


def main(
    output: Annotated[Path, typer.Option("--json", help="where to write the figures; logits are kept beside it")],
    seed: Annotated[int, typer.Option(help="of CTRStack")] = 0,
) -> None:
    """Fit, measure, print and write."""
    data = load_movielens_small()
    split = split_by_time(data)
    rows = {"validation": split.validation, "test": split.test}
    logits = {part: _kept(output, part, data, split, rows[part]) for part in rows}
    stack = load_experiment("movielens-ctr-stack").models[0].make("ctr", seed, device="cpu")
    stack.fit(data, split.train, split.validation)
    labels = {part: data.labels[rows[part]] for part in rows}
    offsets = {
        part: np.stack([stack.score_events(data, rows[part]), values["offset"]], axis=1)
        for part, values in logits.items()
    }
    columns = {
        "trees": offsets,
        "trees and language model": {
            part: np.concatenate([offsets[part], values["exits"] - values["offset"][:, None]], axis=1)
            for part, values in logits.items()
        },
    }
    scores = {"CTRStack": offsets["test"][:, 0]}
    for name, of_part in columns.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(of_part["validation"], labels["validation"])
        scores[name] = model.decision_function(of_part["test"])
    users = data.users[split.test]
    unrated = ~np.isin(data.items[split.test], data.items[split.train])
    report: dict[str, Any] = {
        "seed": seed, "requests": len(users), "machine": machine("cpu"), "versions": versions(), "revision": revision(),
        "metrics": {name: _metrics(labels["test"], users, unrated, values) for name, values in scores.items()},
        "language model adds": _differences(labels["test"], users, unrated, scores),
    }  # fmt: skip
    write_json(output, report)
    for name, values in report["metrics"].items():
        print(name, {metric: round(value, 4) for metric, value in values.items()})
    print(report["language model adds"])


def _kept(output: Path, part: str, data: Interactions, split: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of OptiRAG's trees ``[N]`` and of every exit ``[N, E]``, for requests of one part."""
    file = output.parent / f".{output.name}.{part}.safetensors"
    if not file.is_file():
        model = OptiRAG.from_pretrained(MOVIELENS, device="cpu")
        model.refit_retriever(data, split.train)
        offset, exits = np.empty(len(rows)), np.empty((len(rows), len(model.ranker.model.exits)))
        done = 0
        for chunk in user_chunks(data.users[rows], whole_users=True):
            requests = model.requests(data, rows[chunk], alone=False)
            assert requests.offset is not None
            offset[chunk] = requests.offset
            exits[chunk] = model.exit_logits(requests).mean(2).T
            done += len(chunk)
            print(f"{part}: {done} of {len(rows)}", flush=True)
        write_tensors(file, {"offset": torch.from_numpy(offset), "exits": torch.from_numpy(exits)})
    return {name: value.numpy() for name, value in read_tensors(file).items()}


def _metrics(labels: np.ndarray, users: np.ndarray, unrated: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {
        "auc": evaluation.auc(labels, scores),
        "gauc": evaluation.gauc(labels, scores, users),
        "gauc_unrated": evaluation.gauc(labels[unrated], scores[unrated], users[unrated]),
    }


def _differences(
    labels: np.ndarray, users: np.ndarray, unrated: np.ndarray, scores: dict[str, np.ndarray]
) -> dict[str, dict[str, list[float]]]:
    ours, baseline = scores["trees and language model"], scores["trees"]
    result = {}
    for name, some in (("all requests", np.ones_like(unrated)), ("unrated films", unrated)):
        found = evaluation.paired_differences(labels[some], users[some], ours[some], baseline[some])
        result[name] = {metric: [float(i.value), float(i.low), float(i.high)] for metric, i in found.items()}
    return result


if __name__ == "__main__":
    typer.run(main)
