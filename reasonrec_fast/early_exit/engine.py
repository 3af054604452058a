"""Batched inference with early exit: rows that are sure leave the batch, and their prefixes after them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from reasonrec_fast import ops
from reasonrec_fast.devices import explain_out_of_memory, on_device, to_device
from reasonrec_fast.early_exit.batching import num_tokens
from reasonrec_fast.early_exit.heads import ExitHead, exit_layers
from reasonrec_fast.early_exit.policy import ExitPolicy
from reasonrec_fast.early_exit.scores import RowScores
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.layer_graphs import layer_graphs
from reasonrec_fast.lm.layout import TokenGroup, text_groups
from reasonrec_fast.lm.packed_batch import PackedBatch
from reasonrec_fast.lm.prefix_cache import PrefixCache
from reasonrec_fast.ops.exit_confidence import Measure

Result = TypeVar("Result")


class EarlyExitModel(nn.Module):
    """A backbone with prediction heads after several of its layers, on the device of the backbone.

    Features, targets and strata may come from any device. Initial heads are drawn on the CPU, alike for every device.

    Args:
        backbone: the transformer.
        exits: layers (from 1) with a head; the last layer always has one.
        num_features: features that every head reads beside the hidden state.
        ensemble_size: of each head; by default 2, and 1 with an offset.
        num_answers: ``L`` answers or levels that every head chooses from.
        offset: whether exits begin at depth 0, with a logit that comes with every row, and the heads correct it.

    Attributes:
        cuda_graphs: whether :meth:`predict` may record its layers on a GPU (sizes that come again are replayed, many
            times faster where batches are small); False runs them one by one.
    """

    def __init__(
        self,
        backbone: Decoder,
        exits: Sequence[int] | None = None,
        *,
        num_features: int = 0,
        ensemble_size: int | None = None,
        num_answers: int = 2,
        offset: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.exits = exit_layers(backbone.num_layers, exits)
        self.offset, self.num_answers = offset, num_answers
        ensemble_size = (1 if offset else 2) if ensemble_size is None else ensemble_size
        heads = (
            ExitHead(backbone.hidden_size, num_features, ensemble_size, num_answers=num_answers, offset=offset)
            for _ in self.exits
        )
        self.heads: Any = nn.ModuleList(heads).to(backbone.device)
        self.cuda_graphs = True

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of every exit, in the order of a policy's thresholds: with an offset the first is 0."""
        return (0, *self.exits) if self.offset else self.exits

    def all_exits(
        self,
        groups: Sequence[TokenGroup],
        features: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        skip: Collection[int] = (),
        measure: Measure | None = None,
        offset: torch.Tensor | None = None,
    ) -> list[ops.ExitStatistics]:
        """Statistics of every row at every head (differentiable): what training and calibration read.

        Args:
            groups: prefixes and suffixes.
            features: float32 ``[R, F]``.
            targets: int64 ``[R]``.
            skip: layers (from 1, not the last) that are left out, as layer dropout does.
            measure: of the confidence; by default :func:`~reasonrec_fast.early_exit.heads.default_measure`.
            offset: logits of depth 0, float32 ``[R]``, or ``[R, L]`` for more than two answers.
        """
        groups, device = text_groups(groups), self.backbone.device
        with explain_out_of_memory(_words(groups), device):
            given, targets = (to_device(features, device), to_device(offset, device)), to_device(targets, device)
            return self._at_exits(
                groups, skip, lambda head, hidden: head(hidden, *given, measure=measure, targets=targets)
            )

    def all_log_odds(
        self,
        groups: Sequence[TokenGroup],
        features: torch.Tensor | None = None,
        skip: Collection[int] = (),
        offset: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Log-odds ``[R, K]`` of the second of two answers by every member of every head
        (:meth:`~reasonrec_fast.early_exit.heads.ExitHead.log_odds`). The arguments are those of :meth:`all_exits`."""
        groups, device = text_groups(groups), self.backbone.device
        with explain_out_of_memory(_words(groups), device):
            given = to_device(features, device), to_device(offset, device)
            return self._at_exits(groups, skip, lambda head, hidden: head.log_odds(hidden, *given))

    def all_distributions(
        self,
        groups: Sequence[TokenGroup],
        features: torch.Tensor | None = None,
        measure: Measure | None = None,
        offset: torch.Tensor | None = None,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Probabilities of all answers ``[R, L]`` and the confidence ``[R]`` of every row at every head. The arguments
        are those of :meth:`all_exits`."""
        groups, device = text_groups(groups), self.backbone.device
        with explain_out_of_memory(_words(groups), device):
            given = to_device(features, device), to_device(offset, device)
            return self._at_exits(
                groups,
                (),
                lambda head, hidden: (
                    head.distribution(hidden, *given),
                    head(hidden, *given, measure=measure).confidence,
                ),
            )

    def _at_exits(
        self, groups: Sequence[TokenGroup], skip: Collection[int], read: Callable[[Any, torch.Tensor], Result]
    ) -> list[Result]:
        """What ``read`` makes of every head and the hidden states ``[R, D]`` of the last tokens there."""
        batch, results = PackedBatch(self.backbone, groups), []
        heads = dict(zip(self.exits, self.heads, strict=True))
        last = on_device(batch.layout.last, self.backbone.device)
        for depth in range(1, self.backbone.num_layers + 1):
            if depth == self.backbone.num_layers:
                results.append(read(heads[depth], batch.peek_last(depth)))
                break
            if depth not in skip:
                batch.layer(depth)
            if depth in heads:
                results.append(read(heads[depth], batch.hidden[last]))
        return results

    @torch.inference_mode()
    def predict(
        self,
        groups: Sequence[TokenGroup],
        features: torch.Tensor | None = None,
        policy: ExitPolicy | None = None,
        strata: torch.Tensor | None = None,
        cache: PrefixCache | None = None,
        offset: torch.Tensor | None = None,
    ) -> RowScores:
        """Scores of every row, each from the first exit that is sure.

        All of the rows are read: who leaves at depth 0 is not among them
        (:meth:`~reasonrec_fast.early_exit.policy.ExitPolicy.leaves_at_zero`).

        Args:
            groups: prefixes and suffixes.
            features: float32 ``[R, F]``.
            policy: when rows leave; None sends all through all layers.
            strata: which row of the policy's thresholds holds for each request, int64 ``[R]``; 0 by default.
            cache: of prefixes, kept from call to call.
            offset: logits of depth 0, as in :meth:`all_exits`.

        Raises:
            ValueError: a policy of another number of exits.
        """
        groups, device = text_groups(groups), self.backbone.device
        if policy is not None:
            policy.check_exits(len(self.depths))
        with explain_out_of_memory(_words(groups), device):
            given = to_device(features, device), to_device(offset, device)
            return self._predict(groups, given, policy, to_device(strata, device), cache)

    def _predict(
        self,
        groups: Sequence[TokenGroup],
        given: tuple[torch.Tensor | None, torch.Tensor | None],
        policy: ExitPolicy | None,
        strata: torch.Tensor | None,
        cache: PrefixCache | None,
    ) -> RowScores:
        graphs = layer_graphs(self.backbone) if self.cuda_graphs else None
        batch = PackedBatch(self.backbone, groups, cache, graphs)
        rows, device = batch.layout.num_rows, self.backbone.device
        scores = RowScores.empty(rows, self.num_answers, device)
        scores.depth.fill_(self.backbone.num_layers)
        alive, previous = torch.arange(rows, device=device), None
        thresholds = None
        if policy is not None:
            behind = len(self.depths) - len(self.exits)  # the threshold of depth 0, for those who are here
            thresholds = on_device(np.array(policy.thresholds, dtype=np.float32)[:, behind:], device)
        strata = torch.zeros_like(alive) if strata is None else strata
        for index, depth in enumerate(self.exits[:-1] if policy is not None else ()):
            assert policy is not None and thresholds is not None
            head, inputs = self.heads[index], [batch.advance(depth), *_of_rows(given, alive)]
            statistics = head(
                *inputs,
                measure=policy.measure,
                threshold=thresholds[strata[alive], index],
                previous=previous if policy.trend else None,
            )
            route = ops.route_to((~statistics.exit).long(), 2)
            # The one copy to the host of an exit: the next layers' launch sizes depend on who stays.
            stay, *order = torch.cat([route.offsets[1:2], route.order]).tolist()
            leaving, staying = route.order.tensor_split([stay])
            gone = alive[leaving]
            scores.probability[gone] = statistics.positive_probability[leaving]
            if scores.distribution is not None:
                scores.distribution[gone] = head.distribution(*inputs)[leaving]
            # A number that is assigned to positions would be copied, and waited for.
            scores.depth.index_fill_(0, gone, depth)
            alive, previous = alive[staying], statistics.confidence[staying]
            if stay == rows:
                break
            rows -= stay
            batch.keep(np.array(order[stay:]))
        else:
            inputs = [batch.advance(self.backbone.num_layers), *_of_rows(given, alive)]
            scores.probability[alive] = self.heads[-1](*inputs).positive_probability
            if scores.distribution is not None:
                scores.distribution[alive] = self.heads[-1].distribution(*inputs)
        batch.end()
        return scores


def _of_rows(given: tuple[torch.Tensor | None, ...], rows: torch.Tensor) -> list[torch.Tensor | None]:
    return [None if values is None else values[rows] for values in given]


def _words(groups: Sequence[TokenGroup]) -> str:
    """A batch in words."""
    rows = sum(len(suffixes) for _, suffixes in groups)
    tokens = sum(map(num_tokens, groups))
    return f"groups: a batch of {rows} rows with {tokens} tokens"
