"""token_logprobs: native and plain torch, forward and backward, against the float64 reference."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import ops
from reasonrec_fast.ops import token_logprobs as function
from reasonrec_fast.ops.token_logprobs import token_logprobs_reference

module = sys.modules[function.__module__]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def problem(rows, classes, width, count, dtype, with_bias=True):
    generator = torch.Generator().manual_seed(rows * 1000 + classes)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    tokens = torch.randint(classes, (rows, count), generator=generator)
    tokens = torch.where(torch.rand(rows, count, generator=generator) < 0.2, -100, tokens)
    return normal(rows, width), 0.4 * normal(classes, width), normal(classes) if with_bias else None, tokens


def reference(hidden, weight, bias, tokens, temperature):
    bias = hidden.new_empty(0) if bias is None else bias
    return token_logprobs_reference(hidden, weight, bias, tokens, torch.tensor(temperature, dtype=torch.float64), -100)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from([0, 1, 3, 5, 17, 40]),
    classes=st.sampled_from([1, 2, 13, 100, 1009, 2100]),
    width=st.sampled_from([1, 7, 32, 65]),
    count=st.integers(1, 4),
    dtype=st.sampled_from(list(TOLERANCE)),
    with_bias=st.booleans(),
)
def test_forward_and_backward_equal_reference(rows, classes, width, count, dtype, with_bias):
    hidden, weight, bias, tokens = problem(rows, classes, width, count, dtype, with_bias)
    inputs = [t.clone().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    results = ops.token_logprobs(*inputs[:2], tokens, bias=inputs[2] if with_bias else None, temperature=0.7)
    expected = reference(*exact[:2], exact[2] if with_bias else None, tokens, 0.7)
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    upstream = [torch.randn(t.shape, dtype=torch.float64) for t in expected]
    gradients = torch.autograd.grad(results, inputs, [g.to(f.dtype) for g, f in zip(upstream, results, strict=True)])
    expected_gradients = torch.autograd.grad(expected, exact, upstream)
    for got, want in zip(gradients, expected_gradients, strict=True):
        scale = want.abs().max().clamp_min(1.0) if want.numel() else 1.0
        torch.testing.assert_close(got.double() / scale, want / scale, atol=GRADIENT_TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_plain_torch_equals_reference(dtype, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    hidden, weight, bias, tokens = problem(6, 30, 5, 2, dtype)
    temperature = torch.tensor(1.3, dtype=torch.float64)
    results = module._token_logprobs(hidden, weight, bias, tokens, temperature, -100)
    exact = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    expected = reference(*exact, tokens, 1.3)
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    upstream = [torch.randn_like(t) for t in results]
    gradients = module._token_logprobs_backward(
        hidden, weight, bias, tokens, temperature, -100, *results[1:], *upstream
    )
    expected_gradients = torch.autograd.grad(expected, exact, [g.double() for g in upstream])
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "classes", "width"), [(1, 1, 8), (5, 70, 65), (33, 130, 20), (40, 2100, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_triton_equals_reference(rows, classes, width, with_bias, dtype, monkeypatch):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels import token_logprobs as kernels

    monkeypatch.setattr(kernels, "_GRADIENT_ELEMENTS", 128 * rows)
    hidden, weight, bias, tokens = problem(rows, classes, width, 2, dtype, with_bias)
    bias = hidden.new_empty(0) if bias is None else bias
    temperature = torch.tensor(1.3, dtype=torch.float64)
    results = kernels.token_logprobs(hidden, weight, bias, tokens, temperature, -100)
    exact = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    expected = token_logprobs_reference(*exact, tokens, temperature, -100)
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=1e-4, rtol=1e-4)
    upstream = [torch.randn_like(t) for t in results]
    gradients = kernels.token_logprobs_backward(
        hidden, weight, bias, tokens, temperature, -100, *results[1:], *upstream
    )
    expected_gradients = torch.autograd.grad(expected, exact, [g.double() for g in upstream], allow_unused=True)
    for got, want in zip(gradients, expected_gradients, strict=True):
        if got.numel():
            scale = want.abs().max().clamp_min(1.0)
            torch.testing.assert_close(got.double() / scale, want / scale, atol=GRADIENT_TOLERANCE[dtype], rtol=0)


def test_triton_grids_stay_within_what_a_gpu_takes(monkeypatch):
    """Few rows and more classes than 64 times the largest grid: several blocks of classes."""
    pytest.importorskip("triton")
    from reasonrec_fast.kernels import token_logprobs as kernels

    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *arguments, **options: None

    for name in ("partial_kernel", "logit_kernel", "gradient_kernel"):
        monkeypatch.setattr(kernels, name, Recorder())
    hidden, weight = torch.zeros(1, 1), torch.zeros(1, 1).expand(5_000_000, 1)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: x)
    row, temperature = torch.zeros(1), torch.ones((), dtype=torch.float64)
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    kernels.token_logprobs(hidden, weight, row[:0], tokens, temperature, -100)
    kernels.token_logprobs_backward(hidden, weight, row[:0], tokens, temperature, -100, row, row, row[None], row, row)
    assert len(grids) == 4
    assert all(size <= 65_535 for _, size in (grid for grid in grids if len(grid) > 1))


@pytest.mark.parametrize("masked", [slice(0, 128), slice(70, 198), slice(192, 200)])
@pytest.mark.parametrize("mask", [torch.finfo(torch.float32).min, -1e38, -torch.inf])
@pytest.mark.parametrize("run", ["operator", "kernel"])
def test_masked_classes_do_not_count(run, mask, masked):
    """The bias that people mask with: entropy and gradients are those of the classes that are left."""
    hidden, weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.randn(200, 8)
    bias = torch.zeros(200)
    bias[masked] = mask
    left = torch.ones(200, dtype=torch.bool)
    left[masked] = False
    tokens = torch.nonzero(left)[:2].clone()
    temperature = torch.ones((), dtype=torch.float64)
    if run == "operator":
        forward, backward = (
            getattr(torch.ops.reasonrec_fast, name) for name in ("token_logprobs", "token_logprobs_backward")
        )
    else:
        kernels = pytest.importorskip("reasonrec_fast.kernels.token_logprobs")
        forward, backward = kernels.token_logprobs, kernels.token_logprobs_backward
    _, logsumexp, entropy = forward(hidden, weight, bias, tokens, temperature, -100)
    log_softmax = (hidden.double() @ weight[left].double().T).log_softmax(1)
    torch.testing.assert_close(entropy.double(), -(log_softmax.exp() * log_softmax).sum(1), atol=1e-4, rtol=1e-4)
    zeros = torch.zeros(2)
    gradient = backward(
        hidden, weight, bias, tokens, temperature, -100, logsumexp, entropy, zeros[:, None] + 1, zeros, zeros
    )
    expected = weight[tokens[:, 0]].double() - log_softmax.exp() @ weight[left].double()
    torch.testing.assert_close(gradient[0].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("run", ["kernel", "plain torch"])
def test_on_a_gpu_a_token_out_of_range_is_not_a_number(run):
    """Nothing is read beyond the weight, and no finite value hides the fault."""
    if run == "kernel":
        module_ = pytest.importorskip("reasonrec_fast.kernels.token_logprobs")
        forward, backward = module_.token_logprobs, module_.token_logprobs_backward
    else:
        forward, backward = module._token_logprobs, module._token_logprobs_backward
    hidden, weight, _, _ = problem(4, 9, 5, 1, torch.float32)
    tokens = torch.tensor([[3], [9], [-1], [-100]])
    temperature, nothing = torch.ones((), dtype=torch.float64), hidden.new_empty(0)
    logprobs, logsumexp, entropy = forward(hidden, weight, nothing, tokens, temperature, -100)
    assert logprobs.isnan()[:, 0].tolist() == [False, True, True, False] and logprobs[3] == 0
    ones = torch.ones(4)
    gradient, _, _ = backward(
        hidden, weight, nothing, tokens, temperature, -100, logsumexp, entropy, ones[:, None], 0 * ones, 0 * ones
    )
    assert gradient.isnan().all(1).tolist() == [False, True, True, False]


def test_logits_of_tokens_need_no_copy_of_their_weights():
    """The rows of the weight are read in place: no tensor ``[B, M, D]`` is created."""
    pytest.importorskip("triton")
    from reasonrec_fast.kernels import token_logprobs as kernels

    hidden, weight = torch.randn(3, 40), torch.randn(9, 40)
    tokens = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(0))
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            made.extend(x.shape for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    with Watch():
        kernels.token_logprobs(hidden, weight, hidden[:0, 0], tokens, torch.ones((), dtype=torch.float64), -100)
    assert made and (3, 5, 40) not in made


def test_gradcheck():
    hidden, weight, bias, tokens = problem(5, 9, 4, 2, torch.float64)
    inputs = tuple(t.requires_grad_() for t in (hidden, weight, bias))
    assert torch.autograd.gradcheck(
        lambda h, w, b: tuple(ops.token_logprobs(h, w, tokens, bias=b, temperature=1.4)), inputs
    )


def test_opcheck():
    hidden, weight, bias, tokens = problem(5, 70, 4, 2, torch.float32)
    inputs = [t.requires_grad_() for t in (hidden, weight, bias)]
    temperature = torch.tensor(1.0, dtype=torch.float64)
    torch.library.opcheck(torch.ops.reasonrec_fast.token_logprobs, (*inputs, tokens, temperature, -100))


def test_compiles_in_one_graph():
    hidden, weight, _, tokens = problem(4, 50, 8, 1, torch.float32)
    compiled = torch.compile(
        lambda h: ops.token_logprobs(h, weight, tokens).logprobs, fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(hidden), ops.token_logprobs(hidden, weight, tokens).logprobs)


def test_same_bits_for_any_number_of_threads():
    hidden, weight, bias, tokens = problem(70, 3000, 33, 1, torch.bfloat16)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ops.token_logprobs(hidden, weight, tokens, bias=bias))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_shape_follows_the_tokens_and_autocast_the_context():
    hidden, weight = torch.randn(3, 8), torch.randn(20, 8)
    assert ops.token_logprobs(hidden, weight, torch.tensor([1, 2, 3])).logprobs.shape == (3,)
    with torch.autocast("cpu", torch.bfloat16):
        result = ops.token_logprobs(hidden, weight, torch.tensor([1, 2, 3]))
    narrow = ops.token_logprobs(hidden.bfloat16(), weight.bfloat16(), torch.tensor([1, 2, 3]))
    assert torch.equal(result.logprobs, narrow.logprobs)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (4, 5), (2,)), "hidden, weight: expected"),
        (((2, 3), (0, 3), (2,)), "weight: expected at least one class"),
        (((2, 3), (4, 3), (3,)), r"tokens: expected \[2\] or \[2, M\]; got \[3\]"),
    ],
)
def test_bad_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        ops.token_logprobs(torch.ones(shapes[0]), torch.ones(shapes[1]), torch.zeros(shapes[2], dtype=torch.int64))


def test_a_token_out_of_range_is_named():
    with pytest.raises(RuntimeError, match=r"tokens: expected ignore_index or a class in \[0, 4\); got 4"):
        ops.token_logprobs(torch.ones(1, 3), torch.ones(4, 3), torch.tensor([4]))


def test_gradients_do_not_read_what_was_never_written():
    """With AMX, oneDNN's product of a bfloat16 view reads columns beyond it, and multiplies them by zero: NaN in memory
    that was used before gave NaN gradients, now and then."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        used_before = [torch.full((size,), float("nan")) for size in (64, 1000, 5000, 20000, 100_000)]
        del used_before
        hidden, weight = (torch.randn(rows, 4, generator=generator).bfloat16().requires_grad_() for rows in (200, 30))
        tokens = torch.randint(30, (200,), generator=generator)
        ops.token_logprobs(hidden, weight, tokens, temperature=0.1).logprobs.mean().backward()
        assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()
