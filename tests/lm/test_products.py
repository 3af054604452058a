"""Products of a step of decoding: right, of the same bits in any company, and used where they are meant to be."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from reasonrec_fast.lm.decoder import is_plain_linear
from reasonrec_fast.lm.products import StepProducts, step_call


def rows_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 16, 17, 32, 33, 70])
@pytest.mark.parametrize("columns, width", [(1, 1), (11, 5), (12, 16), (13, 64), (200, 576), (49, 0)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(rows: int, columns: int, width: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight, bias = (
        rows_of(rows, width, dtype=dtype),
        rows_of(columns, width, dtype=dtype),
        rows_of(columns, dtype=dtype),
    )
    with torch.inference_mode(), StepProducts():
        result = functional.linear(x, weight, bias if biased else None)
    exact = functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8  # bfloat16: of the result alone
    torch.testing.assert_close(result.double(), exact, rtol=rounding, atol=1e-5 * max(width, 1) ** 0.5)
    assert result.shape == exact.shape and result.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    x, weight = rows_of(70, 96, dtype=dtype), rows_of(1000, 96, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        with StepProducts():
            together = functional.linear(x, weight)
            for count in (1, 2):
                torch.set_num_threads(count)
                for begin, end in ((0, 1), (3, 8), (5, 21), (20, 60)):
                    assert torch.equal(functional.linear(x[begin:end], weight), together[begin:end])
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def test_views_and_further_axes() -> None:
    wide, weight = rows_of(6, 40), rows_of(9, 20).T.contiguous().T
    with StepProducts():
        result = functional.linear(wide[:, ::2].unflatten(0, (2, 3)), weight)
        vector = functional.linear(wide[0, :20], weight)
    torch.testing.assert_close(result, functional.linear(wide[:, ::2], weight).unflatten(0, (2, 3)))
    torch.testing.assert_close(vector, functional.linear(wide[0, :20], weight))


def test_what_is_not_meant_stays_what_it_is() -> None:
    x, weight = rows_of(4, 8), rows_of(3, 8)
    with StepProducts():
        for dtype in (torch.float64, torch.float16):
            assert torch.equal(functional.linear(x.to(dtype), weight.to(dtype)), x.to(dtype) @ weight.to(dtype).T)
        with pytest.raises(RuntimeError):
            functional.linear(x, weight[:, :5])
        with pytest.raises(RuntimeError):
            functional.linear(x, weight.bfloat16())
        learnt = weight.clone().requires_grad_()
        functional.linear(x, learnt).sum().backward()  # gradients: not ours
    torch.testing.assert_close(learnt.grad, x.sum(0).expand(3, -1))
    assert step_call(x.double())(nn.Linear(8, 3).double(), x.double()).dtype == torch.float64


@torch.inference_mode()
def test_hooks_of_a_module_run() -> None:
    module, seen = nn.Linear(8, 3), []
    module.register_forward_hook(lambda _, inputs, output: seen.append(output) or output * 0)
    assert not step_call(rows_of(4, 8))(module, rows_of(4, 8)).any() and len(seen) == 1
    replaced = nn.Linear(8, 3)
    replaced.forward = lambda x: x.new_zeros(4, 3)  # as accelerate's offloading does
    assert not step_call(rows_of(4, 8))(replaced, rows_of(4, 8)).any()


@torch.inference_mode()
def test_other_threads_are_left_alone() -> None:
    x, weight, results = rows_of(8, 300), rows_of(50, 300), []

    def other() -> None:
        with torch.inference_mode():
            results.append(functional.linear(x, weight))

    expected = functional.linear(x, weight)
    with StepProducts():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert torch.equal(results[0], expected)


@torch.inference_mode()
def test_biases_of_other_shapes_names_and_layouts() -> None:
    x, weight = rows_of(4, 8), rows_of(3, 8)
    for bias in (torch.ones(1), torch.tensor(2.0), rows_of(1, 3), rows_of(4, 3)):
        expected = functional.linear(x, weight, bias)
        with StepProducts():
            assert torch.equal(functional.linear(x, weight, bias), expected)
    with StepProducts():
        assert torch.equal(
            functional.linear(input=x, weight=weight, bias=rows_of(3)), functional.linear(x, weight, rows_of(3))
        )
        with pytest.raises(RuntimeError):
            functional.linear(x, weight, torch.ones(0))
    if torch.backends.mkldnn.is_available():
        other = x.to_mkldnn(), weight.to_mkldnn()
        with StepProducts():
            product = functional.linear(*other).to_dense()
        torch.testing.assert_close(product, functional.linear(x, weight))


@torch.inference_mode()
def test_hooks_of_all_modules_run() -> None:
    module = nn.Linear(8, 3)
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 0)
    try:
        assert not is_plain_linear(module) and not step_call(rows_of(4, 8))(module, rows_of(4, 8)).any()
    finally:
        hook.remove()
    assert is_plain_linear(module)
