"""Interactions between users and items: the table that all models are fitted on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from reasonrec_fast.data.columns import Source, as_column, identifiers, numbers, text_of, values_of
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.times import Moments, TimeUnit, coarsest, detect_unit, moments

UNLABELLED = -1
"""Label of an event to be scored; such an event never counts as history."""


@dataclass(frozen=True)
class Catalog:
    """Metadata of each item, by item index.

    Attributes:
        ids: the caller's item identifiers, ``[I]``.
        titles: one title per item, ``[I]``; the identifier if the source has none.
        attributes: name of an attribute to one tuple of values per item (empty if unknown).

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

    def has_title(self, item: int) -> bool:
        """Whether the source has a title for the item of an index; if not, the identifier stands in its place.

        >>> Catalog(["10", "20"], ["Heat", "20"]).has_title(1)
        False
        """
        return self.titles[item] != self.ids[item]


@dataclass(frozen=True)
class Interactions:
    """Labelled events in time order.

    Rows are sorted by timestamp (ties keep the order of the source), so that row indices are in time order.

    Attributes:
        users, items: indices, int64 ``[N]``.
        labels: 1 for a click or a like, else 0; :data:`UNLABELLED` if it is to be predicted; int64 ``[N]``.
        timestamps: int64 ``[N]``, in ``time_unit``.
        user_ids: the caller's user identifiers, ``[U]``.
        catalog: the items.
        time_unit: seconds, milliseconds, microseconds or nanoseconds since 1970 (UTC), or a plain counter.
        like: the smallest rating whose label is 1; None if labels do not come from ratings.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    timestamps: np.ndarray
    user_ids: Sequence[str]
    catalog: Catalog
    time_unit: TimeUnit = "count"
    like: float | None = None

    @classmethod
    def from_columns(
        cls,
        users: Any,
        items: Any,
        labels: Any,
        timestamps: Any,
        *,
        titles: Mapping[Any, str] | None = None,
        attributes: Mapping[str, Mapping[Any, Any]] | None = None,
        extra_items: Sequence[Any] = (),
    ) -> Interactions:
        """Index the caller's identifiers and sort by time.

        Args:
            users, items: identifiers, one per event: text, or whole numbers, which become their text (1, 1.0 and "1"
                are the same user). Columns of pandas, numpy, torch and Arrow are read by position.
            labels: 0 or 1, one per event; None or NaN if it is to be predicted.
            timestamps: one per event: integers, or dates (see :func:`~reasonrec_fast.data.times.moments`). Integers
                whose magnitudes fit several units are a counter.
            titles: item identifier to title.
            attributes: attribute name to (item identifier to values).
            extra_items: items of the catalogue without events.

        Raises:
            DataError: lengths differ, or a value is invalid (the message names the row).

        >>> Interactions.from_columns(["a", "b"], ["x", "y"], [1, 0], [5, 3]).labels.tolist()
        [0, 1]
        """
        columns = {
            name: as_column(values, name)
            for name, values in (("users", users), ("items", items), ("labels", labels), ("timestamps", timestamps))
        }
        for name, column in columns.items():
            if len(column) != len(columns["users"]):
                raise DataError(f"{name}: expected {len(columns['users'])} entries, one an event; got {len(column)}")
        source = Source()
        encoded = [identifiers(columns[name], source, name) for name in ("users", "items")]
        user_index, item_index = (part.indices.to_numpy(zero_copy_only=False).astype(np.int64) for part in encoded)
        user_ids, item_ids = (part.dictionary.to_pylist() for part in encoded)
        extra = [_identifier(item, "extra_items") for item in extra_items]
        item_ids = list(dict.fromkeys([*item_ids, *extra]))
        label_array = _labels(columns["labels"], source)
        times = _times(columns["timestamps"], source)
        order = np.argsort(times.values, kind="stable")
        known_titles = {
            _identifier(item, "titles"): _title(title) for item, title in ({} if titles is None else titles).items()
        }
        known_attributes = {
            str(name): {_identifier(item, name): _values(value, name) for item, value in values.items()}
            for name, values in ({} if attributes is None else attributes).items()
        }
        return cls(
            user_index[order],
            item_index[order],
            label_array[order],
            times.values[order],
            user_ids,
            Catalog(
                item_ids,
                [known_titles.get(item) or item for item in item_ids],
                {name: [values.get(item, ()) for item in item_ids] for name, values in known_attributes.items()},
            ),
            time_unit=times.unit,
        )

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Interactions:
        """The given rows (ascending), with the same users and items."""
        return replace(
            self, users=self.users[rows], items=self.items[rows], labels=self.labels[rows],
            timestamps=self.timestamps[rows],
        )  # fmt: skip

    @cached_property
    def _by_user(self) -> tuple[np.ndarray, np.ndarray]:
        counts = np.bincount(self.users, minlength=self.num_users)
        return np.concatenate([[0], np.cumsum(counts)]), np.argsort(self.users, kind="stable")

    def rows_of(self, users: np.ndarray) -> np.ndarray:
        """Rows of all events of some users, ascending. The first call builds an index, later ones are fast.

        >>> Interactions.from_columns(["a", "b", "a"], ["x", "y", "y"], [1, 0, 1], [3, 4, 5]).rows_of(np.array([0]))
        array([0, 2])
        """
        indptr, rows = self._by_user
        parts = [rows[indptr[user] : indptr[user + 1]] for user in np.unique(users)]
        return np.sort(np.concatenate([*parts, rows[:0]]))

    @property
    def moments(self) -> Moments:
        """Timestamps with their unit."""
        return Moments(self.timestamps, self.time_unit)

    def digest(self) -> str:
        """SHA-256 of all events, identifiers, titles and attributes, 32 hexadecimal digits.

        >>> events = Interactions.from_columns(["a"], ["x"], [1], [5])
        >>> events.digest() == Interactions.from_columns(["a"], ["x"], [0], [5]).digest()
        False
        """
        sha256 = hashlib.sha256()
        for values in (self.users, self.items, self.labels, self.timestamps):
            sha256.update(np.ascontiguousarray(values, dtype=np.int64).tobytes())
        words = [self.time_unit, list(self.user_ids), list(self.catalog.ids), list(self.catalog.titles)]
        attributes = {name: list(map(list, values)) for name, values in self.catalog.attributes.items()}
        sha256.update(json.dumps([*words, attributes], sort_keys=True).encode())
        return sha256.hexdigest()[:32]

    def keys(self, rows: np.ndarray | None = None) -> np.ndarray:
        """A hash of each event's user, item and moment, uint64 ``[R]``. It does not depend on the label, on the other
        events and their order, or on the unit of time, so that it identifies an event across tables.

        >>> few, more = (Interactions.from_columns(u, ["x"] * len(u), [1] * len(u), t)
        ...              for u, t in ((["b"], [1600000000]), (["a", "b"], ["2030-01-01", "2020-09-13 12:26:40.000"])))
        >>> np.isin(more.keys(), few.keys()).tolist()
        [True, False]
        """
        rows = np.arange(len(self)) if rows is None else rows.astype(np.int64)
        users, items = _hashes(self.user_ids)[self.users[rows]], _hashes(self.catalog.ids)[self.items[rows]]
        return _mix_bits(_mix_bits(_mix_bits(users) + items) + self.moments.finest[rows].astype(np.uint64))

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.catalog)


def joined(*tables: Interactions) -> tuple[Interactions, list[np.ndarray]]:
    """Merge tables of the same users, items and unit of time in time order; ties are in the order of the tables. Also
    returns the merged row index of each row of each table.

    >>> events = Interactions.from_columns(["a"], ["x"], [1], [5])
    >>> joined(events, events)[1]
    [array([0]), array([1])]
    """

    def concatenated(name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in tables])

    order = np.argsort(concatenated("timestamps"), kind="stable")
    columns = [concatenated(name)[order] for name in ("users", "items", "labels", "timestamps")]
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    ends = np.cumsum([len(table) for table in tables])[:-1]
    merged = replace(tables[0], users=columns[0], items=columns[1], labels=columns[2], timestamps=columns[3])
    return merged, np.split(position, ends)


def check_like(data: Interactions, like: float | None) -> None:
    """Raise an error if labels were made with another rating threshold than those that a model was fitted on.

    Args:
        data: the events.
        like: the rating threshold of the model's training labels; None if they did not come from ratings.

    Raises:
        DataError: the thresholds differ.
    """
    if like is not None and data.like not in (None, like) and (data.labels != UNLABELLED).any():
        raise DataError(f"like: expected {like:g} (--like, like=), as the model was fitted; got {data.like:g}")


def _hashes(ids: Sequence[str]) -> np.ndarray:
    """64-bit hashes of identifiers, uint64 ``[N]``."""
    hashed = (hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(hashed), dtype="<u8")


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """The bit mixer of SplitMix64: each input bit affects all output bits."""
    values = (values ^ (values >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> 27)) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> 31)


def _identifier(value: Any, name: str) -> str:
    try:
        text = text_of(value)
    except ValueError as error:
        raise DataError(f"{name}: expected {error}; got {value!r}") from None
    if text is None:
        raise DataError(f"{name}: expected item identifiers; got {value!r}")
    return text


def _title(value: Any) -> str | None:
    try:
        return text_of(value)
    except ValueError as error:
        raise DataError(f"titles: expected {error}; got {value!r}") from None


def _values(value: Any, name: str) -> tuple[str, ...]:
    try:
        return values_of([value] if isinstance(value, str) else value)
    except ValueError as error:
        raise DataError(f"attributes: {name}: expected {error}; got {value!r}") from None


def _labels(column: Any, source: Source) -> np.ndarray:
    try:
        values = numbers(column, source, "labels")
    except DataError as error:
        raise DataError(str(error).replace("expected a number", "expected 0 or 1", 1)) from None
    wrong = ~(np.isin(values, (0, 1)) | np.isnan(values))
    if wrong.any():
        row = int(wrong.argmax())
        raise source.wrong("labels", row, "0 or 1", column[row])
    return np.where(np.isnan(values), UNLABELLED, values).astype(np.int64)


_FITS_INT64 = ("int", "uint8", "uint16", "uint32")  # prefixes of the names of Arrow types that int64 can represent


def _times(column: Any, source: Source) -> Moments:
    """Integers keep their values, as a clock or a counter by their magnitude; other values are parsed as in a file."""
    if isinstance(column, list) and all(
        isinstance(value, int | np.integer) and not isinstance(value, bool) for value in column
    ):
        try:
            values = np.array(column, dtype=np.int64)
        except OverflowError:
            return moments(column, source, "timestamps")
    elif not isinstance(column, list) and str(column.type).startswith(_FITS_INT64) and not column.null_count:
        values = column.to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        return moments(column, source, "timestamps")
    return coarsest(values, detect_unit(values))
