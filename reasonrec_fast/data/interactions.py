"""Interactions between users and items: the one table that every model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from reasonrec_fast.data.errors import DataError

UNLABELLED = -1
"""Label of an event that is to be scored; it never counts as history."""


@dataclass(frozen=True)
class Catalog:
    """What is known of each item, by item index.

    Attributes:
        ids: the caller's item identifiers, ``[I]``.
        titles: one title an item, ``[I]``; the identifier where the source has none.
        attributes: name of an attribute to one tuple of values an item (empty where unknown).

    >>> Catalog(["10", "20"], ["Heat", "Alien"], {"genres": [("Crime",), ("Horror", "Sci-Fi")]}).titles[1]
    'Alien'
    """

    ids: Sequence[str]
    titles: Sequence[str]
    attributes: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in {"titles": self.titles, **self.attributes}.items():
            if len(column) != len(self.ids):
                raise DataError(f"catalog {name}: expected {len(self.ids)} entries, one an item; got {len(column)}")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Interactions:
    """Labelled events in time order.

    Rows are sorted by timestamp (ties keep the order of the source), so that a row's index is its place in time.

    Attributes:
        users, items: indices, int64 ``[N]``.
        labels: 1 for a click or a like, else 0, :data:`UNLABELLED` where it is to be predicted, int64 ``[N]``.
        timestamps: int64 ``[N]``, seconds (any monotone unit works).
        user_ids: the caller's user identifiers, ``[U]``.
        catalog: the items.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    timestamps: np.ndarray
    user_ids: Sequence[str]
    catalog: Catalog

    @classmethod
    def from_columns(
        cls,
        users: Sequence[object],
        items: Sequence[object],
        labels: Sequence[int | None],
        timestamps: Sequence[int],
        *,
        titles: Mapping[str, str] | None = None,
        attributes: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
        extra_items: Sequence[str] = (),
    ) -> Interactions:
        """Index the caller's identifiers and sort by time.

        Args:
            users, items: identifiers (anything with a string form), one an event.
            labels: 0 or 1, one an event; None where it is to be predicted.
            timestamps: whole numbers, one an event.
            titles: item identifier to title.
            attributes: attribute name to (item identifier to values).
            extra_items: items that may be asked for although no event has them.

        Raises:
            DataError: lengths differ, or a label is neither 0 nor 1 (the row is named).

        >>> Interactions.from_columns(["a", "b"], ["x", "y"], [1, 0], [5, 3]).labels.tolist()
        [0, 1]
        """
        columns = {"users": users, "items": items, "labels": labels, "timestamps": timestamps}
        for name, column in columns.items():
            if len(column) != len(users):
                raise DataError(f"{name}: expected {len(users)} entries, one an event; got {len(column)}")
        for row, label in enumerate(labels, start=1):
            if label is not None and label not in (0, 1):
                raise DataError(f"labels: expected 0 or 1; got {label!r} in row {row}")
        label_array = np.array([UNLABELLED if label is None else int(label) for label in labels], dtype=np.int64)
        time_array = np.asarray(timestamps, dtype=np.int64)
        order = np.argsort(time_array, kind="stable")
        user_ids, user_index = _index([str(u) for u in users], ())
        item_ids, item_index = _index([str(i) for i in items], extra_items)
        catalog = Catalog(
            item_ids,
            [(titles or {}).get(i, i) for i in item_ids],
            {name: [values.get(i, ()) for i in item_ids] for name, values in (attributes or {}).items()},
        )
        return cls(
            user_index[order],
            item_index[order],
            label_array[order],
            time_array[order],
            user_ids,
            catalog,
        )

    def __len__(self) -> int:
        return len(self.users)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.catalog)


def _index(values: Sequence[str], extra: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Identifiers in order of first appearance, and each value's index."""
    table = {value: index for index, value in enumerate(dict.fromkeys([*values, *extra]))}
    return list(table), np.fromiter((table[v] for v in values), dtype=np.int64, count=len(values))
