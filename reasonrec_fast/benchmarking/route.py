"""route with dispatch and combine against compositions of torch operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Bound, Case, Work
from reasonrec_fast.benchmarking.measure import Run

ROWS, DIM, SHARE = 65_536, 256, 0.35


TINY_ROWS = 300


def _uncertainty(rows: int, device: str) -> torch.Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(0)).to(device)


def _order(uncertainty: torch.Tensor) -> torch.Tensor:
    """The order as a composition of torch: topk, a mask, two nonzeros."""
    rows = len(uncertainty)
    delegated = torch.zeros(rows, dtype=torch.bool, device=uncertainty.device)
    delegated[uncertainty.topk(int(rows * SHARE), sorted=False).indices] = True
    return torch.cat([(~delegated).nonzero()[:, 0], delegated.nonzero()[:, 0]])


def _round_trip(device: str = "cpu", tiny: bool = False) -> Case:
    rows = TINY_ROWS if tiny else ROWS
    uncertainty = _uncertainty(rows, device)
    x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(1)).to(device)
    inputs = (uncertainty, x, torch.empty_like(x), torch.empty_like(x))

    def ours(
        uncertainty: torch.Tensor, x: torch.Tensor, dispatched: torch.Tensor, combined: torch.Tensor
    ) -> torch.Tensor:
        route = ops.route(uncertainty, budget=SHARE)
        ops.dispatch(x, route, out=dispatched)
        return ops.combine(dispatched, route, out=combined)

    def plain(
        uncertainty: torch.Tensor, x: torch.Tensor, dispatched: torch.Tensor, combined: torch.Tensor
    ) -> torch.Tensor:
        order = _order(uncertainty)
        torch.index_select(x, 0, order, out=dispatched)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(rows, device=device)
        return torch.index_select(dispatched, 0, inverse, out=combined)

    def floor(
        uncertainty: torch.Tensor, x: torch.Tensor, dispatched: torch.Tensor, combined: torch.Tensor
    ) -> torch.Tensor:
        """Two plain copies into preallocated buffers."""
        dispatched.copy_(x)
        return combined.copy_(dispatched)

    def unchanged(name: str, result: torch.Tensor) -> None:
        torch.testing.assert_close(result, x, rtol=0, atol=0)

    return Case(
        "route",
        "route-65536",
        torch.float32,
        {OURS: Bound(ours, inputs), "torch": Bound(plain, inputs)},
        Bound(floor, inputs),
        unchanged,
        device=device,
        read_back=frozenset({"torch"}),
    )


def _route_only(device: str = "cpu", tiny: bool = False) -> Case:
    rows = TINY_ROWS if tiny else ROWS
    uncertainty = _uncertainty(rows, device)
    expected = _order(uncertainty)

    def same(name: str, result: Any) -> None:
        torch.testing.assert_close(result.order if name == OURS else result, expected, rtol=0, atol=0)

    contenders: dict[str, Run] = {
        OURS: Bound(partial(ops.route, budget=SHARE), (uncertainty,)),
        "torch": Bound(_order, (uncertainty,)),
    }
    return Case(
        "route",
        "route-65536-alone",
        torch.float32,
        contenders,
        check=same,
        results=rows * 24,
        device=device,
        read_back=frozenset({"torch"}),
    )


CASES: dict[str, Callable[..., Case]] = {"route-65536": _round_trip, "route-65536-alone": _route_only}
_ROUTE_BYTES = 4 * ROWS + 3 * 8 * ROWS  # uncertainty; order, inverse and destination
WORK = {
    "route-65536": Work(_ROUTE_BYTES + 2 * 8 * ROWS + 2 * 2 * 4 * DIM * ROWS),
    "route-65536-alone": Work(_ROUTE_BYTES),
}
