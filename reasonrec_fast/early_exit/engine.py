"""Batched inference with early exit: rows that are sure leave the batch, and their prefixes after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reasonrec_fast import ops
from reasonrec_fast.early_exit.backbone import Backbone
from reasonrec_fast.early_exit.heads import ExitHead, exit_layers
from reasonrec_fast.early_exit.layout import PackedLayout, TokenGroup
from reasonrec_fast.ops.exit_confidence import Measure


@dataclass(frozen=True)
class ExitPolicy:
    """When a row leaves.

    Attributes:
        thresholds: for each stratum of requests, the least confidence at each exit but the last (which takes
            everyone); ``inf``: nobody leaves there.
        measure: a measure of ``exit_confidence``.
        trend: leave only where the confidence is at least that of the exit before (OptiRAG-Rec's trend across heads).
    """

    thresholds: tuple[tuple[float, ...], ...]
    measure: Measure = "ratio"
    trend: bool = False


@dataclass(frozen=True)
class Ranked:
    """Scores of ``R`` rows, in the order of the groups given.

    Attributes:
        probability: of yes, float32 ``[R]``.
        depth: layers that the row went through, int64 ``[R]``.
    """

    probability: torch.Tensor
    depth: torch.Tensor


class EarlyExitModel(nn.Module):
    """A backbone with prediction heads after several of its layers.

    Args:
        backbone: the transformer.
        exits: layers (from 1) with a head; the last layer always has one.
        num_numbers: numbers that every head reads beside the hidden state.
        members: ensemble size of each head.
    """

    def __init__(
        self, backbone: Backbone, exits: Sequence[int] | None = None, *, num_numbers: int = 0, members: int = 2
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.exits = exit_layers(backbone.num_layers, exits)
        self.heads: Any = nn.ModuleList(ExitHead(backbone.hidden_size, num_numbers, members) for _ in self.exits)

    def all_exits(
        self, groups: Sequence[TokenGroup], numbers: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> list[ops.ExitStatistics]:
        """Statistics of every row at every exit (differentiable): what training and calibration read.

        Args:
            groups: prefixes and suffixes.
            numbers: float32 ``[R, F]``.
            targets: int64 ``[R]``.
        """
        hidden, layout, rotary = self._start(groups)
        statistics, heads = [], dict(zip(self.exits, self.heads, strict=True))
        for depth in range(1, self.backbone.num_layers + 1):
            hidden = self.backbone.layer(depth - 1, hidden, layout, rotary)
            if depth in heads:
                statistics.append(heads[depth](hidden[0, layout.last], numbers, targets=targets))
        return statistics

    @torch.inference_mode()
    def rank(
        self,
        groups: Sequence[TokenGroup],
        numbers: torch.Tensor | None = None,
        policy: ExitPolicy | None = None,
        strata: torch.Tensor | None = None,
    ) -> Ranked:
        """Probability of yes for every row, each from the first exit that is sure.

        Args:
            groups: prefixes and suffixes.
            numbers: float32 ``[R, F]``.
            policy: when rows leave; None sends all through all layers.
            strata: which row of the policy's thresholds holds for each request, int64 ``[R]``; 0 by default.
        """
        hidden, layout, rotary = self._start(groups)
        rows, device = layout.num_rows, hidden.device
        probability = torch.empty(rows, device=device)
        depths = torch.full((rows,), self.backbone.num_layers, device=device)
        alive, previous = torch.arange(rows, device=device), None
        thresholds = None if policy is None else torch.tensor(policy.thresholds, device=device)
        strata = torch.zeros_like(alive) if strata is None else strata
        for depth in range(1, self.backbone.num_layers + 1):
            hidden = self.backbone.layer(depth - 1, hidden, layout, rotary)
            if depth == self.backbone.num_layers:
                break
            if policy is None or thresholds is None or depth not in self.exits:
                continue
            place = self.exits.index(depth)
            statistics = self.heads[place](
                hidden[0, layout.last],
                None if numbers is None else numbers[alive],
                measure=policy.measure,
                threshold=thresholds[strata[alive], place],
                previous=previous if policy.trend else None,
            )
            route = ops.route_to((~statistics.exit).long(), 2)
            leaving, staying = route.order.tensor_split([int(route.offsets[1])])
            probability[alive[leaving]], depths[alive[leaving]] = statistics.positive_probability[leaving], depth
            alive, previous = alive[staying], statistics.confidence[staying]
            if not len(staying):
                return Ranked(probability, depths)
            if len(leaving):
                places, layout = layout.keep(staying.tolist())
                hidden = hidden[:, places]
                rotary = self.backbone.rotary(hidden, layout)
        last = self.heads[-1](hidden[0, layout.last], None if numbers is None else numbers[alive])
        probability[alive] = last.positive_probability
        return Ranked(probability, depths)

    def _start(self, groups: Sequence[TokenGroup]) -> tuple[torch.Tensor, PackedLayout, dict]:
        ids, layout = PackedLayout.pack(groups, self.backbone.device)
        longest = max(group.prefix + group.width for group in layout.groups)
        if longest > self.backbone.max_length:
            raise ValueError(f"groups: expected at most {self.backbone.max_length} tokens a text; got {longest}")
        hidden = self.backbone.embed(ids)
        return hidden, layout, self.backbone.rotary(hidden, layout)
