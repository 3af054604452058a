"""The fold plan of a stack: what its tools are fitted on, and what its trees are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reasonrec_fast.data import Interactions


class FoldPlan(NamedTuple):
    """Rows of a training part, ascending.

    Attributes:
        earlier: the tools whose scores the trees learn from are fitted on them, and histories are drawn from them.
        targets: each user's last positive event, which the trees learn to find; a row a user.
    """

    earlier: np.ndarray
    targets: np.ndarray


def leave_last_out(data: Interactions, train: np.ndarray) -> FoldPlan:
    """Hold out the last positive training event of each user who has two or more.

    What the user did after it is in neither part, since it is later than the target.

    >>> data = Interactions.from_columns(["a", "a", "a", "b"], ["x", "y", "z", "y"], [1, 1, 0, 1], range(4))
    >>> [rows.tolist() for rows in leave_last_out(data, np.arange(4))]
    [[0, 3], [1]]
    """
    positive = train[data.labels[train] == 1]
    counts = np.bincount(data.users[positive], minlength=data.num_users)
    last = np.full(data.num_users, -1, dtype=np.int64)
    np.maximum.at(last, data.users[positive], positive)
    last[counts < 2] = -1
    of_rows = last[data.users[train]]
    return FoldPlan(train[(of_rows < 0) | (train < of_rows)], train[train == of_rows])


def first_positives(data: Interactions, rows: np.ndarray) -> np.ndarray:
    """The first positive event of each user among some rows, ascending.

    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "y"], [0, 1, 1], range(3))
    >>> first_positives(data, np.arange(3)).tolist()
    [1, 2]
    """
    positive = np.sort(rows[data.labels[rows] == 1])
    return positive[np.sort(np.unique(data.users[positive], return_index=True)[1])]
