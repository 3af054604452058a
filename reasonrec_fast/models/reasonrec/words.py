"""Items and tastes in words, and which liked item speaks for another: what prompts, chains and reasons share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from reasonrec_fast.data import Catalog
from reasonrec_fast.prompts.items import item_title, one_line

EVIDENCE_ITEMS = 3
"""Items of a history, the latest, by which other users' likes speak for a candidate."""


class ItemWords:
    """Items in words: titles and attributes, never identifiers.

    Args:
        catalog: of the items.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def values(self, item: int) -> list[str]:
        """The values of all attributes of an item, each once and in one line."""
        values = (one_line(value) for column in self.catalog.attributes.values() for value in column[int(item)])
        return [value for value in dict.fromkeys(values) if value]

    def title(self, item: int) -> str | None:
        """An item in words: its title, else attributes, else None; never its identifier."""
        title = item_title(self.catalog, int(item))
        return title if title is not None else ", ".join(self.values(item)[:2]) or None

    def name(self, item: int) -> str:
        """:meth:`title`, or that there is none."""
        return self.title(item) or "something without a description"

    def tastes(self, history: Sequence[int] | np.ndarray, most: int = 3) -> list[tuple[str, int]]:
        """The commonest attribute values of a history with their counts; of equally common ones the latest first, so
        that the order does not depend on how anything is numbered."""
        counts: Counter[str] = Counter()
        latest: dict[str, int] = {}
        for position, item in enumerate(history):
            for value in self.values(item):
                counts[value] += 1
                latest[value] = position
        return sorted(counts.items(), key=lambda pair: (-pair[1], -latest[pair[0]], pair[0]))[:most]


def strongest(
    history: Sequence[int] | np.ndarray, support: Callable[[int], tuple[int, int]]
) -> tuple[int, int, int] | None:
    """Of the latest items of a history the one whose likers liked a candidate most often.

    Args:
        history: oldest first.
        support: of an item: its other likers, and how many of them liked the candidate.

    Returns:
        its position from the end (0 is the last), and its support; None where nobody liked both.

    >>> strongest([7, 8, 9], {7: (2, 2), 8: (30, 20), 9: (5, 0)}.__getitem__)
    (1, 30, 20)
    """
    found: tuple[float, int, int, int] | None = None
    for back, item in enumerate(history[::-1][:EVIDENCE_ITEMS]):
        others, common = support(int(item))
        share = common / (others + 5)  # a share of few users counts less
        if common and (found is None or share > found[0]):
            found = share, back, others, common
    return None if found is None else found[1:]
