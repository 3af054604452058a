"""Tables, identifiers, splits and timelines."""

import numpy as np
import pytest

from reasonrec_fast.data import Catalog, DataError, Interactions, Timeline, split_by_time


def test_rows_are_in_time_order_and_ties_keep_their_order():
    data = Interactions.from_columns(["a", "b", "c"], ["x", "y", "z"], [1, 0, None], [5, 5, 1])
    assert [data.user_ids[u] for u in data.users] == ["c", "a", "b"]
    assert data.labels.tolist() == [-1, 1, 0]


@pytest.mark.parametrize("label", [2, -1, 0.5, "yes"])
def test_labels_outside_zero_and_one(label):
    with pytest.raises(DataError, match="labels: expected 0 or 1; got .* in row 2"):
        Interactions.from_columns(["a", "a"], ["x", "y"], [1, label], [1, 2])


def test_columns_of_different_lengths():
    with pytest.raises(DataError, match="items: expected 2 entries"):
        Interactions.from_columns(["a", "a"], ["x"], [1, 0], [1, 2])
    with pytest.raises(DataError, match="catalog titles: expected 2"):
        Catalog(["a", "b"], ["A"])


@pytest.mark.parametrize("kind", ["user_time", "global_time", "leave_one_out"])
def test_split_is_a_partition_in_time(events, kind):
    parts = split_by_time(events, kind)
    assert np.array_equal(np.sort(np.concatenate([parts.train, parts.validation, parts.test])), np.arange(len(events)))
    for user in range(events.num_users):
        own = [part[events.users[part] == user] for part in (parts.train, parts.validation, parts.test)]
        for earlier, later in ((own[0], own[1]), (own[1], own[2]), (own[0], own[2])):
            if len(earlier) and len(later):
                assert earlier.max() < later.min()  # rows are in time order
    if kind == "global_time":
        assert parts.train.max() < parts.validation.min() < parts.validation.max() < parts.test.min()
    if kind == "leave_one_out":
        assert np.array_equal(np.bincount(events.users[parts.test]), np.ones(events.num_users))


@pytest.mark.parametrize("count", [1, 2, 9, 10, 100, 1000])
def test_user_split_cuts_at_exact_shares(count):
    data = Interactions.from_columns(["a"] * count, range(count), [1] * count, range(count))
    parts = split_by_time(data)
    assert len(parts.train) == count * 7 // 10
    assert len(parts.test) == count - count * 8 // 10


def test_leave_one_out_leaves_short_histories_alone():
    data = Interactions.from_columns(["a", "a"], ["x", "y"], [1, 0], [1, 2])
    assert len(split_by_time(data, "leave_one_out").train) == 2


def test_bad_splits(events):
    with pytest.raises(DataError, match="shares"):
        split_by_time(events, validation=0.6, test=0.5)
    with pytest.raises(DataError, match="kind: expected"):
        split_by_time(events, "random")


def test_timeline_counts_strictly_before(events):
    line = Timeline.of_users(events)
    for user, moment in ((3, 5000), (4, int(events.timestamps[300])), (5, -1)):
        own_rows = np.flatnonzero((events.users == user) & (events.timestamps < moment))
        assert np.array_equal(line.before(user, moment), own_rows)
        assert line.count_before(user, moment) == len(own_rows)
