"""Evidence of a request as of its moment: dense features for the heads and facts for the prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from reasonrec_fast.data.interactions import UNLABELLED, Catalog, Interactions
from reasonrec_fast.data.overlay import Overlaid
from reasonrec_fast.data.timeline import Timeline
from reasonrec_fast.models.optirag.index import PRIOR_EVENTS, EventIndex, running, smoothed
from reasonrec_fast.models.optirag.taste import Taste

DENSE_FEATURES = (
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
"""Columns of :attr:`Evidence.dense_features`, in order."""

RETRIEVED = ("vote", "vote_events", "graph_score", "history_residual")
"""Those that come from the retriever's embeddings; the others are counts of the user and of the item."""

_RECENT = 10
_SHARPNESS = 10.0
"""How fast the weight of an item of the history falls with its cosine to the target."""
_HALF_WEIGHT_COSINE = 0.7
"""A history's residual counts by half once it holds about one item of this cosine to the target."""


@dataclass(frozen=True)
class Evidence:
    """Evidence of ``N`` requests.

    Attributes:
        dense_features: float32 ``[N, len(DENSE_FEATURES)]``.
        votes: likes and all votes on the item among the similar users, int64 ``[N, 2]``.
        neighbours: similar users, nearest first, int64 ``[N, k]`` (-1: none).
        taste: for the item's first ``V`` attribute values, how much more often than usual the user
            (column 0) and the similar users (column 1) liked items that have it, float32 ``[N, V, 2]``;
            NaN where they have no event with the value.
        columns: what a :class:`~reasonrec_fast.models.optirag.CTRStack` adds for its trees, float32 ``[N, T]``; by
            default of no width.
    """

    dense_features: np.ndarray
    votes: np.ndarray
    neighbours: np.ndarray
    taste: np.ndarray
    columns: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.columns is None:
            object.__setattr__(self, "columns", np.zeros((len(self.dense_features), 0), dtype=np.float32))

    def with_columns(self, columns: np.ndarray) -> Evidence:
        """With further columns ``[N, T]`` after those that there are."""
        return replace(self, columns=np.concatenate([self.columns, columns.astype(np.float32)], axis=1))


class EvidenceBuilder:
    """Builds evidence in which everything happened strictly before the request's moment.

    Of the user: all their own labelled events before. Of others: *training* events before. The retriever's embeddings
    are those of its training graph; under a per-user split that graph may hold edges of other users that are later.

    Args:
        table: the requests (rows whose label may be unknown) and what their users did, with the indices of ``index``;
            users and items that are new to it have higher ones.
        index: of the training events, the source of what other users did.
        num_neighbours: similar users who vote.
        ticks: units of time of the table in one unit of the index.
    """

    def __init__(self, table: Interactions, index: EventIndex, num_neighbours: int = 100, ticks: int = 1) -> None:
        self.interactions, self.index, self.num_neighbours, self._ticks = table, index, num_neighbours, ticks
        self.histories = Timeline.of_users(table, np.flatnonzero(table.labels != UNLABELLED))
        values = index.values
        catalog, trained_catalog = table.catalog, index.events.catalog
        if catalog is not trained_catalog:
            values = values.with_changes(_changed_values(catalog, trained_catalog, index.attribute))
        self._own_taste = Taste(self.histories, table.labels, table.items, values)
        self._others_taste = index.taste.with_values(values)

    def build(self, rows: np.ndarray) -> Evidence:
        """Evidence of the requests ``rows``, in their order."""
        dense_features = np.zeros((len(rows), len(DENSE_FEATURES)), dtype=np.float32)
        votes = np.zeros((len(rows), 2), dtype=np.int64)
        neighbours = np.full((len(rows), self.num_neighbours), -1, dtype=np.int64)
        users = self.interactions.users[rows]
        order = np.argsort(users, kind="stable")
        starts = np.flatnonzero(np.diff(users[order], prepend=-1))
        for indices in np.split(order, starts[1:]):
            if len(indices):
                dense_features[indices], votes[indices], neighbours[indices] = self._of_user(rows[indices])
        items, moments = self.interactions.items[rows], self.interactions.timestamps[rows]
        in_index = self.in_index(moments)
        base_rate = self.index.base_rate(in_index)
        taste = np.stack(
            [
                self._own_taste.lift(items, users[:, None], moments, base_rate),
                self._others_taste.lift(items, neighbours, in_index, base_rate),
            ],
            axis=2,
        )
        return Evidence(dense_features, votes, neighbours, taste)

    def in_index(self, moments: np.ndarray) -> np.ndarray:
        """Moments in the index's unit, rounded up: an event of the index is before the result exactly where it is
        before the moment."""
        return moments if self._ticks == 1 else -(-moments // self._ticks)

    def forget_items(self, dense_features: np.ndarray, rows: np.ndarray) -> None:
        """Write into ``dense_features [n, F]`` what requests ``rows`` would have if nobody had rated
        their items."""
        for column, name in enumerate(DENSE_FEATURES):
            if not name.startswith("user_"):
                dense_features[:, column] = 0.0
        dense_features[:, DENSE_FEATURES.index("item_rate")] = self.index.base_rate(
            self.in_index(self.interactions.timestamps[rows])
        )

    @staticmethod
    def forget_retrieved(dense_features: np.ndarray) -> None:
        """Write into ``dense_features [n, len(DENSE_FEATURES)]`` what requests would have without a retriever."""
        dense_features[:, [DENSE_FEATURES.index(name) for name in RETRIEVED]] = 0.0

    def _of_user(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        data = self.interactions
        user, items, moments = int(data.users[rows[0]]), data.items[rows], data.timestamps[rows]
        history = self.histories.all(user)
        past = self.histories.count_before(user, moments)
        labels = data.labels[history]
        likes = running(labels)
        recent = np.maximum(past - _RECENT, 0)

        folded = running(labels[:, None] * self.index.messages(data.items[history]))[past]
        folded = folded / np.sqrt(np.maximum(likes[past], 1.0))[:, None]
        similarity, neighbours = self.index.retriever.similar_users(
            torch.from_numpy(folded.astype(np.float32)),
            self.num_neighbours,
            exclude=torch.full((len(rows),), user if user < self.index.events.num_users else -1),
        )
        dense_features = np.empty((len(rows), len(DENSE_FEATURES)), dtype=np.float32)
        in_index = self.in_index(moments)
        base_rate = self.index.base_rate(in_index)
        dense_features[:, 0] = smoothed(likes[past], past, base_rate)
        dense_features[:, 1] = smoothed(likes[past] - likes[recent], past - recent, base_rate)
        dense_features[:, 2] = np.log1p(past)
        votes = self._vote(dense_features[:, 3:8], user, items, in_index, similarity.numpy(), neighbours.numpy())
        dense_features[:, 8] = (folded * self.index.vectors(items)).sum(1)
        dense_features[:, 9] = self.index.bias(items)
        # How much more or less than usual each item of the history was liked, weighted by its cosine to the target.
        cosine = self.index.directions(items) @ self.index.directions(data.items[history]).T
        weights = np.exp(_SHARPNESS * (cosine - 1)) * (np.arange(len(history)) < past[:, None])
        residual = (weights * (labels - dense_features[:, :1])).sum(1)
        dense_features[:, 10] = residual / (weights.sum(1) + np.exp(_SHARPNESS * (_HALF_WEIGHT_COSINE - 1)))
        return dense_features, votes, neighbours.numpy()

    def _vote(
        self,
        out: np.ndarray,
        user: int,
        items: np.ndarray,
        moments: np.ndarray,
        similarity: np.ndarray,
        neighbours: np.ndarray,
    ) -> np.ndarray:
        """Writes statistics of other users' events with each item before each moment, of all users (columns 0-2) and of
        similar users (3-4); returns likes and events of similar users, int64 ``[n, 2]``."""
        data = self.index.events
        counts = np.zeros((len(items), 2), dtype=np.int64)
        weight = np.zeros(data.num_users, dtype=np.float32)
        base_rate = self.index.base_rate(moments)
        for index, (item, moment) in enumerate(zip(items, moments, strict=True)):
            events = self.index.of_item(item, moment)
            events = events[data.users[events] != user]
            residuals, labels = self.index.residuals[events], data.labels[events]
            out[index, 0] = smoothed(labels.sum(), len(events), base_rate[index])
            out[index, 1] = residuals.sum() / (len(events) + PRIOR_EVENTS)
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


def _changed_values(catalog: Catalog, trained: Catalog, attribute: str) -> dict[int, tuple[str, ...]]:
    """Values by item, of those that are new to the training catalogue or have other values there."""
    column = catalog.attributes.get(attribute)
    if column is None:
        return {}
    if isinstance(column, Overlaid):
        return dict(column.changes)
    before = trained.attributes.get(attribute, [()] * len(trained))
    return {item: values for item, values in enumerate(column) if item >= len(before) or values != before[item]}
