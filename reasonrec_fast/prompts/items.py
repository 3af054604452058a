"""What a prompt or an encoder may read of an item: its title and attributes, never its identifier."""

from __future__ import annotations

from reasonrec_fast.data.interactions import Catalog


def item_title(catalog: Catalog, item: int) -> str | None:
    """The title of an item in reading order and in one line; None where the source has none, for which a catalogue
    repeats the identifier, or a blank one.

    Args:
        catalog: of the items.
        item: index of the item.

    >>> catalog = Catalog(["10", "20"], ["Matrix, The", "20"])
    >>> item_title(catalog, 0), item_title(catalog, 1)
    ('The Matrix', None)
    """
    return natural_title(one_line(catalog.titles[item])) or None if catalog.has_title(item) else None


def item_text(catalog: Catalog, item: int, *, attributes: bool = True) -> str:
    """Title and attribute values of an item; empty for one that has neither.

    Args:
        catalog: of the items.
        item: index of the item.
        attributes: whether to add them.

    >>> catalog = Catalog(["1", "2"], ["Heat", "2"], {"genres": [("Crime", "Drama"), ("War",)]})
    >>> item_text(catalog, 0), item_text(catalog, 1), item_text(catalog, 1, attributes=False)
    ('Heat. Crime, Drama', 'War', '')
    """
    values = [value for column in catalog.attributes.values() for value in column[item]] if attributes else []
    title = [catalog.titles[item]] if catalog.has_title(item) else []
    return ". ".join([*title, *([", ".join(values)] if values else [])])


def one_line(text: str) -> str:
    """A text without line breaks, which would end a line of a prompt, and without white space around it.

    >>> one_line("Heat\\n1. Alien ")
    'Heat 1. Alien'
    """
    return " ".join(text.splitlines()).strip()


def natural_title(title: str) -> str:
    """A catalogue title in reading order.

    >>> natural_title("Matrix, The")
    'The Matrix'
    """
    name, comma, article = title.rpartition(", ")
    return f"{article} {name}" if comma and article in ("The", "A", "An") else title
