"""Events of users who walk through a catalogue, which sequential and item-to-item models learn in a moment."""

from __future__ import annotations

import numpy as np


def walks(
    generator: np.random.Generator, num_users: int, num_items: int, lengths: tuple[int, int]
) -> tuple[list[str], list[int]]:
    """Users ``u0``, ``u1``, ... and the numbers of their items, one user after the other.

    Args:
        generator: of the walks.
        num_users, num_items: of users, and of items.
        lengths: of a walk, from the first to below the second. Seven steps in ten go on to the next item, the others
            four items further; the last item is followed by the first.
    """
    users, items = [], []
    for user in range(num_users):
        item = int(generator.integers(num_items))
        for _ in range(int(generator.integers(*lengths))):
            users.append(f"u{user}")
            items.append(item)
            item = (item + (1 if generator.random() < 0.7 else 4)) % num_items
    return users, items
