"""policy_loss, forward and backward, against implementations that materialise all logits or chunks of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Case, installed
from reasonrec_fast.benchmarking.token_logprobs import GRADIENTS, Forward, Problem, with_gradients

SEQUENCES = 16


def _policy(device: str = "cpu", tiny: bool = False) -> Case:
    problem, generator = Problem.make(device, tiny), torch.Generator().manual_seed(2)
    tokens, rows = problem.tokens, len(problem.tokens)
    with torch.no_grad():
        old = ops.token_logprobs(problem.hidden, problem.weight, tokens).logprobs
    # Ratios on both sides of the clip but not near it: 16-bit rounding must not change which tokens are clipped.
    ratios = torch.tensor([0.6, 0.9, 1.0, 1.1, 1.5])[torch.randint(5, (rows,), generator=generator)]
    old = old - ratios.log().to(device)
    advantages = torch.randn(SEQUENCES, generator=generator).to(device)
    ids = torch.arange(SEQUENCES, device=device).repeat_interleave(rows // SEQUENCES)

    def grpo(logprobs: Forward) -> Forward:
        """The loss from log-probabilities, as written without a fused operator."""

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
    return with_gradients("policy_loss", "policy-4096-bf16", problem, forms)


def _liger(tokens: torch.Tensor, advantages: torch.Tensor, old: torch.Tensor) -> Forward:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    shape = (SEQUENCES, len(tokens) // SEQUENCES)
    loss = LigerFusedLinearGRPOLoss(beta=0.0, epsilon_low=0.2, epsilon_high=0.2, loss_type="grpo", use_ref_model=False)

    def run(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return loss(
            hidden.view(*shape, -1), weight, tokens.view(shape), torch.ones(shape, device=hidden.device), advantages,
            old_per_token_logps=old.view(shape),
        )[0]  # fmt: skip

    return run


CASES: dict[str, Callable[..., Case]] = {"policy-4096-bf16": _policy}
WORK = {"policy-4096-bf16": GRADIENTS}
