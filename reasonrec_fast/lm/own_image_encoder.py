"""The vision tower of an image-text-to-text model as an image encoder, whose vectors its language part reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional

from reasonrec_fast.arrays import as_count
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import MAX_PIXELS, ImageSource, read_images
from reasonrec_fast.devices import resolve_device
from reasonrec_fast.lm.decoder import VISION_LANGUAGE
from reasonrec_fast.lm.image_encoder import weights_digest
from reasonrec_fast.lm.inputs import Text
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.lm.multimodal import segments_of


class OwnImageEncoder:
    """An :class:`~reasonrec_fast.lm.image_encoder.ImageEncoder` out of a model such as SmolVLM or Qwen2.5-VL.

    An image is what the model's own processor makes of it. The vectors that stand for its image tokens, of which there
    may be hundreds, are averaged in their order to ``tokens`` vectors, so that a prompt can hold many images. They are
    inputs of that model's language part, and need no projector.

    Args:
        name: a folder or a name on the Hugging Face hub.
        tokens: vectors of an image.
        device: of the model; by default the GPU if there is one.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a model that reads no images or whose processor has no image token, no vectors, or a device that
            does not exist.
    """

    def __init__(self, name: str, *, tokens: int = 1, device: torch.device | str | None = None) -> None:
        self.name, self.tokens = name, as_count(tokens, "tokens", 1)
        self.device = resolve_device(device)
        model, self._processor = load_language_model(name, torch.float32, device=self.device)
        self._model: Any = model
        if self._model.config.model_type not in VISION_LANGUAGE:
            raise ValueError(
                f"name: expected an image-text-to-text model of one of {', '.join(VISION_LANGUAGE)}; {name} is "
                f"{self._model.config.model_type!r}"
            )
        self._image_token = getattr(self._processor, "image_token", None)
        if not self._image_token:
            raise ValueError(
                f"name: expected a processor with an image_token; {name} has a {type(self._processor).__name__} without"
            )
        weight: Any = self._model.get_input_embeddings().weight
        self.width = int(weight.shape[1])
        self.digest = weights_digest(self._model)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The processor's class and settings."""
        images = self._processor.image_processor
        return json.loads(json.dumps({**images.to_dict(), "class": type(images).__name__}, default=str))

    @torch.inference_mode()
    def encode(
        self,
        images: Iterable[ImageSource],
        *,
        folder: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> torch.Tensor:
        """Features on the CPU, float32 ``[B, T, F]``, image by image.

        Args:
            images: what :func:`~reasonrec_fast.data.images.read_image` takes.
            folder, max_pixels: as there.

        Raises:
            DataError: an image that cannot be read, or that the model's processor refuses (Qwen2.5-VL's does if one
                side is more than 200 times the other); its row is named.
        """
        from PIL import Image

        parts = [torch.zeros(0, self.tokens, self.width)]
        for row, image in enumerate(read_images(images, folder=folder, max_pixels=max_pixels)):
            picture = Image.fromarray(image.pixels)
            try:
                inputs = self._processor(text=[self._image_token], images=[[picture]], return_tensors="pt")
            except ValueError as error:
                raise DataError(
                    f"images[{row}]: expected an image that {self.name} reads; {image.size[0]} x {image.size[1]} "
                    f"pixels: {error}"
                ) from error
            (text,) = segments_of(self._model, inputs)
            if not isinstance(text, Text):
                raise ValueError(f"{self.name}: expected a processor that makes image tokens of an image; got none")
            vectors = torch.cat([part.values for _, part in text.embeddings]).float().cpu()
            parts.append(functional.adaptive_avg_pool1d(vectors.T[None], self.tokens).mT)
        return torch.cat(parts)
