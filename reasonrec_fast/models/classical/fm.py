"""Factorisation machine (Rendle 2010) over users, items, item attributes and histories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reasonrec_fast.devices import seeded_generator
from reasonrec_fast.models.classical.ctr import CTRConfig, CTRModel
from reasonrec_fast.models.classical.fields import FieldEmbeddings
from reasonrec_fast.settings import NotNegative


@dataclass(frozen=True)
class FMConfig(CTRConfig):
    """Hyper-parameters of :class:`~reasonrec_fast.models.classical.ctr.CTRConfig`, with other defaults."""

    learning_rate: NotNegative = 3e-3
    weight_decay: NotNegative = 0.3


class FM(CTRModel):
    """Log-odds from a bias, a weight a field and the products of all pairs of fields' factors (equation 1).

    Args:
        config: hyper-parameters.
        device: of the model.

    >>> from reasonrec_fast.data import Interactions
    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "x"], [1, 0, 1], [1, 2, 3])
    >>> FM(FMConfig(dim=4, epochs=2)).fit(data, np.arange(3)).score(np.array([1]), np.array([1])).shape
    (1,)
    """

    config_type = FMConfig

    def build_parameters(self, sizes: dict[str, int]) -> None:
        # The first number of a vector is the field's weight, the others are its factors.
        self.fields = FieldEmbeddings(sizes, 1 + self.config.dim, history=self.config.history > 0)
        self.bias = nn.Parameter(torch.zeros(()))
        generator = seeded_generator(self.config.seed)
        nn.init.normal_(self.fields.table.detach()[:, 1:], std=0.05, generator=generator)

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        summed = vectors.sum(1)
        pairs = summed[:, 1:].square().sum(-1) - vectors[:, :, 1:].square().sum((1, 2))
        return self.bias + summed[:, 0] + 0.5 * pairs

    @torch.inference_mode()
    def scores(self, users: np.ndarray) -> torch.Tensor:
        users = self.user_indices(users)
        # The logits of users' fields and of items' fields alone, and the product of their sums.
        of_users = self.fields.of_users(users, self._liked(users))
        of_items = self.fields.of_items(np.arange(self.sizes["items"]))
        products = of_users[:, :, 1:].sum(1) @ of_items[:, :, 1:].sum(1).T
        return self.logits(of_users)[:, None] + (self.logits(of_items) - self.bias) + products
