"""Fused operators: contract, reference, dispatch, autograd and shape function of each in a file of its name."""

from reasonrec_fast.ops.aggregate import aggregate
from reasonrec_fast.ops.exit_confidence import ExitStatistics, exit_confidence
from reasonrec_fast.ops.packed_attention import packed_attention
from reasonrec_fast.ops.policy_loss import PolicyStatistics, group_advantages, policy_loss
from reasonrec_fast.ops.route import Route, combine, dispatch, route, route_to
from reasonrec_fast.ops.token_logprobs import TokenStatistics, token_logprobs
from reasonrec_fast.ops.topk import TopK, topk

__all__ = [
    "ExitStatistics",
    "PolicyStatistics",
    "Route",
    "TokenStatistics",
    "TopK",
    "aggregate",
    "combine",
    "dispatch",
    "exit_confidence",
    "group_advantages",
    "packed_attention",
    "policy_loss",
    "route",
    "route_to",
    "token_logprobs",
    "topk",
]
