"""A weighted sum of item-kNN models: by order, by common users, by titles and by attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models.classical.attribute_knn import AttributeKNN
from reasonrec_fast.models.classical.closed_form import ClosedFormRecommender
from reasonrec_fast.models.classical.directed_knn import DirectedItemKNN
from reasonrec_fast.models.classical.item_to_item import ItemKNN
from reasonrec_fast.models.classical.text_knn import TextKNN
from reasonrec_fast.settings import NotNegative, check_settings

_PARTS: dict[str, type[ClosedFormRecommender]] = {
    "directed": DirectedItemKNN, "titles": TextKNN, "attributes": AttributeKNN, "items": ItemKNN,
}  # fmt: skip


@dataclass(frozen=True)
class HybridKNNConfig:
    """Weights of the parts; one of weight 0 is left out. They were chosen on validation events of Amazon beauty.

    Attributes:
        directed: of :class:`~reasonrec_fast.models.classical.directed_knn.DirectedItemKNN`.
        titles: of :class:`~reasonrec_fast.models.classical.text_knn.TextKNN`.
        attributes: of :class:`~reasonrec_fast.models.classical.attribute_knn.AttributeKNN`.
        items: of :class:`~reasonrec_fast.models.classical.item_to_item.ItemKNN`.
    """

    directed: NotNegative = 1.0
    titles: NotNegative = 0.8
    attributes: NotNegative = 0.2
    items: NotNegative = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        if not any(self.weights.values()):
            raise ValueError("directed, titles, attributes, items: expected a weight above 0; got 0 for all")

    @property
    def weights(self) -> dict[str, float]:
        """By name of the part."""
        return {name: getattr(self, name) for name in _PARTS}


class HybridKNN(ClosedFormRecommender):
    """Adds the scores of several kNN models, each divided by the largest that it gives the user (a weighted hybrid,
    Burke 2002).

    Fitted in seconds, without epochs. What nobody had after the user's items is ranked by its words, so that items
    without events have a place. All parts have their defaults.

    Args:
        config: hyper-parameters.
        device: of the parts.

    >>> data = Interactions.from_columns(["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"], [1] * 5, range(5))
    >>> model = HybridKNN(HybridKNNConfig(titles=0, attributes=0)).fit(data)
    >>> model.recommend(["c"], 1).items.tolist()
    [['y']]
    """

    config_type = HybridKNNConfig
    config: HybridKNNConfig

    def __init__(self, config: Any = None, *, device: torch.device | str | None = None) -> None:
        super().__init__(config, device=device)
        self._parts = {name: _PARTS[name](device=self.device) for name, weight in self.config.weights.items() if weight}

    def build_parameters(self, sizes: dict[str, int]) -> None:
        """It has none of its own: its parts have theirs."""

    def check_events(self, data: Interactions, train: np.ndarray) -> None:
        for name, part in self._parts.items():
            try:
                part.check_events(data, train)
            except DataError as error:
                raise DataError(f"{name}: expected data that this part can read, or the weight 0; {error}") from error

    def fit_closed_form(self, data: Interactions, train: np.ndarray) -> None:
        for part in self._parts.values():
            part.fit(data, train)
        self.build({"users": data.num_users, "items": data.num_items})

    def set_histories(self, histories: Histories, *, seen: Histories | None = None) -> HybridKNN:
        super().set_histories(histories, seen=seen)
        for part in self._parts.values():
            part.set_histories(self.histories, seen=self.seen)
        return self

    def scores(self, users: np.ndarray) -> torch.Tensor:
        users = self.user_indices(users)
        total = torch.zeros(len(users), self.sizes["items"], device=self.device)
        for name, part in self._parts.items():
            scores = part.scores(users).float()
            largest = scores.abs().amax(1, keepdim=True).clamp(min=1e-30)
            total += self.config.weights[name] * (scores / largest)
        return total

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> HybridKNN:
        super()._apply(fn, recurse)
        for part in self._parts.values():
            part._apply(fn)
        return self

    def _write_more(self, folder: Path) -> None:
        for name, part in self._parts.items():
            part.save_pretrained(folder / name)

    def _restore(self, folder: Path, sizes: dict[str, int]) -> None:
        for name in self._parts:
            self._parts[name] = _PARTS[name].from_pretrained(folder / name, device=self.device)
        if len({part.training_digest for part in self._parts.values()}) > 1:
            raise ValueError(f"{folder}: expected parts of the same training; got those of several")
        self.build(sizes)
