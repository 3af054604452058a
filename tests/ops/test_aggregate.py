"""aggregate: native, Triton and autograd against the float64 reference."""

import sys

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
    result = ops.aggregate(graph, x, layers=layers, combine=weights, dropout=dropout, seed=11)
    assert result.dtype == dtype
    expected = in_float64(graph, x, weights, dropout, 11)
    torch.testing.assert_close(result.double(), expected, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("weights", [[0.0, 0.0, 1.0], [0.5, 1.0, 0.0, 2.0]])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_large_tables_go_in_slabs(dtype, weights, dropout):
    width = 300 // dtype.itemsize  # whole slabs and a rest, for every instruction set
    users = 6 * 2**20 // (width * dtype.itemsize)
    graph, weights = random_graph(users, 500, 2 * users), torch.tensor(weights, dtype=torch.float64)
    x = torch.randn(users + 500, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = ops.aggregate(graph, x, layers=len(weights) - 1, combine=weights, dropout=dropout, seed=11)
    expected = in_float64(graph, x, weights, dropout, 11)
    torch.testing.assert_close(result.double(), expected, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype])


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
        result = triton_aggregate(*csr(graph), x, weights, dropout, torch.tensor(2**40 + 7), split)
        assert result.dtype == dtype
        expected = in_float64(graph, x, weights, dropout, 2**40 + 7)
        torch.testing.assert_close(result.double(), expected, atol=4 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert torch.equal(x, kept)


CUT = {
    "rows of all sizes": (torch.arange(13).repeat_interleave(torch.arange(13)), 14),
    "a star": (torch.zeros(45, dtype=torch.int64), 1),
    "heavy rows side by side": (torch.arange(3).repeat_interleave(20), 3),
    "many rows without edges": (torch.tensor([0, 20, 20, 39]), 40),
    "as many edges as a piece": (torch.arange(5).repeat_interleave(8), 5),
    "one more": (torch.arange(5).repeat_interleave(9), 5),
    "no edges": (torch.zeros(0, dtype=torch.int64), 4),
}


@pytest.mark.parametrize("wide_integers", [False, True])
@pytest.mark.parametrize("name", CUT)
def test_triton_cuts_rows_of_all_shapes(name, wide_integers):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.aggregate import aggregate as triton_aggregate

    users, num_users = CUT[name]
    items = torch.arange(len(users)) - torch.searchsorted(users, users)  # no pair twice
    graph = InteractionGraph.from_edges(users, items, num_users=num_users, num_items=int(items.numel() > 0) * 50 + 1)
    arrays = [a.long() if wide_integers else a for a in csr(graph)]
    x = torch.randn(num_users + graph.num_items, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 1.0, 2.0])
    result = triton_aggregate(*arrays, x, weights, 0.0, torch.tensor(0), 8)
    torch.testing.assert_close(result.double(), in_float64(graph, x, weights), atol=1e-5, rtol=1e-5)


def test_triton_gives_the_same_bits_again():
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.aggregate import aggregate as triton_aggregate

    graph, weights = random_graph(12, 3, 40), torch.tensor([0.5, 1.0])
    arguments = (*csr(graph), torch.randn(15, 3), weights, 0.3, torch.tensor(1), 4)
    assert torch.equal(triton_aggregate(*arguments), triton_aggregate(*arguments))


@pytest.mark.parametrize(("users", "items"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("width", [0, 3])
def test_triton_takes_a_side_without_rows(users, items, width):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.aggregate import aggregate as triton_aggregate

    graph, x = random_graph(max(users, 1), max(items, 1), 0), torch.randn(users + items, width)
    starts = graph.user_indptr[:1].expand(users + 1), graph.item_indptr[:1].expand(items + 1)
    result = triton_aggregate(
        starts[0], graph.user_indices, starts[1], graph.item_indices, x, torch.tensor([0.5, 1]), 0.0, torch.tensor(0)
    )
    assert torch.equal(result, x / 2)


def in_triton(graph, x, weights):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.aggregate import aggregate as triton_aggregate

    return triton_aggregate(*csr(graph), x, weights, 0.0, torch.tensor(0), 8)


PATHS = {
    "native": lambda graph, x, w: ops.aggregate(graph, x, layers=len(w) - 1, combine=w),
    "reference": lambda graph, x, w: aggregate_reference(*csr(graph), x, w.to(x.dtype), 0.0, torch.tensor(0)),
    "triton": in_triton,
}
ZEROS = ([0, 1], [1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0], [0, 1, 0, 2], [0, 0, 0, 1], [2, 0, 1, 0])


def sparse_problem():
    """A user whose embedding is not finite, in a corner of a graph that otherwise holds a heavy item."""
    users = torch.cat([torch.arange(20), torch.tensor([0, 1, 2, 21])])
    items = torch.cat([torch.zeros(20, dtype=torch.int64), torch.tensor([1, 2, 2, 4])])
    graph = InteractionGraph.from_edges(users, items, num_users=23, num_items=5)  # user 21 and item 4 see each other
    x = torch.randn(28, 3, generator=torch.Generator().manual_seed(0))
    x[21] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    x[22] = torch.nan  # without edges
    return graph, x


@pytest.mark.parametrize("weights", ZEROS, ids=str)
@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_layer_of_weight_zero_takes_no_part(path, weights, dtype):
    if path == "triton" and (dtype == torch.float64 or (len(weights) > 3 and (dtype == torch.bfloat16 or weights[0]))):
        pytest.skip("float64 goes to the reference; fewer layers are enough for the interpreter")
    graph, x = sparse_problem()
    weights, x = torch.tensor(weights, dtype=torch.float32), x.to(dtype)
    result = PATHS[path](graph, x, weights).double()
    user_row, item_row = 21, 23 + 4  # layers 0 and 2 hold the infinity in the user's row, 1 and 3 in the item's
    broken = {user_row if layer % 2 == 0 else item_row for layer, weight in enumerate(weights.tolist()) if weight}
    assert set((~torch.isfinite(result)).any(1).nonzero().flatten().tolist()) - {22} == broken
    assert torch.isfinite(result[22]).all() == (weights[0] == 0)
    x[21:23] = 0
    rest = torch.ones(28, dtype=torch.bool)
    rest[[user_row, item_row, 22]] = False
    expected = in_float64(graph, x, weights)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(result[rest], expected[rest], atol=4 * tolerance, rtol=tolerance)
    assert weights.any() or not result.any()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("path", ["native", "triton"])
def test_last_reads_no_earlier_layer(path, layers):
    graph, x = sparse_problem()
    weights = torch.arange(layers + 1).eq(layers).float()
    result = PATHS[path](graph, x, weights)
    assert (~torch.isfinite(result)).any(1).nonzero().flatten().tolist() == [21 if layers % 2 == 0 else 27]
    assert path == "triton" or torch.equal(result.nan_to_num(), ops.aggregate(graph, x, layers=layers).nan_to_num())


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_beside_a_weight_of_zero(dtype, on_gpu):
    """That of x takes nothing from such a layer; that of the weight is the layer's product with the upstream one."""
    module = sys.modules["reasonrec_fast.ops.aggregate"]
    graph, _ = sparse_problem()
    x = torch.randn(28, 3, dtype=dtype, requires_grad=True)
    weights = torch.tensor([0.0, 1.0, 0.0], dtype=dtype, requires_grad=True)
    upstream = torch.randn(28, 3, dtype=dtype)
    arguments = (*csr(graph), x.detach(), weights.detach(), 0.0, torch.tensor(0))
    if on_gpu:
        pytest.importorskip("triton")
        from reasonrec_fast.ops import library

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.ops.reasonrec_fast, "aggregate", library.ON_GPU["aggregate"], raising=False)
            context = type("Context", (), {"needs_input_grad": [False] * 4 + [True, True, False, False]})()
            context.save_for_backward = lambda *saved: setattr(context, "saved_tensors", saved)
            module._setup_context(context, arguments, None)
            broken = module._backward(context, torch.where(torch.arange(28)[:, None] == 22, torch.nan, upstream))
            result = module._backward(context, upstream)
            grads, grads_of_broken = result[4:6], broken[4]
    else:
        grads = torch.autograd.grad(ops.aggregate(graph, x, layers=2, combine=weights), (x, weights), upstream)
        nan = torch.where(torch.arange(28)[:, None] == 22, torch.nan, upstream)
        (grads_of_broken,) = torch.autograd.grad(ops.aggregate(graph, x, layers=2, combine=weights), (x,), nan)
    ones = torch.eye(3, dtype=torch.float64)
    expected = [(in_float64(graph, x.detach(), one) * upstream.double()).sum() for one in ones]
    torch.testing.assert_close(grads[1].double(), torch.stack(expected), atol=1e-4, rtol=1e-5)
    assert expected[0] != 0 and expected[2] != 0
    torch.testing.assert_close(grads[0].double(), in_float64(graph, upstream, ones[1]), atol=1e-5, rtol=1e-5)
    assert torch.equal(grads_of_broken[torch.arange(28) != 22], grads[0][torch.arange(28) != 22])
    assert torch.isfinite(grads_of_broken).all()  # node 22 has no edges, and layer 0 no weight


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
    result = ops.aggregate(graph, (users, items), layers=2, combine="sum")
    torch.testing.assert_close(
        torch.cat(result), ops.aggregate(graph, torch.cat([users, items]), layers=2, combine="sum")
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
