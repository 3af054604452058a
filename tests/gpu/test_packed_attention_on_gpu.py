"""packed_attention on a GPU: any head width, softcap, last tokens alone, and graphs that are replayed."""

import pytest
import torch

from reasonrec_fast import ops
from reasonrec_fast.ops.packed_attention import packed_attention_reference

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# A prefix of 200 tokens with two rows behind it, and a row alone.
SEGMENTS = torch.tensor(
    [[0, 200, 0, 0, 0, 1], [200, 24, 0, 200, 200, 1], [224, 9, 0, 200, 224, 1], [233, 70, 0, 0, 233, 1]]
)
LAST = torch.tensor([[0, 1, 0, 200, 200, 24], [1, 1, 0, 200, 224, 9], [2, 1, 0, 0, 233, 70]])


def inputs(segments, width, heads=(9, 3)):
    generator = torch.Generator().manual_seed(width)
    shapes = [(int(segments[:, 1].sum()), heads[0], width), (303, heads[1], width), (303, heads[1], width)]
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("width", "dtype", "softcap", "segments"),
    [
        (64, torch.float32, None, SEGMENTS),
        (64, torch.bfloat16, None, SEGMENTS),
        (64, torch.float16, None, SEGMENTS),
        (64, torch.float32, 3.0, SEGMENTS),
        (64, torch.bfloat16, None, LAST),
        (8, torch.float32, None, SEGMENTS),
        (24, torch.bfloat16, None, SEGMENTS),
        (128, torch.bfloat16, None, SEGMENTS),
        (256, torch.float32, None, SEGMENTS),
        (256, torch.bfloat16, None, LAST),
    ],
)
def test_equals_float64(width, dtype, softcap, segments, device):
    given = [x.to(dtype) for x in inputs(segments, width)]
    result = ops.packed_attention(*(x.to(device) for x in given), segments, softcap=softcap)
    exact = packed_attention_reference(*(x.double() for x in given), segments, width**-0.5, softcap or 0.0)
    torch.testing.assert_close(result.cpu().double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("heads", [(4, 4), (8, 1)])
def test_any_grouping_of_heads(heads, device):
    given = inputs(SEGMENTS, 64, heads)
    result = ops.packed_attention(*(x.to(device) for x in given), SEGMENTS)
    exact = packed_attention_reference(*(x.double() for x in given), SEGMENTS, 64**-0.5)
    torch.testing.assert_close(result.cpu().double(), exact, atol=1e-4, rtol=1e-4)


def test_a_graph_reads_what_its_inputs_hold_now(device):
    segments = SEGMENTS.clone()
    query, key, value = (x.to(device) for x in inputs(segments, 64))
    out = ops.packed_attention(query, key, value, segments)
    if device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ops.packed_attention(query, key, value, segments)
    query.mul_(0.5), value.add_(1.0)
    if device == "cuda":
        graph.replay()
    else:
        out = ops.packed_attention(query, key, value, segments)
    exact = packed_attention_reference(*(x.cpu().double() for x in (query, key, value)), segments, 64**-0.5)
    torch.testing.assert_close(out.cpu().double(), exact, atol=1e-4, rtol=1e-4)


def test_other_values_in_the_same_segments_tensor_count(device):
    """What is kept of segments is kept for their values, not for the tensor alone."""
    segments = SEGMENTS.clone()
    given = [x.to(device) for x in inputs(segments, 64)]
    ops.packed_attention(*given, segments)
    segments[3, 2:4] = torch.tensor([0, 100])  # the row alone now reads a prefix
    exact = packed_attention_reference(*(x.cpu().double() for x in given), segments, 64**-0.5)
    result = ops.packed_attention(*given, segments)
    torch.testing.assert_close(result.cpu().double(), exact, atol=1e-4, rtol=1e-4)
