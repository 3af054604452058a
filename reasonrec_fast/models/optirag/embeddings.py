"""The retriever's embeddings: LightGCN's propagation, trained in seconds with explicit dislikes among the negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reasonrec_fast.devices import on_device, seeded_generator
from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.models.graph_embeddings import bpr_loss, propagate
from reasonrec_fast.settings import Count, NotNegative, Share, Whole, check_settings


@dataclass(frozen=True)
class EmbeddingConfig:
    """Hyper-parameters.

    Attributes:
        dim: embedding width.
        layers: propagation layers; the output is the mean of layers 0 to ``layers`` (equation 8).
        steps: Adam steps, each over ``batch`` pairs.
        batch: (user, liked, other) triples a step.
        learning_rate, weight_decay: Adam's rate, and the L2 weight on the triples' layer-0 embeddings.
        disliked_share: share of triples whose other item is an item that the user disliked (the rest are unseen items).
        seed: of the initial embeddings and of the sampling.
    """

    dim: Count = 64
    layers: Whole = 3
    steps: Count = 200
    batch: Count = 8192
    learning_rate: NotNegative = 0.02
    weight_decay: NotNegative = 1e-4
    disliked_share: Share = 0.5
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)


class GraphEmbeddings(nn.Module):
    """Embeddings of users and items, trained with BPR on a graph of likes (LightGCN, arXiv 2002.02126).

    Args:
        graph: the likes; the embeddings are where it is, and move with it (:meth:`~torch.nn.Module.to`).
        config: hyper-parameters.

    >>> graph = InteractionGraph.from_edges([0, 0, 1], [0, 1, 1])
    >>> model = GraphEmbeddings(graph, EmbeddingConfig(dim=4, steps=2, batch=4)).fit()
    >>> [tuple(part.shape) for part in model.embeddings()]
    [(2, 4), (2, 4)]
    """

    def __init__(self, graph: InteractionGraph, config: EmbeddingConfig | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.config = config or EmbeddingConfig()
        generator = seeded_generator(self.config.seed)
        nodes = graph.num_users + graph.num_items
        initial = 0.1 * torch.randn(nodes, self.config.dim, generator=generator)
        self.embedding = nn.Parameter(initial.to(graph.device))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GraphEmbeddings:
        super()._apply(fn, recurse)
        self.graph = self.graph.to(self.embedding.device)
        return self

    def embeddings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Final embeddings of users ``[U, D]`` and items ``[I, D]``."""
        joined = propagate(self.graph, self.embedding, self.config.layers)
        return joined[: self.graph.num_users], joined[self.graph.num_users :]

    def fit(self, disliked: InteractionGraph | None = None) -> GraphEmbeddings:
        """Train with BPR (equation 15).

        Args:
            disliked: edges of explicit dislikes over the same users and items; without them all negatives are
                drawn from the whole catalogue.
        """
        config = self.config
        if not self.graph.num_edges:
            return self  # there are no likes, so there is nothing to learn
        sampler = _TripleSampler(self.graph, disliked, config.disliked_share, config.seed)
        # Not on the step loop: OneCycleLR moves Adam's momentum with the rate, which the loop's schedules do not.
        optimizer = torch.optim.Adam([self.embedding], lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
        offset = self.graph.num_users
        for _ in range(config.steps):
            triples = [on_device(part, self.embedding.device) for part in sampler.draw(config.batch)]
            user, liked, other = triples[0], triples[1] + offset, triples[2] + offset
            final = propagate(self.graph, self.embedding, config.layers)
            size = sum(self.embedding[index].pow(2).sum() for index in (user, liked, other))
            loss = bpr_loss(final[user], final[liked], final[other]) + config.weight_decay * size / (2 * config.batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return self

    @torch.no_grad()
    def score(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Inner products of pairs, float32 ``[N]``, where the embeddings are."""
        user_embeddings, item_embeddings = self.embeddings()
        users, items = users.to(self.embedding.device), items.to(self.embedding.device)
        return (user_embeddings[users] * item_embeddings[items]).sum(-1)


class _TripleSampler:
    """Draws (user, liked, other) with numpy: the liked edge uniformly, the other by the configured mixture."""

    def __init__(
        self, graph: InteractionGraph, disliked: InteractionGraph | None, disliked_share: float, seed: int
    ) -> None:
        graph = graph.to("cpu")
        users, items = graph.edges()
        self.users, self.items = users.numpy(), items.numpy()
        self.num_items = graph.num_items
        self.disliked_share = disliked_share
        self.generator = np.random.default_rng(seed)
        if disliked is None:
            disliked = InteractionGraph.from_edges([], [], num_users=graph.num_users, num_items=graph.num_items)
        disliked = disliked.to("cpu")
        self.disliked_start = disliked.user_indptr[:-1].long().numpy()
        self.disliked_count = disliked.user_degrees().numpy()
        self.disliked_items = np.append(disliked.user_indices.long().numpy(), 0)

    def draw(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        edge = self.generator.integers(len(self.users), size=size)
        user = self.users[edge]
        unseen = self.generator.integers(self.num_items, size=size)
        count = self.disliked_count[user]
        picked = self.disliked_start[user] + (self.generator.random(size) * count).astype(np.int64)
        use_disliked = (count > 0) & (self.generator.random(size) < self.disliked_share)
        other = np.where(use_disliked, self.disliked_items[np.where(use_disliked, picked, -1)], unseen)
        return user, self.items[edge], other
