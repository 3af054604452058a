"""What a prompt may say of an item: its title, never its identifier."""

from __future__ import annotations

from reasonrec_fast.data.interactions import Catalog


def item_title(catalog: Catalog, item: int) -> str | None:
    """The title of an item in reading order; None where the source has none, for which a catalogue repeats the
    identifier.

    Args:
        catalog: of the items.
        item: index of the item.

    >>> catalog = Catalog(["10", "20"], ["Matrix, The", "20"])
    >>> item_title(catalog, 0), item_title(catalog, 1)
    ('The Matrix', None)
    """
    title = catalog.titles[item]
    return None if title == catalog.ids[item] else natural_title(title)


def natural_title(title: str) -> str:
    """A catalogue title in reading order.

    >>> natural_title("Matrix, The")
    'The Matrix'
    """
    name, comma, article = title.rpartition(", ")
    return f"{article} {name}" if comma and article in ("The", "A", "An") else title
