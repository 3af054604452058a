"""What is written, instruction files, and classical models."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from reasonrec_fast.cli.tables import write_rows
from reasonrec_fast.data import DataError, Interactions, is_instruction_file, load_instructions
from reasonrec_fast.data.reading import read_table
from reasonrec_fast.models.classical import Bias, ItemKNN


def written(table, path, count=1):
    write_rows(str(path), table, np.arange(count), {"probability": np.full(count, 0.5, np.float32)})
    return path


def test_a_carriage_return_within_text_stays_within_it(tmp_path):
    (tmp_path / "in.csv").write_bytes(b'user,item\n"a\rb",x\n')
    result = read_table(written(read_table(tmp_path / "in.csv"), tmp_path / "out.csv")).columns
    assert result["user"].to_pylist() == ["a\rb"]


def test_numbers_that_are_none_are_json_too(tmp_path):
    pa.parquet.write_table(
        pa.table({"user": ["a"], "price": [float("nan")], "l": [[float("inf")]]}), tmp_path / "in.parquet"
    )
    path = written(read_table(tmp_path / "in.parquet"), tmp_path / "out.jsonl")
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["price"] is None


def test_categories_stay_categories_in_parquet(tmp_path):
    pd.DataFrame({"user": ["a"], "kind": pd.Categorical(["k"])}).to_parquet(tmp_path / "in.parquet")
    path = written(read_table(tmp_path / "in.parquet"), tmp_path / "out.parquet")
    assert pa.types.is_dictionary(pa.parquet.read_schema(path).field("kind").type)


@pytest.mark.parametrize("value", ["123456789012345678901234567890", "{}"])
def test_what_parquet_cannot_hold_is_refused_in_words(tmp_path, value):
    (tmp_path / "in.jsonl").write_text(f'{{"user": "a", "x": {value}}}\n')
    with pytest.raises(ValueError, match="data: expected .*'x'"):
        written(read_table(tmp_path / "in.jsonl"), tmp_path / "out.parquet")


def test_lone_surrogates_are_refused_before_anything_is_scored(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"user": "a", "title": "b\\ud83d"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_table(tmp_path / "in.jsonl")


def test_events_of_an_item_called_instruction_are_events(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"user": "a", "item": "instruction", "timestamp": 1}\n')
    assert not is_instruction_file(tmp_path / "a.jsonl")


def test_instructions_that_are_no_gz(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text("no gz")
    with pytest.raises(DataError):
        is_instruction_file(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '[{"instruction": "a", "input": "b", "output": "Yes", "output": "No"}]']
)
def test_broken_instructions_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError):
        load_instructions(tmp_path / "a.json")


def test_users_who_have_everything_leave_no_negatives():
    table = pd.DataFrame({"user": list("aabb"), "item": list("xyxy"), "timestamp": [1, 2, 3, 4]})
    with pytest.raises(DataError):
        Bias().fit(table)


def test_requests_do_not_erase_what_a_user_has_had():
    model = ItemKNN().fit(pd.DataFrame({"user": list("aab"), "item": list("xyx"), "timestamp": [1, 2, 3]}))
    model.set_histories_from_table(Interactions.from_columns(["a"], ["x"], [None], [9]))
    assert model.seen.of_user(0).tolist() == [0, 1]
