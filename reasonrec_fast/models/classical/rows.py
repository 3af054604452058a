"""The rows that a classical model is trained on: checked, and with negatives where there are likes alone."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from reasonrec_fast.arrays import as_rows
from reasonrec_fast.data import UNLABELLED, DataError, Interactions
from reasonrec_fast.data.interactions import joined
from reasonrec_fast.data.negatives import draw_negatives

_logger = logging.getLogger("reasonrec_fast")


def with_negatives(
    data: Interactions, train: np.ndarray, validation: np.ndarray | None, seed: int
) -> tuple[Interactions, np.ndarray, np.ndarray | None]:
    """The table with drawn negatives for the training rows and, where these are likes alone, for the validation rows:
    items that a user has had in neither that part nor the one before it. Later events do not affect the draw."""
    parts = [train] if validation is None else [train, validation]
    drawn = []
    for number, rows in enumerate(parts):
        if (data.labels[rows] == 1).all():
            negatives = draw_negatives(data, rows, np.unique(np.concatenate(parts[: number + 1])), seed + number)
            drawn.append(replace(negatives, labels=np.zeros_like(negatives.labels)))
        else:
            drawn.append(data.take(rows[:0]))
    if not len(drawn[0]):
        raise DataError(
            "train: expected a user who has not had every item, to draw dislikes from likes alone; got none"
        )
    _logger.info("training events are likes alone: %d items that their users have not had are drawn as dislikes",
                 sum(map(len, drawn)))  # fmt: skip
    table, positions = joined(data, *drawn)
    with_drawn = [
        np.sort(np.concatenate([positions[0][rows], new])) for rows, new in zip(parts, positions[1:], strict=True)
    ]
    return table, with_drawn[0], None if validation is None else with_drawn[1]


def checked_rows(
    data: Interactions, train: np.ndarray, validation: np.ndarray | None, *, labels: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows to train and validate on, int64 and ascending.

    Args:
        data: the events.
        train, validation: rows.
        labels: whether the model learns labels: it then trains on labelled events alone.

    Raises:
        DataError: rows outside the table, a duplicate row, a row of both parts, no row, or no positive event.
    """
    train = as_rows(train, "train", len(data), error=DataError)
    if not len(train):
        raise DataError("train: expected at least one row; got none")
    labels_of_train = data.labels[train]
    if not (labels_of_train == 1).any():
        raise DataError(f"train: expected at least one positive event; got none in {len(train)} rows")
    if labels:
        train = train[labels_of_train != UNLABELLED]
    if validation is not None:
        validation = as_rows(validation, "validation", len(data), error=DataError)
        if len(both := np.intersect1d(train, validation)):
            raise DataError(f"validation: expected other rows than those of train; got row {both[0]} in both")
    return train, validation


def digest_of_rows(data: Interactions, train: np.ndarray, validation: np.ndarray | None) -> str:
    """Digest of the events that determine a training: those that are learnt and those that stop it."""
    parts = [train] if validation is None else [train, validation]
    return " ".join(data.take(rows).digest() for rows in parts)
