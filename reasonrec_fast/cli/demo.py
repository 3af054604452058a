"""``reasonrec-fast demo``: the table, the report and the plot."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from reasonrec_fast.cli.console import DeviceOption, at_least_one, clear_errors, print_result, say
from reasonrec_fast.files import atomic_write, check_writable, write_json

if TYPE_CHECKING:
    from reasonrec_fast.experiments.demo import Comparison, SystemRecord
    from reasonrec_fast.experiments.demo_reasonrec import UserAnswer


def demo(
    full: Annotated[bool, typer.Option("--full", help="score the whole test part")] = False,
    sample: Annotated[
        int, typer.Option(help="test requests to score (whole users, fixed seed)", callback=at_least_one)
    ] = 2000,
    output: Annotated[Path, typer.Option(help="folder of the report")] = Path("runs/demo"),
    device: DeviceOption = None,
) -> None:
    """Compare OptiRAG-Rec with its baselines on held-out MovieLens requests, and let ReasonRec answer three users."""
    begin = time.perf_counter()
    with clear_errors():
        check_writable(output / "report.json")
        from reasonrec_fast.experiments.demo import run_demo
        from reasonrec_fast.experiments.demo_reasonrec import run_reasonrec_demo

        comparison = run_demo(sample=None if full else sample, device=device, say=say)
        write_json(output / "report.json", comparison.as_json())
        _plot(comparison.records, output / "report.png")
        answers = run_reasonrec_demo(device=device, say=say)
        write_json(output / "reasonrec.json", [asdict(answer) for answer in answers])
    print_result(_table(comparison.records), _differences(comparison))
    for answer in answers:
        _show(answer)
    say(f"Written to {output}; {time.perf_counter() - begin:.0f} s")


def _table(records: list[SystemRecord]) -> Table:
    columns = ("system", "AUC", "GAUC", "unrated", "log-loss", "req/s", "p50 ms", "p95 ms", "depth", "rated", "cold")
    caption = "unrated: GAUC on films without a training rating; depth: mean layers read, and of rated and cold films"
    table = Table(title=f"{records[0].requests} held-out MovieLens requests", caption=caption)
    for column in columns:
        table.add_column(column, justify="left" if column == "system" else "right", no_wrap=True)
    for r in records:
        figures = (
            (r.auc, 4), (r.gauc, 4), (r.gauc_unrated, 4), (r.logloss, 4), (r.requests_per_s, 1), (r.p50_ms, 2),
            (r.p95_ms, 2), (r.mean_depth, 1), (r.mean_depth_rated, 1), (r.mean_depth_cold, 1),
        )  # fmt: skip
        table.add_row(r.system, *("–" if value is None else f"{value:.{digits}f}" for value, digits in figures))
    return table


def _differences(comparison: Comparison) -> Table:
    """OptiRAG-Rec minus each other system, with intervals over users."""
    from reasonrec_fast.evaluation import paired_differences

    labels, users = comparison.interactions.labels[comparison.rows], comparison.interactions.users[comparison.rows]
    table = Table("optirag minus", "AUC", "GAUC", "GAUC unrated", title="95 % intervals, paired bootstrap over users")
    for name, scores in comparison.scores.items():
        if name == "optirag":
            continue
        ours, part = comparison.scores["optirag"], comparison.unrated
        whole = paired_differences(labels, users, ours, scores)
        cold = paired_differences(labels[part], users[part], ours[part], scores[part])
        table.add_row(name, str(whole["auc"]), str(whole["gauc"]), str(cold["gauc"]))
    return table


def _show(answer: UserAnswer) -> None:
    """What ReasonRec says to a user."""
    typer.echo(
        f"\nUser {answer.user} liked, latest first: {', '.join(answer.liked)}\n"
        f"Answered by the {answer.answered_by}, confidence {answer.confidence:.2f}, "
        f"evidence horizon {answer.horizon:.2f}"
    )
    for rank, (film, reason) in enumerate(zip(answer.films, answer.reasons, strict=True), 1):
        typer.echo(f"  {rank}. {film}: {reason}")
    if answer.chain:
        ends = "no candidate" if answer.chain_film is None else answer.chain_film
        typer.echo(f"  Thought: {answer.chain}\n  It ends in {ends}.")
    typer.echo(f"  Liked next: {answer.next_film}")


def _plot(records: list[SystemRecord], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, metric in zip(axes, ("auc", "gauc"), strict=True):
        for record in records:
            axis.scatter(record.requests_per_s, getattr(record, metric))
            axis.annotate(
                record.system,
                (record.requests_per_s, getattr(record, metric)),
                xytext=(5, 4),
                textcoords="offset points",
            )
        axis.set(xscale="log", xlabel="requests per second", ylabel=metric.upper())
        axis.margins(x=0.25, y=0.15)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
