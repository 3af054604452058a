"""LightGCN (He et al. 2020, arXiv 2002.02126) on this package's ``aggregate``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.classical.bpr import BPR, BPRConfig


@dataclass(frozen=True)
class LightGCNConfig(BPRConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.bpr.BPRConfig`.

    Attributes:
        layers: of propagation; a vector is the mean of layers 0 to ``layers`` (equation 8).
    """

    layers: int = 3


class LightGCN(BPR):
    """Embeddings that are propagated over the graph of training, whole in every step.

    Users whose histories are not those of training are folded in: their vector comes from their items' embeddings.

    Args:
        config: hyper-parameters.
        device: where the model lives.
    """

    config_type = LightGCNConfig
    config: LightGCNConfig

    def prepare(self) -> None:
        users = np.repeat(np.arange(self.histories.num_users), self.histories.lengths)
        self.graph = InteractionGraph.from_edges(
            users, self.histories.items, num_users=self.sizes["users"], num_items=self.sizes["items"]
        ).to(self.device)

    def vectors(self) -> torch.Tensor:
        return ops.aggregate(self.graph, self.embedding, layers=self.config.layers, combine="mean")
