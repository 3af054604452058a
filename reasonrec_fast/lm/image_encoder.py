"""The protocol of image encoders, and their shared helpers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
        tokens: number of feature vectors of an image, ``T``.
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
    """The identity of an encoder's features: name, weights and settings, as JSON returns them (tuples are lists)."""
    identity = {
        "encoder": encoder.name,
        "weights": encoder.digest,
        "settings": dict(encoder.settings),
        "tokens": encoder.tokens,
        "width": encoder.width,
    }
    return json.loads(json.dumps(identity))


def first_difference(expected: Any, got: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first value in which two JSON values differ: its name and both values; None where they are equal.

    >>> first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ('a.c', 2, 3)
    """
    if not isinstance(expected, Mapping) or not isinstance(got, Mapping):
        return None if expected == got else (name, expected, got)
    for key in dict.fromkeys([*expected, *got]):
        inner = f"{name}.{key}" if name else str(key)
        if difference := first_difference(expected.get(key), got.get(key), inner):
            return difference
    return None


def weights_digest(module: nn.Module, exclude: Collection[str] = ()) -> str:
    """A digest of every parameter and buffer of a module, with its name, type and shape; hexadecimal.

    Args:
        module: whose weights they are.
        exclude: names in its state that do not count.

    >>> weights_digest(nn.Identity()) == weights_digest(nn.Linear(2, 2), {"weight", "bias"})
    True
    """
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(module.state_dict().items()):
        if name not in exclude:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checked_batch_size(batch_size: int | None, device: torch.device) -> int:
    """Images that are computed together: by default 1 on the CPU, where more gain nothing, and 16 on a GPU.

    Raises:
        ValueError: not a whole number of at least 1.
    """
    if batch_size is None:
        return 1 if device.type == "cpu" else 16
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number of at least 1; got {batch_size!r}")
    return batch_size


def filled_batches(rows: Sequence[torch.Tensor], batch_size: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Stacks of exactly ``batch_size`` tensors of one shape, the last one filled up with zeros.

    A library may sum in another order at another batch size, and a row's result would depend on the number of rows.

    >>> [(span, batch.tolist()) for span, batch in filled_batches([torch.ones(1)] * 3, 2)]
    [(slice(0, 2, None), [[1.0], [1.0]]), (slice(2, 3, None), [[1.0], [0.0]])]
    """
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = part[0].new_zeros(batch_size, *part[0].shape)
        torch.stack(list(part), out=batch[: len(part)])
        yield slice(start, start + len(part)), batch
