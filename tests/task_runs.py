"""Experiments on a small folder, by the command."""

import json

from typer.testing import CliRunner

from reasonrec_fast.cli.main import app


def evaluate(folder, toml, *more):
    (folder / "e.toml").write_text(toml)
    done = CliRunner().invoke(
        app, ["evaluate", str(folder / "e.toml"), "--data", str(folder), "--output", str(folder / "r.jsonl"), *more]
    )
    runs = [json.loads(text) for text in (folder / "r.jsonl").read_text().splitlines()] if not done.exit_code else []
    return done, {run["model"]: run["metrics"] for run in runs}


def toml(task, dataset, *models, more=""):
    models = "".join(f"[[models]]\n{model}\n" for model in models)
    return f"seeds = [0]\n[[datasets]]\n{dataset}\n{models}[evaluation]\ntask = '{task}'\n{more}"
