"""Turns the output of a processor of transformers (texts and images) into texts with embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from reasonrec_fast.lm.adapters import unwrapped
from reasonrec_fast.lm.decoder import VISION_LANGUAGE
from reasonrec_fast.lm.inputs import Embeddings, Text, joined

_READ = {
    "attention_mask", "image_grid_thw", "image_sizes", "input_ids", "mm_token_type_ids", "pixel_attention_mask",
    "pixel_values", "token_type_ids",
}  # fmt: skip


@torch.no_grad()
def segments_of(model: Any, inputs: Mapping[str, Any]) -> list[list[int] | Text]:
    """Each text of a processor's output, with the vectors that the model's own vision tower gives its images.

    The vectors replace the image tokens, with one :class:`~reasonrec_fast.lm.inputs.Embeddings` for each run of image
    tokens (an image or a tile), keyed by its values. The images of each text are encoded separately, so that a text's
    vectors depend on the text alone.

    Args:
        model: an image-text-to-text model of transformers (Idefics3, SmolVLM, LLaVA, Qwen2-VL, Qwen2.5-VL), in peft's
            wrapping or not.
        inputs: the output of the model's processor for texts and their images, as tensors: ``input_ids`` ``[B, T]``,
            padded on either side (then with ``attention_mask``), and ``pixel_values`` with their sizes or grids.
            Without pixels, texts are token ids.

    Raises:
        TypeError: a model without images, or unknown inputs (videos).
        ValueError: images and image tokens that do not fit, or ``input_ids`` that are missing.

    >>> segments_of(model, processor(images=images, text=texts, return_tensors="pt"))  # doctest: +SKIP
    """
    whole = unwrapped(model)
    base = getattr(whole, "model", whole)
    kind = getattr(getattr(base, "config", None), "model_type", None)
    if kind not in VISION_LANGUAGE:
        raise TypeError(
            f"model: expected an image-text-to-text model of one of {', '.join(VISION_LANGUAGE)}; got "
            f"{type(whole).__name__}"
        )
    given = {name: value for name, value in inputs.items() if value is not None}
    strange = sorted(set(given) - _READ)
    if strange:
        raise TypeError(f"inputs: expected texts and images ({', '.join(sorted(_READ))}); got {', '.join(strange)}")
    if "input_ids" not in given or given["input_ids"].dim() != 2:
        raise ValueError("inputs: expected input_ids [B, T]; got none of that shape")
    rows = given["input_ids"].cpu().numpy()
    real = given["attention_mask"].cpu().numpy() != 0 if "attention_mask" in given else np.ones(rows.shape, dtype=bool)
    features = _image_features(base, given, len(rows))
    texts = [_text(base, ids[kept], row, features) for row, (ids, kept) in enumerate(zip(rows, real, strict=True))]
    left = sum(1 for _ in features.rest())
    if left:
        raise ValueError(f"pixel_values: expected as many images as the texts have; got {left} more")
    return texts


class _Features:
    """An iterator over the vectors of images, in the order of the texts."""

    def __init__(self, images: Iterator[tuple[torch.Tensor, Any]], by_text: bool) -> None:
        self._images, self.by_text = images, by_text

    def next(self) -> tuple[torch.Tensor, Any] | None:
        """Vectors ``[n, D]`` of the next image (``by_text``: of the next text), and its grid if the model has grids."""
        return next(self._images, None)

    def rest(self) -> Iterator[Any]:
        return iter(()) if self.by_text else self._images


def _image_features(base: Any, given: Mapping[str, Any], texts: int) -> _Features:
    if "pixel_values" not in given:
        return _Features(iter(()), by_text=False)
    pixels = given["pixel_values"].to(base.device)
    if base.config.model_type in ("idefics3", "smolvlm"):
        if pixels.dim() != 5 or len(pixels) != texts:
            raise ValueError(f"pixel_values: expected [{texts}, images, C, H, W]; got {list(pixels.shape)}")
        return _Features(_of_tiles(base, pixels, given.get("pixel_attention_mask")), by_text=True)
    if base.config.model_type == "llava":
        return _Features(_of_pictures(base, pixels, given.get("image_sizes")), by_text=False)
    grids = given.get("image_grid_thw")
    if grids is None:
        raise ValueError("image_grid_thw: expected the grid of each image beside pixel_values; got None")
    counts = grids.prod(-1).tolist()
    if sum(counts) != len(pixels):
        raise ValueError(f"pixel_values: expected {sum(counts)} patches, as image_grid_thw has; got {len(pixels)}")
    return _Features(_of_patches(base, pixels, grids, counts), by_text=False)


def _of_tiles(base: Any, pixels: torch.Tensor, mask: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, None]]:
    """Idefics3, SmolVLM: the tiles of all images of a text, without the padding tiles, which are zeros."""
    for row, tiles in enumerate(pixels):
        present = (tiles != 0).flatten(1).any(1)
        if not bool(present.any()):
            yield pixels.new_empty(0, base.config.text_config.hidden_size), None
            continue
        shown = None if mask is None else mask[row].to(tiles.device)[present][None]
        features = base.get_image_features(
            pixel_values=tiles[present][None], pixel_attention_mask=shown, return_dict=True
        )
        yield _joined_features(features), None


def _of_pictures(base: Any, pixels: torch.Tensor, sizes: Any) -> Iterator[tuple[torch.Tensor, None]]:
    """LLaVA: images of one size, or of the given sizes for towers that need them."""
    for number in range(len(pixels)):
        more = {} if sizes is None else {"image_sizes": sizes[number : number + 1]}
        features = base.get_image_features(
            pixel_values=pixels[number : number + 1].to(base.dtype),
            vision_feature_layer=base.config.vision_feature_layer,
            vision_feature_select_strategy=base.config.vision_feature_select_strategy,
            return_dict=True,
            **more,
        )
        yield _joined_features(features), None


def _of_patches(
    base: Any, pixels: torch.Tensor, grids: torch.Tensor, counts: list[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Qwen2-VL, Qwen2.5-VL: the concatenated patches of all images."""
    for grid, patches in zip(grids, pixels.split(counts), strict=True):
        features = base.get_image_features(patches, grid[None].to(pixels.device), return_dict=True)
        yield _joined_features(features), grid.cpu()


def _joined_features(features: Any) -> torch.Tensor:
    """``[n, D]``, from any of the return types of transformers' releases."""
    features = getattr(features, "pooler_output", features)
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return torch.cat([part.flatten(0, -2) for part in parts])


def _text(base: Any, ids: np.ndarray, row: int, features: _Features) -> list[int] | Text:
    image_tokens = np.flatnonzero(ids == base.config.image_token_id)
    images: list[tuple[torch.Tensor, Any]] = []
    count = 0
    while count < len(image_tokens) or (features.by_text and not images):
        image = features.next()
        if image is None:
            break
        images.append(image)
        count += len(image[0])
    if count != len(image_tokens):
        raise ValueError(
            f"input_ids: expected one image token for each of the {count} vectors of images; got {len(image_tokens)} "
            f"in text {row}"
        )
    if not len(image_tokens):
        return ids.tolist()
    # Vectors are divided where a run of image tokens ends, and where an image ends.
    image_ends = np.cumsum([len(vectors) for vectors, _ in images])
    interrupted = np.flatnonzero(np.diff(image_tokens) > 1) + 1
    cuts = np.unique(np.concatenate([[0], image_ends, interrupted]))
    vectors = torch.cat([part for part, _ in images])
    grids = [grid for _, grid in images]
    if grids[0] is not None:
        if not np.array_equal(cuts, np.concatenate([[0], image_ends])) or len(interrupted) + 1 != len(images):
            raise ValueError(f"input_ids: expected a run of image tokens for each image, with text between; text {row}")
        positions = _rope_positions(base, ids, torch.stack(grids))
    text: list[int] | Text = []
    end, begin_position = 0, 0
    for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        begin, before, end = int(image_tokens[first]), end, int(image_tokens[last - 1]) + 1
        own: tuple[Any, Any] = (None, None)
        if grids[0] is not None:
            begin_position += begin - before
            own = positions[:, begin:end] - begin_position, int(positions[0, end]) - begin_position
            begin_position += own[1]
        text = joined(text, [ids[before:begin].tolist(), Embeddings.of(vectors[first:last].clone(), *own)])
    return joined(text, ids[end:].tolist())


def _rope_positions(base: Any, ids: np.ndarray, grids: torch.Tensor) -> np.ndarray:
    """Positions of a text's tokens and of one following token, by the model's own rule, int64 ``[3, T + 1]``."""
    other = next(token for token in range(3) if token != base.config.image_token_id)
    tokens = torch.from_numpy(np.append(ids, other))[None]
    more: dict[str, Any] = {}
    if "mm_token_type_ids" in inspect.signature(base.get_rope_index).parameters:
        more["mm_token_type_ids"] = (tokens == base.config.image_token_id).int()
    positions, _ = base.get_rope_index(tokens, image_grid_thw=grids, **more)
    return positions[:, 0].cpu().numpy()
