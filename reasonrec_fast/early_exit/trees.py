"""LightGBM's trees as files: its own text, held to a digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "lightgbm-text"


class Trees:
    """Boosted trees (LightGBM, Ke et al. 2017) that give every row of features a number.

    Args:
        booster: a LightGBM model of ``F`` features.

    Attributes:
        num_trees, num_features: of the model.
    """

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self.num_trees, self.num_features = int(booster.num_trees()), int(booster.num_feature())

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Raw scores float64 ``[N]`` of features ``[N, F]``. A row's depends on nothing but the row.

        Raises:
            ValueError: another number of features.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features: expected [N, {self.num_features}]; got {list(features.shape)}")
        if not len(features):
            return np.empty(0)
        return np.asarray(self._booster.predict(features, raw_score=True, num_threads=1), dtype=np.float64)

    def save(self, file: Path) -> dict[str, Any]:
        """Write the trees as text.

        Returns:
            what :meth:`load` holds the file to.
        """
        text = str(self._booster.model_to_string())
        file.write_text(text)
        return {"format": FORMAT, "blake2b": _digest(text)}

    @classmethod
    def load(cls, file: Path, expected: Mapping[str, Any]) -> Trees:
        """Read what :meth:`save` wrote. LightGBM's parser trusts its input, so nothing reaches it but the very text
        that was saved.

        Args:
            file: the text.
            expected: what :meth:`save` returned.

        Raises:
            FileNotFoundError: there is none.
            ValueError: another format, or another text than was saved.
        """
        import lightgbm

        if not file.is_file():
            raise FileNotFoundError(f"trees: expected those of the model; there are none at {file}")
        if expected.get("format") != FORMAT:
            raise ValueError(f"trees: expected the format {FORMAT}; {file} has {expected.get('format')!r}")
        text = file.read_text()
        if _digest(text) != expected.get("blake2b"):
            raise ValueError(f"trees: expected the text whose digest config.json tells; {file} holds another")
        return cls(lightgbm.Booster(model_str=text))


def mean_of(texts: Sequence[str]) -> str:
    """Trees whose raw score is the mean of several models' raw scores: all of them, with their leaves divided.

    Args:
        texts: of the models, as LightGBM writes them.
    """
    blocks: list[str] = []

    def divided(line: re.Match[str]) -> str:
        return " ".join(repr(float(value) / len(texts)) for value in line[0].split())

    for text in texts:
        trees = text[text.index("Tree=0\n") : text.index("end of trees")]
        for tree in re.split(r"^Tree=\d+\n", trees, flags=re.MULTILINE)[1:]:
            scaled = re.sub(r"(?<=^leaf_value=).*", divided, tree, flags=re.MULTILINE)
            blocks.append(f"Tree={len(blocks)}\n{scaled}")
    # Without the trees' sizes in bytes LightGBM finds them itself.
    head = re.sub(r"^tree_sizes=.*\n", "", texts[0][: texts[0].index("Tree=0\n")], flags=re.MULTILINE)
    return head + "".join(blocks) + texts[0][texts[0].index("end of trees") :]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
