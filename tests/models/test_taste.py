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
    found = taste.lift(events.items[rows], users, moments, base)
    for row, group, moment, values in zip(rows, users, moments, found, strict=True):
        met = [e for e in train for u in group if events.users[e] == u and events.timestamps[e] < moment]
        usual = (sum(events.labels[met]) + 2.0) / (len(met) + 5)
        for place, value in enumerate(genres[events.items[row]]):
            having = [e for e in met if value in genres[events.items[e]]]
            if having:
                rate = (sum(events.labels[having]) + 5 * usual) / (len(having) + 5)
                assert np.isclose(values[place], rate - usual, atol=1e-6)
            else:
                assert np.isnan(values[place])
        assert np.isnan(values[len(genres[events.items[row]]) :]).all()


def test_places_before_equals_counting_one_by_one(events):
    line = Timeline.of_users(events)
    users, moments = np.arange(events.num_users)[:, None], np.array([[-1, 0, 5000, 5001, 10**9]])
    expected = [[line.indptr[u] + line.count_before(u, m) for m in moments[0]] for u in range(events.num_users)]
    assert np.array_equal(line.positions_before(users, moments), expected)
