"""aggregate: native, Triton and autograd against the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import InteractionGraph, ops
from reasonrec_fast.ops.aggregate import aggregate_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def csr(graph):
    return graph.user_indptr, graph.user_indices, graph.item_indptr, graph.item_indices


def random_graph(users, items, edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return InteractionGraph.from_edges(
        torch.randint(users, (edges,), generator=generator),
        torch.randint(items, (edges,), generator=generator),
        num_users=users,
        num_items=items,
    )


def in_float64(graph, x, weights, dropout=0.0, seed=0):
    return aggregate_reference(*csr(graph), x.double(), weights.double(), dropout, torch.tensor(seed))


@settings(deadline=None, max_examples=40)
@given(
    users=st.integers(1, 30),
    items=st.integers(1, 30),
    edges=st.integers(0, 200),
    width=st.sampled_from([1, 3, 16, 17, 64, 65]),
    layers=st.integers(0, 3),
    dtype=st.sampled_from(list(TOLERANCE)),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_native_equals_reference(users, items, edges, width, layers, dtype, dropout):
    graph = random_graph(users, items, edges)
    x = torch.randn(users + items, width, dtype=torch.float64).to(dtype)
    weights = torch.randn(layers + 1, dtype=torch.float64)
    found = ops.aggregate(graph, x, layers=layers, combine=weights, dropout=dropout, seed=11)
    assert found.dtype == dtype
    expected = in_float64(graph, x, weights, dropout, 11)
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("weights", [[0.0, 0.0, 1.0], [0.5, 1.0, 0.0, 2.0]])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_large_tables_go_in_slabs(dtype, weights, dropout):
    width = 300 // dtype.itemsize  # whole slabs and a rest, for every instruction set
    users = 6 * 2**20 // (width * dtype.itemsize)
    graph, weights = random_graph(users, 500, 2 * users), torch.tensor(weights, dtype=torch.float64)
    x = torch.randn(users + 500, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = ops.aggregate(graph, x, layers=len(weights) - 1, combine=weights, dropout=dropout, seed=11)
    expected = in_float64(graph, x, weights, dropout, 11)
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    ("width", "split", "dtype"),
    [
        (1, 1, torch.float32),
        (40, 7, torch.float32),
        (40, 512, torch.float32),
        (130, 16, torch.float32),
        (40, 16, torch.bfloat16),
    ],
)
def test_triton_equals_reference(width, dropout, split, dtype):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.aggregate import aggregate as triton_aggregate

    heavy = random_graph(30, 2, 80)  # items have more than one block of edges, and several pieces
    assert heavy.item_degrees().max() > 16
    for graph in (heavy, random_graph(3, 4, 0)):
        x = torch.randn(graph.num_users + graph.num_items, width, generator=torch.Generator().manual_seed(0)).to(dtype)
        kept, weights = x.clone(), torch.tensor([0.5, 1.0, 2.0])
        found = triton_aggregate(*csr(graph), x, weights, dropout, torch.tensor(2**40 + 7), split)
        assert found.dtype == dtype
        expected = in_float64(graph, x, weights, dropout, 2**40 + 7)
        torch.testing.assert_close(found.double(), expected, atol=4 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert torch.equal(x, kept)


def test_gradients():
    graph = random_graph(6, 7, 20)
    x = torch.randn(13, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, dtype=torch.float64, requires_grad=True)
    seed = torch.tensor(5)
    assert torch.autograd.gradcheck(
        lambda x, w: ops.aggregate(graph, x, layers=2, combine=w, dropout=0.2, seed=seed), (x, weights)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    graph = random_graph(6, 7, 20)
    x = torch.randn(13, 4, dtype=dtype, requires_grad=True)
    weights = torch.randn(3, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.reasonrec_fast.aggregate, (*csr(graph), x, weights, 0.0, torch.tensor(0)))


def test_compiles_without_breaks():
    graph = random_graph(6, 7, 20)
    x = torch.randn(13, 4)
    compiled = torch.compile(
        lambda x: ops.aggregate(graph, x, layers=2, combine="mean"), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), ops.aggregate(graph, x, layers=2, combine="mean"))


def test_pair_comes_back_as_pair():
    graph = random_graph(6, 7, 20)
    users, items = torch.randn(6, 4), torch.randn(7, 4)
    found = ops.aggregate(graph, (users, items), layers=2, combine="sum")
    torch.testing.assert_close(
        torch.cat(found), ops.aggregate(graph, torch.cat([users, items]), layers=2, combine="sum")
    )


def test_non_contiguous_input():
    graph = random_graph(6, 7, 20)
    x = torch.randn(4, 13).T
    torch.testing.assert_close(ops.aggregate(graph, x), ops.aggregate(graph, x.contiguous()))


def test_same_bits_for_any_number_of_threads():
    graph, x = random_graph(500, 400, 5000), torch.randn(900, 32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        results.append(ops.aggregate(graph, x, layers=3, combine="mean"))
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_dropout_is_unbiased_and_symmetric():
    graph, x = random_graph(30, 30, 400), torch.randn(60, 2, dtype=torch.float64)
    draws = torch.stack([ops.aggregate(graph, x, dropout=0.5, seed=seed) for seed in range(400)])
    whole = ops.aggregate(graph, x)
    assert (draws.mean(0) - whole).abs().max() < 5 * draws.std(0).max() / 20
    y = torch.randn(60, 2, dtype=torch.float64)
    one_way = (y * ops.aggregate(graph, x, dropout=0.5, seed=3)).sum()
    torch.testing.assert_close(one_way, (x * ops.aggregate(graph, y, dropout=0.5, seed=3)).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3, 2)}, "x: expected"),
        ({"x": (torch.zeros(6, 2), torch.zeros(6, 2))}, "x: expected 6 user rows and 7 item rows"),
        ({"layers": -1}, "layers: expected"),
        ({"combine": "max"}, "combine: expected"),
        ({"combine": torch.ones(5)}, "combine: expected weights"),
        ({"dropout": 1.0}, "dropout: expected"),
        ({"dropout": 0.5}, "seed: expected"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.aggregate(random_graph(6, 7, 20), **{"x": torch.zeros(13, 2), **arguments})
