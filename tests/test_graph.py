"""InteractionGraph."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import InteractionGraph
from reasonrec_fast.graph import interaction


def test_both_directions_hold_the_same_edges():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 30, 400), generator.integers(0, 50, 400)
    graph = InteractionGraph.from_edges(users, items, num_users=31, num_items=50)
    expected = sorted(set(zip(users.tolist(), items.tolist(), strict=True)))
    assert list(zip(*(part.tolist() for part in graph.edges()), strict=True)) == expected
    other = [
        (int(user), item)
        for item in range(50)
        for user in graph.item_indices[graph.item_indptr[item] : graph.item_indptr[item + 1]]
    ]
    assert sorted(other) == expected
    assert graph.user_indptr.dtype == torch.int32
    assert graph.user_degrees()[30] == 0


@settings(deadline=None, max_examples=60)
@given(
    users=st.integers(1, 40),
    items=st.integers(1, 40),
    edges=st.integers(0, 3000),
    threads=st.sampled_from([1, 2, 5]),
)
def test_host_library_equals_sorting(users, items, edges, threads):
    generator = np.random.default_rng(edges)
    ends = generator.integers(0, users, edges), generator.integers(0, items, edges)
    found = interaction._host.build_graph(*ends, users, items, threads)
    expected = interaction._by_sorting(*map(torch.from_numpy, ends), users, items)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(torch.from_numpy(ours), theirs)


def test_host_library_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"items: expected indices in \[0, 2\); got 2"):
        interaction._host.build_graph(np.array([0]), np.array([2]), 1, 2, 1)
    with pytest.raises(ValueError, match="users, items: expected vectors of one length"):
        interaction._host.build_graph(np.array([0]), np.array([0, 1]), 1, 2, 1)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda v: np.array(v, dtype=np.int32)])
def test_input_kinds(make):
    assert InteractionGraph.from_edges(make([0, 1]), make([1, 1])).num_edges == 2


def test_empty_graph():
    graph = InteractionGraph.from_edges([], [], num_users=2, num_items=0)
    assert (graph.num_users, graph.num_items, graph.num_edges) == (2, 0, 0)


def test_add_leaves_the_old_graph_alone():
    graph = InteractionGraph.from_edges([0], [0])
    grown = graph.add([0, 4], [0, 2])
    assert (graph.num_edges, grown.num_edges, grown.num_users, grown.num_items) == (1, 2, 5, 3)


def test_save_and_load(tmp_path):
    graph = InteractionGraph.from_edges([0, 3], [2, 1])
    graph.save(tmp_path / "graph.safetensors")
    loaded = InteractionGraph.load(tmp_path / "graph.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(graph._tensors().values(), loaded._tensors().values(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["graph.safetensors"]


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 1], [0], "items: expected 2 entries"),
        ([0.5], [0], "users: expected a vector of integers"),
        ([[0]], [[0]], "users: expected a vector of integers"),
        ([-1], [0], "users: expected indices"),
        ([0], [9], r"items: expected indices in \[0, 5\); got 9"),
    ],
)
def test_bad_edges(users, items, message):
    with pytest.raises(ValueError, match=message):
        InteractionGraph.from_edges(users, items, num_items=5)
