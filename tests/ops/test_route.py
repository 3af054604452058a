"""route, route_to, dispatch and combine against plain Python."""

import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import ops
from reasonrec_fast.ops.route import _partition, _route_budget, route_to_reference

NUMBER = st.sampled_from([0.0, 0.5, 0.5, 1.0, math.inf, -math.inf, math.nan])


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_route_to_equals_reference(data):
    destinations = data.draw(st.integers(1, 5))
    destination = data.draw(st.lists(st.integers(0, destinations - 1), max_size=30))
    capacity = data.draw(st.none() | st.lists(st.integers(0, 6), min_size=destinations, max_size=destinations))
    score = None
    if capacity is not None:
        size = len(destination)
        score = data.draw(st.none() | st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=size, max_size=size))
    results = ops.route_to(
        torch.tensor(destination, dtype=torch.int64),
        destinations,
        capacity=None if capacity is None else torch.tensor(capacity),
        score=None if score is None else torch.tensor(score),
    )
    expected = route_to_reference(destination, destinations, capacity, score)
    assert [part.tolist() for part in results] == list(expected)


@settings(deadline=None, max_examples=80)
@given(st.lists(NUMBER, max_size=25), st.data())
def test_budget_is_exact_and_takes_the_most_uncertain(values, data):
    count = data.draw(st.integers(0, len(values)))
    result = ops.route(torch.tensor(values), budget=count)
    ranked = sorted(range(len(values)), key=lambda i: (0, 0.0, i) if math.isnan(values[i]) else (1, -values[i], i))
    assert result.destination.nonzero().flatten().tolist() == sorted(ranked[:count])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(NUMBER | st.floats(width=16), max_size=40),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.data(),
)
def test_selection_equals_sorting(values, dtype, data):
    uncertainty = torch.tensor([*values, 0.0, -0.0]).to(dtype)
    count = data.draw(st.integers(0, len(uncertainty)))
    native = torch.ops.reasonrec_fast.route_budget(uncertainty, count)
    for actual, sorted_ in zip(native, _route_budget(uncertainty, count), strict=True):
        assert torch.equal(actual, sorted_)


def test_partition_equals_sorting():
    destination = torch.randint(7, (500,))
    for actual, sorted_ in zip(
        torch.ops.reasonrec_fast.partition(destination, 7), _partition(destination, 7), strict=True
    ):
        assert torch.equal(actual, sorted_)


def test_a_destination_out_of_range_is_named():
    with pytest.raises(RuntimeError, match=r"destination: expected values in \[0, 2\); got 2"):
        ops.route_to(torch.tensor([0, 2]), 2)


@pytest.mark.parametrize(("share", "rows"), [(0.29, 100), (0.35, 65536), (0.57, 100), (1.0, 7), (0.0, 7)])
def test_share_counts_as_decimals_do(share, rows):
    delegated = int(ops.route(torch.rand(rows), budget=share).destination.sum())
    assert delegated == math.floor(Decimal(str(share)) * rows)


def test_threshold_delegates_what_is_above_and_nan():
    uncertainty = torch.tensor([0.1, 0.5, 0.6, math.nan, -math.inf])
    assert ops.route(uncertainty, threshold=0.5).destination.tolist() == [0, 0, 1, 1, 0]


def test_combine_undoes_dispatch_and_both_are_differentiable():
    x = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    route = ops.route(torch.rand(20), budget=0.3)
    assert torch.equal(ops.combine(ops.dispatch(x, route), route), x)
    assert torch.autograd.gradcheck(lambda x: ops.dispatch(x, route) * torch.arange(20)[:, None], x)
    out = torch.empty(20, 3, dtype=torch.float64)
    assert ops.dispatch(x.detach(), route, out=out) is out
    assert torch.equal(ops.combine(out, route, out=torch.empty_like(out)), x)


def test_opcheck():
    empty = torch.empty(0, dtype=torch.int64)
    torch.library.opcheck(torch.ops.reasonrec_fast.route_to, (torch.tensor([1, 0, 2]), 3, empty, empty.float()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"budget": 1, "threshold": 0.5}, "exactly one"),
        ({"budget": 4}, "budget: expected"),
        ({"budget": 1.5}, "budget: expected"),
        ({"budget": -1}, "budget: expected"),
    ],
)
def test_bad_route_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.route(torch.rand(3), **arguments)


def test_bad_route_to_arguments():
    destination = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="destination: expected a vector"):
        ops.route_to(destination[None], 2)
    for dtype in (torch.int32, torch.bool, torch.float32):
        with pytest.raises(ValueError, match="destination: expected torch.int64; got torch"):
            ops.route_to(destination.to(dtype), 2)
    with pytest.raises(ValueError, match="num_destinations: expected"):
        ops.route_to(destination, 0)
    with pytest.raises(ValueError, match="capacity: expected"):
        ops.route_to(destination, 2, capacity=torch.zeros(3))
    with pytest.raises(ValueError, match="score: expected"):
        ops.route_to(destination, 2, score=torch.zeros(3))


@pytest.mark.parametrize("shape", [(300, 256), (300, 3), (300,), (300, 2, 5), (0, 4), (40_000, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_ready_buffers(shape, dtype):
    """Small rows are copied; from 16 MB on rows of whole lines go past the caches."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-100, 100, shape, generator=generator).to(dtype)
    route = ops.route(torch.rand(shape[0], generator=generator), budget=0.4)
    there, back = torch.empty_like(x), torch.empty_like(x)
    assert ops.dispatch(x, route, out=there) is there
    assert torch.equal(there, x[route.order])
    assert torch.equal(ops.combine(there, route, out=back), x)


def test_strided_buffers_and_bad_ones():
    x, route = torch.randn(6, 4), ops.route(torch.rand(6), budget=2)
    out = torch.empty(4, 6).T
    assert torch.equal(ops.dispatch(x, route, out=out), x[route.order])
    with pytest.raises(ValueError, match=r"out: expected \[6, 4\] of torch.float32; got \[5, 4\]"):
        ops.dispatch(x, route, out=torch.empty(5, 4))
    with pytest.raises(ValueError, match="of torch.float64"):
        ops.combine(x, route, out=torch.empty(6, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"index: expected values in \[0, 6\); got 6"):
        torch.ops.reasonrec_fast.gather_rows(x, torch.tensor([6]), torch.empty(1, 4))


def test_gather_rows_opcheck():
    torch.library.opcheck(
        torch.ops.reasonrec_fast.gather_rows, (torch.randn(5, 3), torch.tensor([4, 0, 4]), torch.empty(3, 3))
    )
