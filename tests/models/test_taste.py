"""Likes by attribute value against counting in plain Python."""

import numpy as np

from reasonrec_fast.data import Timeline, split_by_time
from reasonrec_fast.models.optirag.taste import Taste, value_table


def test_equals_plain_counting(events):
    train = split_by_time(events).train
    line = Timeline.of_users(events, train)
    genres = [
        (*own, "Silent") if item % 5 == 0 else own for item, own in enumerate(events.catalog.attributes["genres"])
    ]
    taste = Taste(line, events.labels, events.items, value_table(genres, events.num_items))
    generator = np.random.default_rng(0)
    rows = generator.choice(len(events), 50, replace=False)
    users = generator.integers(-1, events.num_users, (50, 4))
    moments, base = events.timestamps[rows], np.full(50, 0.4)
    result = taste.lift(events.items[rows], users, moments, base)
    for row, group, moment, lifts in zip(rows, users, moments, result, strict=True):
        past = [e for e in train for u in group if events.users[e] == u and events.timestamps[e] < moment]
        usual = (sum(events.labels[past]) + 2.0) / (len(past) + 5)
        values = genres[events.items[row]]
        for index, value in enumerate(values):
            having = [e for e in past if value in genres[events.items[e]]]
            if having:
                rate = (sum(events.labels[having]) + 5 * usual) / (len(having) + 5)
                assert np.isclose(lifts[index], rate - usual, atol=1e-6)
            else:
                assert np.isnan(lifts[index])
        assert np.isnan(lifts[len(values) :]).all()


def test_positions_before_equal_counting_key_by_key(events):
    line = Timeline.of_users(events)
    users, moments = np.arange(events.num_users)[:, None], np.array([[-1, 0, 5000, 5001, 10**9]])
    expected = [[line.indptr[u] + line.count_before(u, m) for m in moments[0]] for u in range(events.num_users)]
    assert np.array_equal(line.positions_before(users, moments), expected)
