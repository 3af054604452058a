"""Base of the sequential models: causal blocks over a user's items, trained to predict every next one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.devices import fork_rng, on_device, seed_rng
from reasonrec_fast.models.classical.sampled_softmax import binary_cross_entropy, item_cross_entropy
from reasonrec_fast.models.classical.training import GradientConfig, product_dtype, train_by_gradient
from reasonrec_fast.models.classical.vectors import VectorRecommender
from reasonrec_fast.settings import Count, Positive, ShareBelowOne, Whole
from reasonrec_fast.training.progress import Progress

_USERS = 256  # whose histories are read at a time


@dataclass(frozen=True)
class SequenceConfig(GradientConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.training.GradientConfig`.

    Attributes:
        dim: width.
        layers, heads: of the transformer.
        dropout: of embeddings, attention and both parts of a block.
        max_length: items of a history that are read, the latest.
        loss: ``"cosine"``, a softmax over the cosines of the user's state and the items; ``"softmax"``, over their
            inner products; ``"bce"``, binary cross-entropy over inner products with drawn negatives.
        temperature: of the softmax over cosines.
        negatives: items drawn as negatives: of a softmax for a batch, beside the batch's own targets, 0 for the whole
            catalogue; of ``"bce"`` for each target.
        item_bias: whether an item has a learned bias, which is added to its score.
    """

    dim: Count = 128
    layers: Count = 2
    heads: Count = 2
    dropout: ShareBelowOne = 0.4
    max_length: Count = 50
    loss: Literal["cosine", "softmax", "bce"] = "cosine"
    temperature: Positive = 0.06
    negatives: Whole = 0
    item_bias: bool = False
    batch: Count = 256
    warmup: Whole = 100
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"heads: expected a divisor of dim {self.dim}; got {self.heads}")
        if self.loss == "bce" and not self.negatives:
            raise ValueError("negatives: expected at least 1 with loss 'bce'; got 0")


class SequenceRecommender(VectorRecommender):
    """Causal blocks over a user's items; an item is scored by its vector and the state after the latest item.

    It has no parameter of any user: every user who has a history can be served (see :meth:`set_histories`); for others
    all scores are 0, or the items' biases.

    Args:
        config: hyper-parameters.
        device: of the model.
    """

    config: SequenceConfig
    bias: torch.Tensor
    shares: torch.Tensor

    # Every model defines:

    @abstractmethod
    def block(self) -> nn.Module:
        """A block, from ``[B, T, D]`` to the same, in which a token reads itself and those before it."""

    # A model may override:

    def build_items(self, sizes: dict[str, int]) -> None:
        """Create what :meth:`item_vectors` reads."""
        self.items = nn.Embedding(sizes["items"], self.config.dim)

    def item_vectors(self) -> torch.Tensor:
        """Vectors of all items, ``[I, D]``: what is read of a history and what is scored."""
        return self.items.weight

    def prepare(self, data: Interactions) -> None:
        """Fill buffers from the data, before training."""

    # Every model has:

    def build_parameters(self, sizes: dict[str, int]) -> None:
        config, cpu = self.config, torch.device("cpu")
        with fork_rng(cpu):
            seed_rng(config.seed, cpu)
            self.build_items(sizes)
            self.positions = nn.Embedding(config.max_length, config.dim)
            self.blocks = nn.ModuleList(self.block() for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.dim)
            self.dropout = nn.Dropout(config.dropout)
            for module in self.children():
                if isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight, std=0.02)
        if config.item_bias:
            self.bias = nn.Parameter(torch.zeros(sizes["items"]))
        # Share of each item among the targets; set by fit, and unused after it.
        self.register_buffer("shares", torch.zeros(sizes["items"]), persistent=False)

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        if not (Histories.of(data, train).lengths >= 2).any():
            raise DataError(
                "train: expected a user with at least two positive events, of which the second is learned; got none"
            )

    def fit_rows(
        self,
        data: Interactions,
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        config, liked = self.config, Histories.of(data, train)
        users = np.flatnonzero(liked.lengths >= 2)
        self.build({"users": data.num_users, "items": data.num_items})
        self.prepare(data)
        self.set_histories(liked, seen=Histories.seen(data, train))
        counts = np.bincount(self.histories.items, minlength=data.num_items)
        self.shares.copy_(torch.from_numpy(counts / max(len(self.histories.items), 1)))

        train_by_gradient(
            self,
            lambda epoch: self._batches(users, np.random.default_rng((config.seed, epoch))),
            self.loss,
            validate=None if validation is None else lambda: self.ndcg(data, validation),
            checkpoint=checkpoint,
            progress=progress,
        )

    def loss(self, users: np.ndarray) -> torch.Tensor:
        """Mean loss of every next item in the histories of ``users``."""
        config, vectors = self.config, self.item_vectors()
        rows, sizes = self.histories.latest(users, config.max_length + 1)
        inside = np.arange(rows.shape[1] - 1) < sizes[:, None] - 1
        states = self(on_device(rows[:, :-1], self.device), vectors)
        states = states.flatten(0, 1)[on_device(np.flatnonzero(inside), self.device)]
        targets = on_device(rows[:, 1:][inside], self.device)
        bias = self.bias if config.item_bias else None
        if config.loss == "bce":
            return binary_cross_entropy(states, vectors, targets, bias=bias, negatives=config.negatives)
        cosine = config.loss == "cosine"
        return item_cross_entropy(
            states, vectors, targets, temperature=config.temperature if cosine else 1.0, cosine=cosine, bias=bias,
            negatives=config.negatives, shares=self.shares, dtype=product_dtype(self),
        )  # fmt: skip

    def forward(self, items: torch.Tensor, vectors: torch.Tensor | None = None) -> torch.Tensor:
        """States after each item, ``[B, T, D]``, of histories ``[B, T]`` that begin at the left.

        Args:
            items: indices.
            vectors: of all items, where they were computed before.
        """
        vectors = self.item_vectors() if vectors is None else vectors
        x = functional.embedding(items, vectors) * self.config.dim**0.5 + self.positions.weight[: items.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def encoded(self) -> tuple[Callable[[np.ndarray], torch.Tensor], torch.Tensor]:
        vectors = self.item_vectors()
        items = self._scaled(vectors)
        if self.config.item_bias:  # as one more component, which is 1 in every state
            items = torch.cat([items, self.bias[:, None]], dim=1)
        return lambda users: self._of_users(users, vectors), items

    def _scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors as they are scored."""
        return functional.normalize(vectors, dim=-1) if self.config.loss == "cosine" else vectors

    def _of_users(self, users: np.ndarray, vectors: torch.Tensor) -> torch.Tensor:
        states = vectors.new_zeros(len(users), self.config.dim)
        lengths = self.histories.lengths[self.histories.known(users)]
        order = np.argsort(lengths, kind="stable")  # similar lengths together, so that little is padded
        order = order[lengths[order] > 0]  # without a history the state is zero
        for first in range(0, len(order), _USERS):
            rows = order[first : first + _USERS]
            items, sizes = self.histories.latest(users[rows], self.config.max_length)
            outputs = self(on_device(items, self.device), vectors)
            last = outputs[torch.arange(len(rows), device=self.device), on_device(sizes - 1, self.device)]
            states[on_device(rows, self.device)] = self._scaled(last)
        return torch.cat([states, states.new_ones(len(users), 1)], dim=1) if self.config.item_bias else states

    def _batches(self, users: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Users in random batches of about equal lengths, so that little is padded."""
        size = self.config.batch
        mixed = generator.permutation(users)
        batches = []
        for first in range(0, len(mixed), size * 32):
            part = mixed[first : first + size * 32]
            part = part[np.argsort(self.histories.lengths[part], kind="stable")]
            batches += [part[start : start + size] for start in range(0, len(part), size)]
        return (batches[number] for number in generator.permutation(len(batches)))
