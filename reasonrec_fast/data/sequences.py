"""Leave-one-out sequence files: one user per line, items in time order (S3-Rec's format of the Amazon reviews)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.interactions import Catalog, Interactions
from reasonrec_fast.data.text_files import contents, text_lines
from reasonrec_fast.files import read_json

_TITLES = ("item_titles.json", "item_textual_ids.json")


def load_sequences(folder: str | Path) -> Interactions:
    """Read ``sequences.txt`` (lines of ``user item item ...``) and, if they exist, ``item_attributes.json`` (item to
    attribute names or numbers) and titles (item to text): ``item_titles.json``, or ``item_textual_ids.json`` where that
    is missing. An item without a title has its number in the place of one, as in every :class:`Catalog`.

    ``item_asin.json`` is not read: identifiers of a shop ascend with the time at which an item came into it, and tell
    what a user can have had next.

    All events are positive. The files have no times: a timestamp is the event's position in its user's line, so only
    ``split_by_time(..., "leave_one_out")`` is meaningful.

    The text is UTF-8, with or without a byte order mark.

    Raises:
        DataError: ``sequences.txt`` is missing, empty or not UTF-8 (the message names line and byte), or a line does
            not consist of a new user and integers (the message names the line), or attributes or titles of another form
            (the message names the file and the item).
    """
    folder = Path(folder)
    path = folder / "sequences.txt"
    if not path.is_file():
        raise DataError(f"folder: expected sequences.txt; there is none in {folder}")
    line_of_user: dict[str, int] = {}
    rows: list[np.ndarray] = []
    for number, line in text_lines(contents(path), path):
        if not line.strip():
            continue
        user, *words = line.split()
        if user in line_of_user:
            raise DataError(
                f"{path}, line {number}: expected another user than in line {line_of_user[user]}; got {user!r}"
            )
        strange = next((word for word in words if not _is_number(word)), None)
        if strange is not None:  # Python's numbers may have other forms, by which two items would become one
            raise DataError(f"{path}, line {number}: expected whole numbers such as 17; got {strange!r}")
        try:
            rows.append(np.array(words, dtype=np.int64))
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path}, line {number}: expected whole numbers; {error}") from error
        line_of_user[user] = number
    if not rows:
        raise DataError(f"{path}: expected at least one user; got none")
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    ids, items = np.unique(np.concatenate(rows), return_inverse=True)
    users = np.repeat(np.arange(len(rows)), sizes)
    positions = np.arange(len(items)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = np.argsort(positions, kind="stable")
    return Interactions(
        users[order],
        items[order].astype(np.int64),
        np.ones(len(items), dtype=np.int64),
        positions[order],
        list(line_of_user),
        _catalog(folder, [str(item) for item in ids.tolist()]),
    )


def _is_number(word: str) -> bool:
    """Whether a word is a whole number in its shortest form."""
    digits = word.removeprefix("-")
    return digits.isascii() and digits.isdigit() and (word == "0" or digits[0] != "0")


def _catalog(folder: Path, ids: list[str]) -> Catalog:
    attributes = {}
    path = folder / "item_attributes.json"
    if path.is_file():
        stored = _by_item(path)
        attributes["attributes"] = [_attributes(stored.get(item, ()), path, item) for item in ids]
    files = [folder / name for name in _TITLES if (folder / name).is_file()]
    titles = _by_item(files[0]) if files else {}
    return Catalog(ids, [str(titles.get(item) or "").strip() or item for item in ids], attributes)


def _by_item(path: Path) -> dict[str, Any]:
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise DataError(f"{path}: expected an object with items as keys; got a {type(stored).__name__}")
    return stored


def _attributes(values: Any, path: Path, item: str) -> tuple[str, ...]:
    """A text alone would be taken for its letters."""
    listed = isinstance(values, list | tuple)
    if not listed or not all(isinstance(value, str | int) and not isinstance(value, bool) for value in values):
        raise DataError(f"{path}: expected a list of names or numbers; got {values!r} for item {item}")
    return tuple(map(str, values))
