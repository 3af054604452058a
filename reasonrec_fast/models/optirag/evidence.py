"""What the retriever knows of a request, as of its moment: numbers for the heads and facts for the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reasonrec_fast.data.interactions import UNLABELLED, Interactions
from reasonrec_fast.data.timeline import Timeline
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.taste import Taste, value_table

NUMBERS = (
    "user_rate",
    "user_recent_rate",
    "user_events",
    "item_rate",
    "item_residual",
    "item_events",
    "vote",
    "vote_events",
    "graph_score",
    "item_bias",
    "history_residual",
)
"""Columns of :attr:`Evidence.numbers`, in order."""

RETRIEVED = ("vote", "vote_events", "graph_score", "history_residual")
"""Those that come from the retriever's embeddings; the others are counts of the user and of the item."""

_RECENT = 10
_PRIOR_EVENTS = 5.0
_PRIOR_OF_BASE_RATE = 100.0
_SHARPNESS = 10.0
"""How fast the weight of an item of the history falls with its cosine to the target."""
_ALIKE = 0.7
"""A history needs about one item of this cosine before its verdict counts by half."""


@dataclass(frozen=True)
class Evidence:
    """Evidence of ``N`` requests.

    Attributes:
        numbers: float32 ``[N, len(NUMBERS)]``.
        votes: likes and all votes on the item among the similar users, int64 ``[N, 2]``.
        neighbours: similar users, nearest first, int64 ``[N, k]`` (-1: none).
        taste: for the item's first ``V`` attribute values, how much more often than usual the user
            (column 0) and the similar users (column 1) liked items that have it, float32 ``[N, V, 2]``;
            NaN where they met none.
    """

    numbers: np.ndarray
    votes: np.ndarray
    neighbours: np.ndarray
    taste: np.ndarray


class EvidenceBuilder:
    """Builds evidence in which everything happened strictly before the request's moment.

    Of the user: all their own labelled events before. Of others: *training* events before. The retriever's embeddings
    are those of its training graph; under a per-user split that graph may hold edges of other users that are later.

    Args:
        interactions: every event, and the requests (rows whose label may be unknown).
        train_rows: the rows that others may learn from.
        retriever: embeddings over the same users and items.
        num_neighbours: similar users who vote.
        attribute: of the items, whose values :attr:`Evidence.taste` is about; unknown to the catalogue: all NaN.
    """

    def __init__(
        self,
        interactions: Interactions,
        train_rows: np.ndarray,
        retriever: Retriever,
        num_neighbours: int = 100,
        attribute: str = "genres",
    ) -> None:
        self.interactions = interactions
        self.retriever = retriever
        self.num_neighbours = num_neighbours
        labelled = np.flatnonzero(interactions.labels != UNLABELLED)
        self.histories = Timeline.of_users(interactions, labelled)
        self.others = Timeline.of_users(interactions, train_rows)
        self.votes = Timeline.of_items(interactions, train_rows)
        self._train_times = interactions.timestamps[train_rows]
        self._train_likes = _running(interactions.labels[train_rows])
        self.residuals = self._residuals(train_rows)
        values = value_table(interactions.catalog.attributes.get(attribute), interactions.num_items)
        self._own_taste = Taste(self.histories, interactions.labels, interactions.items, values)
        self._others_taste = Taste(self.others, interactions.labels, interactions.items, values)
        self._messages = retriever.item_messages().numpy()
        self._items = retriever.item_embeddings.numpy()
        self._bias = retriever.item_bias.numpy()
        self._directions = torch.nn.functional.normalize(retriever.item_embeddings).numpy()

    def build(self, rows: np.ndarray) -> Evidence:
        """Evidence of the requests ``rows``, in their order."""
        numbers = np.zeros((len(rows), len(NUMBERS)), dtype=np.float32)
        votes = np.zeros((len(rows), 2), dtype=np.int64)
        neighbours = np.full((len(rows), self.num_neighbours), -1, dtype=np.int64)
        users = self.interactions.users[rows]
        order = np.argsort(users, kind="stable")
        starts = np.flatnonzero(np.diff(users[order], prepend=-1))
        for places in np.split(order, starts[1:]):
            if len(places):
                numbers[places], votes[places], neighbours[places] = self._of_user(rows[places])
        items, moments = self.interactions.items[rows], self.interactions.timestamps[rows]
        base_rate = self.base_rate(moments)
        taste = np.stack(
            [
                self._own_taste.lift(items, users[:, None], moments, base_rate),
                self._others_taste.lift(items, neighbours, moments, base_rate),
            ],
            axis=2,
        )
        return Evidence(numbers, votes, neighbours, taste)

    def forget_items(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Write into ``numbers [n, len(NUMBERS)]`` what requests ``rows`` would have if nobody had rated the item."""
        for column, name in enumerate(NUMBERS):
            if not name.startswith("user_"):
                numbers[:, column] = 0.0
        numbers[:, NUMBERS.index("item_rate")] = self.base_rate(self.interactions.timestamps[rows])

    @staticmethod
    def forget_retrieved(numbers: np.ndarray) -> None:
        """Write into ``numbers [n, len(NUMBERS)]`` what requests would have without a retriever."""
        numbers[:, [NUMBERS.index(name) for name in RETRIEVED]] = 0.0

    def base_rate(self, moments: np.ndarray) -> np.ndarray:
        """Share of likes among all training events strictly before each moment, drawn to a half while they are few."""
        past = np.searchsorted(self._train_times, moments, side="left")
        return (self._train_likes[past] + 0.5 * _PRIOR_OF_BASE_RATE) / (past + _PRIOR_OF_BASE_RATE)

    def _residuals(self, rows: np.ndarray) -> np.ndarray:
        """Label minus the user's own smoothed like rate before it, for every training row (0 elsewhere)."""
        data = self.interactions
        residuals = np.zeros(len(data), dtype=np.float32)
        for user in np.unique(data.users[rows]):
            events = self.others.all(user)
            labels = data.labels[events]
            before = np.arange(len(events))
            likes = np.cumsum(labels) - labels
            residuals[events] = labels - _smoothed(likes, before, self.base_rate(data.timestamps[events]))
        return residuals

    def _of_user(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        data = self.interactions
        user, items, moments = int(data.users[rows[0]]), data.items[rows], data.timestamps[rows]
        history = self.histories.all(user)
        past = self.histories.count_before(user, moments)
        labels = data.labels[history]
        likes = _running(labels)
        recent = np.maximum(past - _RECENT, 0)

        folded = _running(labels[:, None] * self._messages[data.items[history]])[past]
        folded = folded / np.sqrt(np.maximum(likes[past], 1.0))[:, None]
        similarity, neighbours = self.retriever.similar_users(
            torch.from_numpy(folded.astype(np.float32)),
            self.num_neighbours,
            exclude=torch.full((len(rows),), user),
        )
        numbers = np.empty((len(rows), len(NUMBERS)), dtype=np.float32)
        base_rate = self.base_rate(moments)
        numbers[:, 0] = _smoothed(likes[past], past, base_rate)
        numbers[:, 1] = _smoothed(likes[past] - likes[recent], past - recent, base_rate)
        numbers[:, 2] = np.log1p(past)
        votes = self._vote(numbers[:, 3:8], user, items, moments, similarity.numpy(), neighbours.numpy())
        numbers[:, 8] = (folded * self._items[items]).sum(1)
        numbers[:, 9] = self._bias[items]
        # The history item by item: liked more or less than usual, weighted by likeness to the target.
        alike = self._directions[items] @ self._directions[data.items[history]].T
        weights = np.exp(_SHARPNESS * (alike - 1)) * (np.arange(len(history)) < past[:, None])
        surprise = (weights * (labels - numbers[:, :1])).sum(1)
        numbers[:, 10] = surprise / (weights.sum(1) + np.exp(_SHARPNESS * (_ALIKE - 1)))
        return numbers, votes, neighbours.numpy()

    def _vote(
        self,
        out: np.ndarray,
        user: int,
        items: np.ndarray,
        moments: np.ndarray,
        similarity: np.ndarray,
        neighbours: np.ndarray,
    ) -> np.ndarray:
        """What others made of each item before each moment: everyone (columns 0-2), similar users (3-4)."""
        data = self.interactions
        counts = np.zeros((len(items), 2), dtype=np.int64)
        weight = np.zeros(data.num_users, dtype=np.float32)
        base_rate = self.base_rate(moments)
        for index, (item, moment) in enumerate(zip(items, moments, strict=True)):
            events = self.votes.before(item, moment)
            events = events[data.users[events] != user]
            residuals, labels = self.residuals[events], data.labels[events]
            out[index, 0] = _smoothed(labels.sum(), len(events), base_rate[index])
            out[index, 1] = residuals.sum() / (len(events) + _PRIOR_EVENTS)
            out[index, 2] = np.log1p(len(events))
            near = neighbours[index][neighbours[index] >= 0]
            weight[near] = similarity[index, : len(near)]
            weights = weight[data.users[events]]
            voting = weights > 0
            counts[index] = labels[voting].sum(), voting.sum()
            out[index, 3] = (weights * residuals).sum() / (weights.sum() + 1.0)
            out[index, 4] = np.log1p(counts[index, 1])
            weight[near] = 0.0
        return counts


def _running(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ..., n entries."""
    return np.concatenate([np.zeros_like(values[:1], shape=(1, *values.shape[1:])), np.cumsum(values, axis=0)])


def _smoothed(likes: Any, events: Any, base_rate: Any) -> Any:
    return (likes + _PRIOR_EVENTS * base_rate) / (events + _PRIOR_EVENTS)
