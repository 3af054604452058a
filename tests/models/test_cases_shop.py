"""OptiRAG-Rec on a shop: prompts of its own columns, likes alone, titles that come later, and every form of file."""

import csv
import gzip
import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from reasonrec_fast.cli.main import app
from reasonrec_fast.data import Interactions, load_interactions, split_by_time
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.template import make_template

USERS, ITEMS = 20, 40


def shop(size=500, seed=0):
    """Users who like one category, ISO times; items with a title, a category, a brand, a price and an image."""
    generator = np.random.default_rng(seed)
    users, items = generator.integers(0, USERS, size), generator.integers(0, ITEMS, size)
    likes = (users % 4 == items % 4) | (generator.random(size) < 0.1)
    times = pd.Timestamp("2024-03-01") + pd.to_timedelta(np.sort(generator.integers(0, 90 * 86_400, size)), unit="s")
    events = pd.DataFrame(
        {
            "user": [f"C-{user:04d}" for user in users],
            "item": [f"{item:05d}" for item in items],
            "timestamp": times.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "label": likes.astype(int),
        }
    )
    catalog = pd.DataFrame(
        {
            "id": [f"{item:05d}" for item in range(ITEMS)],
            "title": [f"Thing {item}" for item in range(ITEMS)],
            "category": [("Shoes", "Bags", "Hats", "Toys")[item % 4] for item in range(ITEMS)],
            "brand": [("Acme", "Bolt")[item // 20] for item in range(ITEMS)],
            "price": [f"{5 + item * 1.5:.2f}" for item in range(ITEMS)],
            "image": [f"https://img.example/{item}.jpg" for item in range(ITEMS)],
        }
    )
    return events, catalog


@pytest.fixture
def shop_config(config):
    return replace(config, template="auto", suffix_tokens=None, samples=32)


def text(model, requests):
    decode = model.tokenizer.decode
    return [decode([*slate.prefix, *suffix]) for slate in requests.slates for suffix in slate.suffixes]


def test_the_template_is_made_of_the_columns(shop_config, caplog):
    events, catalog = shop()
    data = load_interactions(events, catalog)
    result = make_template(data)
    assert result.taste_attribute == "category"
    assert sorted(result.target_attributes) == ["brand", "price"] and len(result.quantiles["price"]) == 4
    with caplog.at_level(logging.INFO, "reasonrec_fast"):
        model = OptiRAG(replace(shop_config, suffix_tokens=200)).fit(data)
    assert "prompts tell of an item its title, category" in caplog.text
    assert "no prompt reads the attributes image" in caplog.text
    prompt = " ".join(text(model, model.requests(data, np.arange(400, 500))))
    assert "film" not in prompt.lower() and "viewer" not in prompt
    assert "very high price" in prompt and "Acme" in prompt and "Shoes" in prompt and "example" not in prompt


def test_the_template_is_kept_with_the_model(shop_config, tmp_path):
    data = load_interactions(*shop())
    model = OptiRAG(shop_config).fit(data)
    model.save_pretrained(tmp_path)
    loaded = OptiRAG.from_pretrained(tmp_path)
    assert loaded.template.taste_attribute == model.template.taste_attribute == "category"
    rows = np.arange(450, 500)
    expected, result = (scorer.predict_rows(data, rows).probability for scorer in (model, loaded))
    assert np.allclose(expected, result, atol=0.01)  # adapters are kept in bfloat16
    model.save_pretrained(tmp_path / "alone", knowledge=False)
    assert OptiRAG.from_pretrained(tmp_path / "alone").template == loaded.template


def test_without_titles_it_says_so_and_takes_them_later(shop_config, caplog):
    events, catalog = shop()
    with caplog.at_level(logging.WARNING, "reasonrec_fast"):
        model = OptiRAG(replace(shop_config, suffix_tokens=200)).fit(load_interactions(events))
    assert "no item has a title" in caplog.text
    rows = np.arange(490, 500)
    before = text(model, model.requests(load_interactions(events), rows))
    after = text(model, model.requests(load_interactions(events, catalog), rows))
    assert "Thing" not in " ".join(before) and all("Thing" in prompt for prompt in after)


def test_attributes_that_come_later_reach_the_prompt(shop_config):
    events, catalog = shop()
    known = catalog[catalog["id"] < "00030"]
    model = OptiRAG(replace(shop_config, suffix_tokens=200)).fit(load_interactions(events, known))
    row = pd.DataFrame({"user": ["C-0001"], "item": ["00039"], "timestamp": ["2025-01-01"], "label": [None]})
    tables = (load_interactions(row, items, allow_unlabelled=True) for items in (None, catalog))
    without, prompt = (text(model, model.requests(table))[0] for table in tables)
    assert "Thing 39" not in without and "Thing 39" in prompt and "Bolt" in prompt and "Toys" in prompt


def test_likes_alone_are_learned(shop_config, caplog):
    events, catalog = shop()
    bought = events[events["label"] == 1].drop(columns="label")
    data = load_interactions(bought, catalog)
    with caplog.at_level(logging.INFO, "reasonrec_fast"):
        parts = split_by_time(data)
        model = OptiRAG(replace(shop_config, samples=96, warm_start_steps=60)).fit(data, parts.train, parts.validation)
    assert "events are likes alone" in caplog.text
    assert (model.knowledge.events.labels == 1).all()
    metrics = model.evaluate(data, parts.test)
    assert metrics["auc"] > 0.6  # of what was bought beside what was drawn
    assert not any("Disliked" in prompt for prompt in text(model, model.requests(data, parts.test)))


def test_one_moment_in_any_unit_is_one_answer(shop_config):
    events, catalog = shop()
    seconds = events.assign(timestamp=pd.to_datetime(events["timestamp"]).dt.as_unit("s").astype("int64"))
    model = OptiRAG(shop_config).fit(load_interactions(seconds, catalog))
    moment = pd.Timestamp("2024-04-15T10:00:00.250")
    queries = pd.DataFrame({"user": ["C-0003"] * 3, "item": ["00001", "00002", "00003"], "label": [None] * 3})
    results = []
    for form in (str(moment), moment.isoformat() + "Z", moment.value // 10**6, moment.value, moment.to_pydatetime()):
        requests = load_interactions(queries.assign(timestamp=[form] * 3), allow_unlabelled=True)
        results.append(model.predict_rows(requests).probability)
    assert all(np.array_equal(probability, results[0]) for probability in results)


def test_times_of_two_kinds_are_refused(shop_config):
    events, catalog = shop()
    model = OptiRAG(shop_config).fit(load_interactions(events, catalog))
    counted = load_interactions(events.assign(timestamp=range(len(events))), catalog)
    with pytest.raises(ValueError, match="timestamps: expected times of one kind; got a clock and a plain counter"):
        model.requests(counted, np.arange(3))


# -- The command


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def trained(shop_config, tmp_path):
    events, catalog = shop()
    events.to_csv(tmp_path / "events.csv", index=False)
    catalog.to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "config.json").write_text(json.dumps(shop_config.to_dict()))
    done = run("optirag", "train", "--data", tmp_path / "events.csv", "--items", tmp_path / "items.csv",
               "--config", tmp_path / "config.json", "--output", tmp_path / "model")  # fmt: skip
    assert done.exit_code == 0, done.output
    return tmp_path


TIME = "2024-06-02T08:00:00+02:00"
REQUESTS = [
    {"order": "9", "user": "C-0002", "item": "00007", "timestamp": TIME, "label": "", "note": 'a, "b"'},
    {"order": "3", "user": "new", "item": "unknown", "timestamp": "2024-06-01", "label": "", "note": ""},
    {"order": "7", "user": "C-0002", "item": "00008", "timestamp": "2024-05-02", "label": "1", "note": "history"},
    {"order": "1", "user": "C-0002", "item": "00007", "timestamp": TIME, "label": "", "note": "again"},
]


def write(folder, name):
    path = folder / name
    if name.endswith(".parquet"):
        columns = {key: [row[key] or None for row in REQUESTS] for key in REQUESTS[0]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    with gzip.open(path, "wt", newline="") if name.endswith(".gz") else path.open("w", newline="") as file:
        if ".jsonl" in name:
            file.write("\n".join(json.dumps(row) for row in REQUESTS))
        else:
            writer = csv.DictWriter(file, REQUESTS[0], delimiter="\t" if ".tsv" in name else ",")
            writer.writeheader()
            writer.writerows(REQUESTS)
    return path


def predict(folder, data, output, *more, before=()):
    return run(*before, "optirag", "predict", "--model", folder / "model", "--data", data, "--output", output, *more)


def read(path):
    name = str(path)
    if name.endswith(".parquet"):
        rows = pyarrow.parquet.read_table(path).to_pylist()
    else:
        with gzip.open(path, "rt", newline="") if name.endswith(".gz") else path.open(newline="") as file:
            if ".jsonl" in name:
                rows = [json.loads(line) for line in file]
            else:
                rows = list(csv.DictReader(file, delimiter="\t" if ".tsv" in name else ","))
    return [{key: "" if value is None else value for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("before", ["r.csv", "r.jsonl.gz", "r.parquet"])
@pytest.mark.parametrize("after", ["s.csv", "s.tsv", "s.jsonl", "s.parquet", "s.csv.gz"])
def test_predictions_join_back(trained, before, after):
    done = predict(trained, write(trained, before), trained / after)
    assert done.exit_code == 0, done.output
    results = read(trained / after)
    queries = [row for row in REQUESTS if not row["label"]]
    assert [{key: row[key] for key in REQUESTS[0]} for row in results] == queries
    assert list(results[0]) == [*REQUESTS[0], "probability", "depth"]
    scores = [float(row["probability"]) for row in results]
    assert all(0 < score < 1 for score in scores) and abs(scores[0] - scores[2]) < 1e-6


def test_predictions_on_standard_output(trained):
    done = predict(trained, write(trained, "r.csv"), "-", before=("-q",))
    assert done.exit_code == 0
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["order"] for row in rows] == ["9", "3", "1"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"probability": "1"}, (), "expected no column called 'probability'"),
        ({}, ("--output", "{folder}/s.xlsx"), "--output: expected a .csv"),
        ({"rating": "3"}, (), ""),
        ({}, ("--columns", "user"), "--columns: expected pairs"),
        ({}, ("--time-unit", "h"), "time_unit: expected one of"),
    ],
)
def test_what_cannot_be_predicted_is_reported(trained, change, arguments, message):
    rows = [row | change for row in REQUESTS]
    (trained / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = [part.replace("{folder}", str(trained)) for part in arguments]
    done = predict(trained, trained / "r.jsonl", trained / "s.csv", *more)
    assert (done.exit_code == 2) == bool(message) and message in done.output
    assert (trained / "s.csv").exists() != bool(message)


def test_ratings_are_read_as_in_training(trained, tmp_path):
    rows = [row | {"rating": "2" if row["label"] else ""} for row in REQUESTS]
    for row in rows:
        del row["label"]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ask = trained, tmp_path / "r.jsonl", tmp_path / "s.csv"
    done = predict(*ask)
    assert done.exit_code == 2
    assert "like: expected a threshold (--like), as the model was trained on labels" in done.output
    assert predict(*ask, "--like", "2").exit_code == 0


def test_scores_do_not_depend_on_the_other_requested_users(shop_config, monkeypatch):
    data = load_interactions(*shop())
    model = OptiRAG(shop_config).fit(data)
    rows = np.arange(300, 400)
    whole = model.predict_rows(data, rows)
    monkeypatch.setattr("reasonrec_fast.models.optirag.rows.CHUNK_REQUESTS", 7)
    parts = model.predict_rows(data, rows)
    assert np.allclose(whole.probability, parts.probability, atol=1e-5) and np.array_equal(whole.depth, parts.depth)


# -- Instructions


def test_long_instructions_keep_both_ends(shop_config, caplog):
    from reasonrec_fast.data import Instruction

    model = OptiRAG(replace(shop_config, read_dense_features=False, prefix_tokens=60, suffix_tokens=20))
    record = Instruction("Will the user like it?", "A" * 100 + "end", 1)
    with caplog.at_level(logging.WARNING, "reasonrec_fast"):
        (prompt,) = text(model, model.instruction_requests([record]))
    assert prompt.startswith("<s>Will the user like it?\nAAAA") and prompt.endswith("AAend\nAnswer:")
    assert "1 of 1 records are longer than 80 tokens" in caplog.text
    with pytest.raises(ValueError, match="records: expected instructions of fewer than .* tokens.*got 201 in record 1"):
        model.instruction_requests([Instruction("B" * 200, "x", 1)])


def test_instruction_files_are_predicted(shop_config, tmp_path):
    records = [{"instruction": "Answer.", "input": f"Thing {i}", "output": "Yes" if i % 3 else "No"} for i in range(30)]
    (tmp_path / "train.json").write_text(json.dumps(records))
    (tmp_path / "config.json").write_text(json.dumps(shop_config.to_dict()))
    done = run("optirag", "train", "--data", tmp_path / "train.json", "--config", tmp_path / "config.json",
               "--samples", "16", "--output", tmp_path / "model")  # fmt: skip
    assert done.exit_code == 0, done.output
    queries = [records[0], records[1] | {"output": "", "id": 5}, {"id": 6, "instruction": "Answer.", "input": "Thing"}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, queries)))
    done = run("optirag", "predict", "--model", tmp_path / "model", "--data", tmp_path / "r.jsonl",
               "--output", tmp_path / "s.jsonl")  # fmt: skip
    assert done.exit_code == 0, done.output
    results = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["id"] for row in results] == [5, 6] and all(0 < row["probability"] < 1 for row in results)


def test_interactions_of_one_user_and_one_item():
    data = Interactions.from_columns(["a"], ["x"], [1], ["2024-01-01"])
    assert make_template(data).attributes == []
