"""Items like those of the user by their titles, as a sentence encoder reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from reasonrec_fast.data import Interactions
from reasonrec_fast.lm.text_encoder import WIDTH
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.models.classical.vectors import VectorRecommender, decayed_mean
from reasonrec_fast.models.item_texts import check_texts, item_vectors
from reasonrec_fast.settings import Share, check_settings


@dataclass(frozen=True)
class TextKNNConfig:
    """Hyper-parameters.

    Attributes:
        decay: weight of a history's item relative to that of the next later one.
        attributes: whether texts have the values of attributes after the title.
    """

    decay: Share = 0.5
    attributes: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


class TextKNN(ClosedFormRecommender, VectorRecommender):
    """Scores an item by the cosines of its title with those of the user's items.

    An item is the embedding of its text by all-MiniLM-L6-v2, less the mean of all, scaled to unit length
    (:func:`~reasonrec_fast.models.item_texts.item_vectors`). A user is the mean of the vectors of their items, weighted
    by ``decay ** age``, where the latest item has the age 0. Items without a text score 0, which is about the mean. No
    event is read but to know the histories, so that items without any are scored as the others.

    A saved model holds the vectors: the encoder's package is needed by ``fit`` alone.

    Args:
        config: hyper-parameters.
        device: of the model and the encoder.
    """

    config_type = TextKNNConfig
    config: TextKNNConfig
    vectors: torch.Tensor

    def build_parameters(self, sizes: dict[str, int]) -> None:
        self.register_buffer("vectors", torch.zeros(sizes["items"], WIDTH))

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        check_texts(data.catalog, attributes=self.config.attributes)

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        self.build({"users": data.num_users, "items": data.num_items})
        vectors = item_vectors(data.catalog, attributes=self.config.attributes, device=self.device)
        self.vectors.copy_(functional.normalize(vectors, dim=-1))

    def encoded(self) -> tuple[Callable[[np.ndarray], torch.Tensor], torch.Tensor]:
        return lambda users: decayed_mean(self.vectors, self.histories.select(users), self.config.decay), self.vectors
