"""Statistics of the training events: computed once, and shared by all requests and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.data.timeline import Timeline
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.taste import ItemValues, Taste

PRIOR_EVENTS = 5.0
_PRIOR_OF_BASE_RATE = 100.0


class EventIndex:
    """Training events by user and by item, with their running counts, and the retriever's vectors.

    Items that are new to it have indices from ``num_items`` on: they have no ratings, and their vectors are zero.

    Args:
        events: the training events alone, all labelled.
        retriever: trained on them, or on part of them.
        attribute: of the items, whose values :attr:`~reasonrec_fast.models.optirag.evidence.Evidence.taste` is about.
    """

    def __init__(self, events: Interactions, retriever: Retriever, attribute: str) -> None:
        self.events, self.retriever, self.attribute = events, retriever, attribute
        self.by_user, self.by_item = Timeline.of_users(events), Timeline.of_items(events)
        self._likes = running(events.labels)
        self.residuals = self._residuals()
        self.values = ItemValues.of_column(events.catalog.attributes.get(attribute), events.num_items)
        self.taste = Taste(self.by_user, events.labels, events.items, self.values)
        self._messages = _with_zero_row(retriever.item_messages())
        self._vectors = _with_zero_row(retriever.item_embeddings)
        self._directions = _with_zero_row(torch.nn.functional.normalize(retriever.item_embeddings))
        self._bias = np.append(retriever.item_bias.numpy(), np.float32(0))

    def messages(self, items: np.ndarray) -> np.ndarray:
        """What items contribute to users who like them, float32 ``[N, D]``."""
        return self._messages[self._row(items)]

    def vectors(self, items: np.ndarray) -> np.ndarray:
        """Embeddings of items, float32 ``[N, D]``."""
        return self._vectors[self._row(items)]

    def directions(self, items: np.ndarray) -> np.ndarray:
        """Embeddings of items as unit vectors, float32 ``[N, D]``."""
        return self._directions[self._row(items)]

    def bias(self, items: np.ndarray) -> np.ndarray:
        """Log-odds of a like that the items themselves add, float32 ``[N]``."""
        return self._bias[self._row(items)]

    def of_item(self, item: int, moment: int) -> np.ndarray:
        """Rows of an item's events strictly before a moment, oldest first."""
        return self.by_item.before(item, moment) if item < self.events.num_items else np.zeros(0, dtype=np.int64)

    def of_user(self, user: int, moment: int) -> np.ndarray:
        """Rows of a user's events strictly before a moment, oldest first."""
        return self.by_user.before(user, moment) if user < self.events.num_users else np.zeros(0, dtype=np.int64)

    def base_rate(self, moments: np.ndarray) -> np.ndarray:
        """Share of likes among all events strictly before each moment, shrunk towards 0.5 while they are few."""
        past = np.searchsorted(self.events.timestamps, moments, side="left")
        return (self._likes[past] + 0.5 * _PRIOR_OF_BASE_RATE) / (past + _PRIOR_OF_BASE_RATE)

    def _row(self, items: np.ndarray) -> np.ndarray:
        """Rows of items; that of all new items is the last, of zeros."""
        return np.minimum(items, self.events.num_items)

    def _residuals(self) -> np.ndarray:
        """Label minus the user's own smoothed like rate before it, of every event."""
        line, data = self.by_user, self.events
        labels = data.labels[line.rows]
        sums = running(labels)
        begins = np.repeat(line.indptr[:-1], np.diff(line.indptr))
        before = np.arange(len(labels)) - begins
        likes = sums[:-1] - sums[begins]
        residuals = np.zeros(len(data), dtype=np.float32)
        residuals[line.rows] = labels - smoothed(likes, before, self.base_rate(line.times))
        return residuals


def running(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ..., n entries."""
    return np.concatenate([np.zeros_like(values[:1], shape=(1, *values.shape[1:])), np.cumsum(values, axis=0)])


def smoothed(likes: Any, events: Any, base_rate: Any) -> Any:
    """Like rates, shrunk towards a base rate while events are few."""
    return (likes + PRIOR_EVENTS * base_rate) / (events + PRIOR_EVENTS)


def _with_zero_row(vectors: torch.Tensor) -> np.ndarray:
    """With a row of zeros at the end."""
    return np.concatenate([vectors.numpy(), np.zeros_like(vectors.numpy(), shape=(1, vectors.shape[1]))])
