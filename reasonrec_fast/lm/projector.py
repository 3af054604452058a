"""Projects the features of an image to soft tokens of a decoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reasonrec_fast.devices import seeded_generator
from reasonrec_fast.files import (
    atomic_write_folder,
    read_consistent,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from reasonrec_fast.lm.image_encoder import ImageEncoder, encoder_identity, first_difference

_FORMAT = "reasonrec-fast projector 1"
_WEIGHTS = "projector.safetensors"
_SMALLEST_DEVIATION = 1e-6
_SAMPLES = 1024


class Standardizer(nn.Module):
    """Subtracts the mean of each feature and divides by its standard deviation over the images of :meth:`fit`.

    A feature that is constant over these images is not divided. Before :meth:`fit` features are unchanged.

    Args:
        tokens: ``T`` of the features.
        width: their ``F``.

    >>> standardizer = Standardizer(1, 2).fit(torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]]))
    >>> standardizer(torch.tensor([[[3.0, 6.0]]])).tolist()
    [[[1.0, 1.0]]]
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(tokens, width))
        self.register_buffer("deviation", torch.ones(tokens, width))

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> Standardizer:
        """Estimate mean and deviation from features ``[N, T, F]`` of training images.

        Raises:
            ValueError: another shape, no image, or values that are not finite (the row is named).
        """
        _check_features(features, self.mean.shape)
        if not len(features):
            raise ValueError("features: expected at least one image; got none")
        variance, mean = torch.var_mean(features.double(), dim=0, correction=0)
        deviation = variance.sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > _SMALLEST_DEVIATION * (1 + mean.abs()), deviation, 1.0))
        return self

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float32 ``[B, T, F]``."""
        return (features.float() - self.mean.float()) / self.deviation.float()


class Projector(nn.Module):
    """A multi-layer perceptron from an encoder's standardised features to soft tokens: one hidden layer with GELU.

    If ``soft_tokens`` is a number, all of an image's features together give that many vectors. With
    ``"each"``, every one of the encoder's ``T`` tokens gives one vector by the same weights, as LLaVA's projector does
    for patches.

    Args:
        tokens: ``T`` of the features.
        width: their ``F``.
        embedding_dim: of the decoder's token embeddings, ``D``.
        soft_tokens: number for each image, ``n``, or ``"each"``.
        hidden: width of the hidden layer.
        seed: of the initial weights.
        encoder: the encoder's :func:`~reasonrec_fast.lm.image_encoder.encoder_identity`, to be saved with the weights;
            see :meth:`for_encoder`.

    Raises:
        ValueError: a size that is not a whole number of at least 1.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        embedding_dim: int,
        *,
        soft_tokens: int | str = 4,
        hidden: int = 512,
        seed: int = 0,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = {"tokens": tokens, "width": width, "embedding_dim": embedding_dim, "hidden": hidden}
        if soft_tokens != "each":
            sizes["soft_tokens"] = soft_tokens  # type: ignore[assignment]
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1; got {size!r}")
        self.tokens, self.width, self.embedding_dim, self.hidden = tokens, width, embedding_dim, hidden
        self.soft_tokens, self.encoder = soft_tokens, dict(encoder) if encoder is not None else None
        self.standardizer = Standardizer(tokens, width)
        inputs, outputs = (width, 1) if soft_tokens == "each" else (tokens * width, int(soft_tokens))
        # On meta first: construction must not draw from the global generator.
        self.first = nn.Linear(inputs, hidden, device="meta").to_empty(device="cpu")
        self.second = nn.Linear(hidden, outputs * embedding_dim, device="meta").to_empty(device="cpu")
        generator = seeded_generator(seed)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
                layer.bias.zero_()

    @classmethod
    def for_encoder(
        cls,
        encoder: ImageEncoder,
        embeddings: torch.Tensor,
        *,
        soft_tokens: int | str = 4,
        hidden: int = 512,
        seed: int = 0,
    ) -> Projector:
        """A projector whose initial soft tokens have the mean and spread of the decoder's token embeddings.

        Args:
            encoder: whose features it reads.
            embeddings: of the decoder's tokens, ``[V, D]``, as ``model.get_input_embeddings().weight``.
            soft_tokens, hidden, seed: as above.
        """
        projector = cls(
            encoder.tokens, encoder.width, embeddings.shape[1], soft_tokens=soft_tokens, hidden=hidden, seed=seed,
            encoder=encoder_identity(encoder),
        )  # fmt: skip
        projector.match_embeddings(embeddings)
        return projector

    @torch.no_grad()
    def match_embeddings(self, embeddings: torch.Tensor) -> None:
        """Scale the last layer so that soft tokens of standardised features have the token embeddings' mean and mean
        squared distance from it.

        Args:
            embeddings: ``[V, D]``.

        Raises:
            ValueError: embeddings of another width.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(f"embeddings: expected [V, {self.embedding_dim}]; got {list(embeddings.shape)}")
        mean = embeddings.float().mean(0)
        distance = (embeddings.float() - mean).square().mean().sqrt()
        samples = torch.randn(_SAMPLES, self.first.in_features, generator=seeded_generator(0)).to(self.first.weight)
        self.second.bias.zero_()
        responses = self.second(nn.functional.gelu(self.first(samples)))
        offset = responses.mean(0)  # GELU's mean is not zero, and would shift the tokens of all images
        scale = distance.to(offset) / (responses - offset).square().mean().sqrt()
        self.second.weight.mul_(scale)
        self.second.bias.copy_(mean.to(offset).repeat(len(offset) // self.embedding_dim) - scale * offset)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Soft tokens ``[B, n, D]``, in the type of the weights.

        Args:
            features: ``[B, T, F]``, on any device.

        Raises:
            ValueError: another shape, or values that are not finite (the row is named).
        """
        _check_features(features, self.standardizer.mean.shape)
        weight = self.first.weight
        x = self.standardizer(features.to(weight.device)).to(weight.dtype)
        x = x if self.soft_tokens == "each" else x.flatten(1)
        return self.second(nn.functional.gelu(self.first(x))).unflatten(-1, (-1, self.embedding_dim)).flatten(1, -2)

    def check_encoder(self, encoder: ImageEncoder) -> None:
        """Refuse an encoder other than the one that the projector was made for.

        Raises:
            ValueError: the identities differ; the first difference is named.
        """
        if self.encoder is not None and (difference := first_difference(self.encoder, encoder_identity(encoder))):
            name, expected, got = difference
            raise ValueError(f"encoder: expected {name} {expected!r}, which the projector was made for; got {got!r}")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``projector.safetensors``, both or neither.

        Raises:
            OSError: nothing can be written there.
        """
        with atomic_write_folder(Path(folder), {"config.json", _WEIGHTS}) as temporary:
            write_tensors(temporary / _WEIGHTS, self.state_dict())
            sizes = {name: getattr(self, name) for name in _SIZES}
            write_json(temporary / "config.json", {"format": _FORMAT, **sizes, "encoder": self.encoder})

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        encoder: ImageEncoder | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> Projector:
        """Read what :meth:`save` wrote.

        Args:
            folder: that :meth:`save` wrote.
            encoder: whose features it will read; its identity is checked.
            device: of the weights.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the files are something else or do not belong together, or it was made for another encoder.
        """
        folder = Path(folder)
        config, state = read_consistent(
            folder, lambda: (read_json(folder / "config.json"), read_tensors(folder / _WEIGHTS))
        )
        if not isinstance(config, dict) or config.get("format") != _FORMAT:
            raise ValueError(f"{folder}: expected {_FORMAT!r}; got something else")
        if set(config) != {"format", "encoder", *_SIZES}:
            raise ValueError(
                f"{folder}: expected {', '.join(['encoder', *_SIZES])} in config.json; got {', '.join(config)}"
            )
        if not isinstance(config["encoder"], dict | None):
            raise ValueError(f"{folder}: expected an encoder's identity or null; got {config['encoder']!r}")
        projector = cls(**{name: config[name] for name in _SIZES}, encoder=config["encoder"])
        expected = {name: list(tensor.shape) for name, tensor in projector.state_dict().items()}
        stored = {name: list(tensor.shape) for name, tensor in state.items()}
        if stored != expected:
            raise ValueError(f"{folder}: expected tensors {expected}; got {stored}")
        projector.load_state_dict(state)
        if encoder is not None:
            projector.check_encoder(encoder)
        return projector.to(device)


_SIZES = ("tokens", "width", "embedding_dim", "soft_tokens", "hidden")


def _check_features(features: torch.Tensor, shape: torch.Size) -> None:
    if features.ndim != 3 or features.shape[1:] != shape:
        raise ValueError(f"features: expected [B, {shape[0]}, {shape[1]}]; got {list(features.shape)}")
    finite = features.isfinite().flatten(1).all(1)
    if not features.is_cuda and not bool(finite.all()):
        raise ValueError(f"features: expected finite values; got others in row {int((~finite).nonzero()[0])}")
