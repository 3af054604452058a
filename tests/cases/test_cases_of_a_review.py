"""Regression tests of tables, models and commands."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from reasonrec_fast.arrays import as_keys
from reasonrec_fast.cli import optirag as commands
from reasonrec_fast.cli.main import app
from reasonrec_fast.cli.tables import TableOptions, load_data, write_rows
from reasonrec_fast.data import DataError, Instruction, Interactions, load_interactions
from reasonrec_fast.data.columns import Source
from reasonrec_fast.data.reading import read_table
from reasonrec_fast.data.times import moments
from reasonrec_fast.evaluation import gauc
from reasonrec_fast.experiments.config import DatasetConfig, load_experiment
from reasonrec_fast.experiments.runner import load_runs, run_experiment
from reasonrec_fast.files import read_json, write_json
from reasonrec_fast.models.classical import BPR, EASE, FM, LightGCN, Popularity, SASRec
from reasonrec_fast.models.classical.bpr import BPRConfig
from reasonrec_fast.models.classical.fm import FMConfig
from reasonrec_fast.models.classical.lightgcn import LightGCNConfig
from reasonrec_fast.models.classical.sasrec import SASRecConfig
from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig, storage
from reasonrec_fast.models.optirag.knowledge import KNOWLEDGE_FILES
from reasonrec_fast.models.optirag.scorer import Predictions


def purchases(users=30, items=20, each=8, seed=0):
    """Likes alone: what each of some users has had, one after the other, at random."""
    g = np.random.default_rng(seed)
    seen = np.stack([g.permutation(items)[:each] for _ in range(users)])
    names = np.repeat([f"u{user}" for user in range(users)], each)
    return Interactions.from_columns(
        names, [f"i{item}" for item in seen.ravel()], np.ones(seen.size), np.tile(np.arange(each), users),
        extra_items=[f"i{item}" for item in range(items)],
    )  # fmt: skip


@pytest.mark.parametrize("validated", [False, True])
def test_drawn_dislikes_do_not_tell_what_the_test_part_holds(validated):
    """Negatives that were never items of the test part leaked its items: random scores had an AUC of 0.7."""
    data = purchases()
    train, validation, test = (np.flatnonzero(np.isin(data.timestamps, part)) for part in ((0, 1, 2), (3,), (4, 5, 6)))
    items = data.items.copy()
    items[test] = (items[test] + 7) % data.num_items
    fitted = [
        FM(FMConfig(dim=4, epochs=2)).fit(table, train, validation if validated else None)
        for table in (data, replace(data, items=items))
    ]
    pairs = np.repeat(np.arange(data.num_users), data.num_items), np.tile(np.arange(data.num_items), data.num_users)
    scores = [model.score(*pairs) for model in fitted]
    np.testing.assert_array_equal(*scores)


def test_users_of_a_list_stay_what_they_are():
    """numpy converted NaN and numbers to text in mixed columns, and large integers to floats."""
    with pytest.raises(ValueError, match="users: expected identifiers; got nan in row 1"):
        as_keys(["a", float("nan"), "b"], "users")
    for different in ([1, "1"], ["a", "a\0"], [2**63 + 1, -1, 2**63], ("1", 1, 1.5)):
        keys, indices = as_keys(different, "users")
        assert len(set(indices.tolist())) == len(different)
        assert [keys[index] for index in indices] == list(different)
    assert gauc([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], [1, 1, "1", "1"]) == 0.5


def test_threads_write_one_file(tmp_path):
    """Both wrote the same temporary file, which mixed their contents or lost it."""
    path, values, failed = tmp_path / "a.json", [[0] * 5000, [1] * 9000], []

    def write(value):
        try:
            for _ in range(40):
                write_json(path, value)
                assert read_json(path) in values
        except (OSError, ValueError, AssertionError) as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["scores.csv", "scores.jsonl", "scores.parquet"])
@pytest.mark.parametrize("encoded", [False, True])
def test_bytes_of_a_parquet_file_are_written_as_the_text_they_were_read_as(tmp_path, name, encoded):
    """Some writers of Parquet store text as bytes; users were ``b'u1'`` in the result."""
    users = pa.array([b"u1", "ü".encode()], pa.binary())
    pa.parquet.write_table(
        pa.table({"user": users.dictionary_encode() if encoded else users, "photo": [b"\xff", b"a"]}),
        tmp_path / "a.parquet",
    )
    table = read_table(tmp_path / "a.parquet")
    write_rows(str(tmp_path / name), table, np.array([1, 0]), {"score": np.array([0.5, 1.0])})
    result = read_table(tmp_path / name).columns["user"]
    assert [user.decode() if isinstance(user, bytes) else user for user in map(_plain, result)] == ["ü", "u1"]


def _plain(value):
    return value.as_py() if isinstance(value, pa.Scalar) else value


def test_a_time_format_guesses_nothing():
    """pandas has the form ``mixed`` and takes ``today`` for a date of any form."""
    with pytest.raises(DataError, match="time_format: expected a form such as .*; got 'mixed'"):
        moments(["01/02/2020", "13/02/2020"], Source(), form="mixed")
    with pytest.raises(DataError, match="expected a date of the form %d/%m/%Y; got 'today' in row 2"):
        moments(["01/02/2020", "today"], Source(), form="%d/%m/%Y")


def test_a_rating_that_is_named_is_read_with_the_likes_of_the_model(tmp_path, monkeypatch):
    """With an unused column ``label``, the history's like threshold became 4, or 1 if all ratings are 1."""
    path = tmp_path / "requests.csv"
    path.write_text("user,item,timestamp,label,stars\nu,a,1,0,3\nu,b,2,0,2\nu,c,3,,\n")
    requested = []
    model = OptiRAG.__new__(OptiRAG)
    model._stack = SimpleNamespace(knowledge=SimpleNamespace(events=replace(purchases(), like=3.0)))
    model.predict_rows = lambda table, rows, **_: (
        requested.append(table) or SimpleNamespace(probability=np.zeros(len(rows)), depth=np.zeros(len(rows)))
    )
    monkeypatch.setattr(commands, "load_model", lambda *_: model)
    monkeypatch.setattr(commands, "require_model", lambda *_: None)
    done = CliRunner().invoke(app, ["optirag", "predict", "--model", "m", "--data", str(path), "--columns",
                                    "rating=stars", "--output", "-"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert requested[0].like == 3 and requested[0].labels.tolist() == [1, 0, -1]


def test_a_model_stored_without_knowledge_has_none(tmp_path):
    """That of the model that was in the folder before was loaded with it."""
    for name in (*KNOWLEDGE_FILES, "template.json"):
        (tmp_path / name).write_text("of another model")
    stored = storage.Stored(
        config=OptiRAGConfig(), adapter={}, heads={}, mean=np.zeros(1), scale=np.ones(1), policy=None, platt={},
        num_trees=None, depth_zero=None, booster=None, knowledge=None, template=None,
        fitted_events=np.ones(1, dtype=np.uint64),
    )  # fmt: skip
    stored.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adapter.safetensors", "config.json", "heads.safetensors",
    ]  # fmt: skip


def test_training_goes_on_with_the_same_instructions_alone():
    """Checkpoints were distinguished by the number of records alone."""
    model, seen = OptiRAG.__new__(OptiRAG), []
    model.config = OptiRAGConfig(read_dense_features=False)
    model.instruction_requests = lambda records: None
    model.calibrate = lambda *_, **__: None
    model.train_requests = lambda requests, identity, *_: seen.append(identity)
    for text in ("a", "b", "a"):
        records = [Instruction(text, "", label) for label in (0, 1)]
        model.fit_instructions(records, records)
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize(
    "model",
    [BPR(BPRConfig(dim=4, epochs=1)), LightGCN(LightGCNConfig(dim=4, epochs=1)), EASE(), Popularity(),
     SASRec(SASRecConfig(dim=8, heads=1, layers=1, epochs=1)), FM(FMConfig(dim=4, epochs=1))],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_an_unknown_user_is_named_by_the_requested_row(model):
    """The row was counted among the different users, or in a batch of 2048."""
    model.fit(purchases())
    if not isinstance(model, Popularity):
        with pytest.raises(DataError, match="users: .*; got 999 in row 1$"):
            model.score([3, 999, 0, 1], [0, 0, 0, 0])
    with pytest.raises(DataError, match="users: .*; got 999 in row 3000$"):
        model.recommend([0] * 3000 + [999], 2)


def test_a_number_is_named_as_a_number():
    with pytest.raises(DataError, match="label: expected 0 or 1; got 2.0 in row 2"):
        load_interactions(pa.table({"user": ["a", "b"], "item": ["x", "y"], "timestamp": [1, 2], "label": [1.0, 2.0]}))


def test_a_run_of_another_kind_of_model_is_another_run(tmp_path):
    """With equal names the first model's result was returned for the second."""
    pd.DataFrame({"user": list("aabbccdd") * 3, "item": list("xyzwvuts" * 3), "timestamp": range(24)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    runs = []
    for kind in ("Popularity", "ItemKNN"):
        (tmp_path / "e.toml").write_text(
            f'seeds = [0]\n[[models]]\nkind = "{kind}"\nname = "ours"\n'
            '[[datasets]]\nkind = "table"\npath = "t.csv"\n[evaluation]\nks = [3]\n'
        )
        experiment = load_experiment(tmp_path / "e.toml")
        runs += run_experiment(experiment, tmp_path, tmp_path / "runs.jsonl", device="cpu")
    assert len(load_runs(tmp_path / "runs.jsonl")) == 2
    assert runs[0].key != runs[1].key


def test_settings_of_a_table_are_not_passed_over():
    """``like = 3`` for MovieLens had no effect."""
    with pytest.raises(ValueError, match="like: expected with kind 'table' alone; got 3.0 with 'movielens-small'"):
        DatasetConfig("movielens-small", like=3.0)


@pytest.mark.parametrize("kind", ["explanations", "opinions"])
def test_files_that_are_parts_are_not_split(kind):
    with pytest.raises(ValueError, match=f"split: expected with events alone, as files of {kind} are parts; got"):
        DatasetConfig(kind, path="train.csv", test="test.csv" if kind == "opinions" else "", split="user_time")


def test_events_of_unknown_items_replace_histories_too():
    """A customer of a table whose articles are all new kept what they had had before."""
    data = Interactions.from_columns(["a", "a", "b", "b"], ["x", "y", "y", "z"], [1] * 4, [1, 2, 1, 2])
    model = EASE().fit(data)
    model.set_histories_from_table(Interactions.from_columns(["a", "c"], ["new", "x"], [1, 1], [5, 5]))
    assert [model.seen.of_user(user).tolist() for user in range(3)] == [[], [1, 2], [0]]


@pytest.mark.parametrize(("alone", "sizes"), [(True, [5, 5, 2]), (False, [12])])
def test_the_requests_of_one_user_are_scored_some_at_a_time(alone, sizes, monkeypatch):
    """All of a shop's guests are one user: the prompts of ten million requests were in memory at once."""
    monkeypatch.setattr("reasonrec_fast.models.optirag.rows.CHUNK_REQUESTS", 5)
    model, requested = OptiRAG.__new__(OptiRAG), []
    model.requests = lambda table, rows, *, alone: requested.append(rows) or rows
    model.predict = lambda rows, **_: Predictions(rows.astype(np.float32), rows)
    guests = Interactions.from_columns(["guest"] * 12, ["x"] * 12, [None] * 12, range(12))
    result = model.predict_rows(guests, np.arange(12)[::-1], alone=alone)
    assert [len(rows) for rows in requested] == sizes
    assert result.depth.tolist() == list(range(12))[::-1]


def test_options_of_a_table_are_not_passed_over():
    """Of ``user`` named twice the last was taken, and 0 was no option."""
    with pytest.raises(ValueError, match="--columns: expected each name once; got 'user=a,user=b'"):
        TableOptions(columns="user=a,user=b").values()
    with pytest.raises(ValueError, match="--like.*: expected a table of yours; got movielens-small"):
        load_data("movielens-small", None, TableOptions(like=0.0))
