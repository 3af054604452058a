"""route with dispatch and combine beside compositions of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Case
from reasonrec_fast.benchmarking.measure import Run

ROWS, DIM, SHARE = 65_536, 256, 0.35


def _uncertainty(device: str) -> torch.Tensor:
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(0)).to(device)


def _order(uncertainty: torch.Tensor) -> torch.Tensor:
    """The order as a composition of torch: topk, a mask, two nonzeros."""
    delegated = torch.zeros(ROWS, dtype=torch.bool, device=uncertainty.device)
    delegated[uncertainty.topk(int(ROWS * SHARE), sorted=False).indices] = True
    return torch.cat([(~delegated).nonzero()[:, 0], delegated.nonzero()[:, 0]])


def _there_and_back(device: str = "cpu") -> Case:
    uncertainty, x = _uncertainty(device), torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1)).to(device)
    there, back = torch.empty_like(x), torch.empty_like(x)

    def ours() -> torch.Tensor:
        route = ops.route(uncertainty, budget=SHARE)
        ops.dispatch(x, route, out=there)
        return ops.combine(there, route, out=back)

    def plain() -> torch.Tensor:
        order = _order(uncertainty)
        torch.index_select(x, 0, order, out=there)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(ROWS, device=device)
        return torch.index_select(there, 0, inverse, out=back)

    def floor() -> torch.Tensor:
        """Two bare copies into ready buffers."""
        there.copy_(x)
        return back.copy_(there)

    def unchanged(name: str, found: torch.Tensor) -> None:
        torch.testing.assert_close(found, x, rtol=0, atol=0)

    return Case("route", "route-65536", torch.float32, {OURS: ours, "torch": plain}, floor, unchanged, device=device)


def _alone(device: str = "cpu") -> Case:
    uncertainty = _uncertainty(device)
    expected = _order(uncertainty)

    def same(name: str, found: Any) -> None:
        torch.testing.assert_close(found.order if name == OURS else found, expected, rtol=0, atol=0)

    contenders: dict[str, Run] = {
        OURS: lambda: ops.route(uncertainty, budget=SHARE),
        "torch": lambda: _order(uncertainty),
    }
    return Case("route", "route-65536-alone", torch.float32, contenders, check=same, results=ROWS * 24, device=device)


CASES: dict[str, Callable[..., Case]] = {"route-65536": _there_and_back, "route-65536-alone": _alone}
