"""Matrix factorisation trained with BPR (Rendle et al. 2009), and the base of LightGCN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reasonrec_fast.arrays import as_index
from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.data.negatives import NegativeSampler
from reasonrec_fast.devices import on_device, seeded_generator
from reasonrec_fast.models.classical.sampled_softmax import item_cross_entropy
from reasonrec_fast.models.classical.training import GradientConfig, product_dtype, train_by_gradient
from reasonrec_fast.models.classical.vectors import VectorRecommender
from reasonrec_fast.models.graph_embeddings import bpr_loss
from reasonrec_fast.settings import Count, NotNegative, Positive, Whole
from reasonrec_fast.training.progress import Progress

Kind = TypeVar("Kind", bound="BPR")
Triples = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class BPRConfig(GradientConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.training.GradientConfig`.

    Attributes:
        dim: width of the embeddings.
        loss: ``"bpr"``, one negative a positive, or ``"softmax"`` over cosines (sampled softmax, Wu et al. 2022).
        regularisation: weight of the squared embeddings of a batch's triples (equation 15 of LightGCN), halved and
            divided by the batch.
        temperature, negatives: of the softmax; items drawn a batch beside its own targets, 0 for all.
    """

    dim: Count = 64
    loss: Literal["bpr", "softmax"] = "bpr"
    regularisation: NotNegative = 1e-4
    temperature: Positive = 0.1
    negatives: Whole = 1024
    batch: Count = 2048
    epochs: Whole = 300


class BPR(VectorRecommender):
    """One embedding a user and an item; users must have been in training. Negatives are drawn from all that a user has
    not liked in training: what they had and did not like is among them.

    Args:
        config: hyper-parameters.
        device: of the model.

    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "y"], [1, 1, 1], [1, 2, 3])
    >>> BPR(BPRConfig(dim=4, epochs=2)).fit(data, np.arange(3)).recommend(np.array([1]), 1).items.tolist()
    [[0]]
    """

    config_type: ClassVar[type] = BPRConfig
    config: BPRConfig

    def build_parameters(self, sizes: dict[str, int]) -> None:
        generator = seeded_generator(self.config.seed)
        tables = [torch.empty(sizes[name], self.config.dim) for name in ("users", "items")]
        for table in tables:
            nn.init.xavier_uniform_(table, generator=generator)
        self.embedding = nn.Parameter(torch.cat(tables))

    @property
    def serves_new_users(self) -> bool:
        return False

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        histories = Histories.of(data, train)
        users, items = np.repeat(np.arange(data.num_users), histories.lengths), histories.items
        self.build({"users": data.num_users, "items": data.num_items, "edges": len(items)})
        self.set_histories(histories, seen=Histories.seen(data, train))
        self.prepare(users, items)
        sampler = NegativeSampler(histories, data.num_items)
        counts = np.bincount(items, minlength=data.num_items)
        shares = on_device((counts / max(len(users), 1)).astype(np.float32), self.device)
        size = self.config.batch

        def batches(epoch: int) -> Iterator[Triples]:
            generator = np.random.default_rng((self.config.seed, epoch))
            order = generator.permutation(len(users))
            for first in range(0, len(order), size):
                batch = order[first : first + size]
                negatives = sampler.draw(users[batch], 1, generator)[:, 0]
                yield users[batch], items[batch], negatives

        train_by_gradient(
            self,
            batches,
            lambda batch: self._loss(batch, shares),
            validate=None if validation is None else lambda: self.ndcg(data, validation),
            checkpoint=checkpoint,
            progress=progress,
        )

    def prepare(self, users: np.ndarray, items: np.ndarray) -> None:
        """Store what the model needs of the positive training events, ``[E]`` both, before training."""

    def vectors(self) -> torch.Tensor:
        """Vectors of all users, then all items, ``[U + I, D]``."""
        return self.embedding

    def encoded(self) -> tuple[Callable[[np.ndarray], torch.Tensor], torch.Tensor]:
        users, items = self.scaled(self.vectors()).split([self.sizes["users"], self.sizes["items"]])
        return lambda user_indices: self._of_users(users, user_indices), items

    def check_served(self, users: np.ndarray) -> None:
        as_index(users, "users", self.sizes["users"], error=DataError)

    def _of_users(self, vectors: torch.Tensor, users: np.ndarray) -> torch.Tensor:
        return vectors[on_device(users, self.device)]

    def scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors as they are scored: of unit length where the loss is over cosines."""
        return functional.normalize(vectors, dim=-1) if self.config.loss == "softmax" else vectors

    def _loss(self, triples: Triples, shares: torch.Tensor) -> torch.Tensor:
        config, first = self.config, self.sizes["users"]
        user, positive, negative = (on_device(part, self.device) for part in triples)
        vectors = self.vectors()
        if config.loss == "softmax":
            loss = item_cross_entropy(
                vectors[user], vectors[first:], positive, temperature=config.temperature, negatives=config.negatives,
                shares=shares, dtype=product_dtype(self),
            )  # fmt: skip
            batch_rows = torch.cat([user, positive + first])
        else:
            batch_rows = torch.cat([user, positive + first, negative + first])
            of_user, liked, other = vectors[batch_rows].chunk(3)
            loss = bpr_loss(of_user, liked, other)
        size = self.embedding[batch_rows].square().sum() / (2 * len(user))
        return loss + config.regularisation * size
