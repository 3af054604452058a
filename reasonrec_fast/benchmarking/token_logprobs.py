"""token_logprobs, forward and backward, against implementations that materialise all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Bound, Case, Work, installed
from reasonrec_fast.benchmarking.measure import Run

ROWS, CLASSES, WIDTH = 4096, 49_152, 576
TINY_ROWS = 64
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    hidden: torch.Tensor
    weight: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def make(cls, device: str, tiny: bool = False) -> Problem:
        rows, classes, width = (TINY_ROWS, 500, 32) if tiny else (ROWS, CLASSES, WIDTH)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, width, generator=generator).bfloat16().to(device).requires_grad_()
        weight = (torch.randn(classes, width, generator=generator) * 2 * width**-0.5).bfloat16()
        tokens = torch.randint(classes, (rows,), generator=generator)
        return cls(hidden, weight.to(device).requires_grad_(), tokens.to(device))

    def peers(self) -> dict[str, Forward]:
        """Log-probabilities of the tokens, computed from logits."""
        tokens = self.tokens

        def plain(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            logits = torch.nn.functional.linear(hidden, weight)
            return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]

        implementations: dict[str, Forward] = {"torch": plain, "torch_compile": torch.compile(plain)}
        if installed("trl"):
            from trl.trainer.utils import selective_log_softmax

            implementations["trl"] = lambda hidden, weight: selective_log_softmax(
                torch.nn.functional.linear(hidden, weight), tokens
            )
        return implementations


def _logprobs(device: str = "cpu", tiny: bool = False) -> Case:
    problem = Problem.make(device, tiny)
    upstream = torch.rand(len(problem.tokens), generator=torch.Generator().manual_seed(1)).to(device)

    def summed(logprobs: Forward) -> Forward:
        return lambda hidden, weight: (logprobs(hidden, weight) * upstream).sum()

    forms = {OURS: summed(lambda hidden, weight: ops.token_logprobs(hidden, weight, problem.tokens).logprobs)}
    forms.update({name: summed(form) for name, form in problem.peers().items()})
    return with_gradients("token_logprobs", "logprobs-4096-bf16", problem, forms)


def with_gradients(name: str, case: str, problem: Problem, forms: dict[str, Forward]) -> Case:
    def both_ways(form: Forward) -> Callable[..., tuple[torch.Tensor, ...]]:
        def run(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
            loss = form(hidden, weight)
            return (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))

        return run

    inputs = (problem.hidden, problem.weight)
    contenders: dict[str, Run] = {name: Bound(both_ways(form), inputs) for name, form in forms.items()}
    exact = both_ways(forms["torch"])(*(x.detach().float().requires_grad_() for x in inputs))

    def check(name: str, results: Any) -> None:
        """Errors relative to the largest value; the peers' 16-bit logits have errors of some per cent."""
        for result, expected in zip(results, exact, strict=True):
            scale = expected.abs().max()
            tolerance = 1e-2 if name == OURS else 1e-1
            torch.testing.assert_close(result.float() / scale, expected / scale, atol=tolerance, rtol=0)

    def floor(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Only the three products: logits and both gradients."""
        logits = hidden @ weight.T
        return logits @ weight, logits.T @ hidden

    results = sum(x.numel() * x.element_size() for x in inputs)
    narrow = tuple(x.detach() for x in inputs)
    device = problem.hidden.device.type
    # Liger's backward compares its gradient with 1 on the host.
    return Case(
        name, case, torch.bfloat16, contenders, Bound(floor, narrow), check, results, 60.0, device,
        read_back=frozenset({"liger"} & set(contenders)),
    )  # fmt: skip


CASES: dict[str, Callable[..., Case]] = {"logprobs-4096-bf16": _logprobs}
# Hidden states and weights with their gradients; three products.
GRADIENTS = Work(2 * 2 * WIDTH * (ROWS + CLASSES) + 8 * ROWS, 3 * 2 * ROWS * CLASSES * WIDTH, torch.bfloat16)
WORK = {"logprobs-4096-bf16": GRADIENTS}
