"""exit_confidence: native, Triton and autograd against the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import ops
from reasonrec_fast.ops.exit_confidence import MEASURES, exit_confidence_reference

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
SHAPES = [(1, 1, 8), (5, 2, 70), (17, 3, 64), (33, 300, 20), (4, 64, 65)]


def problem(batch, classes, width, ensemble_size=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, width, generator=generator, dtype=torch.float64).to(dtype)
    heads = (0.3 * torch.randn(ensemble_size, classes, width, generator=generator, dtype=torch.float64)).to(dtype)
    bias = torch.randn(ensemble_size, classes, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(classes, (batch,), generator=generator)
    return hidden, heads, bias, targets


def in_float64(hidden, heads, bias, targets, measure, temperature=1.7, positive=0):
    return exit_confidence_reference(
        hidden.double(),
        heads.double(),
        bias.double(),
        torch.tensor(temperature, dtype=torch.float64),
        measure,
        positive,
        targets,
    )


def assert_equal_statistics(result, expected, tolerance):
    *statistics, prediction = (*result[1:7], result[0]) if isinstance(result, ops.ExitStatistics) else result
    *exact, exact_prediction = expected
    assert torch.equal(prediction, exact_prediction)
    for actual, wanted in zip(statistics, exact, strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=tolerance, rtol=tolerance)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 40),
    classes=st.integers(1, 64),
    width=st.sampled_from([1, 7, 16, 33, 100]),
    ensemble_size=st.integers(1, 4),
    dtype=st.sampled_from(list(TOLERANCE)),
    measure=st.sampled_from(MEASURES),
)
def test_native_equals_reference(batch, classes, width, ensemble_size, dtype, measure):
    classes = 2 if measure == "ratio" else classes
    hidden, heads, bias, targets = problem(batch, classes, width, ensemble_size, dtype)
    result = ops.exit_confidence(
        hidden, heads, bias=bias, temperature=1.7, measure=measure, positive=0, targets=targets
    )
    assert_equal_statistics(result, in_float64(hidden, heads, bias, targets, measure), TOLERANCE[dtype])
    assert not result.exit.any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "shape", [(1, 65, 8), (3, 300, 33), (4, 2016, 70), (5, 1009, 64), (33, 1100, 100), (200, 2100, 20)]
)
def test_many_classes_equal_reference(shape, dtype):
    hidden, heads, bias, targets = problem(shape[0], shape[1], shape[2], 1, dtype)
    for measure in ("max_prob", "margin", "entropy"):
        result = ops.exit_confidence(
            hidden, heads[0], bias=bias[0], temperature=1.7, measure=measure, positive=64, targets=targets
        )
        expected = in_float64(hidden, heads, bias, targets, measure, positive=64)
        assert_equal_statistics(result, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("classes", [2, 40, 3000])
@pytest.mark.parametrize("rows", [2, 6])
def test_infinite_and_nan_logits(rows, classes):
    hidden, heads = torch.ones(rows, 1), torch.randn(classes, 1)
    bias = torch.zeros(classes)
    bias[classes - 1] = -torch.inf
    result = ops.exit_confidence(hidden, heads, bias=bias, threshold=0.0)
    exact = in_float64(hidden, heads[None], bias[None], torch.empty(0, dtype=torch.int64), "max_prob", 1.0, 1)
    assert_equal_statistics(result, exact, 2e-5)
    bias[0] = torch.inf
    result = ops.exit_confidence(hidden, heads, bias=bias, threshold=0.0)
    assert result.logsumexp.isposinf().all() and not result.exit.any()
    hidden[1] = torch.nan
    result = ops.exit_confidence(hidden, heads, bias=torch.zeros(classes), threshold=0.0)
    assert result.exit.tolist() == [True, False] + [True] * (rows - 2)
    assert result.logsumexp[1].isnan() and result.entropy[1].isnan()


def test_targets_out_of_range_are_named():
    with pytest.raises(RuntimeError, match=r"targets: expected classes in \[0, 3\); got 3"):
        ops.exit_confidence(torch.ones(1, 2), torch.ones(3, 2), targets=torch.tensor([3]))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ensemble_size", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_equals_reference(shape, ensemble_size, measure, dtype):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.exit_confidence import exit_confidence as triton_exit_confidence

    batch, classes, width = shape
    classes = 2 if measure == "ratio" else classes
    if ensemble_size > 1 and classes > 64:
        classes = 64
    hidden, heads, bias, targets = problem(batch, classes, width, ensemble_size, dtype)
    temperature = torch.tensor(1.7, dtype=torch.float64)
    result = triton_exit_confidence(hidden, heads, bias, temperature, measure, 0, targets)
    expected = in_float64(hidden, heads, bias, targets, measure)
    if classes == 1 and measure == "entropy":
        expected = (*expected[:2], result[2].double(), *expected[3:])  # no uncertainty among one class: any value
    assert_equal_statistics(result, expected, 1e-4)
    without = triton_exit_confidence(hidden, heads, bias[:0], temperature, measure, 0, targets[:0])
    assert without[5].shape == (batch, 0)


@pytest.mark.parametrize("shape", [(70, 3000, 40), (40, 2, 64)])
def test_same_bits_for_any_number_of_threads(shape):
    hidden, heads, bias, targets = problem(*shape, 1, torch.bfloat16)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(ops.exit_confidence(hidden, heads[0], bias=bias[0], targets=targets))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(actual, wanted) for actual, wanted in zip(results[0], other, strict=True))


def test_triton_joins_stretches_of_classes():
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.exit_confidence import exit_confidence as triton_exit_confidence

    hidden, heads, bias, targets = problem(18, 1300, 20)
    hidden[3] = torch.nan
    heads[0, 900] = heads[0, 40]  # ties across stretches
    bias[0, 900] = bias[0, 40]
    temperature = torch.tensor(1.7, dtype=torch.float64)
    for positive in (0, 1299):
        result = triton_exit_confidence(hidden, heads, bias, temperature, "margin", positive, targets)
        native = torch.ops.reasonrec_fast.exit_confidence(hidden, heads, bias, temperature, "margin", positive, targets)
        for actual, wanted in zip(result[:6], native[:6], strict=True):
            torch.testing.assert_close(actual, wanted, equal_nan=True, atol=1e-4, rtol=1e-4)
        rows = [row for row in range(18) if row != 3]
        assert torch.equal(result[6][rows], native[6][rows])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("ensemble_size", [1, 3])
def test_triton_row_with_nan_is_never_sure(ensemble_size, measure):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels.exit_confidence import exit_confidence as triton_exit_confidence

    hidden, heads, bias, targets = problem(4, 2, 5, ensemble_size)
    hidden[1] = torch.nan
    temperature = torch.tensor(1.0, dtype=torch.float64)
    result = triton_exit_confidence(hidden, heads, bias, temperature, measure, 1, targets[:0])
    for statistic in result[:4]:
        assert statistic.isnan().tolist() == [False, True, False, False]


def test_many_classes_stream():
    hidden, heads, bias, targets = problem(3, 5000, 48)
    result = ops.exit_confidence(hidden, heads[0], bias=bias[0], temperature=1.7, positive=0, targets=targets)
    assert_equal_statistics(result, in_float64(hidden, heads, bias, targets, "max_prob"), 2e-5)


@pytest.mark.parametrize("ensemble_size", [1, 3])
def test_gradients(ensemble_size):
    hidden, heads, bias, targets = problem(4, 3, 5, ensemble_size, torch.float64)

    def statistics(hidden, heads, bias):
        result = ops.exit_confidence(hidden, heads, bias=bias, temperature=1.3, targets=targets)
        return result.probability, result.positive_probability, result.entropy, result.logsumexp, result.target_logprob

    inputs = [tensor.requires_grad_() for tensor in (hidden, heads, bias)]
    assert torch.autograd.gradcheck(statistics, inputs)


@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_of_many_classes(with_targets, with_bias):
    hidden, heads, bias, targets = problem(4, 70, 5, 1, torch.float64)
    heads = heads[0]

    def statistics(hidden, heads, bias):
        result = ops.exit_confidence(
            hidden,
            heads,
            bias=bias if with_bias else None,
            temperature=1.3,
            positive=3,
            targets=targets if with_targets else None,
        )
        return result.probability, result.positive_probability, result.entropy, result.logsumexp, result.target_logprob

    inputs = [tensor.requires_grad_() for tensor in (hidden, heads, bias[0])]
    assert torch.autograd.gradcheck(statistics, inputs)


@pytest.mark.parametrize("ensemble_size", [1, 2])
@pytest.mark.parametrize("with_targets", [False, True])
def test_opcheck(ensemble_size, with_targets):
    hidden, heads, bias, targets = problem(4, 2, 5, ensemble_size)
    hidden.requires_grad_()
    heads.requires_grad_()
    arguments = (hidden, heads, bias, torch.tensor(1.0, dtype=torch.float64), "ratio", 1)
    torch.library.opcheck(
        torch.ops.reasonrec_fast.exit_confidence, (*arguments, targets if with_targets else targets[:0])
    )


def test_compiles_without_breaks():
    hidden, heads, bias, _ = problem(4, 2, 5)
    compiled = torch.compile(
        lambda h: ops.exit_confidence(h, heads, bias=bias, threshold=0.6), fullgraph=True, backend="aot_eager"
    )
    expected = ops.exit_confidence(hidden, heads, bias=bias, threshold=0.6)
    for actual, wanted in zip(compiled(hidden), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_autocast_computes_in_the_low_precision():
    hidden, heads, bias, _ = problem(4, 2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ops.exit_confidence(hidden, heads, bias=bias)
    low = ops.exit_confidence(hidden.bfloat16(), heads.bfloat16(), bias=bias.bfloat16())
    assert torch.equal(result.probability, low.probability)
    assert result.probability.dtype == torch.float32


def test_level_and_trend_decide_the_exit():
    hidden = torch.tensor([[3.0, 0.0], [1.0, 0.0], [3.0, 0.0], [float("nan"), 0.0]])
    previous = torch.tensor([0.5, 0.5, 0.99, 0.0])
    result = ops.exit_confidence(hidden, torch.eye(2), threshold=0.9, previous=previous)
    assert result.exit.tolist() == [True, False, False, False]
    by_row = ops.exit_confidence(hidden, torch.eye(2), threshold=torch.tensor([0.99, 0.7, 0.9, 0.0]))
    assert by_row.exit.tolist() == [False, True, True, False]


def test_ratio_is_symmetric():
    hidden = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    result = ops.exit_confidence(hidden, torch.eye(2), measure="ratio")
    torch.testing.assert_close(result.confidence, torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": torch.zeros(3)}, "hidden, heads: expected"),
        ({"heads": torch.zeros(2, 5)}, "hidden, heads: expected"),
        ({"heads": torch.zeros(2, 65, 4)}, "at most 64 classes"),
        ({"measure": "gini"}, "measure: expected"),
        ({"heads": torch.zeros(3, 4), "measure": "ratio"}, "'ratio' expects 2 classes"),
        ({"positive": 2}, "positive: expected"),
        ({"bias": torch.zeros(3)}, "bias: expected"),
        ({"previous": torch.zeros(4)}, "previous: expected"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, "targets: expected"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.exit_confidence(**{"hidden": torch.zeros(3, 4), "heads": torch.zeros(2, 4), **arguments})
