"""``reasonrec-fast reasonrec``: train, evaluate, recommend, explain."""

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

from reasonrec_fast.cli.classical import FolderOption, check_described, cutoffs_of, users_to_serve
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
    DataOption,
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
from reasonrec_fast.data.columns import Source
from reasonrec_fast.data.reading import Table, read_table
from reasonrec_fast.data.split import split_by_time
from reasonrec_fast.devices import resolve_device
from reasonrec_fast.files import check_writable, read_json, write_json

if TYPE_CHECKING:
    from reasonrec_fast.models.reasonrec import ReasonRec, ReasonRecConfig

app = typer.Typer(
    no_args_is_help=True,
    help="ReasonRec: classical models answer, and a language model corrects them where that promises a gain.",
)

_SPLIT = "leave_one_out"
_AT_ONCE = 16  # users whose answers are shown together

SplitOption = Annotated[str, typer.Option(help="leave_one_out, user_time or global_time; that of the training")]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        help="who answers: gain (the agent where a gain is predicted), risk (by the paper's levels), budget (the agent "
        "for the unsure), always, consult, never; by default the model's"
    ),
]
BudgetOption = Annotated[float | None, typer.Option(help="share of queries for the agent; by default the model's")]


@app.command()
def train(
    data: DataOption,
    output: Annotated[Path, typer.Option(help="folder of the model; a killed run resumes from it")],
    items: ItemsOption = None,
    split: SplitOption = _SPLIT,
    config: Annotated[Path | None, typer.Option(help="JSON file with fields of ReasonRecConfig")] = None,
    backbone: Annotated[str | None, typer.Option(help="language model: a name, a folder or a GGUF file")] = None,
    seed: Annotated[int | None, typer.Option(help="of all random numbers, instead of the settings'")] = None,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """Fit the stack, train the agent, calibrate who answers, and save the model with all events as histories."""
    checkpoint = output / "training.safetensors"
    with clear_errors(lambda: f"the same command resumes from {output}" if output.is_dir() else nothing_written()):
        torch_device, kind = resolve_device(device), split_kind(split)
        settings = _settings(config, backbone, seed)
        check_writable(checkpoint)
        events = load_data(data, items, TableOptions(like, columns, time_unit, time_format))
        parts = split_by_time(events, kind)
        from reasonrec_fast.models.reasonrec import ReasonRec
        from reasonrec_fast.models.reasonrec.storage import remove_checkpoints

        model = ReasonRec(settings, device=torch_device)
        model.check_events(events, parts.train)
        with progress_bar("Training") as update:
            model.fit(events, parts.train, parts.validation, checkpoint=checkpoint, progress=training_progress(update))
        model.set_histories_from(events, np.arange(len(events)))
        model.save_pretrained(output)
        remove_checkpoints(checkpoint)
        say(f"Model written to {output}")


@app.command()
def evaluate(
    model: FolderOption,
    data: DataOption,
    items: ItemsOption = None,
    split: SplitOption = _SPLIT,
    ks: Annotated[str, typer.Option(help="cutoffs, none beyond the agent's candidates")] = "5,10,20",
    budget: BudgetOption = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of the report")] = None,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """What the agent adds to the stack on the test part, by who answers; the report as JSON on standard output."""
    with clear_errors():
        kind, cutoffs = split_kind(split), cutoffs_of(ks)
        if output is not None:
            check_writable(output)
        from reasonrec_fast.experiments.reasonrec import evaluate_agent
        from reasonrec_fast.models.reasonrec import ReasonRec

        loaded = ReasonRec.from_pretrained(model, device=resolve_device(device))
        events = loaded.matched(load_data(data, items, TableOptions(like, columns, time_unit, time_format)))
        with progress_bar("Reading candidates") as update:
            report = evaluate_agent(
                loaded, events, split_by_time(events, kind), ks=cutoffs, budget=budget,
                progress=training_progress(update),
            )  # fmt: skip
        shown = Shown("who answers", "asked", *report.stack, title=f"{report.users} users")
        shown.add_row("stack", "0.0 %", *(f"{value:.4f}" for value in report.stack.values()))
        for name, policy in report.policies.items():
            cells = [
                f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
                for difference in policy.differences.values()
            ]
            shown.add_row(name, f"{100 * (1 - policy.shares['stack']):.1f} %", *cells)
        shown.add_row("room", "", *(f"{value:.4f}" for value in report.room.values()))
        console.print(shown)
        stored = report.to_dict()
        if output is not None:
            write_json(output, stored)
        typer.echo(json.dumps(stored))


@app.command()
def recommend(
    model: FolderOption,
    user: Annotated[list[str] | None, typer.Option(help="identifier of a user; may be repeated")] = None,
    users: Annotated[
        Path | None, typer.Option(help="table with a column user; all users of the model without --user")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="a row for each user and rank, with the columns of --users, rank (from 1), item, score, answered_by, "
            "confidence and why: .csv, .tsv, .jsonl (or .gz), .parquet, or - for standard output; by default shown in "
            "the terminal as the answers come"
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="items a user", callback=at_least_one)] = 5,
    task: Annotated[str, typer.Option(help="sequential, or direct: by tastes, without the history")] = "sequential",
    policy: PolicyOption = None,
    budget: BudgetOption = None,
    think: Annotated[
        bool, typer.Option("--think", help="write a chain of thought under each user's answers, in the terminal")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="events that replace the histories of their users, who may be new")
    ] = None,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """The best items of users: who answered, how sure the stack is, and why."""
    with clear_errors():
        from reasonrec_fast.models.reasonrec import ReasonRec

        torch_device = resolve_device(device)
        if user and users is not None:
            raise ValueError("--user, --users: expected one of them; got both")
        if think and output is not None:
            raise ValueError("--think, --output: expected one of them, as chains are shown in the terminal; got both")
        check_output(output or "-", users, data)
        options = TableOptions(like, columns, time_unit, time_format)
        check_described(data, options)
        loaded = ReasonRec.from_pretrained(model, device=torch_device)
        if think and loaded.chain is None:
            raise ValueError(f"--think: expected a model that was fitted with chain; {model} was fitted without")
        named = Table({"user": pa.array(user, pa.string())}, Source()) if user else None
        table, indices = users_to_serve(loaded, named if users is None else read_table(users), data, options)
        asked: dict[str, Any] = {"task": task, "policy": policy, "budget": budget}
        if output is None:
            for first in range(0, len(indices), _AT_ONCE):
                _show(loaded, indices[first : first + _AT_ONCE], k, asked, think)
            return
        added = ("rank", "item", "score", "answered_by", "confidence", "why")
        with progress_bar("Recommending") as update:
            write_parts(output, table, added, _recommended(loaded, indices, k, asked, update))
        if output != "-":
            say(f"Recommendations for {len(indices)} users written to {output}")


@app.command()
def explain(
    model: FolderOption,
    user: Annotated[str, typer.Option(help="identifier of the user")],
    item: Annotated[list[str], typer.Option(help="identifier of an item; may be repeated")],
    device: DeviceOption = None,
) -> None:
    """Why items may suit a user: tastes, what others liked, what each tool says; a line an item."""
    with clear_errors():
        from reasonrec_fast.models.reasonrec import ReasonRec

        loaded = ReasonRec.from_pretrained(model, device=resolve_device(device))
        for name, reason in zip(item, loaded.explain([user] * len(item), item), strict=True):
            typer.echo(f"{name}: {reason.text}")


def _settings(config: Path | None, backbone: str | None, seed: int | None) -> ReasonRecConfig:
    from reasonrec_fast.models.reasonrec import ReasonRecConfig

    settings = ReasonRecConfig() if config is None else ReasonRecConfig.from_dict(read_json(config), str(config))
    if seed is not None:
        settings = replace(settings, seed=seed)
    if backbone is not None:
        if settings.reader is None and settings.chain is None:
            raise ValueError("--backbone: expected a configuration with an agent or chains; got one without")
        for name in ("agent", "titles", "ctr", "chain"):
            if (part := getattr(settings, name)) is not None:
                settings = replace(settings, **{name: replace(part, backbone=backbone)})
    return settings


def _show(model: ReasonRec, users: np.ndarray, k: int, asked: dict[str, Any], think: bool) -> None:
    """Print the answers of some users, and a chain of thought under those of each."""
    from reasonrec_fast.models.reasonrec.routing import DESTINATIONS
    from reasonrec_fast.prompts.items import item_title

    answers = model.recommend(users, min(k, len(model.known_items)), **asked)
    for row, user in enumerate(users.tolist()):
        say(
            f"{model.known_users.ids[user]}: answered by the {DESTINATIONS[answers.answered_by[row]]}, "
            f"confidence {answers.confidence[row]:.2f}, evidence horizon {answers.horizon[row]:.2f}"
        )
        items = answers.items[row][answers.items[row] >= 0]
        for rank, reason in enumerate(model.explain(np.full(len(items), user), items), 1):
            item = int(items[rank - 1])
            title = item_title(model.catalog, item)
            shown = "" if title is None else f" ({title})"
            typer.echo(f"  {rank}. {model.known_items.ids[item]}{shown}: {reason.text}")
        if think:
            _show_chain(model, user, asked["task"])
    for tool, problem in answers.left_out.items():
        say(f"without {tool}: {problem}")


def _show_chain(model: ReasonRec, user: int, task: Any) -> None:
    """Print a chain of thought while it is written, and which item it ends in."""
    typer.echo("  Thought: ", nl=False)
    chain = model.think(np.array([user]), 1, task=task, on_text=lambda _row, _chain, text: typer.echo(text, nl=False))[
        0
    ]
    typer.echo("" if chain.text else "nothing, as neither history nor candidates have words")
    if chain.text and chain.item is not None:
        say(f"  the chain ends in {model.known_items.ids[int(chain.item)]}")
    elif chain.text:
        say("  the chain ends in no candidate" if chain.finished else "  the chain was cut before it ended")


def _recommended(model: ReasonRec, users: np.ndarray, k: int, asked: dict[str, Any], update: Update) -> Iterator[Part]:
    """Rank, item, score, who answered, confidence and reason, in batches of users."""
    from reasonrec_fast.models.reasonrec.routing import DESTINATIONS

    ids, who = pa.array(model.known_items.ids, pa.string()), np.array(DESTINATIONS, dtype=object)
    k = min(k, len(ids))
    size = max((1 << 12) // k, 1)
    for first in range(0, max(len(users), 1), size):
        part = users[first : first + size]
        answers = model.recommend(part, k, **asked)
        rows, ranks = np.nonzero(answers.items >= 0)
        items = answers.items[rows, ranks]
        yield (
            first + rows,
            {
                "rank": ranks + 1,
                "item": ids.take(pa.array(items)),
                "score": answers.scores[rows, ranks],
                "answered_by": pa.array(who[answers.answered_by[rows]].tolist(), pa.string()),
                "confidence": answers.confidence[rows],
                "why": pa.array([reason.text for reason in model.explain(part[rows], items)], pa.string()),
            },
        )
        update(min(first + size, len(users)), len(users))
