"""The command ``reasonrec-fast``."""

from __future__ import annotations

from functools import partialmethod
from typing import Annotated

import typer
from tqdm import tqdm

from reasonrec_fast import __version__
from reasonrec_fast.cli.classical import app as classical_app
from reasonrec_fast.cli.console import listen_to_signals, set_loudness
from reasonrec_fast.cli.demo import demo
from reasonrec_fast.cli.evaluate import evaluate
from reasonrec_fast.cli.optirag import app as optirag_app
from reasonrec_fast.cli.reasonrec import app as reasonrec_app

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Fast LLM- and VLM-based recommendation.")
app.add_typer(optirag_app, name="optirag")
app.add_typer(reasonrec_app, name="reasonrec")
app.add_typer(classical_app, name="classical")
app.command()(demo)
app.command()(evaluate)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"reasonrec-fast {__version__}")
        raise typer.Exit


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log debug messages")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="log errors alone, and show no progress")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    # Hide the progress bars of transformers while it loads a model; the package's bars are rich's.
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # type: ignore[method-assign, assignment]
    set_loudness(verbose=verbose, quiet=quiet)
    listen_to_signals()
