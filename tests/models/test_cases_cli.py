"""Errors and messages of the command line."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import reasonrec_fast
from reasonrec_fast.cli import console as console_module
from reasonrec_fast.cli.console import progress_bar
from reasonrec_fast.cli.main import app
from reasonrec_fast.models.classical import (
    BiasConfig,
    BPRConfig,
    DCNv2Config,
    EASEConfig,
    FMConfig,
    ItemKNNConfig,
    LightGCNConfig,
    RecBoleConfig,
    SASRecConfig,
)
from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.training.epochs import EpochTraining
from reasonrec_fast.training.exits import ExitTraining


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(files, *more, before=()):
    return run(
        *before, "optirag", "train", "--data", files / "events.csv", "--items", files / "items.csv",
        "--config", files / "config.json", "--output", files / "model", *more,
    )  # fmt: skip


def only_line(done):
    (line,) = [line for line in done.output.splitlines() if line.strip()]
    return line


def test_version_and_module():
    assert run("--version").output == f"reasonrec-fast {reasonrec_fast.__version__}\n"
    completed = subprocess.run(
        [sys.executable, "-m", "reasonrec_fast", "--version"], capture_output=True, text=True, check=True
    )
    assert completed.stdout == f"reasonrec-fast {reasonrec_fast.__version__}\n"


def test_training_tells_its_parts(files, monkeypatch):
    monkeypatch.setattr(console_module, "SECONDS_BETWEEN_LINES", 1000.0)
    done = train(files)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("prompts")]
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "Retriever", "Requests", "Training", "Training", "Calibration", "Calibration",
    ]  # fmt: skip
    first, last = lines[2:4]
    steps = int(last.split(" of ")[1].split(",")[0])
    assert first.startswith(f"Training: 1 of {steps}, loss 0.") or first.startswith(f"Training: 1 of {steps}, loss 1.")
    assert last.startswith(f"Training: {steps} of {steps}, loss")
    assert "\x1b" not in done.stderr and "━" not in done.stderr
    quiet = train(files, before=("-q",))
    assert quiet.exit_code == 0 and quiet.output == ""


def test_lines_say_the_time_that_is_left(monkeypatch, capsys):
    clock = iter([0.0, 2.0, 6.0, 7.0])
    monkeypatch.setattr(console_module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console_module.console, "quiet", False)
    with progress_bar("Counting") as update:
        for done in (10, 12, 20, 21):
            update(done, 100, f"word {done}")
    assert capsys.readouterr().err.splitlines() == [
        "Counting: 10 of 100, word 10",
        "Counting: 20 of 100, word 20, 0:48 left",
        "Counting: 21 of 100, word 21, 0:50 left",
    ]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("begun", [True, False])
def test_a_stopped_training_says_how_to_go_on(files, monkeypatch, number, status, begun):
    def fit(self, data, train, validation, *, checkpoint, progress):
        if begun:
            checkpoint.parent.mkdir()
            checkpoint.write_bytes(b"")
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(OptiRAG, "fit", fit)
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored
    try:
        done = train(files)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert done.exit_code == status, done.output
    expected = f"the same command resumes from {files / 'model'}" if begun else "nothing was written"
    assert only_line(done) == f"stopped: {expected}"
    assert begun == (files / "model").exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left on device"), (errno.EISDIR, "Is a directory")],
)
def test_files_at_fault_are_one_line(files, monkeypatch, number, message):
    def fit(self, *arguments, checkpoint, **options):
        raise OSError(number, os.strerror(number), str(checkpoint))

    monkeypatch.setattr(OptiRAG, "fit", fit)
    done = train(files)
    assert done.exit_code == 2
    assert only_line(done) == f"error: {files / 'model' / 'training.safetensors'}: {message}"


def test_unwritable_outputs_are_refused_before_the_work(files, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the work began")

    monkeypatch.setattr(OptiRAG, "__init__", never)
    (files / "file").write_text("")
    done = train(files, "--output", files / "file" / "model")
    assert done.exit_code == 2 and only_line(done).endswith("training.safetensors: Not a directory")
    done = run("evaluate", "beauty-sasrec", "--data", files, "--output", files)
    assert done.exit_code == 2 and only_line(done) == f"error: {files}: Is a directory"
    for command in (("demo",), ("optirag", "pareto"), ("optirag", "compare-exits"), ("optirag", "compare-retrieval")):
        done = run(*command, "--output", files / "file")
        assert done.exit_code == 2 and only_line(done).endswith("Not a directory"), done.output
    assert sorted(path.name for path in files.iterdir()) == ["config.json", "events.csv", "file", "items.csv"]


def test_messages_are_as_verbose_as_requested(files):
    def log_of(*before):
        done = train(files, before=before)
        assert done.exit_code == 0, done.output
        return done.stderr

    def interrupted():
        calls = []

        def save(checkpoint, step):
            calls.append(step)
            original(checkpoint, step)
            raise KeyboardInterrupt

        from reasonrec_fast.training.checkpoint import Checkpoint

        original = Checkpoint.save
        Checkpoint.save = save
        try:
            assert train(files).exit_code == 130
        finally:
            Checkpoint.save = original

    interrupted()
    assert "DEBUG: Python " in (loud := log_of("-v")) and "resumes after step" in loud
    interrupted()
    assert "DEBUG: " not in (usual := log_of()) and "resumes after step" in usual
    interrupted()
    assert "resumes after step" not in log_of("-q")
    assert run("-v", "-q", "demo").exit_code == 2


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (OptiRAGConfig, {"samples": 0}),
        (OptiRAGConfig, {"exits": (0,)}),
        (OptiRAGConfig, {"exits": "6"}),
        (OptiRAGConfig, {"exits": (2.0,)}),
        (OptiRAGConfig, {"exits": [6, 10]}),
        (OptiRAGConfig, {"folds": 1}),
        (OptiRAGConfig, {"layers": 0}),
        (OptiRAGConfig, {"learning_rate": float("nan")}),
        (OptiRAGConfig, {"learning_rate": float("inf")}),
        (OptiRAGConfig, {"learning_rate": "5"}),
        (OptiRAGConfig, {"read_dense_features": 1}),
        (OptiRAGConfig, {"backbone": None}),
        (OptiRAGConfig, {"measure": "luck"}),
        (OptiRAGConfig, {"retriever": {"dim": 8}}),
        (EmbeddingConfig, {"disliked_share": 1.1}),
        (BPRConfig, {"epochs": -1}),
        (BPRConfig, {"batch": True}),
        (BPRConfig, {"loss": "hinge"}),
        (LightGCNConfig, {"temperature": -1}),
        (LightGCNConfig, {"average": 1.0}),
        (SASRecConfig, {"max_length": 0}),
        (SASRecConfig, {"heads": 3}),
        (FMConfig, {"history": -1}),
        (DCNv2Config, {"deep": (256, 0)}),
        (DCNv2Config, {"structure": "both"}),
        (ItemKNNConfig, {"neighbours": "5"}),
        (EASEConfig, {"max_items": 0}),
        (BiasConfig, {"strength": 0}),
        (RecBoleConfig, {"settings": 3}),
        (EpochTraining, {"epochs": 1, "patience": 0, "learning_rate": 0.1}),
        (ExitTraining, {"seed": -1}),
    ],
)
def test_settings_without_meaning_are_refused(kind, wrong):
    name = next(name for name in reversed(wrong) if name != "learning_rate" or len(wrong) == 1)
    with pytest.raises(ValueError, match=rf"^{name}: expected .*; got "):
        kind(**wrong)


def test_settings_with_meaning_are_taken():
    assert BPRConfig(dim=np.int64(4), learning_rate=1, epochs=0).dim == 4
    assert OptiRAGConfig(exits=(), layers=None, max_disagreement=np.float32(0.5)).exits == ()
    assert DCNv2Config(deep=[8, 4]).deep == (8, 4)
    config = OptiRAGConfig(exits=(2, 4), retriever=EmbeddingConfig(dim=8))
    assert OptiRAGConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"samples": 0}, "samples: expected a whole number of at least 1 or none; got 0"),
        ({"exits": "6"}, "exits: expected a list, each a whole number of at least 1 or none; got '6'"),
        ({"sample": 10}, "expected backbone, .*template, .*; got 'sample'"),
        ({"retriever": {"dims": 8}}, "retriever: expected batch, dim, .*; got 'dims'"),
        ({"retriever": {"dim": True}}, "retriever: dim: expected a whole number of at least 1; got True"),
        ([1], "expected settings by name; got .1."),
    ],
)
def test_files_of_settings_are_named_with_the_key(files, content, message):
    (files / "config.json").write_text(json.dumps(content))
    done = train(files)
    assert done.exit_code == 2
    assert re.search(f"^error: {re.escape(str(files / 'config.json'))}: {message}$", only_line(done))
    assert not (files / "model").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--sample", "0"),
        ("optirag", "train", "--output", "x", "--samples", "0"),
        ("optirag", "pareto", "--test", "0"),
        ("optirag", "pareto", "--timed", "-1"),
        ("optirag", "compare-exits", "--samples", "0"),
        ("optirag", "compare-exits", "--test", "0"),
        ("optirag", "compare-retrieval", "--layers", "0"),
        ("optirag", "compare-retrieval", "--test", "0"),
    ],
)
def test_counts_that_ask_for_nothing_are_refused(arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    output = " ".join(re.sub("[^-a-z0-9';: ]", " ", done.output).split())
    assert f"'{arguments[-2]}': expected a whole number of at least 1; got {arguments[-1]}" in output
