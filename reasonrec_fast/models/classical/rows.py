"""What a classical model is trained on: rows that were looked at, and negatives where there are likes alone."""

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
    """The table with negatives of the training rows and, where these are likes alone, of the validation rows: items
    that a user has had in neither that part nor the one before it. What comes later has no say in it."""
    parts = [train] if validation is None else [train, validation]
    drawn = []
    for number, rows in enumerate(parts):
        if (data.labels[rows] == 1).all():
            found = draw_negatives(data, rows, np.unique(np.concatenate(parts[: number + 1])), seed + number)
            drawn.append(replace(found, labels=np.zeros_like(found.labels)))
        else:
            drawn.append(data.take(rows[:0]))
    if not len(drawn[0]):
        raise DataError(
            "train: expected a user who has not had every item, to draw dislikes from likes alone; got none"
        )
    _logger.info("training events are likes alone: %d items that their users have not had are drawn as dislikes",
                 sum(map(len, drawn)))  # fmt: skip
    table, places = joined(data, *drawn)
    found_rows = [np.sort(np.concatenate([places[0][rows], new])) for rows, new in zip(parts, places[1:], strict=True)]
    return table, found_rows[0], None if validation is None else found_rows[1]


def checked_rows(
    data: Interactions, train: np.ndarray, validation: np.ndarray | None, *, labels: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows to train and validate on, int64 and ascending.

    Args:
        data: the events.
        train, validation: rows.
        labels: whether the model learns labels: it then trains on labelled events alone.

    Raises:
        DataError: rows that the table does not have, one twice, or none to learn from.
    """
    train = as_rows(train, "train", len(data), error=DataError)
    if not len(train):
        raise DataError("train: expected at least one row; got none")
    of_train = data.labels[train]
    if not (of_train == 1).any():
        raise DataError(f"train: expected at least one positive event; got none in {len(train)} rows")
    if labels:
        train = train[of_train != UNLABELLED]
    if validation is not None:
        validation = as_rows(validation, "validation", len(data), error=DataError)
    return train, validation


def digest_of_rows(data: Interactions, train: np.ndarray, validation: np.ndarray | None) -> str:
    """Digest of the events that determine a training: those that are learnt and those that stop it."""
    parts = [train] if validation is None else [train, validation]
    return " ".join(data.take(rows).digest() for rows in parts)
