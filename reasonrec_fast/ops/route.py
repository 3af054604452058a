"""Routing of rows to destinations: a stable permutation, its inverse and the offsets, computed on the device."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

import torch

from reasonrec_fast.ops import library, native


class Route(NamedTuple):
    """Where ``B`` rows go.

    Attributes:
        order: rows by destination, in input order within each, int64 ``[B]``.
        inverse: position of each row in ``order``, int64 ``[B]``.
        offsets: start of each destination in ``order``, then ``B``, int64 ``[M + 1]``.
        destination: of each row, int64 ``[B]``.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    offsets: torch.Tensor
    destination: torch.Tensor


library.pass_through(Route)


@library.takes_arrays
def route(
    uncertainty: torch.Tensor, *, threshold: float | torch.Tensor | None = None, budget: int | float | None = None
) -> Route:
    """Delegate the uncertain rows: they go to destination 1, all others to 0.

    Args:
        uncertainty: ``[B]``, larger is less certain; NaN counts as the most uncertain.
        threshold: delegate where ``uncertainty > threshold`` (or NaN); a number or ``[B]``.
        budget: delegate exactly this many rows, the most uncertain ones (ties: lower index first). An int, or a share
            in [0, 1] whose count is ``floor(share * B)`` in decimal arithmetic.

    Raises:
        ValueError: both or neither of threshold and budget, one out of range, or uncertainties that are not floats.

    >>> route(torch.tensor([0.1, 0.9, 0.5]), budget=1).order.tolist()
    [0, 2, 1]
    """
    _check_vector(uncertainty, "uncertainty")
    if not uncertainty.is_floating_point():
        raise ValueError(f"uncertainty: expected a floating-point type; got {uncertainty.dtype}")
    if (threshold is None) == (budget is None):
        raise ValueError("threshold, budget: expected exactly one of them")
    if threshold is not None:
        if not isinstance(threshold, torch.Tensor):
            if not isinstance(threshold, (int, float, torch.SymFloat)) or threshold != threshold:
                raise ValueError(f"threshold: expected a number; got {threshold!r}")
        elif threshold.numel() != 1 and threshold.shape != uncertainty.shape:
            raise ValueError(f"threshold: expected a number or {list(uncertainty.shape)}; got {list(threshold.shape)}")
        else:
            threshold = threshold.reshape(-1)
        destination = (~(uncertainty <= threshold)).long()
        return route_to(destination, 2)
    assert budget is not None
    count = _budget_count(budget, uncertainty.numel())
    return Route(*torch.ops.reasonrec_fast.route_budget(uncertainty, count))


@library.takes_arrays
def route_to(
    destination: torch.Tensor,
    num_destinations: int,
    *,
    capacity: torch.Tensor | None = None,
    score: torch.Tensor | None = None,
) -> Route:
    """Group rows by destination.

    Args:
        destination: int64 ``[B]`` in ``[0, num_destinations)``. On a GPU, where a check would read values back, values
            are clamped to that range, in the returned route too.
        num_destinations: ``M``, at least 1.
        capacity: integers ``[M]``, at least 0 (on a GPU a negative one counts as 0); rows over it fall back to
            destination 0 (which is unbounded): the lowest score first, then the highest index.
        score: ``[B]``, rows of larger score keep their destination, NaN first; only with capacity.

    Raises:
        ValueError: shapes or types that do not fit (argument, expected, got); on a CPU, a destination or a capacity out
            of range (with its row).

    >>> route_to(torch.tensor([1, 0, 1]), 2).order.tolist()
    [1, 0, 2]
    """
    _check_vector(destination, "destination")
    if destination.dtype != torch.int64:
        raise ValueError(f"destination: expected torch.int64; got {destination.dtype}")
    if type(num_destinations) is not int or num_destinations < 1:
        library.check_count(num_destinations, "num_destinations", 1)
    if capacity is not None and not library.is_integer(capacity):
        raise ValueError(f"capacity: expected integers; got {capacity.dtype}")
    if capacity is not None and capacity.shape != (num_destinations,):
        raise ValueError(f"capacity: expected [{num_destinations}]; got {list(capacity.shape)}")
    if score is not None and (capacity is None or score.shape != destination.shape):
        raise ValueError(f"score: expected {list(destination.shape)} and a capacity; got {list(score.shape)}")
    empty = destination.new_empty(0)
    return Route(
        *torch.ops.reasonrec_fast.route_to(
            destination,
            num_destinations,
            empty if capacity is None else capacity.long(),
            empty.float() if score is None else score,
        )
    )


@library.takes_arrays
def dispatch(x: torch.Tensor, route: Route, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows of ``x [B, ...]`` in the order of the route; differentiable unless ``out`` is given."""
    return _gather(x, route.order, out)


@library.takes_arrays
def combine(y: torch.Tensor, route: Route, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows of ``y [B, ...]``, which are in the order of the route, in input order again; the inverse of dispatch."""
    return _gather(y, route.inverse, out)


def _gather(x: torch.Tensor, index: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    if x.dim() == 0 or x.shape[0] != index.numel():
        raise ValueError(f"x: expected {index.numel()} rows, as the route has; got {list(x.shape)}")
    if out is None:
        return x.index_select(0, index)
    if out.shape != (index.numel(), *x.shape[1:]) or out.dtype != x.dtype:
        raise ValueError(
            f"out: expected {[index.numel(), *x.shape[1:]]} of {x.dtype}; got {list(out.shape)} of {out.dtype}"
        )
    if out.device.type == "cpu" and out.is_contiguous():
        torch.ops.reasonrec_fast.gather_rows(x, index, out)
        return out
    return torch.index_select(x, 0, index, out=out)


def _check_vector(tensor: torch.Tensor, name: str) -> None:
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected a vector; got {list(tensor.shape)}")


def _budget_count(budget: int | float, rows: int) -> int:
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ValueError(f"budget: expected a share in [0, 1] or an int; got {budget!r}")
    if isinstance(budget, int):
        if not 0 <= budget <= rows:
            raise ValueError(f"budget: expected a count in [0, {rows}] or a share in [0, 1]; got {budget}")
        return budget
    if not 0.0 <= budget <= 1.0:
        raise ValueError(f"budget: expected a share in [0, 1] or an int; got {budget}")
    return int(Decimal(repr(float(budget))) * rows)


def _route_budget(uncertainty: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Uses only stable sorts; no value is read back to the host."""
    surest_last = torch.where(uncertainty.isnan(), torch.inf, uncertainty)
    # NaN outranks +inf: a second, stable sort puts the NaN rows first.
    order = torch.sort(surest_last, descending=True, stable=True).indices
    order = order[torch.sort(uncertainty[order].isnan(), descending=True, stable=True).indices]
    destination = torch.zeros_like(order)
    destination[order[:count]] = 1
    return _route_to(destination, 2, order[:0], uncertainty[:0])


def _route_to(
    destination: torch.Tensor, num_destinations: int, capacity: torch.Tensor, score: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """No value is read back from a GPU."""
    if destination.device.type == "cpu":
        if capacity.numel():  # without capacities `partition` checks the destinations itself
            _check_range("destination", destination, num_destinations)
            _check_range("capacity", capacity, 2**63)
        destination = destination.clone()
    else:
        destination = destination.clamp(0, num_destinations - 1)
    if capacity.numel():
        bounds = torch.arange(num_destinations + 1, device=destination.device)
        destination = _within_capacity(destination, bounds, capacity, score)
    return (*torch.ops.reasonrec_fast.partition(destination, num_destinations), destination)


def _check_range(name: str, values: torch.Tensor, end: int) -> None:
    if not values.numel():
        return
    low, high = torch.aminmax(values)
    if low.item() < 0 or high.item() >= end:
        row = int(((values < 0) | (values > end - 1)).nonzero()[0])
        raise library.ArgumentError(f"{name}: expected values in [0, {end}); got {int(values[row])} in row {row}")


def _partition(destination: torch.Tensor, num_destinations: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Order, inverse and offsets of a stable partition; a destination out of range counts as the nearest in range."""
    ordered, order = torch.sort(destination.clamp(0, num_destinations - 1), stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    bounds = torch.arange(num_destinations + 1, device=destination.device)
    return order, inverse, torch.searchsorted(ordered, bounds)


def _within_capacity(
    destination: torch.Tensor, bounds: torch.Tensor, capacity: torch.Tensor, score: torch.Tensor
) -> torch.Tensor:
    """Rank each row among those of its destination, best score and then lowest index first; cut at the capacity.

    Destinations are in range.
    """
    if score.numel():
        best_first = torch.sort(score, descending=True, stable=True).indices
    else:
        best_first = torch.arange(destination.numel(), device=destination.device)
    by_destination = torch.sort(destination.index_select(0, best_first), stable=True).indices
    order = best_first.index_select(0, by_destination)
    ordered = destination.index_select(0, order)
    begin = torch.searchsorted(ordered, bounds).index_select(0, ordered)
    rank = torch.arange(order.numel(), device=order.device) - begin
    fits = (rank < capacity.index_select(0, ordered)) | (ordered == 0)
    return torch.zeros_like(destination).index_copy(0, order, torch.where(fits, ordered, 0))


def route_to_reference(
    destination: list[int], num_destinations: int, capacity: list[int] | None = None, score: list[float] | None = None
) -> tuple[list[int], list[int], list[int], list[int]]:
    """The operator in plain Python; for tests."""
    final = list(destination)
    for target in range(1, num_destinations):
        rows = [row for row, d in enumerate(destination) if d == target]
        rows.sort(key=lambda row: (-(score[row] if score else 0.0), row))
        for row in rows[capacity[target] :] if capacity else []:
            final[row] = 0
    order = sorted(range(len(final)), key=lambda row: (final[row], row))
    inverse = [order.index(row) for row in range(len(final))]
    offsets = [sum(d < bound for d in final) for bound in range(num_destinations + 1)]
    return order, inverse, offsets, final


def _fake(destination, num_destinations, capacity, score):
    rows = [torch.empty_like(destination) for _ in range(3)]
    return rows[0], rows[1], destination.new_empty(num_destinations + 1), rows[2]


def _fake_partition(destination, num_destinations):
    return torch.empty_like(destination), torch.empty_like(destination), destination.new_empty(num_destinations + 1)


def _fake_budget(uncertainty, count):
    rows = [uncertainty.new_empty(uncertainty.shape, dtype=torch.int64) for _ in range(3)]
    return rows[0], rows[1], uncertainty.new_empty(3, dtype=torch.int64), rows[2]


torch.library.define(
    "reasonrec_fast::route_to",
    "(Tensor destination, int num_destinations, Tensor capacity, Tensor score) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("reasonrec_fast::route_to", "CompositeExplicitAutograd", _route_to)
torch.library.register_fake("reasonrec_fast::route_to", _fake)
torch.library.register_fake("reasonrec_fast::partition", _fake_partition)
torch.library.register_fake("reasonrec_fast::gather_rows", lambda x, index, out: None)
torch.library.register_fake("reasonrec_fast::route_budget", _fake_budget)
native.implement_on_gpu({"route_budget": _route_budget, "partition": _partition})
