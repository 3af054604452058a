"""Inputs of operators and graphs in any container: a right result or an error, and never a crash."""

import numpy as np
import pandas as pd
import pytest
import torch

from reasonrec_fast import InteractionGraph, ops

NAN = float("nan")
T = torch.tensor
EYE = np.eye(3, dtype=np.float32)


def shuffled(values):
    """A Series whose index is in another order than its rows."""
    return pd.Series(values, index=list(range(len(values)))[::-1])


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


CONTAINERS = {
    "list": lambda a: a.tolist(),
    "series": shuffled,
    "negative stride": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "read-only": read_only,
    "object": lambda a: a.astype(object),
    "foreign byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "every second": lambda a: np.repeat(a, 2)[::2],
    "tensor": torch.from_numpy,
}


@pytest.fixture(params=CONTAINERS.values(), ids=CONTAINERS.keys())
def contain(request):
    return request.param


def test_graphs_are_built_of_any_container(contain):
    users, items = np.array([2, 0, 1, 1]), np.array([5, 6, 7, 0])
    result = InteractionGraph.from_edges(contain(users), contain(items))
    assert [part.tolist() for part in result.edges()] == [[0, 1, 1, 2], [6, 0, 7, 5]]
    more = result.add(contain(np.array([0, 3])), contain(np.array([6, 9])))
    assert (more.num_users, more.num_items, more.num_edges) == (4, 10, 5)


def test_operators_take_vectors_of_any_container(contain):
    values, ids = np.array([0.1, 0.9, 0.5], dtype=np.float64), np.array([1, 0, 1])
    assert ops.route(contain(values), budget=1).order.tolist() == [0, 2, 1]
    assert ops.route(contain(values), threshold=0.2).order.tolist() == [0, 1, 2]
    assert ops.route_to(contain(ids), 2).order.tolist() == [1, 0, 2]
    hidden = torch.eye(3, dtype=torch.float64)
    expected = ops.token_logprobs(hidden, hidden, T([1, 0, 1])).logprobs
    assert torch.equal(ops.token_logprobs(hidden, hidden, contain(ids)).logprobs, expected)
    result = ops.exit_confidence(hidden, hidden, targets=contain(ids)).target_logprob[:, 0]
    torch.testing.assert_close(result, expected)
    advantages = ops.group_advantages(contain(values), contain(ids), kind="dr_grpo")
    torch.testing.assert_close(advantages.double(), T([-0.2, 0.0, 0.2]).double())
    excluded = (contain(np.array([0, 1, 2, 3])), contain(np.array([0, 1, 2])))
    assert ops.topk(hidden, hidden, 1, exclude=excluded).indices.tolist() == [[1], [0], [0]]


@pytest.mark.parametrize(
    "matrix",
    [EYE.tolist(), EYE[::-1][::-1], np.ascontiguousarray(EYE[::-1])[::-1], EYE[:, ::-1][:, ::-1], read_only(EYE),
     pd.DataFrame(EYE, index=[2, 0, 1]), EYE.astype(object), np.asfortranarray(EYE), EYE.astype(">f4")],
)  # fmt: skip
def test_operators_take_matrices_of_any_container(matrix):
    assert ops.topk(matrix, EYE, 1).indices.tolist() == [[0], [1], [2]]
    graph = InteractionGraph.from_edges([0], [0], num_users=1, num_items=2)
    assert ops.aggregate(graph, matrix).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert ops.exit_confidence(matrix, matrix).prediction.tolist() == [0, 1, 2]
    route = ops.route_to([1, 0, 1], 2)
    assert ops.combine(ops.dispatch(matrix, route), route).tolist() == EYE.tolist()


def test_arrays_of_the_protocol_alone_may_have_negative_strides():
    class Exported:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    assert ops.topk(Exported(EYE[::-1]), EYE, 1).indices.tolist() == [[2], [1], [0]]
    half = torch.eye(3, dtype=torch.bfloat16)  # a type that numpy does not have
    assert ops.topk(Exported(half), half, 1).indices.tolist() == [[0], [1], [2]]


def test_lists_of_parts_and_numbers_of_numpy():
    eye = torch.eye(3)
    assert ops.topk(eye, eye, np.int64(1), exclude=[[0, 1, 2, 2], [0, 1]]).indices.tolist() == [[1], [0], [2]]
    assert ops.route([0.1, 0.9, 0.5], budget=np.int64(2)).offsets.tolist() == [0, 1, 3]
    graph = InteractionGraph.from_edges([0, 1], [0, 1])
    four = torch.eye(4)
    assert torch.equal(ops.aggregate(graph, four, combine=[0.5, 0.5]), ops.aggregate(graph, four, combine="mean"))
    assert float(ops.exit_confidence(eye, eye, temperature=np.float32(2)).confidence[0]) < 0.5


def test_an_output_that_cannot_be_written_to_is_refused():
    route = ops.route_to([1, 0, 1], 2)
    out = np.zeros((3, 3), dtype=np.float32)
    assert ops.dispatch(EYE, route, out=out).data_ptr() == out.ctypes.data and out.any()
    for wrong in (read_only(EYE), np.zeros((3, 3), dtype=np.float32)[::-1], EYE.tolist()):
        with pytest.raises(ValueError, match="out: expected an array that can be written to"):
            ops.dispatch(EYE, route, out=wrong)


def exclude(*parts, k=2):
    return lambda: ops.topk(torch.eye(3), torch.eye(3), k, exclude=tuple(map(torch.as_tensor, parts)))


def edges(users, items, **options):
    return lambda: InteractionGraph.from_edges(users, items, **options)


def graph(**change):
    whole = {"user_indptr": T([0, 2, 3]), "user_indices": T([0, 1, 1]), "item_indptr": T([0, 1, 3])}
    return lambda: InteractionGraph(**{**whole, "item_indices": T([0, 0, 1]), **change})


def tokens(values, **options):
    return lambda: ops.token_logprobs(torch.eye(3), torch.eye(3), values, **options)


def exits(*given, **options):
    return lambda: ops.exit_confidence(*(given or (torch.eye(3), torch.eye(3))), **options)


def aggregated(x=None, **options):
    built = InteractionGraph.from_edges([0, 1], [0, 1])
    return lambda: ops.aggregate(built, torch.eye(4) if x is None else x, **options)


def attention(segments, grad=False, **options):
    x = torch.eye(4)[:, None].requires_grad_(grad)
    return lambda: ops.packed_attention(x, x, x, segments, **options)


WHOLE = [[0, 4, 0, 0, 0, 1]]
REFUSED = [
    (
        exclude([0, 1, 2, 10**9], [0, 1]),
        "exclude: expected an indptr that rises within 2 indices; got 2 to .* in row 2",
    ),
    (exclude([0, 2, 1, 2], [0, 1]), "exclude: expected an indptr that rises .* got 2 to 1 in row 1"),
    (exclude([-5, 0, 1, 2], [0, 1]), "exclude: expected an indptr that rises .* got -5 to 0 in row 0"),
    (exclude([0, 1, 2, 2], [0, 7]), r"exclude: expected items in \[0, 3\); got 7 in row 1"),
    (exclude([0, 1, 2, 2], [-1, 0]), r"exclude: expected items in \[0, 3\); got -1 in row 0"),
    (exclude([0, 1, 2, 2], [0, 1], [0]), "exclude: expected 3 rows, one a query; got 1"),
    (exclude([0, 1, 2, 2], [0, 1], [0, 1, 9]), "exclude: expected rows of the CSR; got 9 in row 2"),
    (exclude([0.0, 1, 2, 2], [0.9, 1]), "exclude: expected indptr to be a vector of integers"),
    (exclude([0, 1, 2, 2]), r"exclude: expected \(indptr, indices\)"),
    (exclude([0, 0, 0, 0], [], k=True), "k: expected a whole number of at least 0; got True"),
    (exclude([0, 0, 0, 0], [], k=1.5), "k: expected a whole number of at least 0; got 1.5"),
    (lambda: ops.topk("abc", torch.eye(3), 1), "queries: expected an array; got str"),
    (lambda: ops.topk(np.array([["a"]]), torch.eye(3), 1), "queries: expected numbers; got <U1 'a'"),
    (edges(["a", "b"], [0, 1]), "users: expected numbers; got <U1 'a'"),
    (edges([0, 1], [0.0, 1.0]), "items: expected a vector of integers"),
    (edges([0, None], [0, 1]), "users: expected a vector of integers"),
    (edges(pd.Series([0, None], dtype="Int64"), [0, 1]), "users: expected a vector of integers"),
    (
        edges(np.ma.array([0, 1], mask=[0, 1]), [0, 1]),
        "users: expected a value in every row; got a masked one in row 1",
    ),
    (edges([0, -3], [0, 1]), r"users: expected indices in \[0, 1\); got -3 in row 1"),
    (edges([0, 1], [0, 9], num_items=5), r"items: expected indices in \[0, 5\); got 9 in row 1"),
    (edges(np.array([2**63 + 1], dtype=np.uint64), [0]), "users: expected"),
    (edges([0], [0], num_users=2.5), "num_users: expected a whole number of at least 0; got 2.5"),
    (edges([0], [0], num_items=-1), "num_items: expected a whole number"),
    (edges([[0], [1, 2]], [0]), "users: expected an array; got list"),
    (graph(user_indices=T([0, 1, 9999999])), r"user_indices: expected indices in \[0, 2\); got 9999999 in row 2"),
    (graph(item_indices=T([0, -1, 1])), r"item_indices: expected indices in \[0, 2\); got -1 in row 1"),
    (graph(user_indptr=T([0, 2, 9999999])), "user_indptr: expected to rise from 0 to 3"),
    (graph(item_indptr=T([0, 4, 3])), "item_indptr: expected to rise from 0 to 3"),
    (graph(user_indices=T([1, 0, 1])), "user_indices: expected to rise within a row; got 0 in row 1"),
    (graph(item_indices=T([1, 0, 1])), "item_indices: expected the edges of user_indices the other way round"),
    (graph(user_indices=T([0.0, 1.0, 1.0])), "user_indices: expected a vector of int32 or int64"),
    (graph(user_indices=T([0, 1, 1], dtype=torch.int32)), "graph: expected four tensors of one type"),
    (aggregated((torch.eye(2), torch.ones(2, 3))), r"x: expected \[U, D\] and \[I, D\]"),
    (aggregated((torch.eye(2), torch.eye(2).double())), r"x: expected \[U, D\] and \[I, D\] of one type"),
    (aggregated(seed=1.7, dropout=0.5), "seed: expected an int of 64 bits; got 1.7"),
    (aggregated(seed=2**64, dropout=0.5), "seed: expected an int of 64 bits"),
    (aggregated(layers=1.5), "layers: expected a whole number of at least 0; got 1.5"),
    (aggregated(dropout=NAN), "dropout: expected a share"),
    (lambda: ops.aggregate("graph", torch.eye(4)), "graph: expected an InteractionGraph; got str"),
    (lambda: ops.route([1, 9, 5], budget=1), "uncertainty: expected a floating-point type; got torch.int64"),
    (lambda: ops.route([0.1, 0.9], budget=True), "budget: expected a share"),
    (lambda: ops.route([0.1, 0.9], threshold=NAN), "threshold: expected a number; got nan"),
    (lambda: ops.route([0.1, 0.9], threshold=T([0.1, 0.2, 0.3])), r"threshold: expected a number or \[2\]; got \[3\]"),
    (lambda: ops.route_to([1.0, 0.0], 2), "destination: expected torch.int64"),
    (lambda: ops.route_to([1, 0, 5], 2), r"destination: expected values in \[0, 2\); got 5 in row 2"),
    (lambda: ops.route_to([1, 0], 2, capacity=T([1.0, 1.9])), "capacity: expected integers; got torch.float32"),
    (lambda: ops.route_to([1, 0], 2, capacity=T([1, -1])), "capacity: expected values .* got -1 in row 1"),
    (lambda: ops.dispatch(torch.eye(2), ops.route_to([1, 0, 1], 2)), "x: expected 3 rows, as the route has"),
    (tokens(T([0.0, 1.9, 2.0])), "tokens: expected integers; got torch.float32"),
    (tokens(T([True, False, True])), "tokens: expected integers; got torch.bool"),
    (tokens(T([0, 1, 9])), r"tokens: expected ignore_index or a class in \[0, 3\); got 9 in row 2"),
    (tokens(T([[0, 1], [2, 1], [9, 0]])), "tokens: expected .* got 9 in row 2"),
    (tokens(T([0, 1, 2]), temperature=0.0), "temperature: expected a positive number; got 0.0"),
    (tokens(T([0, 1, 2]), temperature=T(0.0)), "temperature: expected a positive number; got 0.0"),
    (exits(temperature=0), "temperature: expected a positive number; got 0"),
    (exits(temperature=NAN), "temperature: expected a positive number; got nan"),
    (exits(temperature=-1.0), "temperature: expected a positive number; got -1.0"),
    (exits(temperature=T([1.0, 2.0, 3.0])), r"temperature: expected a float or a 0-d tensor; got \[3\]"),
    (exits(targets=T([0.0, 1.0, 2.0])), "targets: expected integers; got torch.float32"),
    (exits(targets=T([0, 1, 7])), r"targets: expected classes in \[0, 3\); got 7 in row 2"),
    (exits(threshold=torch.ones(3, 1).expand(3, 2)), r"threshold: expected a number or \[3\]; got \[3, 2\]"),
    (
        exits(torch.eye(3), torch.zeros(2, 3, 3), bias=torch.zeros(3, 2)),
        r"bias: expected \[2, 3\] or \[3\]; got \[3, 2\]",
    ),
    (exits(torch.eye(3).long(), torch.eye(3)), "hidden, heads: expected floating-point types"),
    (exits(torch.eye(3), torch.zeros(0, 3)), "heads: expected at least one class"),
    (attention([[0, 4, 0, 9, 0, 1]]), "segments: expected ranges .* row 0 is outside"),
    (attention([[0, 4, 0, 9, 0, 1]], grad=True), "segments: expected ranges .* row 0 is outside"),
    (attention([[0, 4, -1, 1, 0, 1]], grad=True), "segments: expected ranges .* row 0 is outside"),
    (attention([[0, 4, 0, 2**62, 2**62, 1]], grad=True), "segments: expected ranges .* row 0 is outside"),
    (attention([[0, 3, 0, 0, 0, 1]], grad=True), "segments: expected to cover 4 queries; they cover 3"),
    (attention(WHOLE, scale=NAN), "scale: expected a finite number; got nan"),
    (tokens(None), "tokens: expected an array; got NoneType"),
    (tokens(T([0, 1, 2]), bias="none"), "bias: expected an array; got str"),
    (lambda: ops.exit_confidence(torch.eye(3), 7), "heads: expected an array; got int"),
    (exits(previous=0.5), "previous: expected an array; got float"),
    (attention(3), "segments: expected an array; got int"),
    (aggregated("x"), "x: expected an array; got str"),
    (lambda: ops.route_to([1, 0], 2, capacity=3), "capacity: expected an array; got int"),
    (lambda: ops.dispatch(None, ops.route_to([1, 0], 2)), "x: expected an array; got NoneType"),
    (lambda: ops.group_advantages(1.0, [0]), "rewards: expected an array; got float"),
    (attention(WHOLE, softcap=-1.0), "softcap: expected a number of at least 0; got -1.0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_missing_argument_is_named_by_python():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'k'"):
        ops.topk(torch.eye(3), torch.eye(3))


def test_tensors_are_taken_as_they_are(monkeypatch):
    """Nothing is converted, nor looked at twice, in a call of a few microseconds."""
    eye, ids, built = torch.eye(3), T([1, 0, 1]), InteractionGraph.from_edges([0, 1], [0, 0])
    weight = torch.nn.Parameter(eye)

    def fail(*given):
        raise AssertionError(given)

    monkeypatch.setattr(ops.library, "_as_tensor", fail)
    route = ops.route_to(ids, 2)
    ops.combine(ops.dispatch(eye, route), route, out=torch.empty(3, 3))
    ops.route(eye[0], threshold=0.5)
    ops.token_logprobs(eye, weight, ids, bias=eye[0], temperature=0.5)
    ops.exit_confidence(eye, weight, targets=ids, threshold=0.5, measure="margin", positive=2)
    ops.aggregate(built, eye, layers=2, combine="mean", dropout=0.5, seed=1)
    ops.packed_attention(eye[:, None], eye[:, None], eye[:, None], T([[0, 3, 0, 0, 0, 1]]), softcap=2.0)
    ops.group_advantages(eye[0], ids)


@pytest.mark.parametrize("missing", [np.array([0, 1, 2, 10**6]), np.array([0, 3, 1, 2])])
def test_the_native_check_needs_no_python(missing):
    given = [torch.eye(3), torch.eye(3), 2, torch.from_numpy(missing), T([0, 1]), torch.arange(3)]
    with pytest.raises(RuntimeError, match="exclude: expected an indptr that rises"):
        torch.ops.reasonrec_fast.topk(*given)
    with pytest.raises(RuntimeError, match="graph: expected an indptr that ends at 1"):
        csr = [T([0, 9]), T([0]), T([0, 1]), T([0])]
        torch.ops.reasonrec_fast.aggregate(*csr, torch.eye(2), torch.ones(2), 0.0, T(0))


def test_a_stored_graph_that_was_tampered_with_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    built = InteractionGraph.from_edges([0, 1, 1], [2, 0, 1])
    built.save(tmp_path / "graph.safetensors")
    tensors = load_file(tmp_path / "graph.safetensors")
    tensors["user_indices"][0] = 70
    save_file(tensors, tmp_path / "graph.safetensors")
    with pytest.raises(ValueError, match=r"user_indices: expected indices in \[0, 3\); got 70 in row 0"):
        InteractionGraph.load(tmp_path / "graph.safetensors")
    (tmp_path / "graph.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="path: expected safetensors"):
        InteractionGraph.load(tmp_path / "graph.safetensors")


def test_plain_exclusions_stay_within_the_csr():
    """What runs on a GPU for float64, where a wrong CSR cannot be refused."""
    from reasonrec_fast.ops.topk import _topk

    eye = torch.eye(3, dtype=torch.float64)
    for indptr in (T([0, 1, 2, 10**9]), T([0, 2, 1, 2]), T([-5, 0, 1, 2])):
        assert _topk(eye, eye, 2, indptr, T([0, 7]), torch.arange(3))[0].shape == (3, 2)
