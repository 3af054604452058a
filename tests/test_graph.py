"""InteractionGraph."""

import contextlib
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import InteractionGraph
from reasonrec_fast.graph import interaction, sorting
from reasonrec_fast.graph.sorting import graph_by_sorting


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
    results = interaction._host.build_graph(*ends, users, items, threads)
    by_numpy = graph_by_sorting(*ends, users, items)
    by_torch = graph_by_sorting(*map(torch.from_numpy, ends), users, items)
    for actual, numpys, torchs in zip(results, by_numpy, by_torch, strict=True):
        assert torch.equal(torch.from_numpy(actual), torchs)
        assert np.array_equal(actual, numpys) and actual.dtype == numpys.dtype


@pytest.mark.parametrize("edges", [0, 1, 500])
def test_cupy_arrays_are_built_by_their_own_library(edges, monkeypatch):
    """numpy stands in for cupy, whose functions have the same names."""
    cupys = types.SimpleNamespace(from_dlpack=np.from_dlpack)
    monkeypatch.setitem(sys.modules, "cupy", cupys)
    monkeypatch.setattr(interaction, "library_of", lambda array: "cupy" if isinstance(array, np.ndarray) else "torch")
    monkeypatch.setattr(interaction, "_host", None)
    used = []
    monkeypatch.setattr(
        interaction, "graph_by_sorting", lambda *given: used.append(type(given[0])) or graph_by_sorting(*given)
    )
    generator = np.random.default_rng(edges)
    users, items = generator.integers(0, 20, edges, dtype=np.int32), generator.integers(0, 30, edges)
    result = InteractionGraph.from_edges(users, items, num_users=20, num_items=30)
    expected = InteractionGraph.from_edges(torch.from_numpy(users), torch.from_numpy(items), num_users=20, num_items=30)
    assert used == [np.ndarray, torch.Tensor]
    for name, tensor in result._tensors().items():
        assert torch.equal(tensor, getattr(expected, name)), name


def test_edges_of_a_library_stay_with_it():
    """A copy of numpy under another name stands in for cupy: it is recognised by its module, and used alone."""

    class Array(np.ndarray):
        device = contextlib.nullcontext()  # cupy's is a context that makes it the current one

    Array.__module__ = "lent"
    lent = types.ModuleType("lent")
    called = []

    def lend(name):
        def call(*given, **named):
            called.append(name)
            return np.asarray(getattr(np, name)(*given, **named)).view(Array)

        return call

    for name in ("unique", "searchsorted", "arange", "asarray"):
        setattr(lent, name, lend(name))
    lent.int32, lent.int64 = np.int32, np.int64
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lent", lent)
        patch.setattr(sorting, "LIBRARIES", ("lent", "numpy"))
        ends = [np.array(end).view(Array) for end in ([3, 0, 3, 1], [2, 0, 2, 1])]
        results = graph_by_sorting(*ends, 4, 3)
    assert set(called) == {"unique", "searchsorted", "arange", "asarray"}
    assert all(type(part) is Array for part in results)
    assert [part.tolist() for part in results] == [[0, 1, 2, 2, 3], [0, 1, 2], [0, 1, 2, 3], [0, 1, 3]]


def test_subclasses_of_tensors_are_sorted_by_torch():
    class Index(torch.Tensor):
        pass

    ends = [torch.tensor(end).as_subclass(Index) for end in ([1, 0, 1], [0, 2, 0])]
    assert graph_by_sorting(*ends, 2, 3)[0].tolist() == [0, 1, 2]


def test_import_needs_no_array_api_compat():
    """A machine with the libraries of a GPU does not have it."""
    code = "import sys; sys.modules['array_api_compat'] = None; import reasonrec_fast"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_edges_on_two_devices():
    with pytest.raises(ValueError, match="items: expected to be on cpu, as users are; got meta"):
        InteractionGraph.from_edges(torch.tensor([0]), torch.tensor([0], device="meta"))


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
