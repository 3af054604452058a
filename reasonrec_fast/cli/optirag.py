"""``reasonrec-fast optirag``: train, evaluate, predict."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from reasonrec_fast.cli.console import (
    DeviceOption,
    Update,
    at_least_one,
    clear_errors,
    console,
    counting,
    nothing_written,
    print_result,
    progress_bar,
    say,
    training_progress,
)
from reasonrec_fast.cli.tables import (
    ColumnsOption,
    DataOption,
    ItemsOption,
    LikeOption,
    TableOptions,
    TimeFormatOption,
    TimeUnitOption,
    check_output,
    check_rows,
    is_movielens,
    load_data,
    split_kind,
    write_rows,
)
from reasonrec_fast.data import Instruction, is_instruction_file, load_instructions
from reasonrec_fast.data.columns import Source
from reasonrec_fast.data.instructions import read_records
from reasonrec_fast.data.reading import Table as ReadTable
from reasonrec_fast.data.reading import read_table
from reasonrec_fast.data.split import check_not_learnt, split_by_time
from reasonrec_fast.data.tables import label_of, read_events
from reasonrec_fast.devices import resolve_device
from reasonrec_fast.files import check_writable, read_json, write_json

if TYPE_CHECKING:
    from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig
    from reasonrec_fast.models.optirag.scorer import Predictions

app = typer.Typer(no_args_is_help=True, help="OptiRAG-Rec: click-through prediction with early exit.")

SplitOption = Annotated[str, typer.Option(help="user_time, global_time or leave_one_out")]


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="folder of the model; a killed run resumes from it")],
    data: DataOption = "movielens-small",
    items: ItemsOption = None,
    split: SplitOption = "user_time",
    config: Annotated[Path | None, typer.Option(help="JSON file with fields of OptiRAGConfig")] = None,
    samples: Annotated[int | None, typer.Option(help="training requests", callback=at_least_one)] = None,
    exits: Annotated[str | None, typer.Option(help="layers with heads, such as 6,10,30")] = None,
    backbone: Annotated[str | None, typer.Option(help="language model: a name, a folder or a GGUF file")] = None,
    adapters: Annotated[Path | None, typer.Option(help="a saved model whose adapters are the initial ones")] = None,
    without_knowledge: Annotated[bool, typer.Option(help="store adapters and heads alone")] = False,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """Train a model, calibrate it on validation (of an instruction file: on its last fifth) and save it."""
    checkpoint = output / "training.safetensors"
    with clear_errors(lambda: _resumes_from(output) if checkpoint.is_file() else nothing_written()):
        torch_device = resolve_device(device)
        settings = _settings(config, samples, exits, backbone)
        options = TableOptions(like, columns, time_unit, time_format)
        check_writable(checkpoint)
        instructions = is_instruction_file(data)
        if instructions:
            settings = replace(settings, read_dense_features=False)
            records, held_out = _train_and_validation(load_instructions(data))
        else:
            interactions = load_data(data, items, options)
            parts = split_by_time(interactions, split_kind(split))
            settings = _of_films(settings) if is_movielens(data) else settings
        from reasonrec_fast.models.optirag import OptiRAG

        model = OptiRAG(settings, device=torch_device)
        if adapters is not None:
            model.load_adapters(adapters)
        with progress_bar("Training") as update:
            watched: dict[str, Any] = {"checkpoint": checkpoint, "progress": training_progress(update)}
            if instructions:
                model.fit_instructions(records, held_out, **watched)
            else:
                model.fit(interactions, parts.train, parts.validation, **watched)
        model.save_pretrained(output, knowledge=not without_knowledge)
        checkpoint.unlink(missing_ok=True)
        say(f"Model written to {output}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="folder of the model")],
    data: DataOption = "movielens-small",
    items: ItemsOption = None,
    split: SplitOption = "user_time",
    full_depth: Annotated[bool, typer.Option(help="read every layer")] = False,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """Metrics on the test part (of an instruction file: on all records), as JSON on standard output."""
    with clear_errors():
        loaded = load_model(model, resolve_device(device))
        if is_instruction_file(data):
            metrics = loaded.evaluate_instructions(load_instructions(data), early_exit=not full_depth)
        else:
            interactions = load_data(data, items, TableOptions(like, columns, time_unit, time_format))
            parts = split_by_time(interactions, split_kind(split))
            if loaded.knowledge is None:
                loaded.refit_retriever(interactions, parts.train)
            check_not_learnt(interactions, parts, loaded.fitted_events, data)
            metrics = loaded.evaluate(interactions, parts.test, early_exit=not full_depth)
        from reasonrec_fast.experiments.held_out import with_reasons

        known, undefined = with_reasons(metrics)
        table = Table("metric", "value")
        for name, value in known.items():
            table.add_row(name, f"– ({undefined[name]})" if value is None else f"{value:.4f}")
        console.print(table)
        typer.echo(json.dumps(known))


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="folder of the model")],
    data: Annotated[
        Path,
        typer.Option(
            help="history (rows with a label or rating) and requests (rows without), or instructions without output"
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            help="the unchanged requests, with probability and depth: .csv, .tsv, .jsonl (or .gz), .parquet, or - "
            "for standard output"
        ),
    ],
    items: ItemsOption = None,
    full_depth: Annotated[bool, typer.Option(help="read every layer")] = False,
    like: LikeOption = None,
    columns: ColumnsOption = None,
    time_unit: TimeUnitOption = None,
    time_format: TimeFormatOption = None,
    device: DeviceOption = None,
) -> None:
    """Score the requests of a file, in its order and with its columns. Users and items may be new."""
    with clear_errors():
        torch_device = resolve_device(device)
        require_model(model)
        check_output(output, data, items)
        options = TableOptions(like, columns, time_unit, time_format)
        options.values()
        table, records = _instructions(data) if is_instruction_file(data) else (read_table(data), None)
        check_rows(output, table, ("probability", "depth"))
        loaded = load_model(model, torch_device)
        with progress_bar("Scoring") as update:
            if records is None:
                rows, predictions = _score(loaded, table, items, options, model, data, not full_depth, update)
            else:
                rows = np.flatnonzero([record.label < 0 for record in records])
                _require_requests(rows, data)
                requests = loaded.instruction_requests([records[row] for row in rows])
                predictions = loaded.predict(requests, early_exit=not full_depth, progress=counting(update, len(rows)))
        write_rows(output, table, rows, {"probability": predictions.probability, "depth": predictions.depth})
        if output != "-":
            say(f"{len(rows)} scores written to {output}")


def _instructions(data: Path) -> tuple[ReadTable, list[Instruction]]:
    """The records of a file, as a table and as instructions."""
    records = load_instructions(data, allow_unlabelled=True)
    stored = read_records(data)
    names = list(dict.fromkeys(name for record in stored for name in record))
    return ReadTable({name: [record.get(name) for record in stored] for name in names}, Source(str(data))), records


def _score(
    model: OptiRAG,
    table: ReadTable,
    items: Path | None,
    options: TableOptions,
    folder: Path,
    data: Path,
    early_exit: bool,
    update: Update,
) -> tuple[np.ndarray, Predictions]:
    """The requests of a table, as ascending row numbers, and their scores."""
    if model.knowledge is None:
        raise ValueError(f"model: expected a model with its training events; {folder} has adapters and heads alone")
    values = options.values()
    label = label_of(table.renamed(values["columns"]).columns, values["columns"])
    values["like"] = model.like_of({label} if label else (), values["like"])
    events = read_events(table, items, allow_unlabelled=True, **values)
    interaction_rows = events.interaction_rows
    rows = np.flatnonzero(events.interactions.labels[interaction_rows] < 0)
    _require_requests(rows, data)
    return rows, model.predict_rows(
        events.interactions, interaction_rows[rows], early_exit=early_exit, progress=counting(update, len(rows))
    )


def _require_requests(rows: np.ndarray, data: Path) -> None:
    if len(rows) == 0:
        raise ValueError(f"data: expected rows without a label, to be scored; {data} has none")


@app.command()
def pareto(
    output: Annotated[Path, typer.Option(help="folder of the report and the plot")] = Path("runs/pareto"),
    model: Annotated[Path | None, typer.Option(help="folder of the model; that of the demo by default")] = None,
    test: Annotated[int, typer.Option(help="test requests to score", callback=at_least_one)] = 6_000,
    timed: Annotated[int, typer.Option(help="number of them that are timed", callback=at_least_one)] = 512,
    device: DeviceOption = None,
) -> None:
    """AUC against requests per second over exit thresholds, on MovieLens."""
    with clear_errors():
        check_writable(output / "pareto.json")
        from reasonrec_fast.cli.pareto import plot
        from reasonrec_fast.experiments.pareto import pareto as measure
        from reasonrec_fast.models.optirag.packaged import MOVIELENS

        torch_device = resolve_device(device)
        interactions = load_data("movielens-small", None)
        parts = split_by_time(interactions)
        loaded = load_model(model or MOVIELENS, torch_device)
        loaded.refit_retriever(interactions, parts.train)
        points = measure(loaded, interactions, parts, sample=test, timed=timed)
        write_json(output / "pareto.json", [asdict(point) for point in points])
        plot(points, output / "pareto.png")
    table = Table("kind", "label", "AUC", "GAUC", "depth", "requests/s")
    for p in points:
        table.add_row(p.kind, p.label, f"{p.auc:.4f}", f"{p.gauc:.4f}", f"{p.depth:.1f}", f"{p.requests_per_s:.1f}")
    print_result(table)


@app.command()
def compare_exits(
    output: Annotated[Path, typer.Option(help="folder of the models and the report")] = Path("runs/exits"),
    config: Annotated[Path | None, typer.Option(help="JSON file with fields of OptiRAGConfig")] = None,
    samples: Annotated[int, typer.Option(help="training requests of each model", callback=at_least_one)] = 4_000,
    test: Annotated[int, typer.Option(help="test requests to score", callback=at_least_one)] = 2_000,
    device: DeviceOption = None,
) -> None:
    """Compare ways to train exits, on MovieLens; trains six models."""
    with clear_errors(lambda: _resumes_from(output)):
        check_writable(output / "report.json")
        torch_device = resolve_device(device)
        from reasonrec_fast.experiments.exits import compare_exits as compare

        with progress_bar("Training") as update:
            records = compare(
                output,
                _of_films(_settings(config, samples, None, None)),
                sample=test,
                device=torch_device,
                progress=training_progress(update),
            )
        write_json(output / "report.json", [asdict(record) for record in records])
    exits = records[-1].exits
    table = Table("training", *(f"AUC, exit {layer}" for layer in exits), "AUC, early exit", "GAUC", "depth")
    for r in records:
        at = dict(zip(r.exits, r.auc, strict=True))
        figures = [*(at.get(layer) for layer in exits), r.early_auc, r.early_gauc]
        depth = "–" if r.early_depth is None else f"{r.early_depth:.1f}"
        table.add_row(r.kind, *("–" if value is None else f"{value:.4f}" for value in figures), depth)
    print_result(table)


@app.command()
def compare_retrieval(
    output: Annotated[Path, typer.Option(help="folder of the models and the report")] = Path("runs/retrieval"),
    config: Annotated[Path | None, typer.Option(help="JSON file with fields of OptiRAGConfig")] = None,
    layers: Annotated[int, typer.Option(help="layers of the backbone that are kept", callback=at_least_one)] = 10,
    samples: Annotated[int | None, typer.Option(help="training requests of each model", callback=at_least_one)] = None,
    test: Annotated[
        int | None, typer.Option(help="test requests to score; all by default", callback=at_least_one)
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Compare the GCN retriever with retrieval by text and with none, on MovieLens."""
    with clear_errors(lambda: _resumes_from(output)):
        check_writable(output / "report.json")
        torch_device = resolve_device(device)
        settings = replace(_of_films(_settings(config, samples, None, None)), layers=layers)
        from reasonrec_fast.experiments.retrieval import compare_retrieval as compare

        with progress_bar("Training") as update:
            records, times = compare(
                output,
                settings,
                sample=test,
                device=torch_device,
                progress=training_progress(update),
            )
        write_json(output / "report.json", {"records": [asdict(r) for r in records], "milliseconds_a_user": times})
    columns = (
        "retrieval",
        "AUC",
        "GAUC",
        "GAUC unrated",
        "AUC, evidence only",
        "GAUC, evidence only",
        "GCN minus this",
    )
    table = Table(*columns, title=f"{layers} layers, all read")
    for r in records:
        figures = (r.auc, r.gauc, r.gauc_unrated, r.evidence_auc, r.evidence_gauc)
        gaps = [
            f"{n} {g['value']:+.4f} [{g['low']:+.4f}, {g['high']:+.4f}]" for n, g in (r.gcn_minus_this or {}).items()
        ]
        table.add_row(r.retrieval, *(f"{value:.4f}" for value in figures), ", ".join(gaps))
    speed = Table("retrieval", "ms a user (median)")
    for name, value in times.items():
        speed.add_row(name, f"{value:.2f}")
    print_result(table, speed)


def _resumes_from(folder: Path) -> str:
    return f"the same command resumes from {folder}"


def _train_and_validation(records: list[Instruction]) -> tuple[list[Instruction], list[Instruction]]:
    cut = len(records) - max(len(records) // 5, 1)
    return records[:cut], records[cut:]


def require_model(folder: Path) -> None:
    """Refuse a folder without a model before any work."""
    from reasonrec_fast.models.optirag import storage

    storage.require_model(folder)


def load_model(folder: Path, device: torch.device | str | None) -> OptiRAG:
    from reasonrec_fast.models.optirag import OptiRAG

    return OptiRAG.from_pretrained(folder, device=device)


def _settings(config: Path | None, samples: int | None, exits: str | None, backbone: str | None) -> OptiRAGConfig:
    from reasonrec_fast.models.optirag import OptiRAGConfig

    settings = OptiRAGConfig.from_dict(read_json(config), str(config)) if config else OptiRAGConfig()
    if samples is not None:
        settings = replace(settings, samples=samples)
    if backbone is not None:
        settings = replace(settings, backbone=backbone)
    if exits is not None:
        parts = exits.split(",")
        if not all(part.strip().isdigit() for part in parts):
            raise ValueError(f"exits: expected layers such as 6,10,30; got {exits!r}")
        settings = replace(settings, exits=tuple(int(part) for part in parts))
    return settings


def _of_films(settings: OptiRAGConfig) -> OptiRAGConfig:
    """The settings with the template of MovieLens, unless they name a template."""
    return replace(settings, template="films") if settings.template == "auto" else settings
