"""Columns, times and files: what is read must be what was written."""

import csv
import io
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from reasonrec_fast.data import DataError, Interactions, load_interactions
from reasonrec_fast.data.columns import Source, as_column, identifiers, values_of
from reasonrec_fast.data.reading import read_table
from reasonrec_fast.data.tables import load_items
from reasonrec_fast.data.times import moments


def ids(values):
    return identifiers(values, Source(), "users")


@pytest.mark.parametrize("special,off", [("\r\n", -1), ('""\r\n""', -3), ("\r\r\n", -2)])
def test_quoted_line_end_across_a_block_border(tmp_path, special, off):
    border, line = 1 << 21, "u,t," + "k" * 1000 + "\r\n"
    head = "x,y,z\r\n" + line * ((border - 3000) // len(line))
    lead = 'u,"'
    text = head + lead + "p" * (border + off - len(head) - len(lead)) + special + 'rest",z\r\n' + line * 1200
    (tmp_path / "a.csv").write_bytes(text.encode())
    expected = [row[1] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    got = read_table(tmp_path / "a.csv").columns["y"].to_pylist()
    assert got == expected


@pytest.mark.parametrize(
    "values",
    [
        np.array([16777216, 16777217], dtype=np.float32),  # float32 made one of two users
        torch.tensor([16777216.0, 16777217.0]),
        [np.float32(16777217)],
        np.array([2049, 2048], dtype=np.float16),
    ],
)
def test_identifiers_that_a_small_float_cannot_hold(values):
    with pytest.raises(DataError):
        ids(values)


def test_times_that_a_small_float_cannot_hold():
    with pytest.raises(DataError):
        moments(np.array([1600000000, 1600000001], dtype=np.float32), Source())


@pytest.mark.parametrize("read", [ids, lambda column: moments(column, Source())])
def test_masked_values_are_missing(read):
    with pytest.raises(DataError):
        read(np.ma.array([1, 2, 3], mask=[0, 1, 0]))


def test_masked_label_is_unlabelled():
    result = Interactions.from_columns(["a", "a"], ["x", "y"], np.ma.array([1, 0], mask=[0, 1]), [1, 2])
    assert result.labels.tolist() == [1, -1]


def test_dictionary_with_one_value_twice_is_one_user():
    result = ids(pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", "a"])))
    assert len(result.dictionary) == 1


def test_categories_without_rows_are_no_users_and_items(tmp_path):
    """A Parquet file of a filtered DataFrame of categories."""
    table = pd.DataFrame({"user": ["a", "b", "c"], "item": ["x", "y", "z"], "timestamp": [1, 2, 3], "label": [1, 0, 1]})
    table = table.astype({"user": "category", "item": "category"})
    table[table.user != "b"].to_parquet(tmp_path / "a.parquet")
    result = load_interactions(tmp_path / "a.parquet")
    assert result.catalog.ids == ["x", "z"]
    assert result.user_ids == ["a", "c"]


def test_rating_of_128_small_categories():
    rating = pa.DictionaryArray.from_arrays(pa.array(range(128), pa.int8()), pa.array([i / 10 for i in range(128)]))
    n = range(128)
    table = pa.table({"user": ["a"] * 128, "item": [str(i) for i in n], "timestamp": list(n), "rating": rating})
    assert load_interactions(table).labels.sum() == 88


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity")])
def test_decimals_that_are_no_numbers(value):
    with pytest.raises(DataError):
        ids([value])


def test_long_decimals_stay_two():
    values = pa.array([Decimal("1234567890123456789012345678.51"), Decimal("1234567890123456789012345678.52")])
    assert len(ids(values).dictionary) == 2


def test_periods_are_not_their_ordinals():
    column = pd.Series(pd.period_range("2020-01", "2020-03", freq="M"))
    with pytest.raises(DataError):
        ids(column)
    with pytest.raises(DataError):
        moments(column, Source())


def test_booleans_are_no_times():
    with pytest.raises(DataError):
        moments(pd.Series([True, False]), Source())


@pytest.mark.parametrize("values", [pd.DataFrame({"user": [1]}), {"a": 1}])
def test_a_frame_or_a_mapping_is_no_column(values):
    with pytest.raises(DataError):
        as_column(values, "users")


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([pd.Timedelta(1, "s")]),
        pa.array([{"a": 1}]),
        pa.array([[1]]),
        pd.Series([pd.Timestamp("2020").time()]),
        ["١٢٣"],
    ],
)
def test_what_is_no_time_is_refused_with_its_row(values):
    with pytest.raises(DataError, match="row 1"):
        moments(values, Source())


def test_empty_text_times():
    assert len(moments(pa.array([], pa.string()), Source()).values) == 0


@pytest.mark.parametrize("values", [np.array([1, 2], dtype=">i8"), np.array([1, 2], dtype=np.longdouble),
                                    torch.tensor([1.0, 2.0], dtype=torch.bfloat16)])  # fmt: skip
def test_numbers_of_any_numpy_type(values):
    assert ids(values).dictionary.to_pylist() == ["1", "2"]


@pytest.mark.parametrize("unit", ["h", "m", "M"])
def test_datetime64_of_any_unit(unit):
    assert moments(np.array(["2020-01-01"], dtype="M8[D]").astype(f"M8[{unit}]"), Source()).values == [1577836800]


def test_lone_surrogate_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"user": "a\\ud83d", "item": "x", "timestamp": 1, "label": 1}\n')
    with pytest.raises(DataError):
        load_interactions(tmp_path / "a.jsonl")


def test_missing_date_is_no_value():
    assert values_of(pd.NaT) == ()


def test_array_as_identifier_is_refused_in_words():
    with pytest.raises(DataError, match="expected text"):
        ids([np.array([1, 2])])


def test_names_of_interactions_are_not_those_of_items():
    """--columns label=title of the events must not remove the items' titles."""
    items = pd.DataFrame({"id": ["x"], "title": ["Heat"], "date": ["2000"]})
    events = pd.DataFrame({"user": ["a"], "item": ["x"], "date": [1], "title": [1]})
    result = load_interactions(events, items, columns={"timestamp": "date", "label": "title"})
    assert result.catalog.titles == ["Heat"]
    assert list(result.catalog.attributes) == ["date"]


def test_numpy_integers_in_a_list_count_as_python_s():
    times = [np.int64(0), np.int64(1600000000)]
    assert Interactions.from_columns(["a", "a"], ["x", "y"], [1, 1], times).time_unit == "count"
    assert Interactions.from_columns(["a", "a"], ["x", "y"], [1, 1], [0, 1600000000]).time_unit == "count"


def test_sets_have_one_order():
    result = load_items(pd.DataFrame({"item": ["x"], "genres": [{"War", "Drama", "Comedy", "Action", "Noir"}]}))
    assert result.attributes["genres"]["x"] == ("Action", "Comedy", "Drama", "Noir", "War")


def test_named_rating_goes_before_a_label_that_was_not_named():
    table = pd.DataFrame({"user": ["a"], "item": ["x"], "timestamp": [1], "label": ["toys"], "stars": [5]})
    assert load_interactions(table, columns={"rating": "stars"}).labels.tolist() == [1]
