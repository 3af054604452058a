"""Builds the graph by sorting, in the library of the edges: torch, cupy or numpy."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import numpy as np

LIBRARIES = ("torch", "cupy", "numpy")


def library_of(values: Any) -> str | None:
    """The library of ``LIBRARIES`` that the array's class, or a base class of it, comes from; None for anything else.

    >>> library_of(np.zeros(3)), library_of([3])
    ('numpy', None)
    """
    modules = (kind.__module__.partition(".")[0] for kind in type(values).__mro__)
    return next((name for name in modules if name in LIBRARIES), None)


def graph_by_sorting(users: Any, items: Any, num_users: int, num_items: int) -> tuple[Any, Any, Any, Any]:
    """CSR of both directions; see :class:`~reasonrec_fast.InteractionGraph`.

    Uses only functions whose names and arguments are the same in the three libraries.

    Args:
        users, items: int64 arrays ``[E]`` of one library on one device, within the counts.
        num_users, num_items: node counts.

    Returns:
        ``user_indptr [U + 1]``, ``user_indices``, ``item_indptr [I + 1]``, ``item_indices``, arrays of the same library
        on the same device.

    >>> graph_by_sorting(np.array([1, 0, 1]), np.array([0, 2, 0]), 2, 3)[0].tolist()
    [0, 1, 2]
    """
    name = library_of(users)
    assert name is not None
    xp = importlib.import_module(name)
    # xp.arange creates its array on the current device, which must be that of the edges.
    with nullcontext() if xp is np else users.device:
        # An edge as one integer: sorting orders by user, then item, and duplicates are equal.
        by_user = xp.unique(users * max(num_items, 1) + items)
        users, items = by_user // max(num_items, 1), by_user % max(num_items, 1)
        by_item = xp.unique(items * max(num_users, 1) + users)  # distinct already: this only sorts by item, then user
        fits = max(num_users, num_items, len(by_user)) <= np.iinfo(np.int32).max
        dtype = xp.int32 if fits else xp.int64

        def indptr(rows: Any, count: int) -> Any:
            return xp.asarray(xp.searchsorted(rows, xp.arange(count + 1)), dtype=dtype)

        return (
            indptr(users, num_users),
            xp.asarray(items, dtype=dtype),
            indptr(by_item // max(num_users, 1), num_items),
            xp.asarray(by_item % max(num_users, 1), dtype=dtype),
        )
