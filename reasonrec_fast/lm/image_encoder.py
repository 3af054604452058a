"""What every image encoder offers, and what they share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from reasonrec_fast.data.images import MAX_PIXELS, ImageSource


@runtime_checkable
class ImageEncoder(Protocol):
    """Images in, features out. Features of an image depend on that image alone, never on the rest of a batch.

    Attributes:
        name: of the weights, as a user names them.
        digest: of the weights, hexadecimal.
        settings: everything else that features depend on, as JSON holds it.
        tokens: feature vectors an image, ``T``.
        width: of a feature vector, ``F``.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def tokens(self) -> int: ...
    @property
    def width(self) -> int: ...

    def encode(
        self,
        images: Iterable[ImageSource],
        *,
        folder: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> torch.Tensor:
        """Features on the CPU, float32 ``[B, T, F]``.

        Args:
            images: what :func:`~reasonrec_fast.data.images.read_image` takes.
            folder, max_pixels: as there.

        Raises:
            DataError: an image that cannot be read; its row is named.
        """
        ...


def encoder_identity(encoder: ImageEncoder) -> dict[str, Any]:
    """What tells an encoder's features from those of any other, as JSON holds it."""
    return {
        "encoder": encoder.name,
        "weights": encoder.digest,
        "settings": dict(encoder.settings),
        "tokens": encoder.tokens,
        "width": encoder.width,
    }


def weights_digest(module: nn.Module) -> str:
    """A digest of every parameter and buffer of a module, with its name, type and shape; hexadecimal.

    >>> weights_digest(nn.Identity()) == weights_digest(nn.Flatten())
    True
    """
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
