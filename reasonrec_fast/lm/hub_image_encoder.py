"""Image encoders of transformers, by folder or hub name: SigLIP, DINOv2, CLIP's vision part, ResNet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import MAX_PIXELS, ImageSource, RGBImage, read_images
from reasonrec_fast.devices import resolve_device, to_device
from reasonrec_fast.lm.image_encoder import checked_batch_size, filled_batches, weights_digest

_LARGEST_RATIO = 100  # of the sides: a processor that scales the shorter side would make a huge image of a thin one
_PROBE = (64, 64, 3)
_NOT_THE_MODELS = ("transformers_version", "architectures", "dtype")  # in a configuration


class HubImageEncoder:
    """An :class:`~reasonrec_fast.lm.image_encoder.ImageEncoder` out of transformers' ``AutoModel``.

    Of a model of images and texts (CLIP, SigLIP) the vision part is used. Images are scaled and cropped as the model's
    own image processor says, each by itself. Remote code never runs.

    Args:
        name: a folder or a name on the Hugging Face hub.
        features: ``"pooled"``, a vector for each image, the model's ``pooler_output``; or ``"patches"``, the last
            hidden state of every patch (or position of a feature map), without class and register tokens.
        device: of the model; by default the GPU if there is one.
        dtype: of the weights.
        batch_size: images that are computed together, as in
            :class:`~reasonrec_fast.lm.efficientnet.EfficientNetLite`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: weights are missing from the checkpoint, the model takes other inputs than pixels of one size or has
            no such features, or a device that does not exist.
    """

    def __init__(
        self,
        name: str,
        *,
        features: Literal["pooled", "patches"] = "pooled",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int | None = None,
    ) -> None:
        from transformers import AutoModel

        # transformers before 5.18 hides this class without torchvision, which it does not need.
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        if features not in ("pooled", "patches"):
            raise ValueError(f"features: expected 'pooled' or 'patches'; got {features!r}")
        path = Path(name)
        if (path.is_absolute() or name.startswith(".") or path.exists()) and not (path / "config.json").is_file():
            raise FileNotFoundError(f"name: expected a folder with config.json; there is none at {path}")
        self.name, self.features, self.dtype = name, features, dtype
        self.device = resolve_device(device)
        self.batch_size = checked_batch_size(batch_size, self.device)
        self._processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        model, loading = AutoModel.from_pretrained(name, dtype=dtype, trust_remote_code=False, output_loading_info=True)
        self._model = getattr(model, "vision_model", model).to(self.device).eval().requires_grad_(False)
        prefix = "vision_model." if self._model is not model else ""
        missing = {key.removeprefix(prefix) for key in loading["missing_keys"] if key.startswith(prefix)}
        # Many checkpoints have no pooler; weights that patch features do not use may be missing.
        used = missing if features == "pooled" else {key for key in missing if not key.startswith(("pooler.", "head."))}
        if used:
            raise ValueError(
                f"{name}: expected weights for {features} features; the checkpoint lacks {sorted(used)[0]}"
            )
        self.digest = weights_digest(self._model, exclude=missing)
        self._input_shape: tuple[int, ...] | None = None
        probe = self._encode_window([RGBImage(torch.full(_PROBE, 128, dtype=torch.uint8).numpy(), name)], ["probe"])
        self.tokens, self.width = probe.shape[1:]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Which features, the type of the weights, the model's configuration, and the image processor's class and
        settings."""
        config = {key: value for key, value in self._model.config.to_diff_dict().items() if key not in _NOT_THE_MODELS}
        settings = {
            "features": self.features,
            "dtype": str(self.dtype).removeprefix("torch."),
            "config": config,
            "processor": {**self._processor.to_dict(), "class": type(self._processor).__name__},
        }
        return json.loads(json.dumps(settings, default=str))

    def encode(
        self,
        images: Iterable[ImageSource],
        *,
        folder: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> torch.Tensor:
        """Features on the CPU, float32 ``[B, T, F]``. Any number of threads may call it.

        Args:
            images: what :func:`~reasonrec_fast.data.images.read_image` takes.
            folder, max_pixels: as there.

        Raises:
            DataError: an image that cannot be read, or whose sides differ more than a hundred times; its row is named.
        """
        decoded = read_images(images, folder=folder, max_pixels=max_pixels)
        parts, row = [torch.zeros(0, self.tokens, self.width)], 0
        while window := list(islice(decoded, self.batch_size)):
            parts.append(
                self._encode_window(window, [f"images[{row + i}]: {image.name}" for i, image in enumerate(window)])
            )
            row += len(window)
        return torch.cat(parts)

    @torch.inference_mode()
    def _encode_window(self, images: list[RGBImage], names: list[str]) -> torch.Tensor:
        inputs = [self._processed(image, name) for image, name in zip(images, names, strict=True)]
        results = []
        for span, batch in filled_batches(inputs, self.batch_size):
            outputs = self._model(pixel_values=to_device(batch, self.device).to(self.dtype))
            results.append(self._features_of(outputs, batch)[: span.stop - span.start].float().cpu())
        return torch.cat(results)

    def _processed(self, image: RGBImage, name: str) -> torch.Tensor:
        if max(image.size) > _LARGEST_RATIO * min(image.size):
            width, height = image.size
            raise DataError(f"{name}: expected sides within a ratio of {_LARGEST_RATIO}; got {width} x {height}")
        inputs = self._processor(images=[image.pixels.copy()], return_tensors="pt", input_data_format="channels_last")
        if set(inputs) != {"pixel_values"} or inputs["pixel_values"].ndim != 4 or len(inputs["pixel_values"]) != 1:
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in inputs.items())
            raise ValueError(f"{self.name}: expected a processor that gives pixel_values [1, C, H, W]; got {shapes}")
        pixels = inputs["pixel_values"][0].float()
        if self._input_shape is None:
            self._input_shape = tuple(pixels.shape)
        elif tuple(pixels.shape) != self._input_shape:
            raise ValueError(
                f"{self.name}: expected a processor that gives every image one size, {list(self._input_shape)}; "
                f"got {list(pixels.shape)} for {name}"
            )
        return pixels

    def _features_of(self, outputs: Any, pixels: torch.Tensor) -> torch.Tensor:
        if self.features == "pooled":
            pooled = getattr(outputs, "pooler_output", None)
            if pooled is None:
                raise ValueError(f"{self.name}: expected a model with pooler_output; use features='patches'")
            return pooled.flatten(1)[:, None]
        hidden = outputs.last_hidden_state
        if hidden.ndim == 4:
            return hidden.flatten(2).transpose(1, 2)
        size = getattr(self._model.config, "patch_size", None)
        sides = (size, size) if isinstance(size, int) else size
        if sides is None or len(sides) != 2:
            raise ValueError(f"{self.name}: expected a model with patch_size, or one that gives a feature map")
        patches = math.prod(side // step for side, step in zip(pixels.shape[-2:], sides, strict=True))
        if hidden.shape[1] < patches:
            raise ValueError(f"{self.name}: expected at least {patches} tokens; got {hidden.shape[1]}")
        return hidden[:, hidden.shape[1] - patches :]  # class and register tokens come first
