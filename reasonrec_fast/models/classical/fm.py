"""Factorisation machine (Rendle 2010) over users, items and item attributes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.evaluation import auc


@dataclass(frozen=True)
class FMConfig:
    """Hyper-parameters.

    Attributes:
        dim: width of the factors.
        epochs: at most; training stops when validation AUC has not risen for ``patience`` epochs.
        patience: see above.
        batch: events a step.
        learning_rate, weight_decay: of AdamW (the decay acts on the factors).
        seed: of the initial factors and of the order.
    """

    dim: int = 16
    epochs: int = 30
    patience: int = 3
    batch: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 0.3
    seed: int = 0


class FM(nn.Module):
    """Log-odds from a bias, linear weights and pairwise products of factors (equation 1 of the paper).

    The fields of an event are its user, its item and the item's attribute values; several values of one attribute
    share a weight of one.

    Args:
        config: hyper-parameters.
    """

    def __init__(self, config: FMConfig | None = None) -> None:
        super().__init__()
        self.config = config or FMConfig()

    def fit(self, interactions: Interactions, train: np.ndarray, validation: np.ndarray) -> FM:
        """Train on rows ``train``; keep the epoch with the best AUC on rows ``validation``."""
        config = self.config
        torch.manual_seed(config.seed)
        self._index_features(interactions)
        self.bias = nn.Parameter(torch.zeros(()))
        self.linear = nn.Embedding(self.num_features, 1)
        self.factors = nn.Embedding(self.num_features, config.dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.normal_(self.factors.weight, std=0.05)
        optimizer = torch.optim.AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        generator = np.random.default_rng(config.seed)
        labels = torch.from_numpy(interactions.labels).float()
        best, best_state, waited = -1.0, self.state_dict(), 0
        for _ in range(config.epochs):
            for rows in np.array_split(generator.permutation(train), max(len(train) // config.batch, 1)):
                odds = self(interactions.users[rows], interactions.items[rows])
                loss = nn.functional.binary_cross_entropy_with_logits(odds, labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            scores = self.score(interactions.users[validation], interactions.items[validation])
            reached = auc(interactions.labels[validation], scores)
            waited += 1
            if reached > best:
                best, best_state, waited = reached, copy.deepcopy(self.state_dict()), 0
            if waited >= config.patience:
                break
        self.load_state_dict(best_state)
        return self

    def forward(self, users: np.ndarray, items: np.ndarray) -> torch.Tensor:
        """Log-odds ``[N]``."""
        index = torch.cat([torch.from_numpy(users)[:, None], self.item_features[items]], 1)
        weight = torch.cat([torch.ones(len(users), 1), self.item_weights[items]], 1)[..., None]
        factors = self.factors(index) * weight
        pairs = factors.sum(1).square().sum(-1) - factors.square().sum((1, 2))
        return self.bias + (self.linear(index) * weight).sum((1, 2)) + 0.5 * pairs

    @torch.no_grad()
    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Log-odds, float32 ``[N]``."""
        return torch.cat(
            [self(u, i) for u, i in zip(np.array_split(users, 16), np.array_split(items, 16), strict=True)]
        ).numpy()

    def _index_features(self, interactions: Interactions) -> None:
        """Feature indices and weights of every item, padded to the longest list: ``[I, F]`` each."""
        offset = interactions.num_users + interactions.num_items
        lists: list[list[tuple[int, float]]] = [
            [(interactions.num_users + item, 1.0)] for item in range(interactions.num_items)
        ]
        for column in interactions.catalog.attributes.values():
            values = {value: place for place, value in enumerate(sorted({v for entry in column for v in entry}))}
            for item, entry in enumerate(column):
                lists[item] += [(offset + values[value], 1.0 / len(entry)) for value in entry]
            offset += len(values)
        self.num_features = offset
        width = max(map(len, lists))
        padded = np.array([entry + [(0, 0.0)] * (width - len(entry)) for entry in lists])
        self.item_features = torch.from_numpy(padded[..., 0].astype(np.int64))
        self.item_weights = torch.from_numpy(padded[..., 1].astype(np.float32))
