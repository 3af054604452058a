"""exit_confidence against the usual torch code: linear, softmax, the two largest probabilities, entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Bound, Case, Work
from reasonrec_fast.benchmarking.measure import Run
from reasonrec_fast.ops.exit_confidence import exit_confidence_reference

SIZES = {
    "exit-128-bf16": (128, 1024, 32_000, 1),
    "exit-1-bf16": (1, 1024, 32_000, 1),
    "exit-16-bf16": (16, 1024, 32_000, 1),
    "exit-16-152k-bf16": (16, 1024, 151_936, 1),
    "exit-4096-c2k4-bf16": (4096, 1024, 2, 4),
}
"""Rows, width, classes, ensemble size."""


def plain(hidden: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Prediction, margin, entropy and log-sum-exp, from all logits."""
    if heads.shape[0] == 1:
        logits = torch.nn.functional.linear(hidden, heads[0])[:, None]
        probabilities = logits[:, 0].softmax(-1)
    else:
        logits = torch.einsum("bd,kcd->bkc", hidden, heads)
        probabilities = logits.softmax(-1).mean(1)
    best = probabilities.topk(2, -1)
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(-1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1], entropy, logits.logsumexp(-1)


def _case(
    name: str, rows: int, width: int, classes: int, ensemble_size: int, device: str = "cpu", tiny: bool = False
) -> Case:
    if tiny:
        rows, width, classes = min(rows, 20), 64, min(classes, 300)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).bfloat16().to(device)
    heads = (torch.randn(ensemble_size, classes, width, generator=generator) * 2 * width**-0.5).bfloat16().to(device)
    exact = _exact(hidden, heads)

    def check(name: str, result: Any) -> None:
        statistics = (result.confidence, result.entropy, result.logsumexp) if name == OURS else result[1:]
        tolerance = 1e-3 if name == OURS else 0.1
        for got, expected in zip(statistics, exact, strict=True):
            torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)

    contenders: dict[str, Run] = {
        OURS: Bound(partial(ops.exit_confidence, measure="margin"), (hidden, heads if ensemble_size > 1 else heads[0])),
        "torch": Bound(plain, (hidden, heads)),
        "torch_compile": Bound(torch.compile(plain), (hidden, heads)),
    }
    return Case(
        "exit_confidence",
        name,
        torch.bfloat16,
        contenders,
        floor=Bound(lambda hidden, flat: hidden @ flat.T, (hidden, heads.flatten(0, 1))),
        check=check,
        results=rows * 40,
        device=device,
    )


def _exact(hidden: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, ...]:
    empty = hidden.new_empty(0, dtype=torch.float64)
    temperature = hidden.new_ones((), dtype=torch.float64)
    reference = exit_confidence_reference(
        hidden.double(), heads.double(), empty, temperature, "margin", 0, empty.long()
    )
    return reference[2], reference[3], reference[4]


def _work(rows: int, width: int, classes: int, ensemble_size: int) -> Work:
    """Hidden states and heads; the statistics of a row take 32 bytes, and 4 per head of the ensemble."""
    num_bytes = 2 * width * (rows + ensemble_size * classes) + rows * (32 + 4 * ensemble_size)
    return Work(num_bytes, 2 * rows * width * ensemble_size * classes, torch.bfloat16)


CASES: dict[str, Callable[..., Case]] = {name: partial(_case, name, *sizes) for name, sizes in SIZES.items()}
WORK = {name: _work(*sizes) for name, sizes in SIZES.items()}
