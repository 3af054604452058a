"""The GPU implementations in Triton's interpreter: for any strides, the results of contiguous inputs, with the strides
of the shape function."""

import pytest
import torch
from test_strides import GRAPH, TOKENS, VIEWS, normal
from torch._subclasses.fake_tensor import FakeTensorMode

from reasonrec_fast.ops import library

pytest.importorskip("triton")
NONE, LONGS, ONE = torch.empty(0), torch.empty(0, dtype=torch.int64), torch.ones((), dtype=torch.float64)
CSR = (GRAPH.user_indptr, GRAPH.user_indices, GRAPH.item_indptr, GRAPH.item_indices)
SEGMENTS = torch.tensor([[0, 2, 0, 0, 0, 1], [2, 4, 0, 2, 2, 1]])
STATISTICS = (normal(6).abs(), normal(6).abs(), normal(6, 2), normal(6), normal(6))
CASES = {
    "exit_confidence": (lambda h, w: (h, w[None], NONE, ONE, "margin", 1, TOKENS), (normal(6, 5), normal(70, 5))),
    "exit_ensemble": (lambda h, w: (h, w, NONE, ONE, "margin", 1, LONGS), (normal(6, 5), normal(3, 2, 5))),
    "token_logprobs": (lambda h, w, b: (h, w, b, TOKENS[:, None], ONE, -100), (normal(6, 5), normal(9, 5), normal(9))),
    "token_logprobs_backward": (
        lambda h, w, *s: (h, w, NONE, torch.stack([TOKENS, TOKENS], 1), ONE, -100, *s),
        (normal(6, 5), normal(9, 5), *STATISTICS),
    ),
    "aggregate": (lambda x, w: (*CSR, x, w, 0.2, torch.tensor(3)), (normal(7, 20), normal(3))),
    "topk": (lambda q, i: (q, i, 4, LONGS, LONGS, LONGS), (normal(6, 5), normal(30, 5))),
    "packed_attention": (lambda q, k, v: (q, k, v, SEGMENTS, 0.5, 0.0), tuple(normal(6, h, 8) for h in (4, 2, 2))),
}  # fmt: skip
OPERATORS = {"exit_ensemble": "exit_confidence"}


def parts(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("view", sorted(VIEWS))
@pytest.mark.parametrize("name", sorted(CASES))
def test_kernels_read_views(name, view):
    arguments, inputs = CASES[name]
    operator = OPERATORS.get(name, name)
    strided = [VIEWS[view](x) for x in inputs]
    given = arguments(*strided)
    results = parts(library.ON_GPU[operator](*given))
    expected = parts(library.ON_GPU[operator](*arguments(*(x.contiguous() for x in strided))))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given]
        shapes = parts(getattr(torch.ops.reasonrec_fast, operator)(*fakes))
    for actual, wanted, fake in zip(results, expected, shapes, strict=True):
        assert torch.equal(actual, wanted)
        assert (actual.shape, actual.stride(), actual.dtype) == (fake.shape, fake.stride(), fake.dtype)


INTEGERS = {
    "exit_confidence": (normal(6, 5), normal(1, 70, 5), NONE, ONE, "margin", 1, TOKENS),
    "token_logprobs": (normal(6, 5), normal(9, 5), NONE, TOKENS.view(3, 2).repeat(2, 1), ONE, -100),
    "token_logprobs_backward": (
        *(normal(6, 5), normal(9, 5), NONE, TOKENS.view(3, 2).repeat(2, 1), ONE, -100),
        *(normal(6), normal(6), normal(6, 2), normal(6), normal(6)),
    ),
    "aggregate": (*CSR, normal(7, 20), normal(3), 0.2, torch.tensor(3)),
    "topk": (normal(6, 5), normal(30, 5), 4, torch.arange(7), torch.arange(6) * 4, torch.arange(6).flip(0)),
    "packed_attention": (normal(6, 4, 8), normal(6, 2, 8), normal(6, 2, 8), SEGMENTS, 0.5, 0.0),
}


@pytest.mark.parametrize("view", ["every_second", "transposed"])
@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_kernels_read_views_of_integers(name, view):
    """Tokens, destinations of edges, exclusions and segments: not only what is floating."""
    arguments = INTEGERS[name]
    strided = [
        VIEWS[view](x) if isinstance(x, torch.Tensor) and x.dtype in (torch.int32, torch.int64) and x.dim() else x
        for x in arguments
    ]
    results, expected = (parts(library.ON_GPU[name](*given)) for given in (strided, arguments))
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual, wanted) and actual.stride() == wanted.stride()


def test_every_operator_on_a_gpu_is_here():
    assert {OPERATORS.get(name, name) for name in CASES} == set(library.ON_GPU)
