"""Counts of what users had after what, as features of a stack."""

from __future__ import annotations

import numpy as np
import pytest

from reasonrec_fast.data import Catalog, Histories
from reasonrec_fast.files import read_tensors, write_tensors
from reasonrec_fast.models.classical.stack_features import feature_names, features
from reasonrec_fast.models.classical.stack_items import ItemFacts, read_facts, write_facts
from reasonrec_fast.models.classical.stack_transitions import NAMES, Transitions

LEARNT = Histories.from_lists([[0, 1, 2], [0, 1], [3, 0, 2], [2, 2, 1]])


def test_counts_of_pairs():
    transitions = Transitions.of(LEARNT, 4)
    following, later = np.zeros((4, 4)), np.zeros((4, 4))
    for user in range(LEARNT.num_users):
        items = LEARNT.of_user(user).tolist()
        for first, one in enumerate(items):
            for second in range(first + 1, len(items)):
                if one != items[second]:
                    following[one, items[second]] += second == first + 1
                    later[one, items[second]] += 1
    np.testing.assert_array_equal(transitions.following.toarray(), following)
    np.testing.assert_array_equal(transitions.later.toarray(), later)


def test_features_of_candidates():
    histories = Histories.from_lists([[3, 2, 0], []])  # not sorted: they are read, not changed
    before = histories.items.copy()
    columns = Transitions.of(LEARNT, 4).features(np.array([[1, 2], [1, 2]]), histories)
    np.testing.assert_array_equal(histories.items, before)
    values = {name: np.broadcast_to(column, (2, 2)) for name, column in zip(NAMES, columns, strict=True)}
    counts = {
        name: np.expm1(values[name]).round(6).tolist() for name in NAMES if name not in ("share after last", "linked")
    }
    assert counts["next to last"] == [[2, 1], [0, 0]]  # 1 came right after 0 twice, 2 once
    assert counts["after last"] == [[2, 2], [0, 0]]
    assert counts["before last"] == [[0, 0], [0, 0]]
    assert counts["after any"] == [[4, 3], [0, 0]]  # 1 after 0 twice and after 2 twice
    assert counts["successors of last"] == [[4, 4], [0, 0]]
    assert values["share after last"].tolist() == [[0.5, 0.5], [0, 0]]
    assert values["linked"].tolist() == [[2, 2], [0, 0]]


def test_attributes_that_follow():
    """Users went on from one kind to another: that tells of items that nobody had after the last one."""
    kinds = [("a",), ("b",), ("b",), ("c",), ("a",), ("c",)]
    catalog = Catalog([f"i{item}" for item in range(6)], [f"i{item}" for item in range(6)], {"kind": kinds})
    facts = ItemFacts.of(Histories.from_lists([[0, 1], [4, 1], [3, 5]]), catalog)
    column = feature_names([], facts, False).index("attributes:after last")
    values = features(np.array([[2, 3, 0]]), {}, Histories.from_lists([[0]]), facts, None, 5)[0, :, column]
    assert values[0] > 0 and values[0] > max(values[1:])
    empty = features(np.array([[2, -1]]), {}, Histories.from_lists([[]]), facts, None, 5)[0, :, column]
    assert empty[0] == 0 and np.isnan(empty[1])


def test_facts_are_saved_with_them(tmp_path):
    catalog = Catalog(["a", "b", "c", "d"], ["a", "b", "c", "d"])
    facts = ItemFacts.of(LEARNT, catalog)
    write_facts(tmp_path / "facts.safetensors", facts)
    loaded = read_facts(tmp_path / "facts.safetensors")
    for name in ("following", "later"):
        np.testing.assert_array_equal(
            getattr(loaded.transitions, name).toarray(), getattr(facts.transitions, name).toarray()
        )
    assert loaded.with_events(Histories.from_lists([[1, 0]])).transitions.following.toarray()[1, 0] == 1
    older = {name: tensor for name, tensor in read_tensors(tmp_path / "facts.safetensors").items() if "." not in name}
    write_tensors(tmp_path / "older.safetensors", older)
    with pytest.raises(ValueError, match="expected counts of transitions; it was written by an earlier version"):
        read_facts(tmp_path / "older.safetensors")
