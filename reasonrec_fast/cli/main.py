"""The command ``reasonrec-fast``."""

from __future__ import annotations

import os

import typer

from reasonrec_fast.cli.demo import demo
from reasonrec_fast.cli.optirag import app as optirag_app

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Fast LLM- and VLM-based recommendation.")
app.add_typer(optirag_app, name="optirag")
app.command()(demo)


@app.callback()
def main() -> None:
    # The bars of the libraries' own loading; ours are rich's. Read when they are first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
