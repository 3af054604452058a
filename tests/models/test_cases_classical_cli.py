"""The classical models from the command line, on a small shop."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner
from word_encoder import WordEncoder

import reasonrec_fast
from reasonrec_fast.cli import classical as commands
from reasonrec_fast.cli.main import app
from reasonrec_fast.data import DataError, Histories, load_interactions, split_by_time
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.held_out import metrics_on_test
from reasonrec_fast.models import item_texts
from reasonrec_fast.models.classical import ItemKNN, Popularity, SASRec, SASRecConfig, load_recommender
from reasonrec_fast.models.classical.loading import RECOMMENDERS, recommender_named
from reasonrec_fast.training.checkpoint import Checkpoint

CUSTOMERS, ARTICLES = 24, 30
SETTINGS = {
    "sasrec": {"dim": 8, "epochs": 3, "layers": 1, "heads": 1, "negatives": 0, "precision": "float32"},
    "bsarec": {"dim": 8, "epochs": 3, "layers": 1, "heads": 1},
    "texttower": {"dim": 8, "epochs": 3, "heads": 1, "hidden": 8},
    "bpr": {"dim": 8, "epochs": 3},
    "lightgcn": {"dim": 8, "epochs": 3, "layers": 2},
    "fm": {"dim": 4, "epochs": 2},
    "dcnv2": {"dim": 4, "epochs": 2},
    "stack": {"tools": ["ItemKNN", "Popularity"], "trees": 5, "min_leaf": 2},
}


def customer(number):
    return f"c-{number:04d}"


def article(number):
    return f"SKU/{number:03d}"


def shop_events(seed=0, size=400):
    generator = np.random.default_rng(seed)
    users, items = generator.integers(0, CUSTOMERS, size), generator.integers(0, ARTICLES, size)
    times = pd.Timestamp("2026-01-01T08:00:00Z") + pd.to_timedelta(generator.permutation(size) * 37, unit="min")
    stars = np.where((users + items) % 3 == 0, 5, generator.integers(1, 6, size))
    return pd.DataFrame(
        {
            "customer": [customer(number) for number in users],
            "sku": [article(number) for number in items],
            "bought_at": [time.isoformat() for time in times],
            "stars": stars,
        }
    )


def shop_items():
    articles = range(ARTICLES)
    return pd.DataFrame(
        {
            "sku": [article(number) for number in articles],
            "title": [f"Article {number}" for number in articles],
            "category": [("shoes", "bags", "hats")[number % 3] for number in articles],
            "brand": [("Acme", "Bolt")[number % 2] for number in articles],
            "price": [10 + number % 4 * 5 for number in articles],
        }
    )


NAMES = ("--columns", "user=customer,item=sku,timestamp=bought_at,rating=stars")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fine(*arguments):
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done


def only_line(done):
    """The last line, before which stands no other than those of the loader."""
    assert done.exit_code == 2, done.output
    *before, line = [line for line in done.output.splitlines() if line.strip()]
    assert line.startswith("error: ") and all("is a like" in message for message in before), done.output
    return line


@pytest.fixture
def shop(tmp_path):
    shop_events().to_csv(tmp_path / "events.csv", index=False)
    shop_items().to_csv(tmp_path / "items.csv", index=False)
    users = pd.DataFrame({"customer": [customer(7), customer(2), customer(19)], "mail": ["g@x", "b@x", "s@x"]})
    users.to_csv(tmp_path / "users.csv", index=False)
    return tmp_path


def fit(shop, model="itemknn", *more, output="model"):
    settings = SETTINGS.get(model)
    if settings:
        (shop / "settings.json").write_text(json.dumps(settings))
        more = ("--config", shop / "settings.json", *more)
    return run(
        "classical", "fit", "--model", model, "--data", shop / "events.csv", "--items", shop / "items.csv", *NAMES,
        "--output", shop / output, *more,
    )  # fmt: skip


def recommend(shop, *more, output="top.csv", users="users.csv", names=("--columns", "user=customer")):
    return run(
        "classical", "recommend", "--model", shop / "model", "--users", shop / users, *names, "--k", "5", "--output",
        output if output == "-" else shop / output, *more,
    )  # fmt: skip


def evaluate(shop, *more, data="events.csv"):
    return run("classical", "evaluate", "--model", shop / "model", "--data", shop / data, *NAMES, *more)


def had_by_customer():
    return shop_events().groupby("customer")["sku"].agg(set)


@pytest.mark.parametrize("model", sorted({name.lower() for name in RECOMMENDERS} - {"recbole"}))
def test_fit_recommend_evaluate(shop, model, monkeypatch):
    monkeypatch.setattr(item_texts, "TextEncoder", WordEncoder)
    done = fit(shop, model)
    assert done.exit_code == 0, done.output
    assert f"Model written to {shop / 'model'}" in done.stderr and done.stdout == ""
    names = {"config.json", "identifiers.json", "model.safetensors"}
    parts = {"directed", "titles", "attributes", "items"}
    names |= {"stack": {"stack.json", "trees.txt", "items.safetensors", "tools"}, "hybridknn": parts}.get(model, set())
    assert {path.name for path in (shop / "model").iterdir()} == names
    done = recommend(shop)
    assert done.exit_code == 0, done.output
    result = pd.read_csv(shop / "top.csv")
    assert list(result) == ["customer", "mail", "rank", "item", "score"]
    assert list(result["customer"].unique()) == [customer(7), customer(2), customer(19)]
    assert list(result["mail"]) == ["g@x"] * 5 + ["b@x"] * 5 + ["s@x"] * 5
    assert list(result["rank"]) == [1, 2, 3, 4, 5] * 3
    seen = had_by_customer()
    assert not any(item in seen[user] for user, item in zip(result["customer"], result["item"], strict=True))
    loaded = load_recommender(shop / "model")
    best = loaded.recommend([customer(2)], 5)
    assert result["item"][5:10].tolist() == best.items[0].tolist()
    assert np.allclose(result["score"][5:10], best.scores[0], atol=1e-6)  # in another batch the last bits may differ
    report = json.loads(evaluate(shop).stdout)
    assert 0 <= report["metrics"]["ndcg@10"] <= 1 and {"hr@5", "mrr@20", "coverage"} <= set(report["metrics"])
    done = evaluate(shop, "--task", "ranking", "--ks", "1,3", "--negatives", "4")
    assert "hr@3" in json.loads(done.stdout)["metrics"] and "hr@3" in done.stderr


@pytest.mark.parametrize("model", ["sasrec", "bpr", "lightgcn", "fm", "itemknn", "bias"])
@pytest.mark.parametrize("task", ["ranking", "ctr"])
def test_evaluation_is_that_of_the_training_part(shop, model, task):
    """The saved model's histories of the test part must not affect the metrics, for any order of the table."""
    assert fit(shop, model, "--split", "user_time").exit_code == 0
    user_indices = ("--split", "user_time", "--task", task)
    report = json.loads(evaluate(shop, *user_indices).stdout)["metrics"]
    data = load_interactions(
        shop / "events.csv", shop / "items.csv",
        columns={"user": "customer", "item": "sku", "timestamp": "bought_at", "rating": "stars"},
    )  # fmt: skip
    split = split_by_time(data, "user_time")
    kind = recommender_named(model)
    settings = kind.config_type(**SETTINGS.get(model, {}))
    expected = metrics_on_test(
        kind(settings).fit(data, split.train, split.validation), data, split, EvaluationConfig(task=task)
    )
    assert report == pytest.approx({n: None if np.isnan(v) else v for n, v in expected.items()}, abs=1e-6)
    shop_events().sample(frac=1.0, random_state=3).to_csv(shop / "shuffled.csv", index=False)
    shuffled = json.loads(evaluate(shop, *user_indices, data="shuffled.csv").stdout)["metrics"]
    assert shuffled == pytest.approx(report, abs=1e-6)


def test_what_has_no_value_is_null_with_the_reason(shop):
    assert fit(shop).exit_code == 0
    done = evaluate(shop, "--task", "ctr")  # each user has one event in the test part
    report = json.loads(done.stdout)
    assert report["metrics"]["gauc"] is None and 0 <= report["metrics"]["auc"] <= 1
    assert report["undefined"] == dict.fromkeys(("gauc", "gauc_unrated"), "no user with both labels")
    assert "(no user with both labels)" in done.stderr


READERS = {
    "top.csv": lambda path: pd.read_csv(path),
    "top.csv.gz": lambda path: pd.read_csv(path),
    "top.tsv": lambda path: pd.read_csv(path, sep="\t"),
    "top.jsonl": lambda path: pd.read_json(path, lines=True),
    "top.jsonl.gz": lambda path: pd.read_json(path, lines=True),
    "top.parquet": pd.read_parquet,
}


@pytest.mark.parametrize("block", [1 << 20, 5, 1])
def test_every_form_holds_the_same_whatever_the_block(shop, monkeypatch, block):
    assert fit(shop).exit_code == 0
    expected = load_recommender(shop / "model").recommend([customer(7), customer(2), customer(19)], 5)
    monkeypatch.setattr(commands, "ENTRIES", block)
    for name, read in READERS.items():
        assert recommend(shop, output=name).exit_code == 0
        result = read(shop / name)
        assert list(result) == ["customer", "mail", "rank", "item", "score"]
        assert result["item"].tolist() == expected.items.ravel().tolist()
        assert np.array_equal(result["score"].to_numpy(np.float32), expected.scores.ravel())
        assert result["rank"].tolist() == [1, 2, 3, 4, 5] * 3
    assert recommend(shop, output="-").stdout == (shop / "top.csv").read_text()


def test_all_users_are_those_of_the_model(shop):
    assert fit(shop).exit_code == 0
    fine("classical", "recommend", "--model", shop / "model", "--k", "1", "--output", shop / "all.parquet")
    result = pd.read_parquet(shop / "all.parquet")
    assert list(result) == ["user", "rank", "item", "score"]
    assert set(result["user"]) == set(shop_events()["customer"]) and len(result) == CUSTOMERS


def test_there_are_no_more_items_than_there_are(shop):
    assert fit(shop).exit_code == 0
    for user, count in (("greedy", 2), ("full", 0)):
        items = [article(number) for number in range(ARTICLES - count)]
        history = pd.DataFrame({"user": user, "item": items, "timestamp": 1})
        history.to_csv(shop / "history.csv", index=False)
        pd.DataFrame({"user": [user]}).to_csv(shop / "users.csv", index=False)
        for name, read in READERS.items():
            done = recommend(shop, "--data", shop / "history.csv", "-k", "100", output=name, names=())
            assert done.exit_code == 0, done.output
            assert len(read(shop / name) if count or "json" not in name else ()) == count
    assert list(pd.read_parquet(shop / "top.parquet")) == ["user", "rank", "item", "score"]


def test_new_users_come_with_their_events(shop):
    assert fit(shop, "sasrec").exit_code == 0
    pd.DataFrame({"customer": ["new", customer(2)]}).to_csv(shop / "users.csv", index=False)
    where = re.escape(f"{shop / 'users.csv'}, row 1: user: expected a user whom the model or --data knows; got 'new'")
    assert re.fullmatch(f"error: {where}", only_line(recommend(shop)))
    assert not (shop / "top.csv").exists()
    history = pd.DataFrame(
        {
            "customer": ["new", "new", customer(2)],
            "sku": [article(1), article(2), article(3)],
            "bought_at": ["2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z", "2026-03-02T11:00:00Z"],
            "stars": [5, 5, 5],
        }
    )
    history.to_csv(shop / "history.csv", index=False)
    done = recommend(shop, "--data", shop / "history.csv", "--k", "40", names=NAMES)
    assert done.exit_code == 0, done.output
    result = pd.read_csv(shop / "top.csv").groupby("customer")["item"].agg(set)
    every = {article(number) for number in range(ARTICLES)}
    assert result["new"] == every - {article(1), article(2)}
    assert result[customer(2)] == every - {article(3)}  # --data replaces the saved history
    model = load_recommender(shop / "model")
    model.set_histories_from_table(history.set_axis(["user", "item", "timestamp", "rating"], axis=1))
    assert pd.read_csv(shop / "top.csv")["item"][:5].tolist() == model.recommend(["new"], 5).items[0].tolist()


def test_new_users_of_a_model_that_serves_none_are_named(shop):
    assert fit(shop, "bpr").exit_code == 0
    pd.DataFrame({"user": ["new"], "item": [article(1)], "timestamp": [1]}).to_csv(shop / "history.csv", index=False)
    pd.DataFrame({"user": [customer(1), "new"]}).to_csv(shop / "users.csv", index=False)
    line = only_line(recommend(shop, "--data", shop / "history.csv", names=()))
    assert line.endswith("users.csv: expected users of the training, as BPR serves no others; got 'new'")
    events = pd.concat([shop_events(), shop_events(1, 6).assign(customer="new")])
    events.to_csv(shop / "more.csv", index=False)
    assert only_line(evaluate(shop, data="more.csv")).endswith("as BPR serves no others; got 'new'")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"customer": [customer(1), "c-1"]}, "row 2: user: expected a user whom the model or --data knows; got 'c-1'"),
        ({"customer": [customer(1), None, "c"]}, "row 2: user: expected a user whom .* knows; got None"),
        ({"client": [customer(1)]}, "expected a column user .*; got client"),
        ({"customer": [customer(1)], "item": ["x"]}, "expected no column called 'item', which is written"),
    ],
)
def test_users_who_cannot_be_served_are_refused(shop, table, message):
    assert fit(shop).exit_code == 0
    pd.DataFrame({**table, "more": "x"}).to_csv(shop / "users.csv", index=False)
    assert re.search(message, only_line(recommend(shop)))
    assert not (shop / "top.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "word2vec"), "model: expected one of AttributeKNN, BPR, .*, TextTower; got 'word2vec'"),
        (("--split", "random"), "split: expected user_time, global_time, leave_one_out or none; got 'random'"),
        (("--seed", "1"), "--seed: expected a model that draws at random; got ItemKNN"),
        (("--model", "fm", "--seed", "-1"), "seed: expected a whole number of at least 0; got -1"),
        (("--config", "{wrong}"), "wrong.json: neighbours: expected a whole number of at least 1; got '5'"),
        (("--config", "{unknown}"), "unknown.json: expected .*neighbours.*; got 'dim'"),
        (("--data", "nowhere.csv"), "path: there is no file nowhere.csv"),
        (("--columns", "user"), "--columns: expected pairs"),
        (("--output", "{file}"), "training.safetensors: Not a directory"),
    ],
)
def test_wrong_fits_are_one_line(shop, monkeypatch, arguments, message):
    def never(*arguments, **options):
        raise AssertionError("the work began")

    monkeypatch.setattr(ItemKNN, "fit", never)
    (shop / "wrong.json").write_text('{"neighbours": "5"}')
    (shop / "unknown.json").write_text('{"dim": 5}')
    (shop / "file").write_text("")
    files = {"wrong": shop / "wrong.json", "unknown": shop / "unknown.json", "file": shop / "file"}
    done = fit(shop, "itemknn", *(argument.format(**files) for argument in arguments))
    assert re.search(message, only_line(done)), done.output
    assert not (shop / "model").exists()


def test_unwritable_outputs_are_refused_before_the_work(shop, monkeypatch):
    assert fit(shop).exit_code == 0
    (shop / "file").write_text("")
    done = recommend(shop, output="file/top.csv")
    assert only_line(done).endswith("top.csv: Not a directory")
    assert "--output: expected a .csv, .tsv, .jsonl, .parquet file" in only_line(recommend(shop, output="top.xlsx"))
    done = run("classical", "fit", "--model", "ease", "--data", "nowhere.csv", "--output", shop / "file")
    assert only_line(done).endswith("training.safetensors: Not a directory")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (recommend, ("--like", "3"), "--like, --time-unit, --time-format: expected with --data"),
        (recommend, ("--model", "nowhere"), "folder: expected a saved model with config.json"),
        (recommend, ("--users", "nowhere.csv"), "path: there is no file nowhere.csv"),
        (evaluate, ("--split", "none"), "split: expected user_time, global_time or leave_one_out; got 'none'"),
        (evaluate, ("--split", "user_time"), "expected a test part that the model has not learnt from"),
        (evaluate, ("--like", "3"), "like: expected 4 .*, as the model was fitted; got 3"),
        (
            evaluate,
            ("--task", "both"),
            "task: expected 'ranking', 'ctr', 'agent', 'explanation' or 'judge'; got 'both'",
        ),
        (evaluate, ("--task", "judge"), "--task: expected ranking or ctr; got 'judge'"),  # rankings were measured
        (evaluate, ("--ks", "5,0"), "--ks: expected cutoffs such as 5,10; got '5,0'"),
        (evaluate, ("--task", "ctr", "--ks", "5"), "--ks, --negatives: expected with --task ranking; got ctr"),
        (evaluate, ("--negatives", "1000"), "evaluation.negatives: expected at most"),
        (evaluate, ("--model", "nowhere"), "folder: expected a saved model with config.json"),
    ],
)
def test_wrong_questions_are_one_line(shop, command, arguments, message):
    assert fit(shop).exit_code == 0
    assert re.search(message, only_line(command(shop, *arguments)))


@pytest.mark.parametrize("k", ["0", "-3"])
def test_zero_items_cannot_be_requested(shop, k):
    for done in (recommend(shop, "--k", k), evaluate(shop, "--negatives", k)):
        output = " ".join(re.sub("[^-a-z0-9';: ]", " ", done.output).split())
        assert done.exit_code == 2 and f"expected a whole number of at least 1; got {k}" in output


def test_without_a_split_everything_is_learned(shop):
    assert fit(shop, "popularity", "--split", "none").exit_code == 0
    data = load_interactions(
        shop / "events.csv", columns={"user": "customer", "item": "sku", "timestamp": "bought_at", "rating": "stars"}
    )
    expected, result = Popularity().fit(data), load_recommender(shop / "model")
    users = list(data.user_ids)
    assert result.recommend(users, 5).items.tolist() == expected.recommend(users, 5).items.tolist()
    assert "expected a test part that the model has not learnt from" in only_line(evaluate(shop))


def test_a_split_without_validation_says_what_to_do(shop):
    shop_events(size=20).drop_duplicates("customer").to_csv(shop / "events.csv", index=False)
    line = only_line(fit(shop))
    assert "expected a positive event in the validation part of leave_one_out; got none in 0 events" in line
    assert line.endswith("--split none learns from all of them")
    assert fit(shop, "itemknn", "--split", "none").exit_code == 0


def weights(folder):
    return {name: value.numpy() for name, value in load_recommender(folder).state_dict().items()}


@pytest.mark.parametrize("model", ["sasrec", "bpr", "fm"])
def test_a_killed_training_goes_on(shop, monkeypatch, model):
    assert fit(shop, model, output="whole").exit_code == 0
    calls = []
    save = Checkpoint.save

    def stopped(checkpoint, step):
        save(checkpoint, step)
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stopped)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = fit(shop, model)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.exit_code == 130
    assert f"stopped: the same command resumes from {shop / 'model'}" in done.output
    assert [path.name for path in (shop / "model").iterdir()] == ["training.safetensors"]
    done = fit(shop, model)
    assert done.exit_code == 0 and "resumes after step" in done.stderr
    assert not (shop / "model" / "training.safetensors").exists()
    expected, result = weights(shop / "whole"), weights(shop / "model")
    assert all(np.array_equal(expected[name], result[name]) for name in expected)


def test_seeds_and_settings_reach_the_model(shop):
    assert fit(shop, "sasrec", "--seed", "7").exit_code == 0
    model = load_recommender(shop / "model")
    assert isinstance(model, SASRec) and model.config == SASRecConfig(**SETTINGS["sasrec"], seed=7)
    assert model.like == 4.0 and len(model.fitted_events)


@pytest.mark.parametrize("name", ["SASRec", "sas-rec", "SAS_REC", " sas rec"])
def test_names_without_regard_to_case_and_punctuation(name):
    assert recommender_named(name) is SASRec
    assert reasonrec_fast.load_recommender is load_recommender


@pytest.mark.parametrize("stored", ["{}", '{"architecture": "optirag"}', '{"architecture": ["SASRec"]}', "[1]"])
def test_folders_of_something_else_are_refused(tmp_path, stored):
    with pytest.raises(FileNotFoundError, match="folder: expected a saved model with config.json"):
        load_recommender(tmp_path)
    (tmp_path / "config.json").write_text(stored)
    with pytest.raises(ValueError, match="folder: expected a saved AttributeKNN, BPR, .*; .* holds "):
        load_recommender(tmp_path)


def test_identifiers_of_a_model(tmp_path):
    events = shop_events().set_axis(["user", "item", "timestamp", "rating"], axis=1)
    model = Popularity().fit(events)
    assert set(model.known_users.ids) == set(events["user"]) and set(model.known_items.ids) == set(events["item"])
    with pytest.raises(DataError, match="expected one that is fitted"):
        _ = Popularity().known_users
    model.set_histories(Histories.from_lists([[0]]))
    model.save_pretrained(tmp_path)
    (tmp_path / "identifiers.json").unlink()
    with pytest.raises(DataError, match="keeps identifiers"):
        _ = load_recommender(tmp_path).known_items


def test_help_of_every_command_loads_no_model():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from reasonrec_fast.cli.main import app\n"
        "for command in ('fit', 'recommend', 'evaluate'):\n"
        "    assert CliRunner().invoke(app, ['classical', command, '--help']).exit_code == 0\n"
        "assert 'reasonrec_fast.models.classical' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
