"""``python -m benchmarks.ablations``: what each part of ReasonRec's agent is worth, each on against off.

The stack of an experiment is fitted once; then an agent for each arm learns over it, from the same users, and answers
the same test users. A run that was killed goes on where it stopped; answers of another run, with other events, settings
or seed, are refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors import safe_open

from reasonrec_fast import evaluation
from reasonrec_fast.data import Histories, Interactions, Split, split_by_time
from reasonrec_fast.evaluation import Interval
from reasonrec_fast.experiments.config import load_experiment
from reasonrec_fast.experiments.reasonrec import COLD_EVENTS, COLD_SHARE
from reasonrec_fast.experiments.runner import machine, revision, versions
from reasonrec_fast.files import read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.models.classical.rows import digest_of_rows
from reasonrec_fast.models.classical.stack import Stack
from reasonrec_fast.models.classical.stack_config import StackRanking
from reasonrec_fast.models.reasonrec import AgentConfig, ReasonRec, ReasonRecConfig
from reasonrec_fast.models.reasonrec.learning import positions_of
from reasonrec_fast.settings import settings_from
from reasonrec_fast.training.curriculum import Curriculum
from reasonrec_fast.training.progress import NO_METRICS, Progress, metrics_text

ALL = "all parts"
STACK = "stack"
_MANY = 1000  # users whose ranking is kept


def arms_of(base: AgentConfig) -> dict[str, AgentConfig]:
    """The agent with all parts, and one without each that it has."""
    arms = {
        ALL: base,
        "curriculum: random order": replace(base, curriculum=None),
        "curriculum: reversed": replace(base, curriculum=replace(base.curriculum or Curriculum(), reverse=True)),
        "tools": replace(base, evidence=False, consulted=0.0),
        "chains of thought": replace(base, reasoning_weight=0.0),
        "templates: one wording": replace(base, reasoning_wordings=1 if base.reasoning_weight else None),
        "thoughts": replace(base, thoughts=0),
        "item vectors": replace(base, item_vectors=False),
    }
    arms["pictures"] = replace(base, pictures=None)
    return {name: arm for name, arm in arms.items() if name == ALL or arm != base}


def main(
    data: Annotated[Path, typer.Option(help="folder of the data sets")],
    output: Annotated[Path, typer.Option("--json", help="where to write the figures; state is kept beside it")],
    config: Annotated[str, typer.Option(help="experiment whose data set and Stack are taken")] = "beauty-stack",
    agent: Annotated[Path | None, typer.Option(help="JSON file with fields of AgentConfig")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="arms to train, by name; all by default. Others are in the report if they were trained before"
        ),
    ] = None,
    timed: Annotated[
        bool | None, typer.Option(help="whether moments of different users can be compared (ChainConfig.timed)")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the agents")] = 0,
) -> None:
    """Train and measure the arms, and write what each part adds."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    base = AgentConfig(
        layers=6, candidates=10, thoughts=2, item_vectors=True, reasoning_weight=0.1, timed=timed, seed=seed
    )
    if agent is not None:
        base = settings_from(AgentConfig, {**asdict(base), **read_json(agent)}, str(agent))
    arms, state = arms_of(base), output.parent / f".{output.name}.state"
    if unknown := set(arm or ()) - set(arms):
        raise SystemExit(f"--arm: expected some of {', '.join(arms)}; got {', '.join(sorted(unknown))}")
    experiment = load_experiment(config)
    (model, *_), (dataset, *_) = experiment.models, experiment.datasets
    if dataset.split != "leave_one_out":
        raise SystemExit(f"--config: expected a data set that leaves one event of a user out; got {dataset.split}")
    state.mkdir(parents=True, exist_ok=True)
    events = dataset.load(data)
    split = split_by_time(events, dataset.split)
    stack = {**model.settings, "seed": model.settings.get("seed", 0)}
    chosen = {
        name: ReasonRecConfig.from_dict({"stack": stack, "agent": asdict(settings)}) for name, settings in arms.items()
    }
    identities = {name: _identity(whole, events, split) for name, whole in chosen.items()}
    for name, identity in identities.items():  # before the first agent learns
        _is_answered(_answers_file(state, name), identity)
    found = {}
    for name, whole in chosen.items():
        file = _answers_file(state, name)
        if not _is_answered(file, identities[name]):
            if arm and name not in arm:
                continue
            with remembered_rankings(state / "rankings"):
                answers = _answers(whole, events, split, state, _key(name), _say(name))
            write_tensors(file, answers, {"run": identities[name]})
        found[name] = {name: value.numpy() for name, value in read_tensors(file).items()}
        figures = report_of(found, asdict(base), {"config": config, "seed": base.seed})
        write_json(output, figures)
        print(table(figures), flush=True)


def _key(arm: str) -> str:
    return arm.replace(": ", "-").replace(" ", "-")


def _answers_file(state: Path, arm: str) -> Path:
    return state / f"{_key(arm)}.answers.safetensors"


def _identity(config: ReasonRecConfig, events: Interactions, split: Split) -> str:
    """What answers depend on."""
    rows = f"{digest_of_rows(events, split.train, split.validation)} {digest_of_rows(events, split.test, None)}"
    return json.dumps({"settings": config.to_dict(), "events": rows}, sort_keys=True)


def _is_answered(file: Path, identity: str) -> bool:
    """Whether the answers of an arm are there; those of another run are refused."""
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as stored:
        if (stored.metadata() or {}).get("run") != identity:
            raise SystemExit(
                f"--json: expected answers of these events, settings and seed; {file} is of another run. Give another "
                f"file, or remove {file.parent} to start again"
            )
    return True


def _say(arm: str) -> Progress:
    def say(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
        if done % 20 == 0:
            print(f"{arm}, {part or 'test'}: {done} of {total}, {metrics_text(metrics)}", flush=True)

    return say


def _answers(
    config: ReasonRecConfig, events: Interactions, split: Split, state: Path, key: str, progress: Progress | None
) -> dict[str, torch.Tensor]:
    """What one agent says to the test users that have their next item among its candidates."""
    checkpoint, shared = state / f"{key}.safetensors", state / "stack"
    _share(checkpoint.with_name(f"{checkpoint.name}.stack"), shared)
    model = ReasonRec(config)
    model.fit(events, split.train, split.validation, checkpoint=checkpoint, progress=progress)
    assert model.agent is not None and model.config.agent is not None
    trust, depth = model.agent.trust, model.config.agent.candidates
    earlier = np.sort(np.concatenate([split.train, split.validation]))
    model.set_histories_from(events, earlier)
    rows = split.test[events.labels[split.test] == 1]
    rows = rows[~_had(Histories.seen(events, earlier), events.users[rows], events.items[rows])]
    users, targets = events.users[rows], events.items[rows]
    ranking = model.stack.rank(users, depth)
    position = positions_of(ranking, targets)
    reachable = np.flatnonzero((position >= 0) & (ranking.candidates > 1))
    model.agent.trust = 1.0
    answers = model.recommend(users[reachable], depth, policy="always", progress=progress)
    counts = np.bincount(events.items[split.train][events.labels[split.train] == 1], minlength=events.num_items)
    offset = ranking.logits[:, :depth].astype(np.float64)
    corrected = offset.copy()
    for row, items, scores in zip(reachable.tolist(), answers.items, answers.scores, strict=True):
        said = dict(zip(items.tolist(), scores.tolist(), strict=True))
        corrected[row] = [said[item] for item in ranking.items[row, :depth].tolist()]
    values = {
        "offset": offset, "corrected": corrected, "position": position, "horizon": model.horizons(users),
        "count": counts[targets], "trust": np.array(trust), "row": rows,
    }  # fmt: skip
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}


@contextmanager
def remembered_rankings(folder: Path) -> Iterator[None]:
    """Rankings of many users are kept in a folder: the trees take longer than an agent, and all arms ask the same."""
    rank = Stack.rank

    def remembered(
        stack: Stack, users: np.ndarray, k: int, *, exclude: Histories | None = None, strict: bool = False
    ) -> StackRanking:
        if exclude is not None or len(users) < _MANY:
            return rank(stack, users, k, exclude=exclude, strict=strict)
        digest = hashlib.blake2b(repr((stack.training_digest, asdict(stack.config), k, strict)).encode(), digest_size=8)
        for known in (stack.histories, stack.seen):
            digest.update(known.indptr.tobytes() + known.items.tobytes())
        digest.update(np.ascontiguousarray(users).tobytes())
        file = folder / f"{digest.hexdigest()}.safetensors"
        if not file.is_file():
            found = rank(stack, users, k, strict=strict)
            arrays = {name: torch.from_numpy(getattr(found, name)) for name in StackRanking._fields[:-1]}
            write_tensors(file, arrays, {"left_out": json.dumps(found.left_out)})
        with safe_open(file, framework="np") as stored:
            left_out = json.loads(stored.metadata()["left_out"])
            return StackRanking(*(stored.get_tensor(name) for name in StackRanking._fields[:-1]), left_out=left_out)

    Stack.rank = remembered  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stack.rank = rank  # type: ignore[method-assign]


def _share(own: Path, shared: Path) -> None:
    """Let an arm keep its stack where all arms have theirs, whether it is there yet or not."""
    if own.is_symlink():
        return
    if own.is_dir() and not shared.exists():
        own.rename(shared)
    elif own.is_dir():
        shutil.rmtree(own)
    own.symlink_to(shared.name)


def _had(seen: Histories, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return np.array([item in seen.of_user(user) for user, item in zip(users.tolist(), items.tolist(), strict=True)])


def values_of(answers: dict[str, np.ndarray], trust: float) -> dict[str, np.ndarray]:
    """Metrics of each user if corrections count so much: NDCG and hits at 5, and the log-likelihood of the next item
    among the candidates (NaN where it is none of them)."""
    offset, position = answers["offset"], answers["position"]
    with np.errstate(invalid="ignore"):  # of places without a candidate
        logits = offset + trust * (answers["corrected"] - offset)
    logits[~np.isfinite(offset)] = -np.inf
    among = position >= 0
    own = np.take_along_axis(logits, np.maximum(position, 0)[:, None], 1)
    equal = (logits == own) & (np.arange(logits.shape[1]) < position[:, None])
    rank = ((logits > own) | equal).sum(1)
    hit = among & (rank < 5)
    with np.errstate(invalid="ignore"):
        likelihood = np.where(among, own[:, 0] - np.logaddexp.reduce(logits, axis=1), np.nan)
    return {"ndcg@5": np.where(hit, 1 / np.log2(rank + 2), 0.0), "hr@5": hit.astype(float), "nats": likelihood}


def report_of(found: dict[str, dict[str, np.ndarray]], base: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """What every agent adds to the stack, and what each part adds to the agent, by group of users."""
    first = next(iter(found.values()))
    groups = {
        "all users": np.ones(len(first["position"]), dtype=bool),
        "coldest users": first["horizon"] >= np.quantile(first["horizon"], 1 - COLD_SHARE),
        f"targets with at most {COLD_EVENTS} events": first["count"] <= COLD_EVENTS,
    }
    report: dict[str, Any] = {
        **run, "agent": base, "users": len(first["position"]), "reachable": int((first["position"] >= 0).sum()),
        "revision": revision(), "versions": versions(), "machine": machine("cpu"), "arms": {},
    }  # fmt: skip
    before = values_of(first, 0.0)
    report[STACK] = {name: float(np.nanmean(value)) for name, value in before.items()}
    for name, answers in found.items():
        entry: dict[str, Any] = {"trust": answers["trust"].item()}
        for kind, trust in (("calibrated", answers["trust"].item()), ("full trust", 1.0)):
            values = values_of(answers, trust)
            entry[f"{kind}, over the stack"] = _differences(values, before, groups)
            if name != ALL and ALL in found:
                whole = found[ALL]
                with_all = values_of(whole, whole["trust"].item() if kind == "calibrated" else 1.0)
                entry[f"{kind}, what the part adds"] = _differences(with_all, values, groups)
        report["arms"][name] = entry
    return report


def _differences(
    values: dict[str, np.ndarray], baseline: dict[str, np.ndarray], groups: dict[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float] | None]]:
    def plain(interval: Interval) -> dict[str, float] | None:
        """None where no user has the metric."""
        ends = {end: float(getattr(interval, end)) for end in ("value", "low", "high")}
        return ends if np.isfinite(ends["value"]) else None

    return {
        group: {name: plain(evaluation.paired_means(values[name][rows], baseline[name][rows])) for name in values}
        for group, rows in groups.items()
    }


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    stack = report[STACK]
    lines = [
        f"{report['users']} users, {report['reachable']} with the next item among the candidates; stack: "
        + ", ".join(f"{name} {value:.4f}" for name, value in stack.items()),
        "", "| part | trust | group | " + " | ".join(stack) + " | |", "| --- " * (len(stack) + 4) + "|",
    ]  # fmt: skip
    for arm, entry in report["arms"].items():
        for kind, groups in entry.items():
            if not kind.startswith("calibrated"):
                continue  # the file has it
            for group, values in groups.items():
                cells = [
                    "–" if v is None else f"{v['value']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]"
                    for v in values.values()
                ]
                lines.append(
                    f"| {arm} | {entry['trust']:.2f} | {group} | {' | '.join(cells)} | {kind[len('calibrated, ') :]} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
