"""Kernels between the matrix products of a layer, against transformers' own modules in float64 and in their types."""

import pytest
import torch

from reasonrec_fast.lm.decoder import apply_rotary
from reasonrec_fast.lm.fused_layers import _add_and_norm, _feed_forward

pytest.importorskip("triton")
from reasonrec_fast.kernels.decoder_layer import add_and_norm, gated, rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ULPS = 1 if DEVICE == "cuda" else 3
"""Roundings apart: the interpreter cuts bfloat16 off instead of rounding it."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2 * ULPS}


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def near(result, exact, dtype):
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [8, 33, 576])
@pytest.mark.parametrize("plus_one", [False, True])
def test_sum_and_norm(dtype, width, plus_one):
    x, residual = 3 * normal(5, width, dtype=dtype), normal(5, width, dtype=dtype, seed=1)
    weight = normal(width, dtype=dtype, seed=2)
    x[3] = -residual[3]  # a row of zeros
    summed, out = add_and_norm(x, residual, weight, 1e-5, plus_one)
    torch.testing.assert_close(summed, x + residual, atol=0, rtol=(ULPS - 1) / 256 if dtype == torch.bfloat16 else 0)
    wide = summed.double()
    exact = wide * (wide.square().mean(1, keepdim=True) + 1e-5).rsqrt() * (weight.double() + plus_one)
    near(out, exact, dtype)
    same, alone = add_and_norm(summed, None, weight, 1e-5, plus_one)
    assert same is summed
    assert torch.equal(alone, out)


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "Qwen3"])
def test_the_norms_of_transformers(name):
    """Rounded where they round: in 16 bits the two differ by the order of the sum at most."""
    import importlib

    module = importlib.import_module(f"transformers.models.{name.lower()}.modeling_{name.lower()}")
    norm = getattr(module, f"{name}RMSNorm")(48).to(DEVICE, torch.bfloat16)
    with torch.no_grad():
        norm.weight.add_(normal(48, dtype=torch.bfloat16) * 0.1)
        x, residual = normal(6, 48, dtype=torch.bfloat16), normal(6, 48, dtype=torch.bfloat16, seed=1)
        summed, out = _add_and_norm(x, residual, norm)
        expected = norm(summed)
        torch.testing.assert_close(summed, residual + x, atol=0, rtol=ULPS / 256)
        torch.testing.assert_close(out, expected, atol=0, rtol=ULPS / 128)
        assert DEVICE == "cpu" or (out != expected).float().mean() < 0.02


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("heads", "width", "turned"), [((4, 2), 16, 16), ((3, 1), 24, 24), ((9, 3), 10, 6), ((1, 1), 8, 2)]
)
def test_turned_in_place(dtype, heads, width, turned):
    """Also for keys in a joint projection, and with partial rotary embeddings."""
    query = normal(5, heads[0], width, dtype=dtype)
    joint = normal(5, 2 * heads[1] * width, dtype=dtype, seed=1)
    key, value = joint.chunk(2, -1)
    key, before = key.unflatten(-1, (-1, width)), value.clone()
    angles = normal(5, turned // 2, seed=2).repeat(1, 2)
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    exact = [apply_rotary(x.double(), cosines.double(), sines.double()) for x in (query, key)]
    expected = [apply_rotary(x, cosines, sines) for x in (query, key)]
    rotate(query, key, cosines, sines)
    for result, wide, rounded in zip((query, key), exact, expected, strict=True):
        near(result, wide, dtype)
        torch.testing.assert_close(result, rounded, atol=ULPS * 4e-3 if dtype == torch.bfloat16 else 1e-3, rtol=1e-2)
    assert torch.equal(value, before)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("width", [7, 48, 1100])
def test_gate(dtype, tanh, width):
    both = 4 * normal(3, 2 * width, dtype=dtype)
    both[0, :4] = torch.tensor([-200.0, 200.0, 0.0, torch.nan])
    gate, up = both.chunk(2, -1)
    wide = gate.double()
    active = torch.nn.functional.gelu(wide, approximate="tanh") if tanh else torch.nn.functional.silu(wide)
    result = gated(gate, up, tanh)
    assert result[0, 3].isnan()
    near(result.nan_to_num(0.0), (active * up.double()).nan_to_num(0.0), dtype)


def test_no_rows():
    none = normal(0, 8)
    assert add_and_norm(none, none, normal(8), 1e-5, False)[1].shape == (0, 8)
    assert gated(none, none, False).shape == (0, 8)
    rotate(normal(0, 2, 8), normal(0, 1, 8), none, none)


def test_what_no_kernel_stands_for_runs_as_it_is():
    class Other(torch.nn.Module):
        def forward(self, x):
            return x + 1

    x = normal(2, 8)
    summed, out = _add_and_norm(x, x, Other())
    assert torch.equal(summed, 2 * x)
    assert torch.equal(out, 2 * x + 1)
    assert torch.equal(_feed_forward(Other(), x), x + 1)
    norm = torch.nn.LayerNorm(8).to(DEVICE)
    assert torch.equal(_add_and_norm(x, None, norm)[1], norm(x))
