"""SASRec (Kang and McAuley 2018, arXiv 1808.09781) with a softmax over the catalogue."""

from __future__ import annotations

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
from reasonrec_fast.models.classical.sampled_softmax import cosine_cross_entropy
from reasonrec_fast.models.classical.sequence_blocks import LiGRBlock, SASRecBlock
from reasonrec_fast.models.classical.training import GradientConfig, product_dtype, train_by_gradient
from reasonrec_fast.models.classical.vectors import VectorRecommender
from reasonrec_fast.settings import Count, Positive, ShareBelowOne, Whole
from reasonrec_fast.training.progress import Progress

_USERS = 256  # whose histories are read at a time


@dataclass(frozen=True)
class SASRecConfig(GradientConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.training.GradientConfig`.

    Attributes:
        dim: width.
        layers, heads: of the transformer.
        block: ``"sasrec"`` or ``"ligr"``.
        dropout: of embeddings, attention and both parts of a block.
        max_length: items of a history that are read, the latest.
        temperature: of the softmax over cosines of the user's state and the items.
        negatives: items drawn as negatives for a batch, beside the batch's own targets; 0 for the whole catalogue.
    """

    dim: Count = 128
    layers: Count = 2
    heads: Count = 2
    block: Literal["sasrec", "ligr"] = "sasrec"
    dropout: ShareBelowOne = 0.4
    max_length: Count = 50
    temperature: Positive = 0.06
    negatives: Whole = 0
    batch: Count = 256
    warmup: Whole = 100
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"heads: expected a divisor of dim {self.dim}; got {self.heads}")


class SASRec(VectorRecommender):
    """A causal transformer over a user's items; the next item is the one whose vector is nearest to its state.

    It has no parameter of any user: every user who has a history can be served (see :meth:`set_histories`); for others
    all scores are 0.

    Args:
        config: hyper-parameters.
        device: of the model.
    """

    config_type = SASRecConfig
    config: SASRecConfig
    shares: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        config = self.config
        block = {"sasrec": SASRecBlock, "ligr": LiGRBlock}[config.block]
        cpu = torch.device("cpu")
        with fork_rng(cpu):
            seed_rng(config.seed, cpu)
            self.items = nn.Embedding(sizes["items"], config.dim)
            self.positions = nn.Embedding(config.max_length, config.dim)
            self.blocks = nn.ModuleList(block(config.dim, config.heads, config.dropout) for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.dim)
            self.dropout = nn.Dropout(config.dropout)
            for embedding in (self.items, self.positions):
                nn.init.normal_(embedding.weight, std=0.02)
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
        """Mean cross-entropy of every next item in the histories of ``users``."""
        config = self.config
        rows, sizes = self.histories.latest(users, config.max_length + 1)
        inside = np.arange(rows.shape[1] - 1) < sizes[:, None] - 1
        states = self(on_device(rows[:, :-1], self.device))
        return cosine_cross_entropy(
            states.flatten(0, 1)[on_device(np.flatnonzero(inside), self.device)],
            self.items.weight,
            on_device(rows[:, 1:][inside], self.device),
            temperature=config.temperature,
            negatives=config.negatives,
            shares=self.shares,
            dtype=product_dtype(self),
        )

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """States after each item, ``[B, T, D]``, of histories ``[B, T]`` that begin at the left."""
        x = self.items(items) * self.config.dim**0.5 + self.positions.weight[: items.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def encoded(self) -> tuple[Callable[[np.ndarray], torch.Tensor], torch.Tensor]:
        return self._of_users, functional.normalize(self.items.weight, dim=-1)

    def _of_users(self, users: np.ndarray) -> torch.Tensor:
        states = self.items.weight.new_zeros(len(users), self.config.dim)
        lengths = self.histories.lengths[self.histories.known(users)]
        order = np.argsort(lengths, kind="stable")  # similar lengths together, so that little is padded
        order = order[lengths[order] > 0]  # without a history the state is zero
        for first in range(0, len(order), _USERS):
            rows = order[first : first + _USERS]
            items, sizes = self.histories.latest(users[rows], self.config.max_length)
            outputs = self(on_device(items, self.device))
            last = outputs[torch.arange(len(rows), device=self.device), on_device(sizes - 1, self.device)]
            states[on_device(rows, self.device)] = functional.normalize(last, dim=-1)
        return states

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
