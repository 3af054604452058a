"""packed_attention: the fused CPU pass, the composition and FlexAttention against the definition in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from reasonrec_fast.ops.packed_attention import _composed, _flex, packed_attention, packed_attention_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def packed(groups, *, last=False):
    """Segments of (prefix, suffixes) lengths whose keys lie as their tokens do, and the numbers of queries and keys."""
    rows, at, asked = [], 0, 0
    for prefix, suffixes in groups:
        start, at = at, at + prefix
        if prefix and not last:
            rows.append([asked, prefix, 0, 0, start, 1])
            asked += prefix
        for suffix in suffixes:
            queries, seen = (1, suffix) if last else (suffix, 1)
            rows.append([asked, queries, start if prefix else 0, prefix, at, seen])
            asked, at = asked + queries, at + suffix
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 6), asked, at


def inputs(queries, keys, heads, groups, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((queries, heads), (keys, groups), (keys, groups))
    return [torch.randn(*shape, width, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def check(found, arguments, segments, scale, softcap, dtype):
    expected = packed_attention_reference(*(x.double() for x in arguments), segments, scale, softcap or 0.0)
    assert found.dtype == dtype and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


GROUPS = st.lists(
    st.tuples(st.integers(0, 70), st.lists(st.integers(1, 40), min_size=1, max_size=5)), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(
    GROUPS,
    st.sampled_from([(9, 3, 64), (4, 4, 8), (4, 1, 80), (2, 2, 7), (8, 2, 33), (40, 1, 16)]),
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from([None, 3.0]),
    st.booleans(),
)
def test_against_the_definition(groups, heads, dtype, softcap, last):
    segments, queries, keys = packed(groups, last=last)
    arguments = inputs(queries, keys, *heads, dtype)
    scale = heads[2] ** -0.5
    check(packed_attention(*arguments, segments, softcap=softcap), arguments, segments, scale, softcap, dtype)
    composed = _composed(*arguments, segments.numpy(), scale, softcap, 0.0)
    check(composed, arguments, segments, scale, softcap, dtype)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("last", [False, True])
def test_flex_attention_means_the_same(softcap, last):
    """What runs compiled on a GPU, not compiled and on the CPU here."""
    segments, queries, keys = packed([(33, [5, 1, 40]), (0, [17]), (130, [3, 3])], last=last)
    arguments = inputs(queries, keys, 6, 2, 16, torch.float32)
    for _ in range(2):  # the second time with the mask of the first
        check(
            _flex(flex_attention, *arguments, segments, 0.25, softcap), arguments, segments, 0.25, softcap,
            torch.float32,
        )  # fmt: skip


def test_prefixes_elsewhere_and_rows_apart():
    """Prefix keys behind all others, rows whose keys lie apart: what a cache and early exits ask for."""
    segments = torch.tensor([[0, 3, 20, 6, 0, 1], [3, 2, 20, 6, 9, 4], [5, 1, 0, 0, 14, 2]])
    arguments = inputs(6, 26, 4, 2, 16, torch.float32)
    for found in (packed_attention(*arguments, segments), _composed(*arguments, segments.numpy(), 0.25, None, 0.0)):
        check(found, arguments, segments, 0.25, None, torch.float32)


def test_large_scores_and_few_threads_give_the_same_bits():
    segments, queries, keys = packed([(200, [24] * 9), (0, [77])])
    query, key, value = inputs(queries, keys, 9, 3, 64, torch.bfloat16)
    arguments = (query * 40, key, value)
    found = packed_attention(*arguments, segments)
    assert found.isfinite().all()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(packed_attention(*arguments, segments), found)
    finally:
        torch.set_num_threads(threads)


def test_views_and_empty_inputs():
    segments, queries, keys = packed([(5, [2, 3])])
    arguments = inputs(queries, keys, 4, 2, 16, torch.float32)
    strided = [torch.stack([x, x], -1)[..., 0] for x in arguments]
    assert torch.equal(packed_attention(*strided, segments), packed_attention(*arguments, segments))
    nothing = packed_attention(
        torch.empty(0, 4, 16), torch.empty(0, 2, 16), torch.empty(0, 2, 16), torch.empty(0, 6, dtype=torch.int64)
    )
    assert nothing.shape == (0, 4, 16)


def test_gradients():
    segments, queries, keys = packed([(4, [2, 1, 3]), (0, [2])])
    arguments = [x.requires_grad_() for x in inputs(queries, keys, 4, 2, 3, torch.float64)]
    for softcap in (None, 2.0):
        assert torch.autograd.gradcheck(lambda *x, cap=softcap: packed_attention(*x, segments, softcap=cap), arguments)


def test_dropout_drops_and_keeps_the_mean():
    segments, queries, keys = packed([(30, [4])])
    query, key, value = inputs(queries, keys, 2, 2, 8, torch.float32)
    value = value.abs()
    torch.manual_seed(0)
    found = torch.stack([packed_attention(query, key, value, segments, dropout=0.5) for _ in range(400)])
    assert found.std(0).min() > 0
    torch.testing.assert_close(found.mean(0), packed_attention(query, key, value, segments), atol=0.15, rtol=0.15)


def test_opcheck_and_compile():
    segments, queries, keys = packed([(9, [2, 3])])
    arguments = inputs(queries, keys, 4, 2, 16, torch.float32)
    operator = torch.ops.reasonrec_fast.packed_attention.default
    torch.library.opcheck(operator, (*arguments, segments, 0.25, 0.0))

    def run(*x):
        return operator(*x, segments, 0.25, 0.0) + 1

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(*arguments), run(*arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": (9, 3)}, "query, key, value: expected"),
        ({"key": (9, 3, 16), "value": (9, 3, 16)}, "key: expected a number of heads that divides 4; got 3"),
        ({"segments": torch.zeros(2, 5, dtype=torch.int64)}, "segments: expected int64"),
        ({"segments": torch.zeros(2, 6)}, "segments: expected int64"),
    ],
)
def test_bad_shapes(change, message):
    given = {"query": (5, 4, 16), "key": (9, 2, 16), "value": (9, 2, 16)}
    given = {name: torch.zeros(change.get(name, shape)) for name, shape in given.items()}
    with pytest.raises(ValueError, match=message):
        packed_attention(**given, segments=change.get("segments", torch.zeros(1, 6, dtype=torch.int64)))


@pytest.mark.parametrize("row", [[0, 6, 0, 0, 0, 1], [0, 5, 5, 5, 0, 1], [0, 5, 0, 0, 5, 1], [0, 5, 0, 0, 0, 0]])
def test_ranges_outside_are_refused(row):
    query, key = torch.zeros(5, 4, 16), torch.zeros(9, 2, 16)
    with pytest.raises(RuntimeError, match="segments: expected ranges within"):
        packed_attention(query, key, key, torch.tensor([row]))


def test_numpy_inputs():
    segments, queries, keys = packed([(3, [2])])
    arguments = inputs(queries, keys, 2, 1, 8, torch.float32)
    found = packed_attention(*(np.asarray(x) for x in arguments), segments.numpy())
    assert torch.equal(found, packed_attention(*arguments, segments))
