"""token_logprobs and policy_loss, forward and backward, beside forms that hold all logits or chunks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Case, installed
from reasonrec_fast.benchmarking.measure import Run

ROWS, CLASSES, WIDTH = 4096, 49_152, 576
SEQUENCES = 16
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Problem:
    hidden: torch.Tensor
    weight: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def make(cls) -> _Problem:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(ROWS, WIDTH, generator=generator).bfloat16().requires_grad_()
        weight = (torch.randn(CLASSES, WIDTH, generator=generator) * 2 * WIDTH**-0.5).bfloat16().requires_grad_()
        return cls(hidden, weight, torch.randint(CLASSES, (ROWS,), generator=generator))

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


def _logprobs() -> Case:
    problem = _Problem.make()
    upstream = torch.rand(ROWS, generator=torch.Generator().manual_seed(1))

    def summed(logprobs: Forward) -> Forward:
        return lambda hidden, weight: (logprobs(hidden, weight) * upstream).sum()

    forms = {OURS: summed(lambda hidden, weight: ops.token_logprobs(hidden, weight, problem.tokens).logprobs)}
    forms.update({name: summed(form) for name, form in problem.peers().items()})
    return _case("token_logprobs", "logprobs-4096-bf16", problem, forms)


def _policy() -> Case:
    problem, generator = _Problem.make(), torch.Generator().manual_seed(2)
    tokens = problem.tokens
    with torch.no_grad():
        old = ops.token_logprobs(problem.hidden, problem.weight, tokens).logprobs
    old = old + 0.05 * torch.randn(ROWS, generator=generator)
    advantages = torch.randn(SEQUENCES, generator=generator)
    ids = torch.arange(SEQUENCES).repeat_interleave(ROWS // SEQUENCES)

    def grpo(logprobs: Forward) -> Forward:
        """The loss over log-probabilities, as it is written without a fused operator."""

        def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            ratio, advantage = (logprobs(hidden, weight).float() - old).exp(), advantages[ids]
            losses = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            return losses.view(SEQUENCES, -1).mean(1).mean()

        return loss

    forms: dict[str, Forward] = {
        OURS: lambda hidden, weight: ops.policy_loss(hidden, weight, tokens, advantages, old, sequence_ids=ids)[0]
    }
    forms.update({name: grpo(form) for name, form in problem.peers().items()})
    if installed("liger_kernel"):
        forms["liger"] = _liger(tokens, advantages, old)
    return _case("policy_loss", "policy-4096-bf16", problem, forms)


def _case(name: str, case: str, problem: _Problem, forms: dict[str, Forward]) -> Case:
    hidden, weight = problem.hidden, problem.weight

    def with_gradients(form: Forward) -> Run:
        def run() -> tuple[torch.Tensor, ...]:
            loss = form(hidden, weight)
            return (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))

        return run

    contenders = {name: with_gradients(form) for name, form in forms.items()}
    exact = contenders["torch"]()

    def check(name: str, found: Any) -> None:
        for ours, theirs in zip(found, exact, strict=True):
            scale = theirs.float().abs().max()
            torch.testing.assert_close(ours.float() / scale, theirs.float() / scale, atol=2e-2, rtol=0)

    narrow_hidden, narrow_weight = hidden.detach(), weight.detach()

    def floor() -> None:
        """The three products alone: logits and both gradients."""
        logits = narrow_hidden @ narrow_weight.T
        logits @ narrow_weight
        logits.T @ narrow_hidden

    results = (hidden.numel() + weight.numel()) * hidden.element_size()
    return Case(name, case, torch.bfloat16, contenders, floor, check, results, seconds=60.0)


def _liger(tokens: torch.Tensor, advantages: torch.Tensor, old: torch.Tensor) -> Forward:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    shape = (SEQUENCES, ROWS // SEQUENCES)
    loss = LigerFusedLinearGRPOLoss(beta=0.0, epsilon_low=0.2, epsilon_high=0.2, loss_type="grpo", use_ref_model=False)

    def run(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return loss(
            hidden.view(*shape, -1), weight, tokens.view(shape), torch.ones(shape), advantages,
            old_per_token_logps=old.view(shape),
        )[0]  # fmt: skip

    return run


CASES: dict[str, Callable[[], Case]] = {"logprobs-4096-bf16": _logprobs, "policy-4096-bf16": _policy}
