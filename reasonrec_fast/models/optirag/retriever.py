"""The GCN retriever: users and items as embeddings of the training graph (OptiRAG-Rec, GCN-Retriever)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.classical.bias import Bias
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig, GraphEmbeddings


@dataclass(frozen=True)
class Retriever:
    """Item embeddings and the graph of likes that they were trained on.

    A user's embedding is one propagation of the embeddings of their liked items, computed where it is needed, for users
    of the training events and new ones alike: new users need no refitting. All tensors are on the CPU, where evidence
    is built.

    Attributes:
        graph: likes among the training events.
        item_embeddings: float32 ``[I, D]``; zero for items without a training event.
        item_bias: log-odds of a like that the item itself adds, float32 ``[I]``; zero for items without a training
            event.
        user_embeddings: float32 ``[U, D]``; zero for users without a liked item.
    """

    graph: InteractionGraph
    item_embeddings: torch.Tensor
    item_bias: torch.Tensor
    user_embeddings: torch.Tensor

    @classmethod
    def train(
        cls,
        interactions: Interactions,
        rows: np.ndarray,
        config: EmbeddingConfig | None = None,
        item_vectors: torch.Tensor | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> Retriever:
        """Train LightGCN on the likes among ``rows``, with the dislikes as half of its negatives, and item biases.

        Args:
            interactions, rows: the events to learn from.
            config: LightGCN's settings.
            item_vectors: float32 ``[I, D]``; taken as they are instead of LightGCN's, for retrieval by text.
            device: where LightGCN trains.
        """
        sizes = {"num_users": interactions.num_users, "num_items": interactions.num_items}

        def graph_of(label: int) -> InteractionGraph:
            chosen = rows[interactions.labels[rows] == label]
            return InteractionGraph.from_edges(interactions.users[chosen], interactions.items[chosen], **sizes)

        likes, dislikes = graph_of(1), graph_of(0)
        seen = (likes.item_degrees() + dislikes.item_degrees()) > 0
        bias = torch.zeros(interactions.num_items)
        if likes.num_edges and dislikes.num_edges:
            bias = torch.from_numpy(Bias(device="cpu").fit(interactions, rows).item_bias()).float()
        if item_vectors is not None:
            return cls.from_items(likes, item_vectors.cpu(), bias * seen)
        model = GraphEmbeddings(likes.to(device), config).fit(dislikes)
        with torch.no_grad():
            _, items = model.embeddings()
        return cls.from_items(likes, items.cpu() * seen[:, None], bias * seen)

    @classmethod
    def from_items(cls, graph: InteractionGraph, item_embeddings: torch.Tensor, item_bias: torch.Tensor) -> Retriever:
        """A retriever from a graph, and embeddings and biases of its items."""
        zeros = item_embeddings.new_zeros(graph.num_users, item_embeddings.shape[1])
        users, _ = ops.aggregate(graph, (zeros, item_embeddings), layers=1)
        return cls(graph, item_embeddings, item_bias, users)

    def item_messages(self) -> torch.Tensor:
        """What an item contributes to a user who likes it: its embedding over the root of its degree, ``[I, D]``."""
        return self.item_embeddings * self.graph.item_degrees().clamp(min=1).rsqrt()[:, None]

    def fold_in(self, liked: torch.Tensor) -> torch.Tensor:
        """Embedding ``[D]`` of a user who likes the items ``liked`` (int64 ``[n]``); zero for an empty list."""
        return self.item_messages()[liked].sum(0) * max(liked.numel(), 1) ** -0.5

    def similar_users(
        self, queries: torch.Tensor, k: int, *, exclude: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``k`` users most similar by cosine to each query.

        Args:
            queries: user embeddings ``[B, D]``.
            exclude: for each query a user index that must not be returned, int64 ``[B]`` (-1 for none).

        Returns:
            similarities ``[B, k]`` and users ``[B, k]``; slots without a user, and users without embedding, hold
            similarity 0 and index -1.
        """
        exclusions = None
        if exclude is not None:
            counts = (exclude >= 0).long()
            exclusions = (torch.cat([counts.new_zeros(1), counts.cumsum(0)]), exclude[exclude >= 0])
        result = ops.topk(torch.nn.functional.normalize(queries), self._user_directions, k, exclude=exclusions)
        empty = (result.indices < 0) | (result.values <= 0)
        return result.values.masked_fill(empty, 0.0), result.indices.masked_fill(empty, -1)

    @cached_property
    def _user_directions(self) -> torch.Tensor:
        return torch.nn.functional.normalize(self.user_embeddings)
