"""Experiments: data sets are identified by their events, and unmeasurable tasks are refused before anything is
fitted."""

import json

import numpy as np
import pytest

from reasonrec_fast.data import DataError
from reasonrec_fast.experiments.config import load_experiment
from reasonrec_fast.experiments.runner import load_runs, run_experiment
from reasonrec_fast.models.classical import Popularity

TABLE = '[[datasets]]\nkind = "table"\npath = "{path}"\nsplit = "{split}"\n'


def rows(seed, label=None):
    generator = np.random.default_rng(seed)
    for row in range(120):
        like = generator.integers(2) if label is None else label
        yield f"u{generator.integers(8)},i{generator.integers(10)},{row},{like}"


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["user,item,timestamp,label", *lines]) + "\n")


def experiment(folder, *paths, task="ranking", split="user_time", models=("Popularity",), more=""):
    text = "seeds = [0]\n" + "".join(TABLE.format(path=path, split=split) for path in paths)
    text += "".join(f'[[models]]\nkind = "{model}"\n' for model in models)
    text += f'[evaluation]\ntask = "{task}"\nks = [2]\n{more}'
    (folder / "own.toml").write_text(text)
    return load_experiment(folder / "own.toml")


def test_two_files_of_one_name_are_two_data_sets(tmp_path):
    for name in "ab":
        write(tmp_path / name / "ratings.csv", rows(name == "b"))
    runs = run_experiment(experiment(tmp_path, "a/ratings.csv", "b/ratings.csv"), tmp_path, tmp_path / "r.jsonl")
    assert [run.dataset for run in runs] == ["a/ratings.csv", "b/ratings.csv"]
    assert runs[0].metrics != runs[1].metrics and len({run.key for run in runs}) == 2


def test_a_file_that_changed_is_run_again(tmp_path):
    write(tmp_path / "e.csv", rows(0))
    config, output = experiment(tmp_path, "e.csv"), tmp_path / "r.jsonl"
    first = run_experiment(config, tmp_path, output)
    assert run_experiment(config, tmp_path, output) == first
    write(tmp_path / "e.csv", rows(1))
    second = run_experiment(config, tmp_path, output)
    assert second[0].metrics != first[0].metrics and len(load_runs(output)) == 2


def test_runs_of_older_versions_are_read(tmp_path):
    write(tmp_path / "e.csv", rows(0))
    config, output = experiment(tmp_path, "e.csv"), tmp_path / "r.jsonl"
    run_experiment(config, tmp_path, output)
    old = {name: value for name, value in json.loads(output.read_text()).items() if name not in ("data", "undefined")}
    output.write_text(json.dumps(old) + "\n")
    assert load_runs(output)[0].data == "" and len(run_experiment(config, tmp_path, output)) == 1
    assert len(load_runs(output)) == 2


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (list(rows(0, 1)), {"task": "ctr"}, "own: expected events of both labels in the train part.*got .1."),
        ([*list(rows(0))[:90], *list(rows(0, 1))[90:]], {"task": "ctr", "split": "global_time"}, "the test part"),
        (list(rows(0, 0)), {}, "own: expected a positive event in the train part; got none"),
        ([*list(rows(0))[:90], *list(rows(0, 0))[90:]], {"split": "global_time"}, "positive event in the test part"),
        (list(rows(0)), {"more": "negatives = 99\n"}, "negatives: expected at most [0-9]+, the items that user 'u"),
    ],
)  # fmt: skip
def test_unmeasurable_data_is_refused_before_anything_is_fitted(tmp_path, monkeypatch, lines, options, message):
    write(tmp_path / "good.csv", rows(3))
    write(tmp_path / "own.csv", lines)
    fitted = []
    monkeypatch.setattr(Popularity, "fit", lambda *a, **k: fitted.append(a))
    with pytest.raises(DataError, match=message):
        run_experiment(experiment(tmp_path, "good.csv", "own.csv", **options), tmp_path, tmp_path / "r.jsonl")
    assert not fitted and not (tmp_path / "r.jsonl").exists()


def test_an_undefined_metric_is_null_with_its_reason(tmp_path):
    lines = [f"u{row},i{row % 3},{row},{row % 2}" for row in range(60)]  # one event a user: nothing to compare within
    write(tmp_path / "e.csv", lines)
    config = experiment(tmp_path, "e.csv", task="ctr", split="global_time", models=("Bias",))
    (run,) = run_experiment(config, tmp_path, tmp_path / "r.jsonl")
    stored = json.loads((tmp_path / "r.jsonl").read_text())
    assert stored["metrics"]["gauc"] is None and stored["metrics"]["auc"] is not None
    assert stored["undefined"] == dict.fromkeys(("gauc", "gauc_unrated"), "no user with both labels") == run.undefined


def test_users_with_two_events_are_no_trouble(tmp_path):
    write(
        tmp_path / "e.csv",
        [f"u{row // 2},i{row % 7},{row},1" for row in range(40)] + ["u,i1,50,1", "u,i2,51,1", "u,i3,52,1"],
    )
    (run,) = run_experiment(experiment(tmp_path, "e.csv", split="leave_one_out"), tmp_path, tmp_path / "r.jsonl")
    assert 0 <= run.metrics["hr@2"] <= 1  # of several items with as many events one is expected


def test_targets_that_were_had_before_are_counted(tmp_path):
    lines = [f"u{user},i{item},{step + 10 * user},1" for user in range(6) for step, item in enumerate((1, 2, 3, 1))]
    write(tmp_path / "e.csv", lines)
    (run,) = run_experiment(experiment(tmp_path, "e.csv", split="leave_one_out"), tmp_path, tmp_path / "r.jsonl")
    assert run.metrics["unreachable"] == 6 and run.metrics["hr@2"] is None
    assert run.undefined["hr@2"] == "no row to measure"


def test_options_of_a_table(tmp_path):
    lines = [f"c{row % 8};p{row % 37};{1_600_000_000 + row};{row % 10}" for row in range(80)]
    (tmp_path / "e.csv").write_text("\n".join(["customer;sku;at;stars", *lines]))
    text = (
        'seeds = [0]\n[[datasets]]\nkind = "table"\npath = "e.csv"\nlike = 7\nsplit = "user_time"\n'
        'columns = {user = "customer", item = "sku", timestamp = "at", rating = "stars"}\n'
        '[[models]]\nkind = "Popularity"\n[evaluation]\nks = [2]\n'
    )
    (tmp_path / "own.toml").write_text(text)
    (run,) = run_experiment(load_experiment(tmp_path / "own.toml"), tmp_path, tmp_path / "r.jsonl")
    assert run.metrics["hr@2"] is not None
    (tmp_path / "own.toml").write_text(text.replace("like = 7", 'like = "7"'))
    with pytest.raises(ValueError, match="own.toml: datasets.*: like: expected .*a finite number.*; got '7'"):
        load_experiment(tmp_path / "own.toml")
