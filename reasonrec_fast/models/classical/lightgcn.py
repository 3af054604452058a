"""LightGCN (He et al. 2020, arXiv 2002.02126) on this package's ``aggregate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.arrays import as_index
from reasonrec_fast.data import DataError
from reasonrec_fast.devices import on_device
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.classical.bpr import BPR, BPRConfig
from reasonrec_fast.models.graph_embeddings import propagate
from reasonrec_fast.settings import Whole


@dataclass(frozen=True)
class LightGCNConfig(BPRConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.bpr.BPRConfig`.

    Attributes:
        layers: of propagation; a vector is the mean of layers 0 to ``layers`` (equation 8).
    """

    layers: Whole = 3


class LightGCN(BPR):
    """Embeddings of users and items, propagated over the whole graph of training in every step.

    Users who were not in training (indices from ``U``) are folded in: their vectors are propagated from the items of
    their ``histories``, with no embedding of their own.

    Args:
        config: hyper-parameters.
        device: of the model.

    >>> from reasonrec_fast.data import Histories, Interactions
    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "y"], [1, 1, 1], [1, 2, 3])
    >>> model = LightGCN(LightGCNConfig(dim=4, epochs=2)).fit(data, np.arange(3))
    >>> model.set_histories(Histories.from_lists([[0, 1], [1], [0]])).recommend(np.array([2]), 1).items.tolist()
    [[1]]
    """

    config_type = LightGCNConfig
    config: LightGCNConfig
    edges: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        super().build_parameters(sizes)
        self.register_buffer("edges", torch.empty(2, sizes["edges"], dtype=torch.int64))
        self._graph: InteractionGraph | None = None

    @property
    def serves_new_users(self) -> bool:
        return self.config.layers > 0

    def check_served(self, users: np.ndarray) -> None:
        folded_in = self.histories.num_users if self.serves_new_users else 0
        as_index(users, "users", max(self.sizes["users"], folded_in), error=DataError)

    def prepare(self, users: np.ndarray, items: np.ndarray) -> None:
        self.edges.copy_(torch.from_numpy(np.stack([users, items])))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LightGCN:
        super()._apply(fn, recurse)
        self._graph = None  # built again on the new device
        return self

    @property
    def graph(self) -> InteractionGraph:
        """The graph of training."""
        if self._graph is None:
            self._graph = InteractionGraph.from_edges(
                *self.edges, num_users=self.sizes["users"], num_items=self.sizes["items"]
            )
        return self._graph

    def vectors(self) -> torch.Tensor:
        return propagate(self.graph, self.embedding, self.config.layers)

    def _of_users(self, vectors: torch.Tensor, users: np.ndarray) -> torch.Tensor:
        known = users < len(vectors)
        if known.all() or not self.config.layers:
            return super()._of_users(vectors, users)
        result = vectors.new_empty(len(users), self.config.dim)
        result[on_device(np.flatnonzero(known), self.device)] = super()._of_users(vectors, users[known])
        result[on_device(np.flatnonzero(~known), self.device)] = self._folded_in(users[~known])
        return result

    def _folded_in(self, users: np.ndarray) -> torch.Tensor:
        # As in the graph, a repeated item is one edge.
        layers, histories = self.config.layers, self.histories.select(users).distinct()
        # Layer k of a user is propagated from layer k - 1 of its items; its own layer 0 is zero.
        below = ops.aggregate(self.graph, self.embedding, layers=layers - 1, combine="sum")[self.sizes["users"] :]
        items = on_device(histories.items, self.device)
        rows = on_device(np.repeat(np.arange(len(users)), histories.lengths), self.device)
        degrees = on_device(np.repeat(histories.lengths, histories.lengths), self.device)
        weights = (degrees * self.graph.item_degrees()[items].clamp(min=1)).to(below.dtype).rsqrt()
        summed = below.new_zeros(len(users), below.shape[1]).index_add(0, rows, below[items] * weights[:, None])
        return self.scaled(summed / (layers + 1))
