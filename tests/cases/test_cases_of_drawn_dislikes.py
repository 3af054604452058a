"""What a reviewer of the tables, the models and the commands found."""

from dataclasses import replace

import numpy as np
import pytest

from reasonrec_fast.data import Interactions
from reasonrec_fast.models.classical import FM
from reasonrec_fast.models.classical.fm import FMConfig


def purchases(users=30, items=20, each=8, seed=0):
    """Likes alone: what each of some users has had, one after the other, at random."""
    g = np.random.default_rng(seed)
    had = np.stack([g.permutation(items)[:each] for _ in range(users)])
    names = np.repeat([f"u{user}" for user in range(users)], each)
    return Interactions.from_columns(
        names, [f"i{item}" for item in had.ravel()], np.ones(had.size), np.tile(np.arange(each), users),
        extra_items=[f"i{item}" for item in range(items)],
    )  # fmt: skip


@pytest.mark.parametrize("validated", [False, True])
def test_drawn_dislikes_do_not_tell_what_the_test_part_holds(validated):
    """Negatives that were never an item of the test part told which items are: random ones were found, AUC 0.7."""
    data = purchases()
    train, validation, test = (np.flatnonzero(np.isin(data.timestamps, part)) for part in ((0, 1, 2), (3,), (4, 5, 6)))
    items = data.items.copy()
    items[test] = (items[test] + 7) % data.num_items
    fitted = [
        FM(FMConfig(dim=4, epochs=2)).fit(table, train, validation if validated else None)
        for table in (data, replace(data, items=items))
    ]
    pairs = np.repeat(np.arange(data.num_users), data.num_items), np.tile(np.arange(data.num_items), data.num_users)
    scores = [model.score(*pairs) for model in fitted]
    np.testing.assert_array_equal(*scores)
