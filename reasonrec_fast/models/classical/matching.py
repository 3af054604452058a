"""Tables in a fitted model's own indices: users and items matched by their identifiers."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from reasonrec_fast.data import UNLABELLED, Catalog, DataError, Histories, Interactions
from reasonrec_fast.data.interactions import check_like
from reasonrec_fast.models.classical.identifiers import Identifiers

_logger = logging.getLogger("reasonrec_fast")


def match_events(data: Interactions, users: Identifiers, items: Identifiers, like: float | None) -> Interactions:
    """Events in the indices of ``users`` and ``items``.

    Users who are not among ``users`` get the next indices. Events of items that are not among ``items`` are left out,
    and the log says how many.

    Args:
        data: the events, in indices of their own.
        users, items: the identifiers of a model.
        like: the rating from which on an event was a like when the model was fitted; None without ratings.

    Raises:
        DataError: none of the items is known, or likes from another rating on.

    >>> data = Interactions.from_columns(["b", "c"], ["y", "x"], [1, 1], [1, 2])
    >>> matched = match_events(data, Identifiers(["a", "b"], "users"), Identifiers(["x", "y"], "items"), None)
    >>> matched.users.tolist(), matched.items.tolist(), list(matched.user_ids)
    ([1, 2], [1, 0], ['a', 'b', 'c'])
    """
    check_like(data, like)
    item_indices = np.array([items.index.get(name, -1) for name in data.catalog.ids], dtype=np.int64)
    rows = np.flatnonzero(item_indices[data.items] >= 0)
    if len(data) and not len(rows):
        raise DataError(f"data: expected items that the model knows; got {data.catalog.ids[0]!r} and others")
    if len(rows) < len(data):
        _logger.warning("%d of %d events are of items that the model does not know, and are left out",
                        len(data) - len(rows), len(data))  # fmt: skip
    index = dict(users.index)
    user_indices = np.array([index.setdefault(name, len(index)) for name in data.user_ids], dtype=np.int64)
    kept = data.take(rows)
    return replace(
        kept,
        users=user_indices[kept.users],
        items=item_indices[kept.items],
        user_ids=list(index),
        catalog=Catalog(items.ids, items.ids),
    )


def updated_histories(
    histories: Histories, seen: Histories, data: Interactions, matched: Interactions
) -> tuple[Histories, Histories]:
    """Liked and seen items after a table has replaced those of its users; other users keep theirs.

    Args:
        histories, seen: before, of the model's users.
        data: the table.
        matched: what :func:`match_events` made of it.
    """
    rows, index = np.arange(len(matched)), Identifiers(matched.user_ids, "users").index
    # From data, not from matched: a user all of whose items are unknown to the model ends with an empty history.
    users = np.unique(data.users[data.labels != UNLABELLED])
    replaced = np.array([index[data.user_ids[user]] for user in users], dtype=np.int64)
    return (
        histories.replaced(replaced, Histories.of(matched, rows), matched.num_users),
        seen.replaced(replaced, Histories.seen(matched, rows), matched.num_users),
    )
