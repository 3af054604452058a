"""Observe: what items look like, and other vectors of them, as soft tokens that the agent reads beside their titles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reasonrec_fast.data import Catalog, DataError
from reasonrec_fast.data.images import path_within, read_image
from reasonrec_fast.devices import seeded_generator
from reasonrec_fast.files import cache_folder, read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.lm.inputs import Embeddings
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.lm.projector import Projector
from reasonrec_fast.models.reasonrec.config import OWN_ENCODER, AgentConfig

_logger = logging.getLogger("reasonrec_fast")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""Of files that may be an item's picture; the first that is there is taken."""
WEIGHTS, SETTINGS = "observer.safetensors", "observer.json"
_AT_ONCE = 64  # pictures in memory


@dataclass(frozen=True)
class SoftItem:
    """Stands in a text where the soft tokens of an item come; item -1 for the thought vectors."""

    item: int


THOUGHT = SoftItem(-1)


@dataclass(frozen=True)
class ItemFeatures:
    """Features of ``I`` items, of one kind.

    Attributes:
        name: of the kind: ``"pictures"`` or ``"vectors"``.
        values: float16 ``[I, T, F]``; 0 where nothing is known.
        known: bool ``[I]``.
        projected: whether soft tokens are learned from them; else they are soft tokens themselves.
    """

    name: str
    values: torch.Tensor
    known: np.ndarray
    projected: bool = True


def picture_features(
    catalog: Catalog,
    folder: str | Path,
    encoder_name: str,
    *,
    own: int | None = None,
    device: torch.device | str | None = None,
) -> ItemFeatures:
    """Features of the pictures ``<identifier>.jpg`` (or another of :data:`SUFFIXES`) in a folder.

    Each picture is read once by the encoder and kept in the user's cache
    (:class:`~reasonrec_fast.lm.observations.CachedEncoder`). An item without a picture, or with one that cannot be
    read, has its text alone; the log says how many these are.

    Args:
        catalog: of the items; identifiers that would lead out of the folder have no picture.
        folder: of the pictures.
        encoder_name: as of :func:`~reasonrec_fast.lm.vision.load_image_encoder`.
        own: vectors of a picture, where the encoder is the vision tower of the agent's own backbone, whose name this is
            (:class:`~reasonrec_fast.lm.own_image_encoder.OwnImageEncoder`); None for any other encoder.
        device: of the encoder.

    Raises:
        DataError: no folder, or no item with a picture in it.
    """
    from reasonrec_fast.lm.own_image_encoder import OwnImageEncoder
    from reasonrec_fast.lm.vision import CachedEncoder, ImageEncoder, load_image_encoder

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"agent.pictures: expected a folder; there is none at {folder}")
    files = [_picture(folder, name) for name in catalog.ids]
    rows = [row for row, file in enumerate(files) if file is not None]
    if not rows:
        raise DataError(
            f"agent.pictures: expected files such as {catalog.ids[0] if len(catalog) else 'ID'}.jpg; {folder} has none "
            f"for any of {len(catalog)} items"
        )
    uncached: ImageEncoder
    if own is None:
        uncached, kept = load_image_encoder(encoder_name, device=device), encoder_name
    else:
        uncached, kept = OwnImageEncoder(encoder_name, tokens=own, device=device), f"{encoder_name}-{own}"
    encoder = CachedEncoder(uncached, cache_folder() / "observations" / kept.replace("/", "--"))
    values = torch.zeros(len(catalog), encoder.tokens, encoder.width, dtype=torch.float16)
    known, broken = np.zeros(len(catalog), dtype=bool), []
    for first in range(0, len(rows), _AT_ONCE):
        images, of_rows = [], []
        for row in rows[first : first + _AT_ONCE]:
            try:
                images.append(read_image(str(files[row])))
                of_rows.append(row)
            except (DataError, OSError) as error:
                broken.append(f"{files[row]}: {error}")
        if not images:
            continue
        try:
            values[of_rows] = encoder.encode(images).half()
            known[of_rows] = True
        except DataError:  # the encoder reads some of them alone
            for row, image in zip(of_rows, images, strict=True):
                try:
                    values[row] = encoder.encode([image])[0].half()
                    known[row] = True
                except DataError as error:
                    broken.append(f"{files[row]}: {error}")
    _logger.info("%d of %d items have a picture", int(known.sum()), len(catalog))
    if broken:
        _logger.warning("%d pictures cannot be read, and are left out; the first: %s", len(broken), broken[0])
    if not known.any():
        raise DataError(f"agent.pictures: expected a picture that can be read; got none: {broken[0]}")
    return ItemFeatures("pictures", values, known, projected=own is None)


def vector_features(vectors: torch.Tensor) -> ItemFeatures:
    """Features out of one vector an item ``[I, D]``; an item whose vector is 0 has none."""
    return ItemFeatures("vectors", vectors.detach().cpu().half()[:, None], vectors.ne(0).any(1).cpu().numpy())


def features_of(
    config: AgentConfig, catalog: Catalog, vectors: torch.Tensor | None, device: torch.device
) -> list[ItemFeatures]:
    """What an agent reads of items beside their texts.

    Args:
        config: of the agent.
        catalog: of the items.
        vectors: of the items' texts, as the stack has them; None without.
        device: for the image encoder.

    Raises:
        DataError: a configuration that asks for vectors where there are none.
    """
    kinds = []
    if config.pictures is not None:
        own = config.picture_encoder == OWN_ENCODER
        kinds.append(
            picture_features(
                catalog,
                config.pictures,
                config.backbone if own else config.picture_encoder,
                own=config.soft_tokens if own else None,
                device=device,
            )
        )
    if config.item_vectors:
        if vectors is None:
            raise DataError("agent.item_vectors: expected a tool with vectors of texts in the stack; got none")
        kinds.append(vector_features(vectors))
    return kinds


def _picture(folder: Path, name: str) -> Path | None:
    for suffix in SUFFIXES:
        try:
            path = path_within(f"{name}{suffix}", folder)
            if path.is_file():
                return path
        except (DataError, ValueError, OSError):  # leads out of the folder, or is no name of a file
            return None
    return None


class Observer(nn.Module):
    """Projects items' features to soft tokens of the language model, and holds learned thought vectors.

    Thoughts are vectors at the end of each candidate's text, on which the model computes before the head reads (pause
    tokens, Goyal et al. 2024): the simplest kind of latent thought, with no words to generate.

    Args:
        kinds: of features; each has a projector, unless its features are soft tokens already.
        embeddings: of the language model's tokens, ``[V, D]``: soft tokens begin where these are.
        soft_tokens: of each kind and item.
        thoughts: vectors; 0 for none.
        seed: of the weights.
    """

    def __init__(
        self, kinds: Sequence[ItemFeatures], embeddings: torch.Tensor, *, soft_tokens: int, thoughts: int, seed: int
    ) -> None:
        super().__init__()
        self.kinds, self.soft_tokens = list(kinds), soft_tokens
        dim = embeddings.shape[1]
        self.projectors = nn.ModuleDict()
        for kind in kinds:
            _, tokens, width = kind.values.shape
            if not kind.projected:
                if width != dim:
                    raise ValueError(f"kinds: expected {kind.name} as wide as the embeddings, {dim}; got {width}")
                continue
            projector = Projector(tokens, width, dim, soft_tokens=soft_tokens, seed=seed)
            projector.standardizer.fit(kind.values[torch.from_numpy(kind.known)].float())
            projector.match_embeddings(embeddings.detach().cpu())
            self.projectors[kind.name] = projector
        weights = embeddings.detach().float().cpu()
        drawn = torch.randn(thoughts, dim, generator=seeded_generator(seed)) * weights.std(0) + weights.mean(0)
        self.thoughts = nn.Parameter(drawn) if thoughts else None

    @property
    def known(self) -> np.ndarray:
        """Items that have soft tokens, bool ``[I]``; of length 0 without kinds."""
        if not self.kinds:
            return np.zeros(0, dtype=bool)
        return np.logical_or.reduce([kind.known for kind in self.kinds])

    def forward(self, groups: Sequence[TokenGroup]) -> list[TokenGroup]:
        """Groups with soft tokens in place of :class:`SoftItem`; gradients flow to projectors and thoughts."""
        marks = {part.item for group in groups for text in (group[0], *group[1]) for part in _marks(text)}
        segments = self._segments(sorted(item for item in marks if item >= 0))
        if self.thoughts is not None:
            segments[THOUGHT.item] = [Embeddings.of(self.thoughts)]
        return [
            (_filled(prefix, segments), [_filled(suffix, segments) for suffix in suffixes])
            for prefix, suffixes in groups
        ]

    def _segments(self, items: list[int]) -> dict[int, list[Embeddings]]:
        result: dict[int, list[Embeddings]] = {item: [] for item in items}
        for kind in self.kinds:
            of_kind = [item for item in items if kind.known[item]]
            if of_kind:
                soft = kind.values[of_kind].float()
                if kind.projected:
                    soft = self.projectors[kind.name](soft)
                for item, values in zip(of_kind, soft, strict=True):
                    result[item].append(Embeddings.of(values))
        return result

    def save(self, folder: Path) -> None:
        """Write weights and features into an existing folder."""
        tensors = {f"weights.{name}": value for name, value in self.state_dict().items()}
        for kind in self.kinds:
            tensors[f"values.{kind.name}"] = kind.values
            tensors[f"known.{kind.name}"] = torch.from_numpy(kind.known)
        write_tensors(folder / WEIGHTS, tensors)
        write_json(
            folder / SETTINGS,
            {
                "kinds": [kind.name for kind in self.kinds],
                "projected": [kind.projected for kind in self.kinds],
                "soft_tokens": self.soft_tokens,
                "thoughts": 0 if self.thoughts is None else len(self.thoughts),
            },
        )

    @classmethod
    def load(cls, folder: Path, embeddings: torch.Tensor) -> Observer:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: soft tokens of another width than the embeddings.
        """
        stored, tensors = read_json(folder / SETTINGS), read_tensors(folder / WEIGHTS)
        projected = stored.get("projected", [True] * len(stored["kinds"]))
        kinds = [
            ItemFeatures(name, tensors[f"values.{name}"], tensors[f"known.{name}"].numpy(), learned)
            for name, learned in zip(stored["kinds"], projected, strict=True)
        ]
        observer = cls(
            kinds, embeddings, soft_tokens=stored["soft_tokens"], thoughts=stored["thoughts"], seed=0
        )  # fmt: skip
        weights = {
            name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")
        }
        try:
            observer.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{folder}: expected soft tokens of this backbone; {' '.join(str(error).split())}"
            ) from error
        return observer


def has_marks(text: Any) -> bool:
    """Whether a text has a :class:`SoftItem`."""
    return any(True for _ in _marks(text))


def _marks(text: Any) -> list[SoftItem]:
    return [part for part in text if isinstance(part, SoftItem)]


def _filled(text: Any, segments: dict[int, list[Embeddings]]) -> Any:
    """Token ids and marks as token ids and soft tokens."""
    if not has_marks(text):
        return text
    parts: list[Any] = []
    for part in text:
        if isinstance(part, SoftItem):
            parts += segments[part.item]
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(part)
        else:
            parts.append([part])
    return parts
