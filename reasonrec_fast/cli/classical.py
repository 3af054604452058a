"""``reasonrec-fast classical``: fit, recommend, evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import typer
from rich.table import Table as Shown

from reasonrec_fast.cli.console import (
    DeviceOption,
    Update,
    at_least_one,
    clear_errors,
    console,
    nothing_written,
    progress_bar,
    say,
    training_progress,
)
from reasonrec_fast.cli.tables import (
    ColumnsOption,
    ItemsOption,
    LikeOption,
    Part,
    TableOptions,
    TimeFormatOption,
    TimeUnitOption,
    check_output,
    load_data,
    split_kind,
    write_parts,
)
from reasonrec_fast.data.columns import Source, as_column, texts
from reasonrec_fast.data.reading import Table, read_table
from reasonrec_fast.data.split import split_by_time
from reasonrec_fast.devices import resolve_device
from reasonrec_fast.files import check_writable, read_json
from reasonrec_fast.settings import settings_from

if TYPE_CHECKING:
    from reasonrec_fast.experiments.config import EvaluationConfig
    from reasonrec_fast.models.classical import ClassicalRecommender

app = typer.Typer(
    no_args_is_help=True,
    help="Recommendations by the classical models: SASRec, LightGCN, BPR, EASE, item-kNN, popularity, biases, FM, "
    "DCN-v2, RecBole's.",
)

ENTRIES = 1 << 20
"""Recommendations in a batch."""

_DEFAULT_SPLIT = "leave_one_out"

EventsOption = Annotated[
    str,
    typer.Option(
        help="events: a .csv, .tsv, .parquet or .jsonl (or .gz) with user, item, timestamp and optionally label "
        "or rating; or movielens-small, or the folder of MovieLens 100K"
    ),
]
FolderOption = Annotated[Path, typer.Option(help="folder of the model")]


@app.command()
def fit(
    model: Annotated[
        str,
        typer.Option(
            help="sasrec, lightgcn, bpr, ease, itemknn, popularity, bias, fm, dcnv2, or recbole (whose --config names "
            "the model)"
        ),
    ],
    data: EventsOption,
    output: Annotated[Path, typer.Option(help="folder of the model; a killed run resumes from it")],
    items: ItemsOption = None,
    split: Annotated[
        str,
        typer.Option(
            help="leave_one_out, user_time or global_time: trains on the training part, with early stopping on the "
            "validation part, and keeps the test part for evaluate; none: trains on all events, for all epochs"
        ),
    ] = _DEFAULT_SPLIT,
    config: Annotated[Path | None, typer.Option(help="JSON file with fields of the model's settings")] = None,
    seed: Annotated[int | None, typer.Option(help="of all random numbers, instead of the settings'")] = None,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """Fit a model and save it, with all events of the table as its users' histories.

    Recommendations exclude the items of these events, and sequential models read them all, from every part of the
    split.
    """
    checkpoint = output / "training.safetensors"
    with clear_errors(lambda: f"the same command resumes from {output}" if checkpoint.is_file() else nothing_written()):
        from reasonrec_fast.models.classical.loading import recommender_named

        kind = recommender_named(model)
        recommender = kind(_settings(kind, config, seed), device=resolve_device(device))
        held_out = None if split == "none" else split_kind(split, "none")
        check_writable(checkpoint)
        interactions = load_data(data, items, TableOptions(like, columns, time_unit, time_format))
        parts = None if held_out is None else split_by_time(interactions, held_out)
        if parts is not None and not (interactions.labels[parts.validation] == 1).any():
            raise ValueError(
                f"--split: expected a positive event in the validation part of {split}; got none in "
                f"{len(parts.validation)} events: --split none learns from all of them"
            )
        rows = (None, None) if parts is None else (parts.train, parts.validation)
        with progress_bar("Training") as update:
            recommender.fit(interactions, *rows, checkpoint=checkpoint, progress=training_progress(update))
        recommender.set_histories_from(interactions, np.arange(len(interactions)))
        recommender.save_pretrained(output)
        checkpoint.unlink(missing_ok=True)
        say(f"Model written to {output}")


@app.command()
def recommend(
    model: FolderOption,
    output: Annotated[
        str,
        typer.Option(
            help="a row for each user and rank, with the columns of --users, rank (from 1), item and score: .csv, "
            ".tsv, .jsonl (or .gz), .parquet, or - for standard output"
        ),
    ],
    k: Annotated[int, typer.Option("--k", "-k", help="items a user", callback=at_least_one)] = 10,
    users: Annotated[
        Path | None, typer.Option(help="table with a column user; all users of the model by default")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="events that replace the histories of their users, who may be new"),
    ] = None,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """Retrieves the top-k items for each user, excluding seen items, in the order of --users.

    A user has fewer than k rows if there are no more items.
    """
    with clear_errors():
        from reasonrec_fast.models.classical import load_recommender

        torch_device = resolve_device(device)
        check_output(output, users, data)
        options = TableOptions(like, columns, time_unit, time_format)
        check_described(data, options)
        loaded = load_recommender(model, device=torch_device)
        table, user_indices = users_to_serve(loaded, None if users is None else read_table(users), data, options)
        with progress_bar("Recommending") as update:
            write_parts(output, table, ("rank", "item", "score"), _recommended(loaded, user_indices, k, update))
        if output != "-":
            say(f"Recommendations for {len(user_indices)} users written to {output}")


@app.command()
def evaluate(
    model: FolderOption,
    data: EventsOption,
    split: Annotated[
        str, typer.Option(help="leave_one_out, user_time or global_time; that of the fit")
    ] = _DEFAULT_SPLIT,
    task: Annotated[str, typer.Option(help="ranking or ctr")] = "ranking",
    ks: Annotated[str | None, typer.Option(help="cutoffs of ranking; 5,10,20 by default")] = None,
    negatives: Annotated[
        int | None,
        typer.Option(help="sampled candidates for each target; all items by default", callback=at_least_one),
    ] = None,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """Metrics on the test part, as JSON on standard output: undefined metrics are null, with the reason.

    The model must have been fitted on the training part of the same split of the same events; their order matters only
    among a user's events with the same timestamp. Histories that were saved with the model are not used: they are those
    of the training part (and, for ranking, of the validation part).
    """
    with clear_errors():
        from reasonrec_fast.experiments.held_out import check_measurable, metrics_on_test, with_reasons
        from reasonrec_fast.models.classical import load_recommender
        from reasonrec_fast.models.registry import tasks_of

        held_out, settings = split_kind(split), _measured(task, ks, negatives)
        loaded = load_recommender(model, device=resolve_device(device))
        known = tasks_of(type(loaded).__name__)
        if settings.task not in known:
            raise ValueError(f"--task: expected {' or '.join(known)}; got {task!r}")
        events = load_data(data, None, TableOptions(like, columns, time_unit, time_format))
        events = loaded.matched(events)
        parts = split_by_time(events, held_out)
        check_measurable(events, parts, settings, data)
        new = np.unique(events.users[parts.test])
        _check_served(loaded, new, Source(data), [events.user_ids[user] for user in new])
        loaded.set_histories_from(events, parts.train)
        metrics, undefined = with_reasons(metrics_on_test(loaded, events, parts, settings))
        shown = Shown("metric", "value")
        for name, value in metrics.items():
            shown.add_row(name, f"– ({undefined[name]})" if value is None else f"{value:.4f}")
        console.print(shown)
        typer.echo(json.dumps({"metrics": metrics, "undefined": undefined}))


def _settings(kind: type[ClassicalRecommender], config: Path | None, seed: int | None) -> Any:
    """A model's settings, from a file."""
    settings: Any = settings_from(kind.config_type, {} if config is None else read_json(config), str(config))
    if seed is None:
        return settings
    if not hasattr(settings, "seed"):
        raise ValueError(f"--seed: expected a model that draws at random; got {kind.__name__}")
    return replace(settings, seed=seed)


def _measured(task: str, ks: str | None, negatives: int | None) -> EvaluationConfig:
    from reasonrec_fast.experiments.config import EvaluationConfig

    if task == "ctr" and (ks, negatives) != (None, None):
        raise ValueError("--ks, --negatives: expected with --task ranking; got ctr")
    values = {"task": task, "ks": cutoffs_of(ks or "5,10,20"), "negatives": negatives or 0}
    return settings_from(EvaluationConfig, values, "options")


def cutoffs_of(ks: str) -> list[int]:
    """The option ``--ks``, such as ``5,10``."""
    parts = ks.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"--ks: expected cutoffs such as 5,10; got {ks!r}")
    return [int(part) for part in parts]


def check_described(data: str | None, options: TableOptions) -> None:
    """Refuse options of a table of histories where there is none."""
    if data is None and (options.like, options.time_unit, options.time_format) != (None, None, None):
        raise ValueError("--like, --time-unit, --time-format: expected with --data, which they describe; got none")


def users_to_serve(
    model: ClassicalRecommender, table: Table | None, data: str | None, options: TableOptions
) -> tuple[Table, np.ndarray]:
    """Set the histories of ``--data``; returns a table of users, by default of all, and their indices."""
    if data is not None:
        model.set_histories_from_table(load_data(data, None, options))
    if table is None:
        table = Table({"user": pa.array(model.known_users.ids, pa.string())}, Source())
    return table, users_of(model, table.renamed(options.values()["columns"]))


def users_of(model: ClassicalRecommender, table: Table) -> np.ndarray:
    """Index of each row's user, int64 ``[N]``."""
    source = table.source
    if "user" not in table.columns:
        raise ValueError(f"{source.path}: expected a column user (--columns user=...); got {', '.join(table.columns)}")
    names = texts(as_column(table.columns["user"], "user"), source, "user").to_pylist()
    known = model.known_users.index
    users = np.fromiter((known.get(name, -1) for name in names), np.int64, len(names))
    if (users < 0).any():
        row = int((users < 0).argmax())
        raise source.wrong("user", row, "a user whom the model or --data knows", names[row])
    _check_served(model, users, source, names)
    return users


def _check_served(model: ClassicalRecommender, users: np.ndarray, source: Source, names: list[str]) -> None:
    """Refuse new users for a model that serves only the users of its training."""
    if model.serves_new_users or not len(users) or users.max() < model.sizes["users"]:
        return
    name = names[int(users.argmax())]
    raise ValueError(
        f"{source.path or 'users'}: expected users of the training, as {type(model).__name__} serves no others; got "
        f"{name!r}"
    )


def _recommended(model: ClassicalRecommender, users: np.ndarray, k: int, update: Update) -> Iterator[Part]:
    """Rank, item and score of each user's top-k items, in batches of users."""
    items = pa.array(model.known_items.ids, pa.string())
    k = min(k, len(items))
    size = max(ENTRIES // k, 1)
    for first in range(0, max(len(users), 1), size):
        recommended = model.recommend(users[first : first + size], k)
        rows, ranks = np.nonzero(recommended.items >= 0)
        best = items.take(pa.array(recommended.items[rows, ranks]))
        yield first + rows, {"rank": ranks + 1, "item": best, "score": recommended.scores[rows, ranks]}
        update(min(first + size, len(users)), len(users))
