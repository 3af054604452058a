"""Splits by time: by user, global, leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from reasonrec_fast.arrays import as_count, as_rows
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Interactions

SplitKind = Literal["user_time", "global_time", "leave_one_out"]


@dataclass(frozen=True)
class Split:
    """Row indices of :class:`Interactions`; each part is ascending and hence in time order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_by_time(
    interactions: Interactions,
    kind: SplitKind = "user_time",
    *,
    validation: float = 0.1,
    test: float = 0.2,
) -> Split:
    """Split the events into training, validation and test parts that are in time order within each user.

    Args:
        interactions: the events.
        kind: ``"user_time"`` splits each user's own events (by default the first 70 % training, next 10 % validation,
            last 20 % test); other users' training events may then be later than a user's test events.
            ``"global_time"`` splits all events at two moments. ``"leave_one_out"`` uses each user's last event for
            test and the one before for validation (users with fewer than three events are in training only).
        validation, test: shares of the events, for the first two kinds.

    Raises:
        DataError: a share outside (0, 1), shares that leave no training part, or an unknown kind.

    >>> events = Interactions.from_columns(["a"] * 10, range(10), [1, 0] * 5, range(10))
    >>> [len(part) for part in (lambda s: (s.train, s.validation, s.test))(split_by_time(events))]
    [7, 1, 2]
    """
    for name, share in (("validation", validation), ("test", test)):
        if isinstance(share, bool) or not isinstance(share, int | float | np.number):
            raise DataError(f"{name}: expected a share in (0, 1); got {share!r}")
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise DataError(f"validation, test: expected shares in (0, 1) with a sum below 1; got {validation}, {test}")
    n = len(interactions)
    if kind == "global_time":
        train_end, validation_end = _cuts(np.array([n]), validation, test)
        rank, first, second = np.arange(n), train_end.repeat(n), validation_end.repeat(n)
    elif kind in ("user_time", "leave_one_out"):
        counts = np.bincount(interactions.users, minlength=interactions.num_users)
        order = np.argsort(interactions.users, kind="stable")
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        rank = np.empty(n, dtype=np.int64)
        rank[order] = np.arange(n) - starts.repeat(counts)
        if kind == "user_time":
            train_end, validation_end = _cuts(counts, validation, test)
        else:
            is_long_enough = counts >= 3
            train_end = np.where(is_long_enough, counts - 2, counts)
            validation_end = np.where(is_long_enough, counts - 1, counts)
        first, second = train_end[interactions.users], validation_end[interactions.users]
    else:
        raise DataError(f"kind: expected 'user_time', 'global_time' or 'leave_one_out'; got {kind!r}")
    return Split(
        np.flatnonzero(rank < first),
        np.flatnonzero((rank >= first) & (rank < second)),
        np.flatnonzero(rank >= second),
    )


def checked_split(interactions: Interactions, split: Split) -> Split:
    """A split whose parts are validated and converted to ascending row indices.

    Raises:
        DataError: rows outside the table, or a duplicate row.
    """
    parts = {name: getattr(split, name) for name in ("train", "validation", "test")}
    return Split(**{name: as_rows(rows, name, len(interactions), error=DataError) for name, rows in parts.items()})


def check_not_learnt(data: Interactions, split: Split, fitted_events: np.ndarray, name: str) -> None:
    """Raise an error if a model was fitted on events of the test part: its metrics would measure memorisation.

    That happens if the data set has changed, or if a user's simultaneous events are in another order, since the order
    then decides which of them are in the test part.

    Args:
        data, split: the events and their parts.
        fitted_events: keys (:meth:`~reasonrec_fast.data.Interactions.keys`) of the events that the model was fitted on.
        name: of the events, for the error.

    Raises:
        DataError: an event of the test part is among ``fitted_events``.
    """
    # An event that occurs twice may legitimately be in two parts.
    learnt_only = np.setdiff1d(fitted_events, data.keys(np.concatenate([split.train, split.validation])))
    leaked = int(np.isin(data.keys(split.test), learnt_only).sum())
    if leaked:
        raise DataError(
            f"{name}: expected a test part that the model has not learnt from; it was fitted on {leaked} of these "
            f"{len(split.test)} events. Either the split or the events are others, or those of one moment have come "
            "in another order"
        )


def _cuts(counts: np.ndarray, validation: float, test: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the training and validation parts; the 1e-9 compensates the rounding of shares such as 0.7 in binary."""
    train_end = np.floor(counts * (1 - validation - test) + 1e-9).astype(np.int64)
    validation_end = np.floor(counts * (1 - test) + 1e-9).astype(np.int64)
    return train_end, validation_end


def sample_of_users(interactions: Interactions, rows: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """All ``rows`` of random users, as few as give at least ``size`` rows (or all users), ascending.

    Raises:
        DataError: rows outside the table, a duplicate row, or a size below 1.

    >>> events = Interactions.from_columns(["a", "b"] * 5, range(10), [1, 0] * 5, range(10))
    >>> len(sample_of_users(events, np.arange(10), 3))
    5
    """
    rows, size = as_rows(rows, "rows", len(interactions), error=DataError), as_count(size, "size", 1, error=DataError)
    users = interactions.users[rows]
    order = np.random.default_rng(seed).permutation(np.unique(users))
    counts = np.bincount(users, minlength=interactions.num_users)[order]
    enough = int(np.searchsorted(np.cumsum(counts), size)) + 1
    return rows[np.isin(users, order[:enough])]
