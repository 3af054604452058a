"""packed_attention: the fused CPU pass, the composition and the Triton kernel against the definition in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast.ops.packed_attention import (
    _captured,
    _composed,
    _on_gpu,
    _plan,
    packed_attention,
    packed_attention_reference,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def packed(groups, *, last=False):
    """Segments of (prefix, suffixes) lengths with keys in the order of the tokens, and the numbers of queries and
    keys."""
    rows, at, first_query = [], 0, 0
    for prefix, suffixes in groups:
        start, at = at, at + prefix
        if prefix and not last:
            rows.append([first_query, prefix, 0, 0, start, 1])
            first_query += prefix
        for suffix in suffixes:
            queries, seen = (1, suffix) if last else (suffix, 1)
            rows.append([first_query, queries, start if prefix else 0, prefix, at, seen])
            first_query, at = first_query + queries, at + suffix
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 6), first_query, at


def inputs(queries, keys, heads, groups, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((queries, heads), (keys, groups), (keys, groups))
    return [torch.randn(*shape, width, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def check(result, arguments, segments, scale, softcap, dtype):
    expected = packed_attention_reference(*(x.double() for x in arguments), segments, scale, softcap or 0.0)
    assert result.dtype == dtype and result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


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
    composed = _composed(*arguments, segments.numpy(), scale, softcap or 0.0, 0.0)
    check(composed, arguments, segments, scale, softcap, dtype)


@pytest.fixture
def kernels():
    """The kernel's module; its programs run in Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    from reasonrec_fast.kernels import packed_attention as module

    return module


@settings(max_examples=12, deadline=None)
@given(
    GROUPS,
    st.sampled_from([(9, 3, 16), (4, 4, 8), (4, 1, 80), (2, 2, 7), (8, 2, 33), (40, 1, 16), (3, 3, 256), (300, 2, 9)]),
    st.sampled_from([torch.float32, torch.float16]),  # the interpreter multiplies no bfloat16
    st.sampled_from([0.0, 3.0]),
    st.booleans(),
)
def test_kernel_against_the_definition(groups, heads, dtype, softcap, last):
    """Tiles over several rows, prefixes that end inside a step, groups of more heads than a tile has rows."""
    pytest.importorskip("triton")
    if heads[0] % heads[1]:
        heads = (heads[0] // heads[1] * heads[1], *heads[1:])
    segments, queries, keys = packed(groups[:2], last=last)
    arguments = inputs(queries, keys, *heads, dtype)
    check(_on_gpu(*arguments, segments, 0.25, softcap), arguments, segments, 0.25, softcap, dtype)


@pytest.mark.parametrize(
    ("width", "programs", "rows"),
    [(16, 132, 16), (16, 20, 64), (16, 1, 128), (128, 132, 16), (128, 1, 64), (256, 1, 16)],
)
def test_every_size_of_block(kernels, monkeypatch, width, programs, rows):
    """Few queries in small tiles, many in large ones: the same answers."""
    monkeypatch.setattr(kernels, "_PROGRAMS", programs)
    segments, queries, keys = packed([(90, [24] * 4), (0, [150, 3])])
    arguments = inputs(queries, keys, 6, 2, width, torch.float16)
    assert kernels.choose_blocks(torch.float16, width, queries * 6).rows == rows
    check(_on_gpu(*arguments, segments, 0.25, 0.0), arguments, segments, 0.25, 0.0, torch.float16)


@pytest.mark.parametrize("view", ["joint", "transposed", "every_second"])
def test_kernel_reads_views(kernels, view):
    """Parts of a joint projection are read in place; tensors of other strides are copied."""
    segments, queries, keys = packed([(20, [5, 7])])
    arguments = inputs(queries, keys, 4, 2, 16, torch.float32)
    views = {
        "joint": lambda x: torch.cat([x, x, x], -2)[:, x.shape[1] : 2 * x.shape[1]],
        "transposed": lambda x: x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "every_second": lambda x: torch.stack([x, x * 0], -1)[..., 0],
    }
    strided = [views[view](x) for x in arguments]
    assert not any(x.is_contiguous() for x in strided)
    result = _on_gpu(*strided, segments, 0.25, 0.0)
    assert result.is_contiguous() and torch.equal(result, _on_gpu(*arguments, segments, 0.25, 0.0))


def test_a_query_whose_keys_are_not_numbers_says_so(kernels):
    segments, queries, keys = packed([(0, [3, 3])])
    query, key, value = inputs(queries, keys, 2, 2, 16, torch.float32)
    key[0] = torch.nan
    value[4, 1] = torch.inf
    result = _on_gpu(query, key, value, segments, 0.25, 0.0)
    assert result[:3].isnan().all() and result[3].isfinite().all() and result[4:, 0].isfinite().all()
    assert not result[4:, 1].isfinite().any()


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.booleans(), st.integers(1, 50))
def test_tiles_cover_every_query_once(groups, last, tile_tokens):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.packed_attention import plan_tiles

    segments, queries, keys = packed(groups, last=last)
    tiles, bounds = plan_tiles(segments.numpy(), queries, keys, tile_tokens)
    covered = np.zeros(queries, dtype=int)
    prefixes = np.repeat(segments.numpy()[:, 2:4], segments.numpy()[:, 1], axis=0)
    for first, tokens, prefix_first, prefix_end, own_first, own_end in tiles.tolist():
        own = slice(first, first + tokens)
        covered[own] += 1
        assert tokens <= tile_tokens
        assert (prefixes[own, 1] == prefix_end - prefix_first).all()
        assert prefix_end == 0 or (prefixes[own, 0] == prefix_first).all()
        assert (own_first, own_end) == (bounds[0, own].min(), bounds[1, own].max())
    assert (covered == 1).all()
    walked = tiles[:, 3] - tiles[:, 2] + tiles[:, 5] - tiles[:, 4]
    assert (walked[1:] <= walked[:-1]).all()


def test_tokens_of_long_rows_do_not_walk_over_each_others_keys(kernels):
    """Last tokens of eight texts of 200: eight tiles of 200 keys, not one of 1,600."""
    segments, queries, keys = packed([(0, [200])] * 8, last=True)
    tiles, _ = kernels.plan_tiles(segments.numpy(), queries, keys, 21)
    assert (tiles[:, 5] - tiles[:, 4]).tolist() == [200] * 8


def test_plans_are_kept_while_the_segments_hold(kernels):
    segments, queries, keys = packed([(9, [2, 3])])
    device = torch.device("cpu")
    plan = _plan(segments, queries, keys, 5, device)
    assert _plan(segments, queries, keys, 5, device) is plan
    assert _plan(segments, queries, keys, 4, device) is not plan
    arguments = inputs(queries, keys, 2, 2, 16, torch.float32)
    _on_gpu(*arguments, segments, 0.25, 0.0)
    segments[1, 3] = 4  # the same tensor, other values
    check(_on_gpu(*arguments, segments, 0.25, 0.0), arguments, segments, 0.25, 0.0, torch.float32)


@pytest.mark.parametrize("queries", range(1, 9))
def test_plans_are_aligned_whatever_their_sizes(kernels, queries):
    """Triton recompiles for a pointer that is no multiple of 16 bytes."""
    segments, count, keys = packed([(0, [1])] * queries)
    plan = kernels.make_plan(segments, count, keys, 1, torch.device("cpu"))
    assert plan.tiles.shape == (queries, 6) and plan.bounds.shape == (2, queries)
    assert plan.tiles.data_ptr() % 16 == plan.bounds.data_ptr() % 16 == 0


class Stream:
    """A stream that records its calls."""

    def __init__(self):
        self.waited = []

    def record_event(self):
        return f"event of {id(self)}"

    def wait_event(self, event):
        self.waited.append(event)


def test_another_stream_waits_for_a_plan_and_a_graph_keeps_it(kernels, monkeypatch):
    first, second, capturing, recorded = Stream(), Stream(), [False], []
    now = [first]
    plans = [kernels.Plan(torch.zeros(1, 6), torch.zeros(2, 14)) for _ in range(2)]
    made = iter(plans)
    monkeypatch.setattr(kernels, "make_plan", lambda *arguments: next(made))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[0])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorded.append(stream))
    segments, gpu = packed([(9, [2, 3])])[0], torch.device("cuda", 0)
    assert _plan(segments, 14, 14, 5, gpu) is plans[0]
    assert _plan(segments, 14, 14, 5, gpu) is plans[0] and not recorded
    now[0] = second
    assert _plan(segments, 14, 14, 5, gpu) is plans[0]
    assert second.waited == [first.record_event()] and recorded == [second]
    capturing[0] = True
    assert _plan(segments, 14, 14, 5, gpu) is plans[0] and len(second.waited) == 1
    capturing[0] = False
    segments[1, 3] = 4  # the graph replays the recorded plan, not the changed segments
    assert _plan(segments, 14, 14, 5, gpu) is plans[1]
    assert any(plan is plans[0] for plan in _captured.values())


def test_the_first_call_is_not_inside_a_graph(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    with pytest.raises(RuntimeError, match="expected one call with these segments before a CUDA graph"):
        _plan(packed([(9, [2, 3])])[0], 14, 14, 5, torch.device("cuda"))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_shape_and_strides_on_any_device(device):
    segments, queries, keys = packed([(9, [2, 3])])
    query, key, value = (x.to(device) for x in inputs(queries, keys, 4, 2, 16, torch.float32))
    strided = query.transpose(0, 1).contiguous().transpose(0, 1)
    result = packed_attention(strided, key, value, segments)
    assert result.shape == query.shape and result.stride() == query.stride() and result.device.type == device


def test_prefixes_elsewhere_and_rows_apart():
    """Prefix keys after all others, and rows with gaps between their keys, as with a cache and early exits."""
    segments = torch.tensor([[0, 3, 20, 6, 0, 1], [3, 2, 20, 6, 9, 4], [5, 1, 0, 0, 14, 2]])
    arguments = inputs(6, 26, 4, 2, 16, torch.float32)
    for result in (packed_attention(*arguments, segments), _composed(*arguments, segments.numpy(), 0.25, 0.0, 0.0)):
        check(result, arguments, segments, 0.25, None, torch.float32)


def test_large_scores_and_few_threads_give_the_same_bits():
    segments, queries, keys = packed([(200, [24] * 9), (0, [77])])
    query, key, value = inputs(queries, keys, 9, 3, 64, torch.bfloat16)
    arguments = (query * 40, key, value)
    result = packed_attention(*arguments, segments)
    assert result.isfinite().all()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(packed_attention(*arguments, segments), result)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 7), (16, 2, 40), (40, 1, 16)])
@pytest.mark.parametrize("queries", [1, 2, 3])
def test_segments_that_read_a_prefix_together_have_the_bits_of_each_alone(dtype, heads, queries):
    """Few rows each, several prefixes and none, prefixes that begin alike, more segments than a panel holds."""
    prefixes = [(0, 33)] * 11 + [(0, 32)] * 2 + [(5, 33)] + [(0, 0)] * 3 + [(40, 20)] * 4 + [(0, 33)] * 2
    rows, own = [], 80
    for index, (begin, length) in enumerate(prefixes):
        rows.append([index * queries, queries, begin, length, own, index % 4 + 1])
        own += index % 4 + queries
    segments = torch.tensor(rows)
    query, key, value = inputs(queries * len(rows), own, *heads, dtype)
    for softcap in (None, 2.0):
        together = packed_attention(query, key, value, segments, softcap=softcap)
        check(together, (query, key, value), segments, heads[2] ** -0.5, softcap, dtype)
        for index in range(len(rows)):
            alone = segments[index : index + 1].clone()
            alone[0, 0] = 0
            part = slice(index * queries, (index + 1) * queries)
            assert torch.equal(packed_attention(query[part], key, value, alone, softcap=softcap), together[part])


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
    result = torch.stack([packed_attention(query, key, value, segments, dropout=0.5) for _ in range(400)])
    assert result.std(0).min() > 0
    torch.testing.assert_close(result.mean(0), packed_attention(query, key, value, segments), atol=0.15, rtol=0.15)


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
        ({"key": torch.zeros(9, 2, 16).half()}, "key, value: expected torch.float32, as query has"),
        ({"segments": torch.zeros(2, 5, dtype=torch.int64)}, "segments: expected int64"),
        ({"segments": torch.zeros(2, 6)}, "segments: expected int64"),
    ],
)
def test_bad_shapes(change, message):
    given = {"query": (5, 4, 16), "key": (9, 2, 16), "value": (9, 2, 16)}
    given = {name: change.get(name, shape) for name, shape in given.items()}
    given = {name: x if isinstance(x, torch.Tensor) else torch.zeros(x) for name, x in given.items()}
    with pytest.raises(ValueError, match=message):
        packed_attention(**given, segments=change.get("segments", torch.zeros(1, 6, dtype=torch.int64)))


OUTSIDE = "segments: expected ranges within the queries, in order, and the keys; row 0 is outside"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 6, 0, 0, 0, 1]], OUTSIDE),
        ([[0, 5, 5, 5, 0, 1]], OUTSIDE),
        ([[0, 5, 0, 0, 5, 1]], OUTSIDE),
        ([[0, 5, 0, 0, 0, 0]], OUTSIDE),
        ([[1, 4, 0, 0, 0, 1]], OUTSIDE),
        ([[0, 5, -1, 1, 0, 1]], OUTSIDE),
        ([[0, 5, 2**62, 2**62, 0, 1]], OUTSIDE),
        ([[0, 5, 2**63 - 1, 1, 0, 1]], OUTSIDE),
        ([[0, 5, 0, 0, 2**62, 2**62]], OUTSIDE),
        ([[0, 5, 0, 0, 2**63 - 1, 2]], OUTSIDE),
        ([[0, 2**63 - 1, 0, 0, 0, 1]], OUTSIDE),
        ([[0, 3, 0, 0, 0, 1]], "segments: expected to cover 5 queries; they cover 3"),
        ([[0, 3, 0, 0, 0, 1], [2, 2, 0, 0, 0, 1]], "row 1 is outside"),
        ([], "segments: expected to cover 5 queries; they cover 0"),
    ],
)
@pytest.mark.parametrize("run", ["operator", "kernel"])
def test_ranges_outside_are_refused(rows, message, run):
    query, key = torch.zeros(5, 4, 16), torch.zeros(9, 2, 16)
    segments = torch.tensor(rows, dtype=torch.int64).reshape(-1, 6)
    if run == "kernel":
        pytest.importorskip("triton")
    with pytest.raises(RuntimeError, match=message):
        if run == "kernel":
            _on_gpu(query, key, key, segments, 1.0, 0.0)
        else:
            packed_attention(query, key, key, segments)


def test_numpy_inputs():
    segments, queries, keys = packed([(3, [2])])
    arguments = inputs(queries, keys, 2, 1, 8, torch.float32)
    result = packed_attention(*(np.asarray(x) for x in arguments), segments.numpy())
    assert torch.equal(result, packed_attention(*arguments, segments))
