"""What a shop saw that used the package from its docs alone."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shop import write_shop
from typer.testing import CliRunner

from reasonrec_fast.cli.main import app
from reasonrec_fast.data import DataError, load_interactions, split_by_time
from reasonrec_fast.data.split import check_not_learnt
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.held_out import metrics_on_test
from reasonrec_fast.models.classical import EASE

NAMES = ("--columns", "user=customer,item=sku,timestamp=day")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def purchases():
    """Of 30 customers on 40 articles, with dates: many are of one day."""
    g = np.random.default_rng(0)
    taste = g.integers(0, 4, 600)
    events = pd.DataFrame(
        {
            "customer": [f"{user:04d}" for user in taste + 4 * g.integers(0, 8, 600)],
            "sku": [f"{sku:05d}" for sku in taste + 4 * g.integers(0, 10, 600)],
            "day": [f"2025-03-{day:02d}" for day in g.integers(1, 6, 600)],
        }
    )
    return events.drop_duplicates(["customer", "sku"])


@pytest.fixture
def fitted(tmp_path):
    purchases().to_csv(tmp_path / "events.csv", index=False)
    done = run("classical", "fit", "--model", "ease", "--data", tmp_path / "events.csv", *NAMES,
               "--output", tmp_path / "model")  # fmt: skip
    assert done.exit_code == 0, done.output
    return tmp_path


def evaluate(folder, table, name="other.csv"):
    table.to_csv(folder / name, index=False)
    return run("classical", "evaluate", "--model", folder / "model", "--data", folder / name, *NAMES)


def test_what_a_model_learnt_from_is_no_test(fitted):
    """Within a day the file's order decides which events are last; with another order the model was trained on them."""
    done = evaluate(fitted, purchases().sample(frac=1, random_state=1))
    assert done.exit_code == 2
    assert "expected a test part that the model has not learnt from; it was fitted on" in done.output


def test_any_order_of_days_is_the_same_test(fitted):
    """The order within a day is kept; later events, or a subset of the customers, leak nothing either."""
    events = purchases()
    reports = [evaluate(fitted, events), evaluate(fitted, events.sort_values("day", ascending=False, kind="stable"))]
    assert json.loads(reports[0].stdout) == json.loads(reports[1].stdout)
    later = pd.DataFrame({"customer": ["0001"], "sku": ["00002"], "day": ["2025-04-01"]})
    assert evaluate(fitted, pd.concat([events, later])).exit_code == 0
    assert evaluate(fitted, events[events["customer"] < "0009"]).exit_code == 0


def test_times_in_another_unit_are_the_same_events():
    events = load_interactions(purchases(), columns={"user": "customer", "item": "sku", "timestamp": "day"})
    fitted_events = events.keys(split_by_time(events).train)
    fine = purchases()
    fine["day"] += [f" 00:00:00.{'0' * 5}{number % 2}" for number in range(len(fine))]
    others = load_interactions(fine, columns={"user": "customer", "item": "sku", "timestamp": "day"})
    assert (events.time_unit, others.time_unit) == ("s", "us")
    check_not_learnt(events, split_by_time(events), fitted_events, "events")
    with pytest.raises(DataError, match="events: expected a test part that the model has not learnt from"):
        check_not_learnt(others, split_by_time(others, validation=0.4, test=0.4), fitted_events, "events")


@pytest.mark.parametrize("unlabelled, meaning", [(False, "event is a like"), (True, "row is a request")])
def test_a_missing_named_column_is_reported(caplog, unlabelled, meaning):
    """A rating whose name is misspelt turns dislikes into likes, and a history into requests."""
    names = {"user": "customer", "item": "sku", "timestamp": "day", "rating": "Stars"}
    with caplog.at_level("INFO", "reasonrec_fast"):
        load_interactions(purchases().assign(stars=1), columns=names, allow_unlabelled=unlabelled)
    assert caplog.messages == [f"table: no column 'Stars' (rating): every {meaning}"]


def test_a_missing_named_title_is_reported(caplog):
    names = {"user": "customer", "item": "sku", "timestamp": "day", "title": "Name"}
    items = pd.DataFrame({"sku": ["00000"], "name": ["Lamp"]})
    with caplog.at_level("INFO", "reasonrec_fast"):
        load_interactions(purchases(), items, columns=names)
    assert "items: no column 'Name' (title): items are called by their identifiers" in caplog.messages


@pytest.mark.parametrize("name", ["events.csv", "events.jsonl", None])
def test_a_missing_column_is_refused_with_the_names_of_the_file(tmp_path, name):
    """All of them and as they stand: the misspelt one is among them."""
    table = purchases().assign(shop="Berlin")
    if name:
        table.to_csv(tmp_path / name, index=False, sep=";") if name.endswith("csv") else table.to_json(
            tmp_path / name, orient="records", lines=True
        )
    wrong = {"user": "customer", "item": "sku", "timestamp": "Day"}
    with pytest.raises(DataError, match=r"timestamp \(columns says 'Day'\) missing, got customer, sku, day, shop$"):
        load_interactions(tmp_path / name if name else table, columns=wrong)


def test_a_column_that_is_written_is_refused_with_the_file(fitted):
    pd.DataFrame({"customer": ["0001"], "rank": [3]}).to_csv(fitted / "users.csv", index=False)
    done = run("classical", "recommend", "--model", fitted / "model", "--users", fitted / "users.csv", *NAMES,
               "--output", "-")  # fmt: skip
    assert done.exit_code == 2 and f"{fitted / 'users.csv'}: expected no column called 'rank'" in done.output


def test_the_page_of_a_shop_compares_models(tmp_path):
    page = Path(__file__).resolve().parents[2] / "docs" / "shop.md"
    write_shop(tmp_path)
    (tmp_path / "compare.toml").write_text(re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)[0])
    done = run("evaluate", tmp_path / "compare.toml", "--data", tmp_path, "--output", tmp_path / "runs.jsonl")
    assert done.exit_code == 0, done.output
    assert "| EASE | events | 1 |" in done.stdout and "| ItemKNN | events | 1 |" in done.stdout
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


def test_a_model_of_python_knows_what_it_learnt_from(tmp_path):
    """A model that was saved over another fit is identified by its own training events."""
    events = load_interactions(purchases(), columns={"user": "customer", "item": "sku", "timestamp": "day"})
    purchases().to_csv(tmp_path / "events.csv", index=False)
    run(
        "classical", "fit", "--model", "ease", "--data", tmp_path / "events.csv", *NAMES, "--output", tmp_path / "model"
    )
    assert evaluate(tmp_path, purchases()).exit_code == 0
    EASE(device="cpu").fit(events).save_pretrained(tmp_path / "model")
    done = evaluate(tmp_path, purchases())
    assert done.exit_code == 2 and "expected a test part that the model has not learnt from" in done.output
    parts = split_by_time(events, "leave_one_out")
    EASE(device="cpu").fit(events, parts.train, parts.validation).save_pretrained(tmp_path / "model")
    assert evaluate(tmp_path, purchases()).exit_code == 0
    with pytest.raises(DataError, match="data: expected a test part that the model has not learnt from"):
        metrics_on_test(EASE(device="cpu").fit(events), events, parts, EvaluationConfig())


def test_other_labels_are_the_same_events():
    """Of another threshold of likes."""
    table = purchases()
    table["rating"] = [1, 5][: len(table) % 2] + [1, 5] * (len(table) // 2)
    names = {"user": "customer", "item": "sku", "timestamp": "day"}
    few, many = (load_interactions(table, columns=names, like=like) for like in (5, 1))
    assert (few.labels != many.labels).any() and (few.keys() == many.keys()).all()
