"""Models that replace saved models, invalid files, settings of any type, and runs that are easily confused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from saved_models import forget_digests
from typer.testing import CliRunner

from reasonrec_fast import InteractionGraph, files, ops, split_by_time
from reasonrec_fast.cli.main import app
from reasonrec_fast.data import Instruction, load_interactions
from reasonrec_fast.experiments.config import EvaluationConfig, load_experiment
from reasonrec_fast.experiments.runner import load_runs, run_experiment
from reasonrec_fast.models.classical import BPR, EASE, BPRConfig, Popularity, load_recommender
from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig


def frame(seed=0, users=12, items=20, size=120, name="sku"):
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": [f"u-{number:05d}" for number in generator.integers(0, users, size)],
            "item": [f"{name}/{number}" for number in generator.integers(0, items, size)],
            "timestamp": 1_600_000_000 + generator.permutation(size) * 60,
            "label": generator.integers(0, 2, size),
        }
    )


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(done):
    """The one line of a command that refused."""
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), (done.output, done.exception)
    return done.stderr.strip().splitlines()[-1]


# Models saved over others


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    before = Popularity().fit(frame())
    before.save_pretrained(tmp_path)

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("reasonrec_fast.models.classical.storage.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        Popularity().fit(frame(1, name="other")).save_pretrained(tmp_path)
    users = ["u-00001", "u-00007"]
    assert load_recommender(tmp_path).recommend(users, 3).items.tolist() == before.recommend(users, 3).items.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "identifiers.json", "model.safetensors"]


@pytest.mark.parametrize("number", range(3))
def test_a_killed_save_leaves_no_mixture_of_two_models(tmp_path, monkeypatch, number):
    Popularity().fit(frame()).save_pretrained(tmp_path)
    rename, left = Path.rename, [number]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)  # else the folder changes places in one step

    def until_killed(path, target):
        if Path(target).parent == tmp_path and path.parent != tmp_path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", until_killed)
    with pytest.raises(KeyboardInterrupt):
        Popularity().fit(frame(1, name="other")).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a saved model with config\.json"):
        load_recommender(tmp_path)


@pytest.fixture
def tiny(tiny_backbone):
    return OptiRAGConfig(
        backbone=str(tiny_backbone), template="films", prefix_tokens=300, suffix_tokens=200, slate_size=4, exits=(1, 2),
        samples=240, batch_slates=2, warm_start_steps=20, read_dense_features=False, calibration_requests=10,
        retriever=EmbeddingConfig(dim=8, steps=10, batch=128),
    )  # fmt: skip


def test_a_model_that_is_saved_without_knowledge_has_none(events, tiny, tmp_path):
    model = OptiRAG(tiny)
    model.refit_retriever(events, np.arange(len(events)))
    model.save_pretrained(tmp_path)
    (tmp_path / "training.safetensors").touch()
    model.save_pretrained(tmp_path, knowledge=False)
    assert OptiRAG.from_pretrained(tmp_path).knowledge is None
    assert (tmp_path / "training.safetensors").is_file()


# Checkpoints of other data


class Stopped(Exception):
    pass


def stopping(step):
    def progress(done, *_):
        if done == step:
            raise Stopped

    return progress


def test_a_checkpoint_of_other_instructions_is_refused(tiny, tmp_path):
    instructions = [Instruction("Is it liked?", f"film {n % 7}", n % 2) for n in range(60)]
    others = [Instruction("Is it liked?", f"book {n % 5}", n % 2) for n in range(60)]
    checkpoint = tmp_path / "training.safetensors"
    with pytest.raises(Stopped):
        OptiRAG(tiny).fit_instructions(
            instructions[:48], instructions[48:], checkpoint=checkpoint, progress=stopping(27)
        )
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        OptiRAG(tiny).fit_instructions(others[:48], others[48:], checkpoint=checkpoint)


def test_a_checkpoint_of_other_validation_events_is_refused(tmp_path):
    data, checkpoint = load_interactions(frame()), tmp_path / "training.safetensors"
    config = BPRConfig(dim=4, epochs=4)
    with pytest.raises(Stopped):
        BPR(config).fit(data, np.arange(90), np.arange(90, 105), checkpoint=checkpoint, progress=stopping(2))
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        BPR(config).fit(data, np.arange(90), np.arange(105, 120), checkpoint=checkpoint)


# Results that would replace files


@pytest.mark.parametrize("name", ["users.csv", "link.csv"])
def test_results_do_not_replace_inputs(tmp_path, name):
    Popularity().fit(frame()).save_pretrained(tmp_path / "model")
    (tmp_path / "users.csv").write_text("user\nu-00001\n")
    (tmp_path / "link.csv").symlink_to("users.csv")
    frame().to_csv(tmp_path / "events.csv", index=False)
    arguments = ["classical", "recommend", "--model", tmp_path / "model"]
    done = run(*arguments, "--users", tmp_path / "users.csv", "--output", tmp_path / name)
    assert "expected another file than those that are read" in refused(done)
    assert (tmp_path / "users.csv").read_text() == "user\nu-00001\n"
    done = run(*arguments, "--data", tmp_path / "events.csv", "--output", tmp_path / "events.csv")
    assert "expected another file than those that are read" in refused(done)


def test_predictions_do_not_replace_the_history(events, tiny, tmp_path):
    model = OptiRAG(tiny)
    model.refit_retriever(events, np.arange(len(events)))
    model.save_pretrained(tmp_path / "model")
    table = frame().assign(label=lambda rows: rows["label"].astype("Int64").where(rows.index < 110))
    table.to_csv(tmp_path / "events.csv", index=False)
    before = (tmp_path / "events.csv").read_bytes()
    done = run("optirag", "predict", "--model", tmp_path / "model", "--data", tmp_path / "events.csv", "--output",
               tmp_path / "events.csv")  # fmt: skip
    assert "expected another file than those that are read" in refused(done)
    assert (tmp_path / "events.csv").read_bytes() == before


def test_a_link_stays_and_a_pipe_is_refused(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    files.write_json(tmp_path / "link.json", 1)
    assert (tmp_path / "link.json").is_symlink() and files.read_json(tmp_path / "target.json") == 1
    os.mkfifo(tmp_path / "pipe.json")
    for write in (files.check_writable, lambda path: files.write_json(path, 1)):
        with pytest.raises(OSError, match="expected a file"):
            write(tmp_path / "pipe.json")
    assert (tmp_path / "pipe.json").is_fifo()


def test_a_name_that_is_as_long_as_can_be_is_written(tmp_path):
    path = tmp_path / ("x" * 250 + ".json")
    files.check_writable(path)
    files.write_json(path, 1)
    assert [result.name for result in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_no_users_are_a_table_of_no_rows(tmp_path, kind):
    Popularity().fit(frame()).save_pretrained(tmp_path / "model")
    pd.DataFrame({"user": pd.Series([], dtype=str)}).to_parquet(tmp_path / "users.parquet")
    done = run("classical", "recommend", "--model", tmp_path / "model", "--users", tmp_path / "users.parquet",
               "--output", tmp_path / f"top.{kind}")  # fmt: skip
    assert done.exit_code == 0, done.output
    if kind == "parquet":
        assert list(pd.read_parquet(tmp_path / "top.parquet").columns) == ["user", "rank", "item", "score"]


# Settings of any type


def test_numbers_of_numpy_are_settings_that_can_be_written(tmp_path):
    config = BPRConfig(dim=np.int64(4), epochs=np.uint8(1), learning_rate=np.float32(0.5), seed=np.int32(3))
    assert [type(value) for value in (config.dim, config.epochs, config.learning_rate)] == [int, int, float]
    model = BPR(config).fit(frame(), checkpoint=tmp_path / "training.safetensors")
    model.save_pretrained(tmp_path)
    assert load_recommender(tmp_path).config == config


def test_a_threshold_of_numpy_is_written(tmp_path):
    table = frame().rename(columns={"label": "rating"}).assign(rating=lambda rows: rows["rating"] * 3 + 1)
    data = load_interactions(table, like=np.float32(4))
    Popularity().fit(data).save_pretrained(tmp_path)
    assert load_recommender(tmp_path).like == 4.0
    with pytest.raises(ValueError, match="like: expected a finite number; got '4'"):
        load_interactions(table, like="4")


def test_a_list_is_refused_where_a_tuple_is_expected():
    assert OptiRAGConfig(exits=(2, np.int64(4))).exits == (2, 4)
    for kind, wrong in ((OptiRAGConfig, {"exits": [2, 4]}), (EvaluationConfig, {"ks": [5]})):
        with pytest.raises(ValueError, match="expected a tuple, each a whole number of at least 1.*; got .[0-9]"):
            kind(**wrong)


@pytest.mark.parametrize("seed", [2**62, 2**63 - 1, 10**30])
def test_large_seeds_are_seeds(seed):
    BPR(BPRConfig(dim=4, epochs=1, seed=seed)).fit(frame())


# Experiments


HEAD = '[[datasets]]\nkind = "table"\npath = "events.csv"\nsplit = "user_time"\n'


def experiment(folder, text, seeds="[0]", more=""):
    path = folder / "own.toml"
    path.write_text(f"seeds = {seeds}\n{HEAD}{text}{more}", encoding="utf-8")
    return load_experiment(path)


def model(kind, *lines):
    return "\n".join(["[[models]]", f'kind = "{kind}"', *lines, ""])


def test_two_kinds_of_one_name_are_two_models(tmp_path):
    frame().to_csv(tmp_path / "events.csv", index=False)
    both = experiment(tmp_path, model("EASE", 'name = "ours"') + model("Popularity", 'name = "ours"'))
    runs = run_experiment(both, tmp_path, tmp_path / "runs.jsonl")
    alone = experiment(tmp_path, model("EASE") + model("Popularity"))
    wanted = run_experiment(alone, tmp_path, tmp_path / "alone.jsonl")
    assert [run.metrics for run in runs] == [run.metrics for run in wanted]
    assert runs[0].group != runs[1].group


@pytest.mark.parametrize(
    ("text", "seeds", "message"),
    [
        (model("Popularity"), "[0, 1, 0]", "seeds: expected each once; got 0 twice"),
        (model("Popularity") * 2, "[0]", "models: expected each once; got Popularity twice"),
        (model("Popularity") + HEAD, "[0]", "datasets: expected each once; got events twice"),
    ],
)
def test_what_would_count_twice_is_refused(tmp_path, text, seeds, message):
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, text, seeds)


@pytest.mark.parametrize(
    ("second", "more", "message"),
    [
        (model("EASE", "max_items = 3"), "", "expected at most max_items = 3 items; got 20"),
        (model("SASRec"), "", "expected a user with at least two positive events"),
        (model("RecBole", 'model = "Nothing"'), "", "RecBole"),
        ("", "[evaluation]\nnegatives = 2\nks = [1, 5]\n", r"ks: expected cutoffs in \[1, 3\]"),
    ],
)
def test_invalid_runs_are_refused_before_anything_is_fitted(tmp_path, monkeypatch, second, more, message):
    table = frame(users=40, size=120)
    table["label"] = 0
    table.loc[table.groupby("user")["timestamp"].idxmin(), "label"] = 1
    table.loc[table.groupby("user")["timestamp"].idxmax(), "label"] = 1
    table.to_csv(tmp_path / "events.csv", index=False)
    monkeypatch.setattr(Popularity, "fit", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises((ValueError, ImportError), match=message):
        run_experiment(experiment(tmp_path, model("Popularity") + second, more=more), tmp_path, tmp_path / "r.jsonl")


def test_experiments_with_a_mark_of_the_byte_order_are_read(tmp_path):
    text = "seeds = [0]\n" + HEAD + model("Popularity")
    (tmp_path / "own.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_experiment(tmp_path / "own.toml").seeds == (0,)
    (tmp_path / "own.toml").write_bytes(b"# caf\xe9\n" + text.encode())
    with pytest.raises(ValueError, match=r"own\.toml: expected TOML; .*0xe9"):
        load_experiment(tmp_path / "own.toml")


def test_a_record_without_a_line_end_goes_on_in_a_line_of_its_own(tmp_path):
    frame().to_csv(tmp_path / "events.csv", index=False)
    output = tmp_path / "runs.jsonl"
    run_experiment(experiment(tmp_path, model("Popularity")), tmp_path, output)
    output.write_text("\n" + output.read_text().rstrip("\n"))
    run_experiment(experiment(tmp_path, model("Popularity"), "[0, 1]"), tmp_path, output)
    assert [run.seed for run in load_runs(output)] == [0, 1]


def test_several_processes_may_add_to_one_record(tmp_path, monkeypatch):
    frame().to_csv(tmp_path / "events.csv", index=False)
    output = tmp_path / "runs.jsonl"
    given = [experiment(tmp_path, model("Popularity"), f"[{seed}]") for seed in range(4)]
    read, gate = Path.read_text, threading.Barrier(4)

    def together(path, *arguments, **options):
        result = read(path, *arguments, **options)
        if path == output:
            threading.Event().wait(0.05)
        return result

    def work(config):
        gate.wait()
        run_experiment(config, tmp_path, output)

    output.touch()
    monkeypatch.setattr(Path, "read_text", together)
    workers = [threading.Thread(target=work, args=(config,)) for config in given]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(run.seed for run in load_runs(output)) == [0, 1, 2, 3]


# Folders of models that are not whole


def changed(name, change):
    def apply(folder):
        stored = json.loads((folder / name).read_text())
        change(stored)
        (folder / name).write_text(json.dumps(stored))
        forget_digests(folder)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed("config.json", lambda stored: stored.pop("config")), "model: expected the files of one saved model"),
        (changed("config.json", lambda stored: stored.pop("sizes")), "model: expected the files of one saved model"),
        (changed("config.json", lambda stored: stored["sizes"].update(items=3)), "expected the files of one saved"),
        (changed("identifiers.json", lambda stored: stored.pop("users")), "expected the files of one saved model"),
        (changed("identifiers.json", lambda stored: stored["items"].pop()), "expected identifiers of 12 users and 20"),
        (changed("identifiers.json", lambda stored: stored["users"].pop()), "expected identifiers of 12 users and 20"),
        (lambda folder: (folder / "identifiers.json").write_text("[1]"), "identifiers.json: expected the file that"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), r"model\.safetensors: expected the file that"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: No such file"),
    ],
)
def test_a_damaged_model_is_one_line_that_names_it(tmp_path, damage, message):
    EASE().fit(frame()).save_pretrained(tmp_path / "model")
    damage(tmp_path / "model")
    done = run("classical", "recommend", "--model", tmp_path / "model", "--output", "-")
    assert re.search(message, refused(done)), done.stderr


@pytest.mark.parametrize("name", ["config.json", "items.json"])
@pytest.mark.parametrize("text", ["[]", '{"architecture": "optirag", "format": 1}'])
def test_a_damaged_optirag_is_one_line(events, tiny, tmp_path, name, text):
    model = OptiRAG(tiny)
    model.refit_retriever(events, np.arange(len(events)))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    frame().drop(columns="label").to_csv(tmp_path / "asked.csv", index=False)
    done = run("optirag", "predict", "--model", tmp_path / "model", "--data", tmp_path / "asked.csv", "--output", "-")
    assert "expected" in refused(done) and "model" in refused(done)


# Users and numbers of any kind


@pytest.mark.parametrize("dtype", ["string", "category", "string[pyarrow]", object])
def test_what_unique_gives_are_users(dtype):
    table = frame()
    model = Popularity().fit(table)
    users = table["user"].astype(dtype).unique()
    assert model.recommend(users, 2).items.tolist() == model.recommend(list(users), 2).items.tolist()


LOSS = (torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1]), torch.ones(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dr_grpo", "normalizer": torch.tensor(0.0)}, "normalizer: expected a positive number"),
        ({"kind": "dr_grpo", "normalizer": torch.ones(2)}, "normalizer: expected a number or a 0-d tensor"),
        ({"kind": "dr_grpo", "normalizer": "4"}, "normalizer: expected a positive number"),
        ({"clip": ("a", 0.2)}, "clip: expected two numbers"),
        (
            {"beta": torch.tensor(0.1), "reference_logprobs": torch.zeros(2)},
            "beta: expected a number of at least 0; got tensor",
        ),
    ],
)
def test_numbers_without_meaning_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        ops.policy_loss(*LOSS, **options)


def test_padding_is_left_out_by_a_mask_and_else_refused():
    hidden, weight, tokens, advantages, old = LOSS
    padded = torch.tensor([0, -100])
    with pytest.raises(ValueError, match="-100 in row 1"):
        ops.policy_loss(hidden, weight, padded, advantages, old)
    result = ops.policy_loss(hidden, weight, padded, advantages, old, mask=torch.tensor([True, False]))[0]
    assert result == ops.policy_loss(hidden[:1], weight, tokens[:1], advantages[:1], old[:1])[0]


# Rows of requests


@pytest.fixture
def model_and_requests(tiny_backbone):
    settings = OptiRAGConfig(
        backbone=str(tiny_backbone), prefix_tokens=300, suffix_tokens=200, slate_size=4, exits=(1, 2), samples=24,
        warm_start_steps=5, calibration_requests=10, folds=2, retriever=EmbeddingConfig(dim=8, steps=5, batch=64),
    )  # fmt: skip
    model = OptiRAG(settings)
    table = frame(size=160).assign(label=lambda rows: rows["label"].astype("Int64").where(rows.index < 150))
    data = load_interactions(table, allow_unlabelled=True)
    model.num_trees = 5  # as if it had been trained
    model.refit_retriever(data, np.flatnonzero(data.labels >= 0).tolist())
    return model, data


def test_rows_of_requests_come_in_any_container(model_and_requests):
    model, data = model_and_requests
    rows = np.flatnonzero(data.labels < 0)
    wanted = model.predict_rows(data).probability
    for given in (rows.tolist(), pd.Series(rows, index=rows[::-1]), torch.from_numpy(rows), rows.astype(">i4")):
        assert np.array_equal(model.predict_rows(data, given).probability, wanted)
    assert np.array_equal(model.predict_rows(data, rows[::-1]).probability, wanted[::-1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([True, False], "rows: expected whole numbers; got bool"),
        ([-1], r"rows: expected indices in \[0, 160\); got -1 in row 0"),
        ([0, 160], r"rows: expected indices in \[0, 160\); got 160 in row 1"),
        ([0.0], "rows: expected whole numbers; got float64"),
    ],
)
def test_what_are_no_rows_is_refused(model_and_requests, rows, message):
    model, data = model_and_requests
    for call in (model.requests, model.predict_rows, model.evaluate):
        with pytest.raises(ValueError, match=message):
            call(data, np.array(rows))


def test_only_labelled_events_are_evaluated(model_and_requests):
    model, data = model_and_requests
    with pytest.raises(ValueError, match="rows: expected events with a label; got .* in row 0"):
        model.evaluate(data, np.flatnonzero(data.labels < 0))
    assert np.isnan(model.evaluate(data, [])["mean_depth"])


def test_a_split_of_any_rows_is_learnt(model_and_requests):
    model, data = model_and_requests[0], load_interactions(frame(size=160))
    parts = split_by_time(data)
    model.fit(data, parts.train.tolist()[::-1], pd.Series(parts.validation))
    with pytest.raises(ValueError, match=r"train: expected indices in \[0, 160\); got 160"):
        model.fit(data, [0, 160], parts.validation)


def test_one_user_is_learnt_from(model_and_requests):
    model, _ = model_and_requests
    model.fit(frame(users=1, size=60))


# Standard output that cannot be written to


def test_results_that_standard_output_does_not_take_are_one_line(tmp_path, monkeypatch):
    frame().to_csv(tmp_path / "events.csv", index=False)
    fitted = ["--model", tmp_path / "model", "--data", tmp_path / "events.csv"]
    run("classical", "fit", "--model", "popularity", *fitted[2:], "--output", tmp_path / "model")

    echo = typer.echo

    def full(line, *, err=False):
        if not err:
            raise OSError(28, "No space left on device")
        echo(line, err=True)

    monkeypatch.setattr("reasonrec_fast.cli.classical.typer.echo", full)
    assert "No space left" in refused(run("classical", "evaluate", *fitted))


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as raised, files.atomic_write(tmp_path / "top.csv"):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "top.csv")


def test_closed_standard_output_is_refused(tmp_path):
    Popularity().fit(frame()).save_pretrained(tmp_path / "model")
    command = f"exec {sys.executable} -m reasonrec_fast classical recommend --model {tmp_path / 'model'} --output - >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: standard output: Bad file descriptor"


def test_counts_beyond_int64_are_refused():
    for options in ({"items": [2**63 - 1]}, {"items": [0], "num_items": 2**70}):
        with pytest.raises(ValueError, match=r"items: expected fewer than 2\*\*63; got"):
            InteractionGraph.from_edges([0], **options)


def test_a_rare_label_is_calibrated_on(model_and_requests):
    model, _ = model_and_requests
    table = frame(users=40, size=800).sort_values("timestamp", ignore_index=True)
    table["label"] = 1
    table.loc[table["user"].isin(["u-00003", "u-00031"]), "label"] = 0
    model.fit(table)
    assert all(np.isfinite(part).all() for part in model.platt.values())


def test_a_model_that_is_replaced_while_it_is_read_is_no_mixture(tmp_path, monkeypatch):
    before, after = Popularity().fit(frame()), Popularity().fit(frame(1, name="other"))
    before.save_pretrained(tmp_path)
    read = files.read_tensors

    def replaced(path):
        result = read(path)
        after.save_pretrained(tmp_path)
        return result

    monkeypatch.setattr("reasonrec_fast.models.classical.storage.read_tensors", replaced)
    with pytest.raises(ValueError, match="other models took its place while it was read, 10 times; load it again"):
        load_recommender(tmp_path)
    before.save_pretrained(tmp_path)
    saved = []

    def replaced_once(path):
        result = read(path)
        if not saved:
            saved.append(after.save_pretrained(tmp_path))
        return result

    monkeypatch.setattr("reasonrec_fast.models.classical.storage.read_tensors", replaced_once)
    assert load_recommender(tmp_path).known_items.ids == after.known_items.ids
    monkeypatch.undo()
    assert load_recommender(tmp_path).known_items.ids == after.known_items.ids


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("user=user,item=user,timestamp=timestamp", "expected another column for each; got 'user' for user and item"),
        ("user=user,item=item,user=item", "--columns: expected each name once"),
    ],
)
def test_one_column_is_not_two(tmp_path, columns, message):
    frame().to_csv(tmp_path / "events.csv", index=False)
    done = run("classical", "fit", "--model", "popularity", "--data", tmp_path / "events.csv", "--output",
               tmp_path / "model", "--columns", columns)  # fmt: skip
    assert message in refused(done)


def test_what_does_not_fit_into_memory_is_one_line(tmp_path):
    frame().to_csv(tmp_path / "events.csv", index=False)
    (tmp_path / "large.json").write_text('{"dim": 9999999999999}')
    done = run("classical", "fit", "--model", "bpr", "--data", tmp_path / "events.csv", "--output", tmp_path / "model",
               "--config", tmp_path / "large.json")  # fmt: skip
    assert "can't allocate memory" in refused(done)
    done = run("classical", "fit", "--model", "popularity", "--data", tmp_path / "events.csv", "--output",
               tmp_path / "model")  # fmt: skip
    assert done.exit_code == 0
    done = run("classical", "evaluate", "--model", tmp_path / "model", "--data", tmp_path / "events.csv", "--ks",
               10**14)  # fmt: skip
    assert "Unable to allocate" in refused(done)
