"""token_logprobs, forward and backward, beside forms that hold all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Case, installed
from reasonrec_fast.benchmarking.measure import Run

ROWS, CLASSES, WIDTH = 4096, 49_152, 576
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    hidden: torch.Tensor
    weight: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def make(cls, device: str) -> Problem:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(ROWS, WIDTH, generator=generator).bfloat16().to(device).requires_grad_()
        weight = (torch.randn(CLASSES, WIDTH, generator=generator) * 2 * WIDTH**-0.5).bfloat16()
        tokens = torch.randint(CLASSES, (ROWS,), generator=generator)
        return cls(hidden, weight.to(device).requires_grad_(), tokens.to(device))

    def peers(self) -> dict[str, Forward]:
        """Log-probabilities of the tokens, as others make them from logits."""
        tokens = self.tokens

        def plain(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            logits = torch.nn.functional.linear(hidden, weight)
            return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]

        found: dict[str, Forward] = {"torch": plain, "torch_compile": torch.compile(plain)}
        if installed("trl"):
            from trl.trainer.utils import selective_log_softmax

            found["trl"] = lambda hidden, weight: selective_log_softmax(
                torch.nn.functional.linear(hidden, weight), tokens
            )
        return found


def _logprobs(device: str = "cpu") -> Case:
    problem = Problem.make(device)
    upstream = torch.rand(ROWS, generator=torch.Generator().manual_seed(1)).to(device)

    def summed(logprobs: Forward) -> Forward:
        return lambda hidden, weight: (logprobs(hidden, weight) * upstream).sum()

    forms = {OURS: summed(lambda hidden, weight: ops.token_logprobs(hidden, weight, problem.tokens).logprobs)}
    forms.update({name: summed(form) for name, form in problem.peers().items()})
    return with_gradients("token_logprobs", "logprobs-4096-bf16", problem, forms)


def with_gradients(name: str, case: str, problem: Problem, forms: dict[str, Forward]) -> Case:
    hidden, weight = problem.hidden, problem.weight

    def both_ways(form: Forward, hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = form(hidden, weight)
        return (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))

    contenders: dict[str, Run] = {name: partial(both_ways, form, hidden, weight) for name, form in forms.items()}
    exact = both_ways(forms["torch"], *(x.detach().float().requires_grad_() for x in (hidden, weight)))

    def check(name: str, found: Any) -> None:
        """In shares of the largest value; logits in 16 bits, as peers have them, are off by some per cent."""
        for ours, theirs in zip(found, exact, strict=True):
            scale = theirs.abs().max()
            tolerance = 1e-2 if name == OURS else 1e-1
            torch.testing.assert_close(ours.float() / scale, theirs / scale, atol=tolerance, rtol=0)

    narrow_hidden, narrow_weight = hidden.detach(), weight.detach()

    def floor() -> None:
        """The three products alone: logits and both gradients."""
        logits = narrow_hidden @ narrow_weight.T
        logits @ narrow_weight
        logits.T @ narrow_hidden

    results = (hidden.numel() + weight.numel()) * hidden.element_size()
    return Case(name, case, torch.bfloat16, contenders, floor, check, results, 60.0, hidden.device.type)


CASES: dict[str, Callable[..., Case]] = {"logprobs-4096-bf16": _logprobs}
