"""Experiments and commands on a named device."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from pretended_device import DEVICE, pretended_device
from typer.testing import CliRunner

from reasonrec_fast.cli.main import app
from reasonrec_fast.experiments.config import load_experiment
from reasonrec_fast.experiments.runner import load_runs, run_experiment

# They do have values here.
pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model:UserWarning")

TOML = """
seeds = [0]
device = "cpu"
[[datasets]]
kind = "sequences"
path = "tiny"
[[models]]
kind = "BPR"
dim = 4
epochs = 1
[evaluation]
ks = [1]
"""


def test_a_result_is_the_same_on_another_device_and_tells_where_it_was_made(tmp_path):
    (tmp_path / "tiny").mkdir()
    lines = [f"{user} " + " ".join(str((user + step) % 12) for step in range(6)) for user in range(15)]
    (tmp_path / "tiny" / "sequences.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "one.toml").write_text(TOML)
    experiment, output = load_experiment(tmp_path / "one.toml"), tmp_path / "runs.jsonl"
    assert experiment.device == "cpu"
    with pretended_device():
        (device_run,) = run_experiment(experiment, tmp_path, output, device=DEVICE)
    assert device_run.machine["device"] == "meta"
    assert run_experiment(experiment, tmp_path, output) == [device_run]
    (cpu_run,) = run_experiment(experiment, tmp_path, tmp_path / "other.jsonl")
    assert cpu_run.machine["device"] == "cpu" and cpu_run.key == device_run.key
    assert cpu_run.metrics == pytest.approx(device_run.metrics)
    (tmp_path / "one.toml").write_text(TOML.replace('"cpu"', '"gpu"'))
    with pytest.raises(ValueError, match="device: expected 'cpu', 'cuda' or 'cuda:N'; got 'gpu'"):
        run_experiment(load_experiment(tmp_path / "one.toml"), tmp_path, output)
    assert json.loads(output.read_text())["machine"]["device"] == "meta" and len(load_runs(output)) == 1


def commands(group=None, path=()):
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


REQUIRED = {
    ("optirag", "train"): ["--output", "model"],
    ("optirag", "evaluate"): ["--model", "model"],
    ("optirag", "predict"): ["--model", "model", "--data", "x.csv", "--output", "y.csv"],
    ("evaluate",): ["{toml}"],
    ("classical", "fit"): ["--model", "sasrec", "--data", "x.csv", "--output", "model"],
    ("classical", "recommend"): ["--model", "model", "--output", "y.csv"],
    ("classical", "evaluate"): ["--model", "model", "--data", "x.csv"],
    ("reasonrec", "train"): ["--data", "x.csv", "--output", "model"],
    ("reasonrec", "evaluate"): ["--model", "model", "--data", "x.csv"],
    ("reasonrec", "recommend"): ["--model", "model"],
    ("reasonrec", "explain"): ["--model", "model", "--user", "u", "--item", "i"],
}


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_takes_a_device(path, tmp_path, monkeypatch):
    """Every command that runs a model refuses a missing device before anything is read or trained."""
    (tmp_path / "one.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [word.replace("{toml}", str(tmp_path / "one.toml")) for word in REQUIRED.get(path, [])]
    for device, expected in (("cuda", "device: expected 'cpu', since"), ("gpu", "device: expected 'cpu', 'cuda'")):
        done = CliRunner().invoke(app, [*path, *arguments, "--device", device])
        assert done.exit_code == 2, done.output
        assert [line for line in done.output.splitlines() if expected in line], done.output
