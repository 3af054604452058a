"""Experiments from TOML files: what is run, kept, gone on with and refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from reasonrec_fast.cli.main import app
from reasonrec_fast.data import DataError, Interactions, split_by_time
from reasonrec_fast.experiments import runner
from reasonrec_fast.experiments.config import FOLDER, EvaluationConfig, load_experiment
from reasonrec_fast.experiments.held_out import compared_on_test, metrics_on_test
from reasonrec_fast.experiments.report import markdown_table
from reasonrec_fast.experiments.runner import load_runs, run_experiment
from reasonrec_fast.experiments.tasks import EventsTask
from reasonrec_fast.models.classical import EASE, Bias, Popularity

TOML = """
seeds = [0, 1]
[[datasets]]
kind = "sequences"
path = "tiny"
[[models]]
kind = "BPR"
dim = 4
epochs = 2
[[models]]
kind = "SASRec"
name = "small"
dim = 8
epochs = 1
[evaluation]
ks = [1, 3]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny").mkdir()
    lines = [f"{user} " + " ".join(str((user + step) % 12) for step in range(6)) for user in range(15)]
    (tmp_path / "tiny" / "sequences.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "both.toml").write_text(TOML)
    return tmp_path


def test_every_run_is_kept_once(folder):
    output = folder / "runs.jsonl"
    experiment = load_experiment(folder / "both.toml")
    reports = []
    runs = run_experiment(experiment, folder, output, progress=lambda *report: reports.append(report))
    assert [(run.model, run.seed) for run in runs] == [("BPR", 0), ("BPR", 1), ("small", 0), ("small", 1)]
    assert len(reports) == 6 and reports[0][:2] == (1, 2) and reports[0][3] == "BPR-tiny-0"
    lines = output.read_text().splitlines()
    assert len(lines) == 4
    first = json.loads(lines[0])
    assert list(first)[:5] == ["config", "model", "dataset", "split", "seed"]
    assert {"hr@1", "ndcg@3", "recall@3", "mrr@3", "coverage", "novelty"} < set(first["metrics"])
    assert first["versions"]["torch"] and first["machine"]["processor"] and first["revision"]
    again = run_experiment(experiment, folder, output)
    assert again == runs and output.read_text().splitlines() == lines
    more = run_experiment(experiment, folder, output, seeds=(2,))
    assert [run.seed for run in more] == [2, 2] and len(load_runs(output)) == 6
    table = markdown_table(runs)
    assert "| BPR | tiny | 2 |" in table and table.count("\n") == 3


def test_a_killed_experiment_goes_on(folder):
    class Killed(Exception):
        pass

    def kill(epoch, epochs, metrics, name):
        if name == "BPR-tiny-1":
            raise Killed

    experiment, output = load_experiment(folder / "both.toml"), folder / "runs.jsonl"
    expected = run_experiment(experiment, folder, folder / "whole.jsonl")
    with pytest.raises(Killed):
        run_experiment(experiment, folder, output, progress=kill)
    assert len(load_runs(output)) == 1
    assert [run.metrics for run in run_experiment(experiment, folder, output)] == [run.metrics for run in expected]
    assert not list((folder / ".runs.jsonl.state").iterdir())


def test_a_model_that_was_fitted_for_long_is_not_fitted_again(folder, monkeypatch):
    """A run that was killed while its model was measured."""
    experiment, output = load_experiment(folder / "both.toml"), folder / "runs.jsonl"
    experiment = replace(experiment, models=experiment.models[1:])
    (expected,) = run_experiment(experiment, folder, folder / "whole.jsonl", seeds=(0,))
    monkeypatch.setattr(runner, "_LONG", 0.0)
    metrics = EventsTask.metrics
    monkeypatch.setattr(EventsTask, "metrics", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_experiment(experiment, folder, output, seeds=(0,))
    monkeypatch.setattr(EventsTask, "metrics", metrics)
    monkeypatch.setattr(EventsTask, "fit", lambda *_: 1 / 0)
    (run,) = run_experiment(experiment, folder, output, seeds=(0,))
    assert run.metrics == expected.metrics and run.seconds > 0
    assert not list((folder / ".runs.jsonl.state").iterdir())


def test_models_of_one_kind_are_kept_apart(folder):
    """They share a name, which is no path: nothing is written outside the folder."""

    class Killed(Exception):
        pass

    def kill(epoch, epochs, metrics, name):
        if epoch == 2:
            raise Killed

    second = '[[models]]\nkind = "BPR"\nname = "../../BPR"\ndim = 8\nepochs = 2\n'
    (folder / "both.toml").write_text(
        TOML.replace("[[models]]", second + "[[models]]", 1).replace(
            'kind = "BPR"\ndim = 4', 'kind = "BPR"\nname = "../../BPR"\ndim = 4'
        )
    )
    experiment, output = load_experiment(folder / "both.toml"), folder / "deep" / "down" / "runs.jsonl"
    with pytest.raises(Killed):
        run_experiment(experiment, folder, output, seeds=(0,), progress=kill)
    assert len(list((output.parent / ".runs.jsonl.state").glob("*.safetensors"))) == 1
    runs = run_experiment(experiment, folder, output, seeds=(0,))
    assert markdown_table(runs).count("| ../../BPR | tiny | 1 |") == 2
    assert not list(folder.glob("**/*BPR*"))


def test_sampled_protocol_and_ctr(folder):
    (folder / "sampled.toml").write_text(TOML.replace("ks = [1, 3]", "ks = [1]\nnegatives = 5"))
    runs = run_experiment(load_experiment(folder / "sampled.toml"), folder, folder / "s.jsonl", seeds=(0,))
    assert all(0 <= run.metrics["hr@1"] <= 1 for run in runs)
    rows = [f"u{i % 7},i{i % 5},{i},{int(i % 7 > i % 5)}" for i in range(200)]
    (folder / "events.csv").write_text("user,item,timestamp,label\n" + "\n".join(rows) + "\n")
    (folder / "ctr.toml").write_text(
        'seeds = [0]\n[[datasets]]\nkind = "table"\npath = "events.csv"\nsplit = "user_time"\n'
        '[[models]]\nkind = "BPR"\nepochs = 2\n[evaluation]\ntask = "ctr"\n'
    )
    (run,) = run_experiment(load_experiment(folder / "ctr.toml"), folder, folder / "c.jsonl")
    assert (
        set(run.metrics) == {"auc", "gauc", "gauc_unrated", "log_loss", "accuracy", "ece"} and run.dataset == "events"
    )


@pytest.mark.parametrize("task", ["ranking", "ctr"])
def test_two_models_compared_differ_as_their_metrics_do(task):
    generator = np.random.default_rng(0)
    weights = np.arange(12, 0, -1) / 78
    users, items = generator.integers(40, size=900), generator.choice(12, 900, p=weights)
    likes = np.ones(900) if task == "ranking" else generator.random(900) < 5 * weights[items]  # the popular are liked
    events = Interactions.from_columns([f"u{u}" for u in users], [f"i{i}" for i in items], likes, np.arange(900))
    split = split_by_time(events)
    settings = EvaluationConfig(task=task, ks=(1, 3))
    model, baseline = (model.fit(events, split.train) for model in (Popularity(), Bias() if task == "ctr" else EASE()))
    result = compared_on_test(model, baseline, events, split, settings)
    metrics = [metrics_on_test(compared, events, split, settings) for compared in (model, baseline)]
    assert set(result) == (
        {"auc", "gauc"} if task == "ctr" else {name for name in metrics[0] if name[-2:] in ("@1", "@3")}
    )
    for name, gap in result.items():
        assert gap.value == pytest.approx(metrics[0][name] - metrics[1][name])
        assert gap.low <= gap.value <= gap.high and (gap.p_value is None) == (task == "ctr")
    same = compared_on_test(model, model, events, split, settings)
    assert all(gap.value == 0 and not gap.significant for gap in same.values())


def test_command_line(folder):
    arguments = ["evaluate", str(folder / "both.toml"), "--data", str(folder), "--output", str(folder / "runs.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--seeds", "0"])
    assert result.exit_code == 0, result.output
    assert "| small | tiny | 1 |" in result.stdout
    for extra, message in (
        (["--seeds", "a"], "--seeds: expected whole numbers"),
        (["--seeds", "-1"], "--seeds: expected"),
        (["--data", "no"], "sequences.txt"),
    ):
        failed = CliRunner().invoke(app, [*arguments, *extra])
        assert failed.exit_code == 2 and message in failed.output


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_configurations_of_the_package(name):
    experiment = load_experiment(name)
    assert experiment.name == name and experiment.seeds in ((0,), (0, 1, 2))
    for model in experiment.models:
        assert getattr(model.make(experiment.evaluation.task, 1).config, "seed", 1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("dim = 4", "width = 4"), "both.toml: models.BPR: expected average, batch, .*; got 'width'"),
        (
            ('kind = "BPR"', 'kind = "ClassicalRecommender"'),
            "models.kind: expected one of .*BPR, .*DCNv2, .*, SASRec, .*, optirag for",
        ),
        (('kind = "sequences"', 'kind = "web"'), "both.toml: datasets: kind: expected 'sequences', .*; got 'web'"),
        (("seeds", "seed"), "both.toml: expected models, datasets, evaluation, seeds, device; got 'seed'"),
        (
            ("ks = [1, 3]", "task = 'taste'"),
            "task: expected 'ranking', 'ctr', 'agent', 'explanation' or 'judge'; got 'taste'",
        ),
        (("ks = [1, 3]", "task = 'judge'"), "models.kind: expected one of FeatureJudge for task 'judge'; got 'BPR'"),
        (("[[models]]", "[models]"), "both.toml: expected TOML"),
        (("dim = 8", "dim = 9"), "both.toml: models.small: heads: expected a divisor of dim 9; got 2"),
        (("dim = 8", "dropout = nan"), "both.toml: models.small: dropout: expected a finite number in .0, 1.; got nan"),
        (("dim = 8", "seed = 8"), "both.toml: models.small: expected seeds of all models .*; got a seed"),
        (("dim = 8", "epochz = 8"), "both.toml: models.small: expected .*; got 'epochz'"),
        (("epochs = 2", "epochs = -1"), "models.BPR: epochs: expected a whole number of at least 0; got -1"),
        (("[0, 1]", '["0"]'), "both.toml: seeds: expected a list, each a whole number of at least 0; got .'0',."),
        (("[0, 1]", "[]"), "both.toml: seeds: expected at least one; got none"),
        (("[1, 3]", "[0]"), "both.toml: evaluation: ks: expected a list, each a whole number of at least 1; got"),
        (("[evaluation]", "[evaluation]\nnegatives = true"), "negatives: expected a whole number .*; got True"),
        (('path = "tiny"', "path = 5"), "both.toml: datasets: path: expected a text; got 5"),
        (('kind = "BPR"\n', ""), "expected kind in every"),
    ],
)
def test_what_is_wrong_is_named(folder, change, message):
    (folder / "both.toml").write_text(TOML.replace(*change))
    with pytest.raises(ValueError, match=message):
        load_experiment(folder / "both.toml")


def test_files_that_are_not_what_they_should_be(folder):
    for wrong in ("nothing-like-it", "../configs/beauty-sasrec", str(folder / "no.toml")):
        with pytest.raises(FileNotFoundError, match="config: expected a .toml file"):
            load_experiment(wrong)
    (folder / "runs.jsonl").write_text('{"config": "both"}\n')
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1: expected a run"):
        run_experiment(load_experiment(folder / "both.toml"), folder, folder / "runs.jsonl")
    (folder / "tiny" / "sequences.txt").unlink()
    with pytest.raises(DataError, match="expected sequences"):
        run_experiment(load_experiment(folder / "both.toml"), folder, folder / "other.jsonl")


@pytest.mark.parametrize("model", ["lightgcn", "sasrec"])
def test_scale_is_measured_on_power_law_data(model):
    scale = pytest.importorskip("benchmarks.scale", reason="needs the checkout")
    data = scale.power_law(2000)
    assert (len(data), data.num_users, data.num_items) == (2000, 200, 60)
    assert len({*zip(data.users.tolist(), data.items.tolist(), strict=True)}) == 2000
    lengths, popularity = np.bincount(data.users), np.sort(np.bincount(data.items, minlength=60))
    assert 3 <= lengths.min() < np.median(lengths) < lengths.max() / 2
    assert popularity[-6:].sum() > 3 * popularity[:6].sum()
    case = scale.measure(model, 2000, 2)
    assert len(case["seconds_of_epochs"]) == 2
    assert case["resident_bytes_before"] < case["peak_bytes"]
