"""Regression tests of tables, identifiers and the classical commands."""

import json
import logging

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from reasonrec_fast import EASE, FM, FMConfig, Popularity
from reasonrec_fast.cli.main import app
from reasonrec_fast.data import DataError, Histories, Interactions, load_interactions, split_by_time
from reasonrec_fast.data.negatives import draw_negatives
from reasonrec_fast.evaluation import auc
from reasonrec_fast.experiments.config import EvaluationConfig, load_experiment
from reasonrec_fast.experiments.runner import run_experiment
from reasonrec_fast.models.optirag.template import Template


def likes_of_chance(users=200, items=14, each=9):
    """Likes that cannot be predicted."""
    generator = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", position * users + user)
        for user in range(users)
        for position, item in enumerate(generator.permutation(items)[:each])
    ]
    who, what, when = zip(*rows, strict=True)
    return Interactions.from_columns(who, what, [1] * len(rows), when)


def test_drawn_dislikes_do_not_tell_what_users_like_later():
    """Before, FM separated the test part's likes from unseen items with an AUC of 0.82."""
    data = likes_of_chance()
    parts = split_by_time(data, validation=0.12, test=0.3)
    settings = FMConfig(epochs=25, patience=25, weight_decay=1e-3, hidden=0.0, learning_rate=0.02)
    model = FM(settings).fit(data, parts.train, parts.validation)
    seen = Histories.seen(data, np.arange(len(data)))
    every = np.arange(data.num_items)
    won = []
    for row in parts.test:
        user = data.users[row]
        never = np.setdiff1d(every, seen.of_user(user))
        scores = model.score(np.full(len(never) + 1, user), np.append(never, data.items[row]))
        won.append((scores[-1] > scores[:-1]).mean())
    assert abs(np.mean(won) - 0.5) < 0.07


def test_negatives_depend_on_the_given_rows_alone():
    data = Interactions.from_columns(["a"] * 3, ["x", "y", "z"], [1] * 3, [1, 2, 3])
    drawn = [draw_negatives(data, np.array([0]), np.array([0]), seed).items[0] for seed in range(30)]
    assert set(drawn) == {1, 2}
    assert {draw_negatives(data, np.array([1]), np.array([0, 1]), seed).items[0] for seed in range(9)} == {2}


RATED = pd.DataFrame(
    {"user": list("aabbc"), "item": list("xyxzy"), "timestamp": [1, 2, 3, 4, 5], "rating": [3, 5, 4, 1, 3]}
)


def test_likes_of_another_rating_are_refused_everywhere():
    """A model that was fitted with a like threshold of 3 used 4 for a history, without a message."""
    model = EASE().fit(load_interactions(RATED, like=3))
    with pytest.raises(DataError, match="like: expected 3 .*, as the model was fitted; got 4"):
        model.set_histories_from_table(RATED)
    model.set_histories_from_table(load_interactions(RATED, like=3))
    model.set_histories_from_table(RATED.drop(columns="rating"))


TOML = """seeds = [0]
[[models]]
kind = "EASE"
name = "ours"
[[datasets]]
kind = "table"
path = "events.csv"
"""


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    columns = {"user": generator.integers(0, 30, 300), "item": generator.integers(0, 20, 300)}
    pd.DataFrame({**columns, "timestamp": range(300), "label": 1}).to_csv(tmp_path / "events.csv", index=False)
    (tmp_path / "own.toml").write_text(TOML)
    return tmp_path


def test_models_of_one_name_and_another_kind_are_other_runs(folder):
    """Before, the second model was given the figures of the first."""
    first = run_experiment(load_experiment(folder / "own.toml"), folder, folder / "runs.jsonl")
    (folder / "own.toml").write_text(TOML.replace("EASE", "Popularity"))
    second = run_experiment(load_experiment(folder / "own.toml"), folder, folder / "runs.jsonl")
    assert first[0].metrics != second[0].metrics
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 2


def test_a_seed_that_is_named_twice_is_one_run(folder):
    """Two of the same would deviate by 0.0000 from each other."""
    runs = run_experiment(load_experiment(folder / "own.toml"), folder, folder / "runs.jsonl", seeds=(1, 1))
    assert [run.seed for run in runs] == [1]


def test_cutoffs_beyond_the_candidates_are_refused_before_anything_is_fitted(folder):
    with pytest.raises(ValueError, match=r"ks: expected cutoffs in \[1, 10\], the target and its negatives; got 20"):
        EvaluationConfig(negatives=9)
    with pytest.raises(ValueError, match=r"own.toml: evaluation: ks: expected cutoffs in \[1, 4\], .*; got 20"):
        (folder / "own.toml").write_text(TOML + "[evaluation]\nnegatives = 3\n")
        load_experiment(folder / "own.toml")
    EvaluationConfig(negatives=19)
    EvaluationConfig(task="ctr", negatives=1)


def test_experiments_are_read_with_a_mark_of_the_byte_order_and_refused_by_name(folder):
    (folder / "own.toml").write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert load_experiment(folder / "own.toml").models[0].kind == "EASE"
    (folder / "own.toml").write_bytes(TOML.encode() + b"# \xe9\n")
    with pytest.raises(ValueError, match="own.toml: expected TOML; .*0xe9"):
        load_experiment(folder / "own.toml")


def test_dates_of_digits_alone_are_read_by_their_form(tmp_path):
    (tmp_path / "events.csv").write_text("user,item,timestamp\na,x,05032025\na,y,15032025\n")
    result = load_interactions(tmp_path / "events.csv", time_format="%d%m%Y")
    assert pd.to_datetime(result.timestamps, unit="s").strftime("%Y-%m-%d").tolist() == ["2025-03-05", "2025-03-15"]


def test_a_form_of_dates_is_no_word_by_which_pandas_guesses():
    frame = pd.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "timestamp": ["03/04/2025", "13/04/2025"]})
    with pytest.raises(DataError, match="time_format: expected a form such as .*; got 'mixed'"):
        load_interactions(frame, time_format="mixed")


def test_items_are_called_by_item_where_there_is_an_id_too():
    """``columns`` names the events' column; the items' own ``item`` was taken for an attribute, and rows' numbers for
    identifiers."""
    events = pd.DataFrame({"user": ["a"], "sku": ["S1"], "timestamp": [1]})
    items = pd.DataFrame({"id": [1], "item": ["S1"], "title": ["Chair"]})
    catalog = load_interactions(events, items, columns={"item": "sku"}).catalog
    assert (catalog.ids, catalog.titles) == (["S1"], ["Chair"])


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_no_users_are_a_file_without_rows(kind, tmp_path):
    Popularity().fit(RATED).save_pretrained(tmp_path / "model")
    pd.DataFrame({"user": pd.Series([], dtype=str)}).to_parquet(tmp_path / "users.parquet")
    arguments = [
        "--model",
        tmp_path / "model",
        "--users",
        tmp_path / "users.parquet",
        "--output",
        tmp_path / f"top{kind}",
    ]
    done = CliRunner().invoke(app, ["classical", "recommend", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    if kind == ".parquet":
        assert pyarrow.parquet.read_table(tmp_path / "top.parquet").column_names == ["user", "rank", "item", "score"]
    else:
        assert (tmp_path / f"top{kind}").read_text() == ("user,rank,item,score\n" if kind == ".csv" else "")


def test_users_with_unknown_items_alone_are_reported_too():
    model = EASE().fit(RATED.drop(columns="rating"))
    model.set_histories_from_table(pd.DataFrame({"user": ["a", "b"], "item": ["new", "x"], "timestamp": [9, 9]}))
    assert [model.seen.of_user(user).tolist() for user in range(3)] == [[], [0], [1]]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"taste": " {nonsense}"}, "taste: expected a text with {values}; got ' {nonsense}'"),
        ({"liked": "Liked."}, "liked: expected a text with {items}; got 'Liked.'"),
        ({"votes": " {likes"}, "votes: expected a text with {likes} and {events}"),
        ({"question": 3}, "question: expected a text; got 3"),
        ({"levels": "abcdef"}, "levels: expected a list of texts; got 'abcdef'"),
        ({"target_attributes": "price"}, "target_attributes: expected a list of texts; got 'price'"),
    ],
)
def test_templates_are_checked_when_they_are_read(values, message, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({**Template.load("items").to_dict(), **values}))
    with pytest.raises(ValueError) as refused:
        Template.load(str(tmp_path / "own.json"))
    assert message in str(refused.value)


def test_scores_of_all_items_are_few_at_a_time(monkeypatch):
    """A block had 2,048 users for any number of items: 16 GB of pairs for a catalogue of half a million."""
    from reasonrec_fast.models.classical import base

    model = FM(FMConfig(epochs=1)).fit(RATED)
    expected = model.recommend([0, 1, 2], 2)
    monkeypatch.setattr(base, "_SCORES_PER_BLOCK", 3)
    sizes = []
    scores = model.scores
    monkeypatch.setattr(model, "scores", lambda users: sizes.append(len(users)) or scores(users))
    assert model.recommend([0, 1, 2], 2).items.tolist() == expected.items.tolist()
    assert sizes == [1, 1, 1]


def events(**columns):
    return load_interactions(pd.DataFrame({"user": ["a"], "item": ["x"], "timestamp": [1], **columns}))


def test_numbers_of_numpy_among_objects_are_read_as_in_an_array():
    """Parts of seconds ended in decimal's InvalidOperation, and float32 lost a second without a word."""
    result = events(timestamp=pd.Series([np.float64(1600000000.5)], dtype=object))
    assert (result.timestamps.tolist(), result.time_unit) == ([1600000000500], "ms")
    with pytest.raises(DataError, match="a number that float32 holds exactly; got 1600000000.0 in row 1"):
        events(timestamp=pd.Series([np.float32(1600000001)], dtype=object))


def test_numbers_of_hundreds_of_digits_are_refused_by_name():
    with pytest.raises(DataError, match="rating: expected a number; got 1000000"):
        events(rating=pd.Series([10**400], dtype=object))
    with pytest.raises(ValueError, match="learning_rate: expected a finite number"):
        FMConfig(learning_rate=10**400)
    with pytest.raises(ValueError, match="scores: expected numbers that float64 holds"):
        auc([0, 1], [1, 10**400])


def test_sets_are_no_columns():
    """Their order is another in every process."""
    with pytest.raises(DataError, match="users: expected a column of values; got {"):
        Interactions.from_columns({"a", "b"}, ["x", "y"], [1, 1], [1, 2])


def test_items_without_a_row_in_the_item_table_are_reported(caplog):
    """Identifiers that are written in two ways met nowhere, without a word."""
    frame = pd.DataFrame({"user": ["a", "b"], "item": ["007", "008"], "timestamp": [1, 2]})
    for ids, level in (([7, 8], "WARNING"), (["007", "9"], "INFO")):
        caplog.clear()
        with caplog.at_level(logging.INFO, "reasonrec_fast"):
            load_interactions(frame, pd.DataFrame({"id": ids, "title": ["A", "B"]}))
        (record,) = (record for record in caplog.records if "the table of items does not have" in record.message)
        assert record.levelname == level
    assert "does not have 1 of 2 items, such as '008'" in record.message
    caplog.clear()
    load_interactions(frame, pd.DataFrame({"id": ["007", "008"]}))
    assert not caplog.records or "does not have" not in caplog.text


@pytest.mark.parametrize("name", ["stars:float", "stars"])
def test_columns_of_recbole_are_named_with_or_without_their_types(name, tmp_path):
    """A rating column that was named by its name in the file was missed, and every event became a like."""
    rows = "user_id:token\titem_id:token\ttimestamp:float\tstars:float\na\tx\t1\t5\na\ty\t2\t1\n"
    (tmp_path / "a.inter").write_text(rows)
    assert load_interactions(tmp_path / "a.inter", columns={"rating": name}).labels.tolist() == [1, 0]
    (tmp_path / "a.item").write_text("item_id:token\tstars:token_seq\nx\tA chair\n")
    names = {"title": name.replace("float", "token_seq")}
    assert load_interactions(tmp_path / "a.inter", tmp_path / "a.item", columns=names).catalog.titles[0] == "A chair"
