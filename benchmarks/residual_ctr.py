"""``python -m benchmarks.residual_ctr``: what OptiRAG's language model adds to CTRStack on MovieLens.

The packaged OptiRAG's heads correct the logit of its own trees. Here these corrections, of every head, are columns of a
logistic regression beside the logits of CTRStack and of OptiRAG's trees; it is fitted on the validation part, and
compared on the test part with the same regression without them. Rivals without a language model stand beside: OptiRAG
learns to order a user's items too, which the trees do not, as does LambdaMART on CTRStack's own columns; and its heads
read numbers of the evidence too, out of which OptiRAG's depth 0 tells what they would correct.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import lightgbm
import numpy as np
import torch
import typer
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from reasonrec_fast import evaluation
from reasonrec_fast.data import Interactions, Split, load_movielens_small, split_by_time
from reasonrec_fast.experiments.config import load_experiment
from reasonrec_fast.experiments.runner import machine, revision, versions
from reasonrec_fast.files import read_json, write_json, write_tensors
from reasonrec_fast.models.optirag import CTRStack, CTRStackConfig, OptiRAG
from reasonrec_fast.models.optirag.boosted import SETTINGS, boosted_features
from reasonrec_fast.models.optirag.packaged import MOVIELENS
from reasonrec_fast.models.optirag.rows import user_chunks
from reasonrec_fast.pretrained import digests_of_files
from reasonrec_fast.settings import settings_from

RIVALS = (("trees",), ("trees", "ranker"), ("trees", "numbers"), ("trees", "ranker", "numbers"))


def main(
    output: Annotated[Path, typer.Option("--json", help="where to write the figures; logits are kept beside it")],
    seed: Annotated[int, typer.Option(help="of CTRStack")] = 0,
) -> None:
    """Fit, measure, print and write."""
    data = load_movielens_small()
    split = split_by_time(data)
    rows = {"validation": split.validation, "test": split.test}
    logits = {part: _kept(output, part, data, split, rows[part]) for part in rows}
    settings = load_experiment("movielens-ctr-stack").models[0].settings
    stack = Columns(settings_from(CTRStackConfig, {**settings, "seed": seed}, "movielens-ctr-stack"), device="cpu")
    stack.fit(data, split.train, split.validation)
    ranker = stack.ranker(data, split.validation, seed)
    labels = {part: data.labels[rows[part]] for part in rows}
    parts = {
        "trees": {
            part: np.stack([stack.score_events(data, rows[part]), values["offset"]], axis=1)
            for part, values in logits.items()
        },
        "numbers": {part: _of_numbers(data, split, rows[part])[:, None] for part in rows},
        "ranker": {part: ranker.predict(stack.columns(data, rows[part]))[:, None] for part in rows},
        "language model": {part: values["exits"] - values["offset"][:, None] for part, values in logits.items()},
    }
    columns = {
        ", ".join(names): {part: np.concatenate([parts[name][part] for name in names], axis=1) for part in rows}
        for rivals in RIVALS
        for names in (rivals, (*rivals, "language model"))
    }
    scores = {"CTRStack": parts["trees"]["test"][:, 0], "ranker": parts["ranker"]["test"][:, 0]}
    for name, of_part in columns.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(of_part["validation"], labels["validation"])
        scores[name] = model.decision_function(of_part["test"])
    users = data.users[split.test]
    unrated = ~np.isin(data.items[split.test], data.items[split.train])
    report: dict[str, Any] = {
        "seed": seed, "requests": len(users), "machine": machine("cpu"), "versions": versions(), "revision": revision(),
        "metrics": {name: _metrics(labels["test"], users, unrated, values) for name, values in scores.items()},
        "language model adds": {
            other: _differences(labels["test"], users, unrated, scores[f"{other}, language model"], scores[other])
            for other in map(", ".join, RIVALS)
        },
    }  # fmt: skip
    write_json(output, report)
    for name, values in report["metrics"].items():
        print(name, {metric: round(value, 4) for metric, value in values.items()})
    print(report["language model adds"])


class Columns(CTRStack):
    """A CTRStack that gives what its trees read."""

    def grow_trees(self, training: Any, *more: Any, **settings: Any) -> Any:
        self._training = training
        return super().grow_trees(training, *more, **settings)

    def columns(self, data: Interactions, rows: np.ndarray) -> np.ndarray:
        """What the trees read of requests, float32 ``[N, F]``."""
        parts = np.array_split(rows, max(len(rows) // 4000, 1))
        return np.concatenate([boosted_features(self._visible(*self._matched_source(data, part))) for part in parts])

    def ranker(self, data: Interactions, validation: np.ndarray, seed: int) -> lightgbm.Booster:
        """LambdaMART on the training requests of each user, stopped by GAUC on validation."""
        table = self._training.table
        order = np.argsort(table.users, kind="stable")
        sizes = np.bincount(table.users)
        features, labels = boosted_features(self._training.evidence)[order], self._training.labels[order]
        train = lightgbm.Dataset(features, labels, group=sizes[sizes > 0])
        order = validation[np.argsort(data.users[validation], kind="stable")]
        held_users, held_labels = data.users[order], data.labels[order]
        held_out = lightgbm.Dataset(
            self.columns(data, order), held_labels, group=np.unique(held_users, return_counts=True)[1], reference=train
        )
        settings = {
            **SETTINGS, "objective": "lambdarank", "metric": "none", "lambdarank_truncation_level": 10_000,
            "seed": seed, "num_threads": torch.get_num_threads(),
        }  # fmt: skip
        return lightgbm.train(
            settings, train, 600, valid_sets=[held_out], callbacks=[lightgbm.early_stopping(50, verbose=False)],
            feval=lambda scores, _: ("gauc", evaluation.gauc(held_labels, scores, held_users), True),
        )  # fmt: skip


def _kept(output: Path, part: str, data: Interactions, split: Split, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of OptiRAG's trees ``[N]`` and of every exit ``[N, E]``, for requests of one part."""
    file = output.parent / f".{output.name}.{part}.safetensors"
    model_identity = [read_json(MOVIELENS / "config.json"), digests_of_files(MOVIELENS)]
    identity = json.dumps([data.take(split.train).digest(), data.take(rows).digest(), model_identity])
    if file.is_file():
        with safe_open(file, framework="np") as stored:
            if (stored.metadata() or {}).get("run") == identity:
                return {name: stored.get_tensor(name) for name in ("offset", "exits")}
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
    values = {"offset": offset, "exits": exits}
    write_tensors(file, {name: torch.from_numpy(value) for name, value in values.items()}, {"run": identity})
    return values


def _of_numbers(data: Interactions, split: Split, rows: np.ndarray) -> np.ndarray:
    """What OptiRAG's depth 0 adds to its trees without a language model, ``[N]``."""
    model = OptiRAG.from_pretrained(MOVIELENS, device="cpu")
    model.refit_retriever(data, split.train)
    assert model.depth_zero is not None
    result = np.empty(len(rows))
    for chunk in user_chunks(data.users[rows], whole_users=True):
        requests = model.requests(data, rows[chunk], alone=False)
        assert requests.offset is not None and requests.features is not None
        result[chunk] = model.depth_zero.logits(requests.features, requests.offset) - requests.offset
    return result


def _metrics(labels: np.ndarray, users: np.ndarray, unrated: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {
        "auc": evaluation.auc(labels, scores),
        "gauc": evaluation.gauc(labels, scores, users),
        "gauc_unrated": evaluation.gauc(labels[unrated], scores[unrated], users[unrated]),
    }


def _differences(
    labels: np.ndarray, users: np.ndarray, unrated: np.ndarray, ours: np.ndarray, baseline: np.ndarray
) -> dict[str, dict[str, list[float]]]:
    result = {}
    for name, some in (("all requests", np.ones_like(unrated)), ("unrated films", unrated)):
        found = evaluation.paired_differences(labels[some], users[some], ours[some], baseline[some])
        result[name] = {metric: [float(i.value), float(i.low), float(i.high)] for metric, i in found.items()}
    return result


if __name__ == "__main__":
    typer.run(main)
