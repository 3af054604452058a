"""The graph by sorting, with whatever library the edges belong to: torch, cupy or numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device


def graph_by_sorting(users: Any, items: Any, num_users: int, num_items: int) -> tuple[Any, Any, Any, Any]:
    """Compressed rows of both directions; see :class:`~reasonrec_fast.InteractionGraph`.

    Args:
        users, items: int64 arrays ``[E]`` of one library on one device, within the counts.
        num_users, num_items: node counts.

    Returns:
        ``user_indptr [U + 1]``, ``user_indices``, ``item_indptr [I + 1]``, ``item_indices``, arrays of the same library
        on the same device.

    >>> graph_by_sorting(np.array([1, 0, 1]), np.array([0, 2, 0]), 2, 3)[0].tolist()
    [0, 1, 2]
    """
    xp = array_namespace(users, items)
    # One sort of the pair as a single number orders the user rows and brings duplicates together.
    key = xp.sort(users * max(num_items, 1) + items)
    key = key[xp.concat([xp.ones_like(key[:1], dtype=xp.bool), key[1:] != key[:-1]])]
    users, items = key // max(num_items, 1), key % max(num_items, 1)
    by_item = xp.argsort(items, stable=True)
    fits = max(num_users, num_items, key.shape[0]) <= np.iinfo(np.int32).max
    dtype = xp.int32 if fits else xp.int64

    def indptr(rows: Any, count: int) -> Any:
        return xp.astype(xp.searchsorted(rows, xp.arange(count + 1, dtype=xp.int64, device=device(rows))), dtype)

    return (
        indptr(users, num_users),
        xp.astype(items, dtype),
        indptr(items[by_item], num_items),
        xp.astype(users[by_item], dtype),
    )
