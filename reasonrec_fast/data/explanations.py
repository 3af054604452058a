"""XRec's files (Ma et al. 2024, arXiv 2406.02377): who went where, and why some would enjoy it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Catalog, Interactions
from reasonrec_fast.data.reading import contents, records
from reasonrec_fast.data.split import Split

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Explanation:
    """One line of ``explanations_*.jsonl``.

    Attributes:
        user, item: identifiers, as in the interactions.
        title: of the item.
        user_profile, item_profile: what each is like, in words.
        explanation: why this user would enjoy the item, drawn from the user's own review: the reference of what is
            generated, and nothing to prompt with.
    """

    user: int
    item: int
    title: str
    user_profile: str
    item_profile: str
    explanation: str


def load_explanations(path: str | Path) -> list[Explanation]:
    """Read explanations, in the order of the file.

    Raises:
        DataError: no such file, or a line is not an object with the fields of :class:`Explanation` (it is named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: expected a file of explanations; there is none at {path}")
    kinds = {"user": int, "item": int}
    found = []
    for number, stored in records(contents(path), path):
        values: dict[str, Any] = {one.name: stored.get(one.name) for one in fields(Explanation)}
        for name, value in values.items():
            kind = kinds.get(name, str)
            if not isinstance(value, kind):
                raise DataError(f"{path}, line {number}: expected {name}, a {kind.__name__}; got {value!r}")
        found.append(Explanation(**values))
    return found


def load_xrec(folder: str | Path) -> tuple[Interactions, Split]:
    """Read ``interactions_{train,valid,test}.csv`` and the titles of ``explanations_*.jsonl``.

    All events are positive and the files tell no times: a timestamp is the part that an event is in (0, 1 or 2), so
    that nothing of a later part counts as known in an earlier one. The split is that of the files.

    Raises:
        DataError: a file of interactions is not there, lacks ``user`` or ``item``, or holds other than whole numbers.
    """
    folder = Path(folder)
    users, items, parts = [], [], []
    for place, part in enumerate(get_args(Part)):
        path = folder / f"interactions_{part}.csv"
        if not path.is_file():
            raise DataError(f"folder: expected {path.name}; there is none in {folder}")
        table = pd.read_csv(path)
        for name in ("user", "item"):
            if name not in table or not pd.api.types.is_integer_dtype(table[name]):
                raise DataError(f"{path}: expected whole numbers in a column {name!r}; got {list(table.columns)}")
        users.append(table["user"].to_numpy(np.int64))
        items.append(table["item"].to_numpy(np.int64))
        parts.append(np.full(len(table), place))
    user_ids, user_index = np.unique(np.concatenate(users), return_inverse=True)
    item_ids, item_index = np.unique(np.concatenate(items), return_inverse=True)
    times = np.concatenate(parts)
    events = Interactions(
        user_index,
        item_index,
        np.ones(len(times), dtype=np.int64),
        times,
        [str(user) for user in user_ids],
        Catalog([str(item) for item in item_ids], _titles(folder, item_ids)),
    )
    return events, Split(*(np.flatnonzero(times == place) for place in range(3)))


def _titles(folder: Path, items: np.ndarray) -> Sequence[str]:
    known: dict[int, str] = {}
    for part in get_args(Part):
        path = folder / f"explanations_{part}.jsonl"
        if path.is_file():
            known |= {one.item: one.title for one in load_explanations(path)}
    return [known.get(item, str(item)) for item in items.tolist()]
