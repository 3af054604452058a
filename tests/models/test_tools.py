"""The cheap tools of a stack, each against a plain implementation of its definition."""

from __future__ import annotations

import numpy as np
import pytest

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical import DirectedItemKNN, DirectedItemKNNConfig

ITEMS = 15


@pytest.fixture(scope="module")
def walks() -> Interactions:
    """40 users who walk over 15 items, mostly to the next one, with repetitions; attributes and titles for some."""
    generator = np.random.default_rng(0)
    users, items, times = [], [], []
    for user in range(40):
        item = int(generator.integers(ITEMS))
        for step in range(int(generator.integers(1, 9))):
            users.append(f"u{user}")
            items.append(f"i{item}")
            times.append(step)
            item = (item + 1) % ITEMS if generator.random() < 0.7 else int(generator.integers(ITEMS))
    return Interactions.from_columns(
        users, items, [1] * len(users), times,
        titles={f"i{item}": f"{('red', 'blue')[item % 2]} thing {item // 4}" for item in range(ITEMS - 2)},
        attributes={"kind": {f"i{item}": (f"k{item % 3}", f"m{item % 2}") for item in range(ITEMS - 2)}},
    )  # fmt: skip


@pytest.mark.parametrize(("window", "shrinkage", "decay"), [(50, 10.0, 0.75), (2, 0.0, 1.0), (1, 3.0, 0.0)])
def test_directed_item_knn_is_its_definition(walks, window, shrinkage, decay):
    liked = Histories.of(walks, np.arange(len(walks)))
    pairs, counts = np.zeros((walks.num_items, walks.num_items)), np.bincount(liked.items)
    for user in range(liked.num_users):
        row = liked.of_user(user)
        for later in range(len(row)):
            for earlier in range(max(later - window, 0), later):
                if row[earlier] != row[later]:
                    pairs[row[earlier], row[later]] += 1 / (later - earlier)
    similarity = pairs / (np.sqrt(counts[:, None] * counts) + shrinkage)
    expected = np.zeros((liked.num_users, walks.num_items))
    for user in range(liked.num_users):
        for age, item in enumerate(liked.of_user(user)[::-1]):
            expected[user] += decay**age * similarity[item]
    model = DirectedItemKNN(DirectedItemKNNConfig(window=window, shrinkage=shrinkage, decay=decay)).fit(walks)
    np.testing.assert_allclose(model.scores(np.arange(liked.num_users)).numpy(), expected, rtol=1e-6)
    assert not model.set_histories(Histories.from_lists([[]])).scores(np.zeros(1, int)).any()


def test_directed_item_knn_needs_a_pair():
    data = Interactions.from_columns(["a", "b"], ["x", "y"], [1, 1], [1, 2])
    with pytest.raises(DataError, match="train: expected a user with at least two positive events, a pair in order"):
        DirectedItemKNN().fit(data)
    with pytest.raises(ValueError, match=r"decay: expected a finite number in \[0, 1\]; got 1.5"):
        DirectedItemKNNConfig(decay=1.5)
