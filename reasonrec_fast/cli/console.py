"""Shared by the commands: output, progress, and one-line error messages."""

from __future__ import annotations

import logging
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import torch
import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from reasonrec_fast.devices import device_name, resolve_device
from reasonrec_fast.training.progress import NO_METRICS, Progress, metrics_text

SECONDS_BETWEEN_LINES = 5.0
"""Between two lines of progress without a terminal."""

DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:N; by default the GPU if there is one", show_default=False),
]
"""The option of every command that runs a model."""


def at_least_one(value: int | None) -> int | None:
    """Callback of options that are counts.

    Raises:
        typer.BadParameter: 0 or less.
    """
    if value is not None and value < 1:
        raise typer.BadParameter(f"expected a whole number of at least 1; got {value}")
    return value


console = Console(stderr=True)
"""For messages and progress, on standard error; results go to standard output."""


def say(line: str) -> None:
    """Print a message as one line, whatever the width of the terminal."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_result(*tables: Table) -> None:
    """Print tables to standard output; if it is not a terminal, without shortening them."""
    screen = Console()
    for table in tables:
        if screen.is_terminal:
            screen.print(table)
        else:
            Console(width=200).print(table)


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM by :func:`listen_to_signals`, so that the command cleans up."""


def listen_to_signals() -> None:
    """Raise :class:`Terminated` on SIGTERM, as Python raises KeyboardInterrupt on SIGINT."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def nothing_written() -> str:
    """The message of most commands when they are stopped."""
    return "nothing was written"


@contextmanager
def clear_errors(when_stopped: Callable[[], str] = nothing_written) -> Iterator[None]:
    """End the command with a one-line message instead of a traceback on invalid input, file errors, lack of memory, and
    signals.

    Args:
        when_stopped: returns the message after Ctrl-C or SIGTERM.

    Raises:
        typer.Exit: with status 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of standard output has closed it
    except (ValueError, TypeError, OSError, ImportError, SafetensorError, torch.OutOfMemoryError, MemoryError) as error:
        _print_error(f"error: {_message(error)}")
        raise typer.Exit(2) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's, on the host
            raise
        _print_error(f"error: {_message(error)}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:
        _print_error(f"stopped: {when_stopped()}")
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from stop


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _print_error(line: str) -> None:
    """Print to standard error, whatever ``--quiet`` says."""
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)


Update = Callable[..., None]
"""Called with the completed count, the total, a note, and the name of the part (by default that of the bar)."""


@contextmanager
def progress_bar(description: str) -> Iterator[Update]:
    """A progress bar on a terminal, otherwise a line every few seconds; each part has its own bar.

    >>> with progress_bar("Counting") as update:
    ...     update(1, 2, "a note")
    ...     update(2, 2, part="Again")
    """
    if not console.is_terminal:
        lines = _Lines(description)
        yield lines.update
        lines.end()
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}"),
    )
    with bars.Progress(*columns, console=console) as bar:
        shown, task = description, bar.add_task(description, total=None, note="")

        def update(done: int, total: int, note: str = "", part: str = description) -> None:
            nonlocal shown, task
            if part != shown:
                bar.remove_task(task)
                shown, task = part, bar.add_task(part, total=None, note="")
            bar.update(task, completed=done, total=total, note=note)

        yield update


def training_progress(update: Update) -> Progress:
    """The progress callback of training that calls a bar's ``update``."""

    def progress(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, part: str = "") -> None:
        update(done, total, metrics_text(metrics), **({"part": part[:1].upper() + part[1:]} if part else {}))

    return progress


def counting(update: Update, total: int) -> Callable[[int], None]:
    """A callback that is called with the number of newly completed elements, and calls ``update``."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        update(done, total)

    return advance


class _Lines:
    """Progress as lines: at the start of a part, every few seconds, and at the end."""

    def __init__(self, description: str) -> None:
        self._description, self._part = description, ""
        self._begin = self._printed = 0.0
        self._first = 0
        self._pending = ""

    def update(self, done: int, total: int, note: str = "", part: str = "") -> None:
        part, now = part or self._description, time.monotonic()
        new = part != self._part
        if new:
            self.end()
            self._part, self._begin, self._first = part, now, done
        speed = (done - self._first) / max(now - self._begin, 1e-9)
        left = f", {_minutes((total - done) / speed)} left" if speed > 0 and done < total else ""
        counted = f": {done} of {total}" if total > 1 else ""
        self._pending = f"{part}{counted}{', ' if note else ''}{note}{left}"
        if new or now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            self.end()

    def end(self) -> None:
        """Print the pending line."""
        if self._pending:
            say(self._pending)
        self._pending = ""


def _minutes(seconds: float) -> str:
    """
    >>> _minutes(3671.0), _minutes(9.4)
    ('1:01:11', '0:09')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _ToStandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        typer.echo(level + self.format(record), err=True)


def set_loudness(*, verbose: bool, quiet: bool) -> None:
    """Log the package's messages to standard error: information and warnings, with ``verbose`` also debug messages,
    with ``quiet`` errors alone and no progress.

    Raises:
        typer.BadParameter: both.
    """
    if verbose and quiet:
        raise typer.BadParameter("expected --verbose or --quiet; got both")
    logger = logging.getLogger("reasonrec_fast")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _ToStandardError)]:
        logger.removeHandler(handler)
    logger.addHandler(_ToStandardError())
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    console.quiet = quiet
    if verbose:
        logger.debug("Python %s, torch %s, %s", platform.python_version(), torch.__version__,
                     device_name(resolve_device()))  # fmt: skip
