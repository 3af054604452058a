"""The command ``reasonrec-fast``."""

from __future__ import annotations

from functools import partialmethod

import typer
from tqdm import tqdm

from reasonrec_fast.cli.demo import demo
from reasonrec_fast.cli.evaluate import evaluate
from reasonrec_fast.cli.optirag import app as optirag_app

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Fast LLM- and VLM-based recommendation.")
app.add_typer(optirag_app, name="optirag")
app.command()(demo)
app.command()(evaluate)


@app.callback()
def main() -> None:
    # transformers draws bars of its own while it loads a model; ours are rich's.
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # type: ignore[method-assign, assignment]
