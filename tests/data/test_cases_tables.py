"""Tables of shops: contents are read without changes, and unreadable values are refused with their row."""

import gzip
import json
import logging
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reasonrec_fast.data import DataError, Interactions, load_interactions
from reasonrec_fast.data.tables import read_events


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def events(data):
    """The events in time order, as tuples."""
    return [
        (data.user_ids[u], data.catalog.ids[i], int(label), int(time))
        for u, i, label, time in zip(data.users, data.items, data.labels, data.timestamps, strict=True)
    ]


def csv(tmp_path, text, name="e.csv", **options):
    return load_interactions(write(tmp_path / name, text), **options)


# -- 1. Types


def test_leading_zeros_are_kept(tmp_path):
    data = csv(tmp_path, "user,item,timestamp,label\n001,0000031887,1,1\n1,31887,2,0\n")
    assert list(data.user_ids) == ["001", "1"]
    assert list(data.catalog.ids) == ["0000031887", "31887"]


def test_items_of_digits_match_a_file_that_also_has_letters(tmp_path):
    items = write(tmp_path / "i.csv", "id,title\n0000031887,Tie\nB00000JBLJ,Doll\n")
    data = csv(tmp_path, "user,item,timestamp,label\na,0000031887,1,1\n", items=items)
    assert data.catalog.ids == ["0000031887", "B00000JBLJ"]
    assert data.catalog.titles == ["Tie", "Doll"]


@pytest.mark.parametrize(
    "word", ["None", "NA", "null", "NaN", "nan", "N/A", "#N/A", "true", "-inf", " ", "1e5", "1_000"]
)
def test_words_that_pandas_takes_for_missing_are_words(tmp_path, word):
    items = write(tmp_path / "i.csv", f"item,title,brand\n{word},{word},{word}\n")
    data = csv(tmp_path, f"user,item,timestamp,label\n{word},{word},1,1\n", items=items)
    assert (list(data.user_ids), data.catalog.ids, data.catalog.titles) == ([word], [word], [word])
    assert data.catalog.attributes["brand"] == [(word,)]


def test_a_late_word_does_not_change_the_digits_before(tmp_path):
    lines = [f"u,{row % 1000:05d},{row},1" for row in range(300_000)]
    data = csv(tmp_path, "\n".join(["user,item,timestamp,label", *lines, "u,B00000JBLJ,300000,1"]))
    assert len(data.catalog) == 1001 and data.catalog.ids[:2] == ["00000", "00001"]


ONE = [("1", "7", 1, 5), ("2", "7", 0, 6)]


@pytest.mark.parametrize(
    "table",
    [
        {"user": [1, 2], "item": [7, 7]},
        {"user": [1.0, 2.0], "item": [7.0, 7.0]},
        {"user": pa.array([1, 2], pa.uint8()), "item": pa.array(["7", "7"]).dictionary_encode()},
        {"user": pa.array([1, 2], pa.float32()), "item": pa.array(["7", "7"], pa.large_string())},
        {"user": pa.array(["1", "2"]).dictionary_encode(), "item": pa.array([7, 7]).dictionary_encode()},
    ],
)
def test_parquet_and_frames_of_any_type(tmp_path, table):
    table = pa.table(table | {"timestamp": [5, 6], "label": [1, 0]})
    pa.parquet.write_table(table, tmp_path / "e.parquet")
    assert events(load_interactions(tmp_path / "e.parquet")) == ONE
    assert events(load_interactions(table)) == ONE
    assert events(load_interactions(table.to_pandas())) == ONE
    columns = [table[name].to_pylist() for name in ("user", "item", "label", "timestamp")]
    assert events(Interactions.from_columns(*columns)) == ONE


@pytest.mark.parametrize("values", [[1, "1"], [1.0, "1"], ["1", 1.0], [np.int8(1), np.float32(1)]])
def test_one_number_is_one_identifier(values):
    assert list(Interactions.from_columns(values, ["x", "y"], [1, 0], [1, 2]).user_ids) == ["1"]


def test_categories_in_another_order(tmp_path):
    frame = pd.DataFrame({"user": pd.Categorical(["b", "a"], ["a", "b"]), "item": ["x", "y"], "timestamp": [1, 2]})
    assert list(load_interactions(frame).user_ids) == ["b", "a"]


def test_json_tells_numbers_from_text(tmp_path):
    rows = [
        {"user": "01", "item": 1.0, "timestamp": 1, "label": True},
        {"user": 1, "item": "1", "timestamp": 2, "label": 0},
    ]
    data = csv(tmp_path, "\n".join(map(json.dumps, rows)), "e.jsonl")
    assert events(data) == [("01", "1", 1, 1), ("1", "1", 0, 2)]


@pytest.mark.parametrize("value", [None, "", float("nan"), pd.NA, pd.NaT])
def test_missing_identifiers_are_refused(value):
    with pytest.raises(DataError, match="users: expected a value; got None in row 2"):
        Interactions.from_columns(pd.Series(["a", value], index=[7, 3], dtype=object), ["x", "y"], [1, 0], [1, 2])


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, b"a", float("inf"), 1e300, 2.0**60, datetime(2020, 1, 1)])
def test_what_is_no_identifier_is_refused(value):
    with pytest.raises(DataError, match="users: expected text or a .* in row 2"):
        Interactions.from_columns(["a", value], ["x", "y"], [1, 0], [1, 2])


def test_none_and_the_word_none_are_not_one(tmp_path):
    data = Interactions.from_columns(["None"], ["x"], [1], [1])
    assert list(data.user_ids) == ["None"]
    with pytest.raises(DataError, match="a value"):
        Interactions.from_columns([None], ["x"], [1], [1])


def test_titles_by_any_key():
    data = Interactions.from_columns(
        ["a"], [1], [1], [1], titles={1: "Heat"}, attributes={"brand": {1.0: ("Acme", "B")}}
    )
    assert data.catalog.titles == ["Heat"] and data.catalog.attributes["brand"] == [("Acme", "B")]


def test_series_are_read_by_position():
    users = pd.Series(["a", "b"], index=[1, 0])
    data = Interactions.from_columns(users, users, pd.Series([1, 0], index=[1, 0]), pd.Series([1, 2], index=[1, 0]))
    assert events(data) == [("a", "a", 1, 1), ("b", "b", 0, 2)]
    reversed_array = np.array(["y", "x"])[::-1]
    assert Interactions.from_columns(reversed_array, reversed_array, [1, 1], np.array([2, 1])[::-1]).user_ids[0] == "x"


# -- 2. Rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,timestamp,rating\nu0,1,978300760,1\nu1,10,4.5,978300760,1\n", "row 2: expected 4 fields.*got 5"),
        ("user,item,timestamp,label\na,1,5,\nb,2,6,1,\n", "row 2: expected 4 fields.*got 5"),
        ("user,item,timestamp,label\na,1,5\n", "row 1: expected 4 fields.*got 3"),
        ('user,item,timestamp,label\na,"1,5,1\nb,2,6,1\nc,3,7,0\n', "row 1: expected quotes that open and close"),
        ('user,item,timestamp,label\na,"1"x,5,1\n', "row 1: expected quotes that open and close"),
        ('user,item,timestamp,label\na,"1,5,1\nb,"2",6,1\n', "row 1: expected quotes that open and close"),
        ("", "empty file"),
        ("user,item,timestamp,label\n", "expected rows below the header"),
        ("user,item,item,timestamp,label\na,1,2,3,1\n", "different names; got 'item' twice"),
        ("user,item,timestamp,label\n,1,2,1\n", "row 1: user: expected a value"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("allow", [False, True])
def test_rows_that_do_not_fit(tmp_path, text, message, allow):
    with pytest.raises(DataError, match=message):
        csv(tmp_path, text, allow_unlabelled=allow)


def test_a_quote_inside_a_field_is_a_quote(tmp_path):
    items = write(tmp_path / "i.csv", 'id,title\n1,Tablet 9"\n2,"Tablet ""Pro"", 9"""\n')
    data = csv(tmp_path, "user,item,timestamp,label\na,1,5,1\n", items=items)
    assert data.catalog.titles == ['Tablet 9"', 'Tablet "Pro", 9"']


# -- 3. Time

MOMENTS = [1_600_000_000 + step for step in (0, 5, 60)]
START = datetime(1970, 1, 1, tzinfo=timezone.utc)


def forms():
    dates = [START + timedelta(seconds=moment) for moment in MOMENTS]
    yield from ([moment * factor for moment in MOMENTS] for factor in (1, 10**3, 10**6, 10**9))
    yield [float(moment) for moment in MOMENTS]
    yield [date.isoformat() for date in dates]
    yield [date.strftime("%Y-%m-%d %H:%M:%S") for date in dates]
    yield [date.strftime("%Y/%m/%dT%H:%M:%SZ") for date in dates]
    yield [date.strftime("%Y-%m-%dT%H:%M:%S.000+00") for date in dates]
    yield [(date + timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S +0200") for date in dates]
    yield dates
    yield from (
        pa.array(MOMENTS, pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp(u)) for u in ("s", "ms", "us", "ns")
    )
    yield pa.array(dates, pa.timestamp("ms", "Europe/Madrid"))
    yield pd.Series(dates).dt.tz_convert("Asia/Tokyo")


@pytest.mark.parametrize("times", list(forms()))
def test_a_moment_is_a_moment_in_any_form(tmp_path, times):
    columns = {"user": ["a", "b", "c"], "item": ["x"] * 3, "timestamp": times, "label": [1, 0, 1]}
    of_columns = Interactions.from_columns(columns["user"], columns["item"], columns["label"], times)
    assert (of_columns.timestamps.tolist(), of_columns.time_unit) == (MOMENTS, "s")
    table = pa.table(columns)
    for path, kind in ((tmp_path / "e.parquet", pa.parquet.write_table), (tmp_path / "e.csv", pa.csv.write_csv)):
        kind(table, path)
        data = load_interactions(path)
        assert (data.timestamps.tolist(), data.time_unit) == (MOMENTS, "s")


@pytest.mark.parametrize("form", ["iso", "float", "text", "ns", "date"])
def test_the_order_within_a_second_is_kept(tmp_path, form):
    offsets = [750, 250, 500]
    times = {
        "iso": [f"2020-09-13T12:26:40.{offset}" for offset in offsets],
        "float": [1_600_000_000 + offset / 1000 for offset in offsets],
        "text": [f"1600000000.{offset}" for offset in offsets],
        "ns": [1_600_000_000_000_000_000 + offset * 10**6 for offset in offsets],
        "date": [START + timedelta(seconds=1_600_000_000, milliseconds=offset) for offset in offsets],
    }[form]
    frame = pd.DataFrame({"user": ["a", "b", "c"], "item": ["x"] * 3, "timestamp": times})
    data = load_interactions(frame)
    assert [data.user_ids[user] for user in data.users] == ["b", "c", "a"]
    assert (data.timestamps - 1_600_000_000_000).tolist() == [250, 500, 750] and data.time_unit == "ms"


def test_dates_before_1970_and_beyond_nanoseconds(tmp_path):
    text = "user,item,timestamp\na,x,1969-12-31T23:59:59\na,y,2999-01-01\na,z,1600-02-29\n"
    data = csv(tmp_path, text)
    assert data.timestamps.tolist() == [-11_670_998_400, -1, 32_472_144_000]


def test_counters_stay_as_they_are(tmp_path):
    data = csv(tmp_path, "user,item,timestamp,label\na,x,3,1\na,y,1,1\na,z,2,0\n")
    assert (data.timestamps.tolist(), data.time_unit) == ([1, 2, 3], "count")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1_600_000_000, 1_600_000_000_000], "row 2: timestamp: expected seconds as in row 1.*milliseconds.*time-unit"),
        ([1_600_000_000, 0], "row 2: timestamp: expected seconds as in row 1; got .*a counter.*time-unit"),
        ([20_200_913_122_640], "row 1: timestamp: expected a number that a clock shows.*time-unit"),
        ([-1_600_000_000], "row 1: timestamp: expected a number that a clock shows"),
        (["03/04/2020"], "row 1: timestamp: expected a number or a date; got '03/04/2020'.*time-format"),
        (["13.04.2020 10:00"], "row 1: timestamp: expected a number or a date.*time-format"),
        (["2020-13-01"], "row 1: timestamp: expected a date that the calendar has; got '2020-13-01'"),
        (["2020-02-30 10:00:00"], "row 1: timestamp: expected a date that the calendar has"),
        (["1600000000", "2020-01-01"], "row 2: timestamp: expected a number; got '2020-01-01'"),
        (["2020-01-01", "noon"], "row 2: timestamp: expected a number or a date; got 'noon'"),
        (["2020-01-01", ""], "row 2: timestamp: expected a number or a date"),
        (["inf"], "row 1: timestamp: expected a number or a date; got 'inf'"),
        (["1e400"], "row 1: timestamp: expected a number or a date; got .*400"),
        (["0.5", "1.5"], "row 1: timestamp: expected a whole number"),
    ],
)  # fmt: skip
def test_times_that_no_clock_shows(tmp_path, times, message):
    text = "user,item,timestamp\n" + "".join(f"a,x{row},{time}\n" for row, time in enumerate(times))
    with pytest.raises(DataError, match=message):
        csv(tmp_path, text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), pd.NaT, None, True, [1], 2**70])
def test_times_of_frames_that_no_clock_shows(value):
    frame = pd.DataFrame(
        {"user": ["a", "b"], "item": ["x", "y"], "timestamp": pd.Series([1_600_000_000, value], dtype=object)}
    )
    with pytest.raises(DataError, match="timestamp: expected a number"):
        load_interactions(frame)


def test_options_settle_times(tmp_path):
    text = "user,item,timestamp\na,x,03/04/2020 10:00\na,y,04/03/2020 11:00\n"
    data = csv(tmp_path, text, time_format="%d/%m/%Y %H:%M")
    assert [data.catalog.ids[item] for item in data.items] == ["y", "x"]
    data = csv(tmp_path, "user,item,timestamp\na,x,1600000000\na,y,0\n", time_unit="s")
    assert (data.timestamps.tolist(), data.time_unit) == ([0, 1_600_000_000], "s")
    data = csv(tmp_path, "user,item,timestamp\na,x,20200913122640\n", time_unit="count")
    assert data.time_unit == "count"
    for text, options in (
        ("2020-01-01", {"time_unit": "s"}), ("5", {"time_format": "%d"}), ("5", {"time_unit": "hours"}),
        ("noon", {"time_format": "%d/%m/%Y"}),
    ):  # fmt: skip
        if options == {"time_format": "%d"}:
            continue  # it is a date of that form
        with pytest.raises(DataError, match="time"):
            csv(tmp_path, f"user,item,timestamp\na,x,{text}\n", **options)


def test_the_unit_is_reported_in_one_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "reasonrec_fast"):
        csv(tmp_path, "user,item,timestamp,label\na,x,1600000000000,1\n")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'e.csv'}: timestamp: numbers taken as milliseconds since 1970 (2020-09-13 to 2020-09-13)"
    ]


# -- 4. Labels


def table_of(ratings):
    rows = [f"u{row},i{row},{row},{rating}" for row, rating in enumerate(ratings)]
    return "\n".join(["user,item,timestamp,rating", *rows])


def test_ratings_of_one_alone_are_likes(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "reasonrec_fast"):
        data = csv(tmp_path, table_of([1, 1, 1]))
    assert (data.labels.tolist(), data.like) == ([1, 1, 1], 1.0)
    assert "rating: 1 and more is a like (--like, like= sets another): 100 % of 3 ratings" in caplog.text


def test_the_user_says_what_a_like_is(tmp_path, caplog):
    assert csv(tmp_path, table_of([1, 4, 8]), like=8).labels.tolist() == [0, 0, 1]
    assert csv(tmp_path, table_of([0, 1]), like=4).labels.tolist() == [0, 0]
    with caplog.at_level(logging.INFO, "reasonrec_fast"):
        data = csv(tmp_path, table_of([3.5, 4, 5]))
    assert (data.labels.tolist(), data.like) == ([0, 1, 1], 4.0)
    assert "rating: 4 and more is a like (--like, like= sets another): 67 % of 3 ratings" in caplog.text


def test_events_without_labels_are_likes(tmp_path):
    data = csv(tmp_path, "user,item,timestamp\na,x,1\nb,y,2\n")
    assert (data.labels.tolist(), data.like) == ([1, 1], None)
    assert csv(tmp_path, "user,item,timestamp\na,x,1\n", allow_unlabelled=True).labels.tolist() == [-1]
    with pytest.raises(DataError, match="like: expected a table with a column 'rating'"):
        csv(tmp_path, "user,item,timestamp\na,x,1\n", like=4)


@pytest.mark.parametrize("rating", ["four", "nan", "NaN", "inf", "1_0", "0x1", "--1", "4,5"])
def test_ratings_that_are_no_numbers(tmp_path, rating):
    with pytest.raises(DataError, match="row 2: rating: expected a number; got"):
        csv(tmp_path, f'user,item,timestamp,rating\na,x,1,5\nb,y,2,"{rating}"\n')


# -- 5. Text files


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_byte_order_marks_line_ends_and_blank_lines(tmp_path, bom, newline):
    lines = ["user,item,timestamp,label", "a,x,1,1", "", 'b,"y",2,0', ""]
    assert events(csv(tmp_path, bom + newline.join(lines))) == [("a", "x", 1, 1), ("b", "y", 0, 2)]
    quoted = ['"user",item,timestamp,label', "a,x,1,1"]
    assert events(csv(tmp_path, bom + newline.join(quoted))) == [("a", "x", 1, 1)]
    rows = [json.dumps({"user": "a", "item": "x", "timestamp": 1, "label": 1}), "", "  "]
    assert events(csv(tmp_path, bom + newline.join(rows), "e.jsonl")) == [("a", "x", 1, 1)]


def test_line_separators_inside_a_string(tmp_path):
    name = "a\u2028b\u0085c\x0bd"
    row = json.dumps({"user": name, "item": "x", "timestamp": 1, "label": 1}, ensure_ascii=False)
    assert list(csv(tmp_path, row + "\n", "e.jsonl").user_ids) == [name]
    assert list(csv(tmp_path, f"user,item,timestamp,label\n{name},x,1,1\n").user_ids) == [name]


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
def test_latin_1_is_refused_with_its_byte(tmp_path, name):
    row = "user,item,timestamp,label\na,caf\u00e9,1,1\n"
    if name == "e.jsonl":
        row = '\n{"user": "a", "item": "caf\u00e9", "timestamp": 1, "label": 1}\n'
    with pytest.raises(DataError, match="line 2: expected UTF-8; got the byte 0xe9 at"):
        csv(tmp_path, row.encode("latin-1"), name)


@pytest.mark.parametrize(
    "line", ['{"user": 1, "user": 2}', '{"user": NaN}', "[1]", '{"user": 1', '{"user": 1} {"user": 2}', "[" * 100_000]
)
def test_lines_that_are_no_records(tmp_path, line):
    with pytest.raises(DataError, match="line 1: expected"):
        csv(tmp_path, line, "e.jsonl")


# -- 6. Repeated rows


def test_every_row_twice(tmp_path, caplog):
    rows = ["a,x,1,1", "b,y,2,0"]
    with caplog.at_level(logging.INFO, "reasonrec_fast"):
        data = csv(tmp_path, "\n".join(["user,item,timestamp,label", *rows, *rows]))
    assert events(data) == [("a", "x", 1, 1), ("b", "y", 0, 2)]
    assert "2 rows that were there before" in caplog.text


def test_requests_twice_are_two(tmp_path):
    path = write(tmp_path / "e.csv", "user,item,timestamp,label\nb,y,9,\na,x,1,1\nb,y,9,\na,x,1,1\n")
    result = read_events(path, allow_unlabelled=True)
    assert result.interactions.labels.tolist() == [1, -1, -1]
    assert result.interaction_rows.tolist() == [1, 0, 2, 0]


def test_items_twice_keep_what_the_first_knew(tmp_path):
    items = write(tmp_path / "i.csv", "id,title,brand\n1,Heat,\n1,,Acme\n1,Other,Bolt\n")
    data = csv(tmp_path, "user,item,timestamp,label\na,1,5,1\n", items=items)
    assert data.catalog.titles == ["Heat"] and data.catalog.attributes["brand"] == [("Acme",)]


# -- Forms of files


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.tsv", "e.tsv.gz"])
def test_separators_and_compression(tmp_path, separator, name):
    if separator != "\t" and "tsv" in name:
        return
    text = "user,item,timestamp,label\na,x,1,1\n".replace(",", separator).encode()
    assert events(csv(tmp_path, gzip.compress(text) if name.endswith("gz") else text, name)) == [("a", "x", 1, 1)]


def test_broken_compression(tmp_path):
    with pytest.raises(DataError, match="cannot be read as gz"):
        csv(tmp_path, gzip.compress(b"user,item,timestamp\n" * 1000)[:-20], "e.csv.gz")


def test_columns_of_ones_own(tmp_path):
    items = write(tmp_path / "i.csv", "sku,name,title\nx,Heat,Mr\n")
    names = {"user": "customer_id", "item": "sku", "timestamp": "when", "rating": "stars", "title": "name"}
    text = "customer_id,sku,when,stars,user\na,x,1,5,someone else\n"
    data = csv(tmp_path, text, items=items, columns=names)
    assert events(data) == [("a", "x", 1, 1)] and data.catalog.titles == ["Heat"]
    with pytest.raises(DataError, match="user .columns says 'buyer'. missing"):
        csv(tmp_path, text, columns=names | {"user": "buyer"})
    with pytest.raises(DataError, match="columns: expected names among"):
        csv(tmp_path, text, columns={"customer": "user"})


def test_recboles_atomic_files(tmp_path):
    items = write(tmp_path / "a.item", "item_id:token\ttitle:token_seq\tgenre:token_seq\n7\tThe Heat\tCrime Drama\n")
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n01\t7\t4.0\t1600000000.0\n"
    data = csv(tmp_path, text, "a.inter", items=items)
    assert events(data) == [("01", "7", 1, 1_600_000_000)]
    assert data.catalog.titles == ["The Heat"] and data.catalog.attributes["genre"] == [("Crime", "Drama")]


# -- Any table

WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(
        ["NA", "None", "nan", "null", "007", "7", "7.0", '"', '""', ",", "\n", "\r\n", " ", "1e3", "\ufeff", "|"]
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(WORDS, WORDS, WORDS, st.booleans()), min_size=1, max_size=8),
    separator=st.sampled_from(",;\t"),
)
def test_any_table_is_the_same_in_every_form(tmp_path, rows, separator):
    import csv as writer

    columns = {
        "user": [row[0] for row in rows],
        "item": [row[1] for row in rows],
        "timestamp": list(range(len(rows))),
        "label": [int(row[3]) for row in rows],
    }
    items = {"id": columns["item"], "title": [row[2] for row in rows], "brand": [row[2] for row in rows]}
    results = []
    for kind in ("csv", "jsonl", "parquet", "frame"):
        sources = []
        for name, table in (("e", columns), ("i", items)):
            path = tmp_path / f"{name}.{kind}"
            if kind == "csv":
                with path.open("w", newline="", encoding="utf-8") as file:
                    lines = writer.writer(file, delimiter=separator)
                    lines.writerow(table)
                    lines.writerows(zip(*table.values(), strict=True))
            elif kind == "jsonl":
                lines = [
                    json.dumps(dict(zip(table, row, strict=True)), ensure_ascii=False)
                    for row in zip(*table.values(), strict=True)
                ]
                path.write_bytes("\n".join(lines).encode())
            elif kind == "parquet":
                pa.parquet.write_table(pa.table(table), path)
            sources.append(pd.DataFrame(table) if kind == "frame" else path)
        results.append(load_interactions(*sources))
    direct = Interactions.from_columns(columns["user"], columns["item"], columns["label"], columns["timestamp"])
    assert events(results[0]) == events(direct)
    assert len({data.digest() for data in results}) == 1
