"""The command line on a tiny random model."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from reasonrec_fast.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(files, *more):
    return run(
        "optirag", "train", "--data", files / "events.csv", "--items", files / "items.csv",
        "--config", files / "config.json", "--output", files / "model", *more,
    )  # fmt: skip


def test_train_evaluate_predict(files):
    done = train(files)
    assert done.exit_code == 0, done.output
    assert not (files / "model" / "training.safetensors").exists()
    done = run(
        "optirag",
        "evaluate",
        "--model",
        files / "model",
        "--data",
        files / "events.csv",
        "--items",
        files / "items.csv",
    )
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout.strip().splitlines()[-1])
    assert 0 <= metrics["auc"] <= 1
    requests = pd.DataFrame(
        {"user": ["u1", "new"], "item": ["f3", "f3"], "label": [np.nan, np.nan], "timestamp": [20_000, 20_000]}
    )
    requests.to_csv(files / "requests.csv", index=False)
    done = run(
        "optirag", "predict", "--model", files / "model", "--data", files / "requests.csv", "--output", files / "s.csv"
    )
    assert done.exit_code == 0, done.output
    scores = pd.read_csv(files / "s.csv")
    assert list(scores) == ["user", "item", "label", "timestamp", "probability", "depth"]
    assert scores["probability"].between(0, 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--data", "nowhere.csv", "--output", "x"), "path: there is no file nowhere.csv"),
        (("train", "--data", "{events}", "--output", "x", "--split", "random"), "split: expected user_time"),
        (("train", "--data", "{events}", "--output", "x", "--exits", "a"), "exits: expected layers"),
        (("train", "--data", "{events}", "--output", "x", "--backbone", "./none"), "model: expected a folder"),
        (("evaluate", "--model", "nowhere", "--data", "{events}"), "folder: expected a saved model"),
        (("predict", "--model", "nowhere", "--data", "{events}", "--output", "x"), "folder: expected a saved model"),
    ],
)
def test_errors_are_one_line(files, arguments, message):
    filled = [argument.replace("{events}", str(files / "events.csv")) for argument in arguments]
    done = run("optirag", *filled)
    assert done.exit_code == 2
    lines = [line for line in done.output.splitlines() if line.strip()]
    assert len(lines) == 1
    assert message in lines[0]


def test_predict_without_requests(files):
    assert train(files, "--samples", "8").exit_code == 0
    done = run(
        "optirag", "predict", "--model", files / "model", "--data", files / "events.csv", "--output", files / "s.csv"
    )
    assert done.exit_code == 2
    assert "expected rows without a label" in done.output
    assert not (files / "s.csv").exists()


def test_instruction_files(files):
    records = [
        {"instruction": "Answer.", "input": f"Film {i}", "output": "Yes." if i % 3 else "No."} for i in range(30)
    ]
    (files / "train.json").write_text(json.dumps(records))
    (files / "test.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = run(
        "optirag", "train", "--data", files / "train.json", "--config", files / "config.json",
        "--output", files / "model", "--samples", "16",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    done = run("optirag", "evaluate", "--model", files / "model", "--data", files / "test.jsonl")
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout.strip().splitlines()[-1])) == {"auc", "mean_depth"}
