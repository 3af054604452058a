"""packed_attention on a GPU: FlexAttention against the definition in float64."""

import pytest
import torch

from reasonrec_fast.ops.packed_attention import packed_attention, packed_attention_reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# A prefix of 200 tokens with two rows behind it, and a row alone.
SEGMENTS = torch.tensor(
    [[0, 200, 0, 0, 0, 1], [200, 24, 0, 200, 200, 1], [224, 9, 0, 200, 224, 1], [233, 70, 0, 0, 233, 1]]
)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_equals_float64(dtype, tolerance, softcap):
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(303, heads, 64, generator=generator, dtype=torch.float64) for heads in (9, 3, 3)]
    found = packed_attention(*(x.to("cuda", dtype) for x in exact), SEGMENTS, softcap=softcap)
    expected = packed_attention_reference(*exact, SEGMENTS, 64**-0.5, softcap or 0.0)
    torch.testing.assert_close(found.cpu().double(), expected, atol=tolerance, rtol=tolerance)
