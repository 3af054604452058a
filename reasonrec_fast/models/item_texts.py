"""Item vectors from texts, for whatever retrieves or recommends by what items are called."""

from __future__ import annotations

import torch

from reasonrec_fast.data import Catalog, DataError
from reasonrec_fast.lm.text_encoder import WIDTH, TextEncoder
from reasonrec_fast.prompts.items import item_text


def item_vectors(
    catalog: Catalog, *, attributes: bool = True, device: torch.device | str | None = None
) -> torch.Tensor:
    """Embeddings of all items on the CPU, float32 ``[I, 384]``, centred: otherwise all users are similar.

    An item without a text has the vector zero, which is the mean of the others.

    Args:
        catalog: the items.
        attributes: whether texts have the values of attributes after the title.
        device: of :class:`~reasonrec_fast.lm.text_encoder.TextEncoder`.

    Raises:
        DataError: no item has a text.
        FileNotFoundError: the encoder's package is not installed.
    """
    check_texts(catalog, attributes=attributes)
    texts = [item_text(catalog, item, attributes=attributes) for item in range(len(catalog))]
    rows = [item for item, text in enumerate(texts) if text]
    encoded = TextEncoder(device).encode([texts[item] for item in rows])
    vectors = torch.zeros(len(texts), WIDTH)
    vectors[rows] = encoded - encoded.mean(0)
    return vectors


def check_texts(catalog: Catalog, *, attributes: bool = True) -> None:
    """Refuse a catalogue in which no item has a text.

    Raises:
        DataError: such a catalogue.
    """
    if not any(item_text(catalog, item, attributes=attributes) for item in range(len(catalog))):
        expected = "titles or attributes" if attributes else "titles"
        raise DataError(f"catalog: expected items with {expected}; got none in {len(catalog)} items")
