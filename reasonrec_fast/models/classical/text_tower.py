"""A sequential model that reads items' titles, so that items without events are ranked among the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reasonrec_fast.data import Interactions
from reasonrec_fast.lm.text_encoder import WIDTH
from reasonrec_fast.models.classical.sequence import SequenceConfig, SequenceRecommender
from reasonrec_fast.models.classical.sequence_blocks import SASRecBlock
from reasonrec_fast.models.item_texts import check_texts, item_vectors
from reasonrec_fast.settings import Count


@dataclass(frozen=True)
class TextTowerConfig(SequenceConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.sequence.SequenceConfig`.

    Attributes:
        hidden: width of the perceptron between an item's embedding and its vector.
        attributes: whether texts have the values of attributes after the title.
        item_embedding: whether an item has a vector of its own, which starts at zero, added to that of its text.
    """

    hidden: Count = 512
    attributes: bool = False
    item_embedding: bool = False
    layers: Count = 1


class TextTower(SequenceRecommender):
    """SASRec over titles: an item's vector is learned from its embedding by all-MiniLM-L6-v2, which stays as it is.

    Without ``item_embedding`` it is learned from nothing else, and items without a text have the vector zero: their
    cosines are 0.

    A saved model holds the embeddings: the encoder's package is needed by ``fit`` alone.

    Args:
        config: hyper-parameters.
        device: of the model and the encoder.
    """

    config_type = TextTowerConfig
    config: TextTowerConfig
    texts: torch.Tensor

    def block(self) -> nn.Module:
        return SASRecBlock(self.config.dim, self.config.heads, self.config.dropout)

    def build_items(self, sizes: dict[str, int]) -> None:
        config = self.config
        self.register_buffer("texts", torch.zeros(sizes["items"], WIDTH))
        self.project = nn.Sequential(
            nn.Linear(WIDTH, config.hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.dim)
        )
        if config.item_embedding:
            self.own = nn.Parameter(torch.zeros(sizes["items"], config.dim))

    def item_vectors(self) -> torch.Tensor:
        vectors = self.project(self.texts) * (self.texts != 0).any(1, keepdim=True)
        return vectors + self.own if self.config.item_embedding else vectors

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        super().check_events(data, train)
        check_texts(data.catalog, attributes=self.config.attributes)

    def prepare(self, data: Interactions) -> None:
        vectors = item_vectors(data.catalog, attributes=self.config.attributes, device=self.device)
        self.texts.copy_(functional.normalize(vectors, dim=-1))
