"""Which rows of a table a model is trained on, calibrated on and asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasonrec_fast.arrays import as_index
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import UNLABELLED, Interactions, check_like, joined
from reasonrec_fast.data.negatives import draw_negatives
from reasonrec_fast.data.split import Split, checked_split, sample_of_users, split_by_time

CHUNK_REQUESTS = 4096
"""Requests whose prompts are in memory at a time."""


@dataclass(frozen=True)
class FitRows:
    """The rows that a model is fitted on.

    Attributes:
        train, validation: rows of the table, int64.
        implicit: whether all events are likes, so that negatives are drawn.
        train_negatives, validation_negatives: negatives of each part, without labels; empty where ``implicit`` is
            false.
    """

    train: np.ndarray
    validation: np.ndarray
    implicit: bool
    train_negatives: Interactions
    validation_negatives: Interactions


def check_learnable(interactions: Interactions, train: np.ndarray) -> None:
    """Refuse training rows that a model can learn nothing from.

    Raises:
        ValueError: dislikes alone, or no labels.
    """
    labels = set(np.unique(interactions.labels[train]).tolist())
    if labels not in ({0, 1}, {1}):
        raise ValueError(f"train: expected events of both labels, or likes alone; got labels {sorted(labels)}")


def fit_rows(interactions: Interactions, train: Any, validation: Any, seed: int) -> FitRows:
    """Check the parts that a model is fitted on, and draw negatives where all events are likes.

    Args:
        interactions: every event.
        train, validation: rows; None for both: the parts of :func:`~reasonrec_fast.data.split_by_time`.
        seed: of the negatives.

    Raises:
        TypeError: a split in place of rows.
        ValueError: one of the two parts alone, a part without events, with one class alone while the other has both, or
            with a row of the other.
    """
    split = _split(interactions, train, validation)
    parts = {"train": split.train, "validation": split.validation}
    labels = {name: set(np.unique(interactions.labels[rows]).tolist()) for name, rows in parts.items()}
    implicit = labels == {"train": {1}, "validation": {1}}
    for name in () if implicit else parts:
        if labels[name] != {0, 1}:
            raise ValueError(
                f"{name}: expected both classes, or likes alone in train and validation; got labels "
                f"{sorted(labels[name])}"
            )
    seen = {"train": split.train, "validation": np.union1d(split.train, split.validation)}
    negatives = [
        draw_negatives(interactions, rows if implicit else rows[:0], seen[name], seed + number)
        for number, (name, rows) in enumerate(parts.items())
    ]
    return FitRows(split.train, split.validation, implicit, *negatives)


def _split(interactions: Interactions, train: Any, validation: Any) -> Split:
    """The parts to learn from; nothing of the test part is read."""
    if isinstance(train, Split):
        raise TypeError("train: expected rows; got a Split: give split.train, split.validation")
    if (train is None) != (validation is None):
        missing = "train" if train is None else "validation"
        raise ValueError(f"{missing}: expected rows, as the other part has some; got None")
    if train is None:
        return split_by_time(interactions)
    split = checked_split(interactions, Split(train, validation, np.zeros(0, dtype=np.int64)))
    both = np.intersect1d(split.train, split.validation)
    if len(both):
        raise DataError(f"validation: expected other rows than those of train; got row {both[0]} in both")
    return split


def request_rows(interactions: Interactions, rows: np.ndarray | None) -> np.ndarray:
    """Rows of requests, in the order given; by default all that are unlabelled.

    Raises:
        TypeError: a table that was not read yet, whose rows may have another order.
        DataError: not rows of the table.
    """
    if not isinstance(interactions, Interactions):
        raise TypeError(f"data: expected Interactions, as of load_interactions; got {type(interactions).__name__}")
    if rows is None:
        return np.flatnonzero(interactions.labels == UNLABELLED)
    return as_index(rows, "rows", len(interactions), error=DataError)


def evaluation_rows(
    interactions: Interactions, rows: np.ndarray, events: Interactions, seed: int
) -> tuple[Interactions, np.ndarray]:
    """A table and its rows to evaluate on: the labelled rows, and a drawn negative for each where these and the
    training events are likes alone.

    Args:
        interactions, rows: the labelled rows of a table.
        events: the training events.
        seed: of the negatives.

    Raises:
        DataError: no rows of the table, or one without a label.
    """
    rows = request_rows(interactions, rows)
    unlabelled = np.flatnonzero(interactions.labels[rows] == UNLABELLED)
    if len(unlabelled):
        raise DataError(f"rows: expected events with a label; got {rows[unlabelled[0]]} in row {unlabelled[0]}")
    check_like(interactions, events.like)
    if not len(rows) or not (interactions.labels[rows] == 1).all() or not (events.labels == 1).all():
        return interactions, rows
    negatives = draw_negatives(interactions, rows, np.arange(len(interactions)), seed)
    table, (event_rows, negative_rows) = joined(interactions, negatives)
    return table, np.sort(np.concatenate([event_rows[rows], negative_rows]))


def sample_with_both_labels(table: Interactions, rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """About ``size`` of the rows, of whole users; more where one label is rare, as scores of a single label calibrate
    nothing. All rows where they have a single label."""
    while True:
        sample = sample_of_users(table, rows, size, seed)
        if len(sample) == len(rows) or len(np.unique(np.maximum(table.labels[sample], 0))) > 1:
            return sample
        size *= 2


def user_chunks(users: np.ndarray, *, whole_users: bool) -> Iterator[np.ndarray]:
    """Indices of about :data:`CHUNK_REQUESTS` requests at a time, ordered by user; with ``whole_users`` all requests of
    a user are in one chunk.

    >>> [chunk.tolist() for chunk in user_chunks(np.array([1, 0, 1]), whole_users=True)]
    [[1, 0, 2]]
    """
    order = np.argsort(users, kind="stable")
    if whole_users:
        stops = np.flatnonzero(np.diff(users[order])) + 1
    else:
        stops = np.arange(CHUNK_REQUESTS, len(users), CHUNK_REQUESTS)
    start = 0
    for stop in np.append(stops, len(users)).tolist():
        if stop - start >= CHUNK_REQUESTS or stop == len(users):
            if stop > start:
                yield order[start:stop]
            start = stop
