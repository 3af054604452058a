"""What the commands share: output, progress, and errors as one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:N; by default the GPU where there is one", show_default=False),
]
"""Of every command that runs a model."""

console = Console(stderr=True)
"""For what happens on the way; results go to standard output."""


def print_result(*tables: Table) -> None:
    """Print tables to standard output; where that is no terminal, as wide as they need."""
    screen = Console()
    for table in tables:
        if screen.is_terminal:
            screen.print(table)
        else:
            Console(width=200).print(table)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the command with one line, not a traceback, where the input is at fault or the GPU is too small."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError, ImportError, torch.OutOfMemoryError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """A bar; the function it gives takes what is done, the total, and a word beside it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update
