"""Leave-one-out files, histories and negatives."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast.data import DataError, Histories, load_sequences, split_by_time
from reasonrec_fast.data.negatives import NegativeSampler


def test_sequences_are_read_in_order(tmp_path):
    (tmp_path / "sequences.txt").write_text("7 30 10 20\n9 20 10\n")
    (tmp_path / "item_attributes.json").write_text('{"10": ["Prada", "Fragrance"], "20": [3]}')
    (tmp_path / "item_asin.json").write_text('{"30": "B01"}')
    data = load_sequences(tmp_path)
    assert list(data.user_ids) == ["7", "9"] and list(data.catalog.ids) == ["10", "20", "30"]
    histories = Histories.of(data, np.arange(len(data)))
    assert [histories.of_user(user).tolist() for user in (0, 1)] == [[2, 0, 1], [1, 0]]
    assert data.catalog.attributes["attributes"] == [("Prada", "Fragrance"), ("3",), ()]
    assert list(data.catalog.titles) == ["10", "20", "30"]  # none, and no identifier of a shop in their place
    parts = split_by_time(data, "leave_one_out")
    assert data.items[parts.test].tolist() == [1] and data.items[parts.validation].tolist() == [0]


@pytest.mark.parametrize("name", ["item_titles.json", "item_textual_ids.json"])
def test_titles_are_texts(tmp_path, name):
    (tmp_path / "sequences.txt").write_text("7 30 10 20\n9 20 10\n")
    (tmp_path / "item_textual_ids.json").write_text('{"10": "other", "20": " ", "30": "words"}')
    (tmp_path / name).write_text('{"10": " Nail Polish ", "20": ""}')
    catalog = load_sequences(tmp_path).catalog
    assert [catalog.titles[item] if catalog.has_title(item) else None for item in (0, 1, 2)] == [
        "Nail Polish", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["beauty", "sports", "toys"])
def test_no_asin_and_no_number_is_a_title(shared_data, name):
    catalog = load_sequences(shared_data / "amazon" / name).catalog
    asins = json.loads((shared_data / "amazon" / name / "item_asin.json").read_text())
    titled = [item for item in range(len(catalog)) if catalog.has_title(item)]
    assert len(titled) > 0.99 * len(catalog)
    for item in titled:
        assert asins[catalog.ids[item]].lower() not in catalog.titles[item].lower().split()


def test_bad_sequences_are_named(tmp_path):
    with pytest.raises(DataError, match=r"folder: expected sequences\.txt; there is none in"):
        load_sequences(tmp_path)
    (tmp_path / "sequences.txt").write_text("1 2 3\n2 x\n")
    with pytest.raises(DataError, match="line 2: expected whole numbers"):
        load_sequences(tmp_path)
    (tmp_path / "sequences.txt").write_text("")
    with pytest.raises(DataError, match="expected at least one user; got none"):
        load_sequences(tmp_path)


def test_amazon_beauty_is_the_published_set(shared_data):
    data = load_sequences(shared_data / "amazon" / "beauty")
    assert (data.num_users, data.num_items, len(data)) == (22_363, 12_101, 198_502)
    parts = split_by_time(data, "leave_one_out")
    assert len(parts.test) == len(parts.validation) == data.num_users


LISTS = st.lists(st.lists(st.integers(0, 11), max_size=9), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(LISTS, st.integers(0, 12), st.integers(0, 100))
def test_latest_and_select(lists, length, seed):
    histories = Histories.from_lists(lists)
    users = np.random.default_rng(seed).integers(0, len(lists), 6)
    rows, sizes = histories.latest(users, length)
    for row, size, user in zip(rows, sizes, users, strict=True):
        expected = lists[user][-length:] if length else []
        assert row[:size].tolist() == expected and not row[size:].any()
    some = histories.select(users)
    assert [some.of_user(index).tolist() for index in range(6)] == [lists[user] for user in users]


@settings(deadline=None, max_examples=50)
@given(LISTS, st.integers(0, 100))
def test_negatives_are_what_a_user_has_not_had(lists, seed):
    sampler, users = NegativeSampler(Histories.from_lists(lists), 12), np.arange(len(lists))
    drawn = sampler.draw(users, 40, np.random.default_rng(seed))
    assert np.array_equal(drawn, sampler.draw(users, 40, np.random.default_rng(seed)))
    for user, row in enumerate(drawn):
        assert not set(row.tolist()) & set(lists[user]) and 0 <= row.min() <= row.max() < 12
    left = 12 - max(len(set(items)) for items in lists)
    whole = sampler.draw(users, left, np.random.default_rng(seed), distinct=True)
    assert all(len(set(row.tolist())) == left for row in whole)
    with pytest.raises(DataError, match=f"count: expected at most {left}"):
        sampler.draw(users, left + 1, np.random.default_rng(seed), distinct=True)


def test_negatives_are_uniform():
    sampler = NegativeSampler(Histories.from_lists([[1, 1, 4]]), 6)
    drawn = sampler.draw(np.zeros(1, dtype=np.int64), 40_000, np.random.default_rng(0))
    counts = np.bincount(drawn[0], minlength=6)
    assert counts[[1, 4]].tolist() == [0, 0]
    assert np.abs(counts[[0, 2, 3, 5]] - 10_000).max() < 500  # five standard deviations


def test_who_has_had_everything_is_given_anything():
    drawn = NegativeSampler(Histories.from_lists([[0, 1]]), 2).draw(np.array([0]), 50, np.random.default_rng(0))
    assert set(drawn[0].tolist()) == {0, 1}


@pytest.mark.parametrize("word", ["1_0", "05", "+5", "٣", "-0"])
def test_another_form_of_a_number_is_not_the_same_item(tmp_path, word):
    (tmp_path / "sequences.txt").write_text(f"1 10 5 3\n2 {word} 7\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: expected whole numbers such as 17; got"):
        load_sequences(tmp_path)
