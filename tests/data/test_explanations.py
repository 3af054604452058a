"""XRec's files: read whole, and what is wrong is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from reasonrec_fast.data import DataError, Histories, load_explanations, load_xrec

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "xrec-google"
LINE = {"user": 7, "item": 3, "title": "A place", "user_profile": "u", "item_profile": "p", "explanation": "good"}


@pytest.fixture
def folder(tmp_path):
    for part, rows in (("train", "7,3\n9,4\n7,4\n"), ("valid", "9,3\n"), ("test", "7,5\n")):
        (tmp_path / f"interactions_{part}.csv").write_text("user,item\n" + rows)
    (tmp_path / "explanations_train.jsonl").write_text(json.dumps(LINE) + "\n")
    return tmp_path


def test_parts_become_a_split_in_time(folder):
    data, split = load_xrec(folder)
    assert list(data.user_ids) == ["7", "9"] and list(data.catalog.ids) == ["3", "4", "5"]
    assert list(data.catalog.titles) == ["A place", "4", "5"]
    assert [part.tolist() for part in (split.train, split.validation, split.test)] == [[0, 1, 2], [3], [4]]
    assert data.timestamps.tolist() == [0, 0, 0, 1, 2]
    assert Histories.of(data, split.train).of_user(0).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": "7"}, "line 2: expected user, a int; got '7'"),
        ({"user": True}, "line 2: expected user, a int; got True"),  # it was user 1
        ({"title": None}, "line 2: expected title, a str; got None"),
    ],
)
def test_wrong_lines(folder, change, message):
    path = folder / "explanations_train.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | change) + "\n")
    with pytest.raises(DataError, match=message):
        load_explanations(path)


def test_wrong_files(folder):
    path = folder / "explanations_train.jsonl"
    for wrong, message in (("{", "line 1: expected JSON"), ("[1]", r"line 1: expected an object; got \[1\]")):
        path.write_text(wrong)
        with pytest.raises(DataError, match=message):
            load_explanations(path)
    with pytest.raises(DataError, match="expected a file of explanations"):
        load_explanations(folder / "none.jsonl")
    (folder / "interactions_valid.csv").write_text("user,place\n1,2\n")
    with pytest.raises(DataError, match="expected whole numbers in a column 'item'"):
        load_xrec(folder)
    (folder / "interactions_test.csv").unlink()
    (folder / "interactions_valid.csv").write_text("user,item\n1,2\n")
    with pytest.raises(DataError, match=r"expected interactions_test\.csv"):
        load_xrec(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the development data (shared/data/xrec-google)")
def test_the_real_files():
    data, split = load_xrec(REAL)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [329_472, 41_184, 41_184]
    assert (data.num_users, data.num_items) == (22_582, 16_557)
    parts = [load_explanations(REAL / f"explanations_{part}.jsonl") for part in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [1801, 187, 493]
    users = [{line.user for line in part} for part in parts]
    assert not users[0] & users[2] and not users[1] & users[2]
    known = np.array(data.catalog.titles)[[data.catalog.ids.index(str(line.item)) for line in parts[2][:20]]]
    assert known.tolist() == [line.title for line in parts[2][:20]]
