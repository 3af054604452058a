"""The files of XRec (Ma et al. 2024, arXiv 2406.02377): interactions, and explanations of some of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Catalog, Interactions
from reasonrec_fast.data.split import Split
from reasonrec_fast.data.text_files import contents, records

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Explanation:
    """One line of ``explanations_*.jsonl``.

    Attributes:
        user, item: identifiers, as in the interactions.
        title: of the item.
        user_profile, item_profile: descriptions of both in text.
        explanation: why this user would enjoy the item, extracted from the user's own review. It is the reference of
            generated explanations and must not be part of a prompt.
    """

    user: int
    item: int
    title: str
    user_profile: str
    item_profile: str
    explanation: str

    @property
    def query(self) -> ExplanationQuery:
        """The pair without its explanation."""
        return ExplanationQuery(self.user, self.item, self.title, self.user_profile, self.item_profile)


@dataclass(frozen=True)
class ExplanationQuery:
    """A pair whose explanation is to be written: all of an :class:`Explanation` but the reference."""

    user: int
    item: int
    title: str
    user_profile: str
    item_profile: str


@dataclass(frozen=True)
class ExplanationSplit:
    """Explanations for training, validation and test."""

    train: tuple[Explanation, ...]
    validation: tuple[Explanation, ...]
    test: tuple[Explanation, ...]

    def digest(self) -> str:
        """SHA-256 of all lines, 32 hexadecimal digits."""
        parts = [[list(vars(line).values()) for line in part] for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def load_explanation_split(folder: str | Path) -> ExplanationSplit:
    """Read ``explanations_{train,valid,test}.jsonl`` of a folder.

    Raises:
        DataError: a file is missing or broken, a part is empty, or a pair of the test part is in another one.
    """
    train, validation, test = (
        tuple(load_explanations(Path(folder, f"explanations_{part}.jsonl"))) for part in get_args(Part)
    )
    for name, part in (("train", train), ("test", test)):
        if not part:
            raise DataError(f"{folder}: expected explanations in the {name} part; got none")
    known = {(line.user, line.item) for line in (*train, *validation)}
    for row, line in enumerate(test):
        if (line.user, line.item) in known:
            raise DataError(
                f"{folder}: expected other pairs in the test part than before; got user {line.user} and item "
                f"{line.item} in row {row}"
            )
    return ExplanationSplit(train, validation, test)


def load_explanations(path: str | Path) -> list[Explanation]:
    """Read explanations, in the order of the file.

    Raises:
        DataError: no such file, or a line is not an object with the fields of :class:`Explanation` (the message names
            the line).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: expected a file of explanations; there is none at {path}")
    types = {"user": int, "item": int}
    explanations = []
    for number, stored in records(contents(path), path):
        values: dict[str, Any] = {field.name: stored.get(field.name) for field in fields(Explanation)}
        for name, value in values.items():
            expected_type = types.get(name, str)
            if not isinstance(value, expected_type) or isinstance(value, bool):
                raise DataError(f"{path}, line {number}: expected {name}, a {expected_type.__name__}; got {value!r}")
        explanations.append(Explanation(**values))
    return explanations


def load_xrec(folder: str | Path) -> tuple[Interactions, Split]:
    """Read ``interactions_{train,valid,test}.csv`` and the titles of ``explanations_*.jsonl``.

    All events are positive. The files have no times: an event's timestamp is its part (0, 1 or 2), so that no event of
    a later part counts as history in an earlier one. The split is that of the files.

    Raises:
        DataError: a file of interactions is missing, lacks ``user`` or ``item``, or has values other than integers.
    """
    folder = Path(folder)
    users, items, parts = [], [], []
    for part_index, part in enumerate(get_args(Part)):
        path = folder / f"interactions_{part}.csv"
        if not path.is_file():
            raise DataError(f"folder: expected {path.name}; there is none in {folder}")
        table = pd.read_csv(path)
        for name in ("user", "item"):
            if name not in table or not pd.api.types.is_integer_dtype(table[name]):
                raise DataError(f"{path}: expected whole numbers in a column {name!r}; got {list(table.columns)}")
        users.append(table["user"].to_numpy(np.int64))
        items.append(table["item"].to_numpy(np.int64))
        parts.append(np.full(len(table), part_index))
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
    return events, Split(*(np.flatnonzero(times == part_index) for part_index in range(3)))


def _titles(folder: Path, items: np.ndarray) -> Sequence[str]:
    known: dict[int, str] = {}
    for part in get_args(Part):
        path = folder / f"explanations_{part}.jsonl"
        if path.is_file():
            known |= {explanation.item: explanation.title for explanation in load_explanations(path)}
    return [known.get(item, str(item)) for item in items.tolist()]
