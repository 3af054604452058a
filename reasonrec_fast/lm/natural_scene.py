"""Natural-scene statistics of an image, of BRISQUE's kind (Mittal, Moorthy and Bovik 2012, IEEE TIP 21 (12))."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.ndimage import correlate1d
from scipy.special import gammaln

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import MAX_PIXELS, ImageSource, RGBImage, read_images

WIDTH = 36
"""Statistics of an image: 18 at each of two scales."""

_VERSION = "natural-scene-1"
_SHAPES = np.arange(200, 10_001) / 1000
_NOTHING = 1e-9
"""Normalised coefficients below it are rounding, and count as 0: their signs would be chance."""
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours: right, below, and on both diagonals
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as for the luminance of JPEG


def natural_scene_statistics(grey: np.ndarray) -> np.ndarray:
    """36 statistics of a grey image, float64 ``[36]``.

    At full and at half size: luminance minus its local mean, divided by its local deviation plus 1 (Gaussian window of
    7 x 7, sigma 7/6; borders repeated). Of these coefficients shape and variance of a generalised Gaussian; of their
    products with the neighbours to the right, below and on both diagonals (around the border, as in the authors'
    program) shape, mean, left and right variance of an asymmetric one, both by moments, shapes in [0.2, 10].

    Deterministic, and finite for every image. Where all coefficients are 0, as in a constant image or in one of a
    single pixel, the shape is 10, its upper limit, and all else 0. An image whose side is 1 is its own half along that
    side.

    Args:
        grey: luminance in [0, 255], any real type, ``[H, W]`` of at least one pixel.

    Raises:
        DataError: another shape, or a value that is not finite.

    >>> statistics = natural_scene_statistics(np.full((9, 7), 128))
    >>> statistics[:6].tolist()
    [10.0, 0.0, 10.0, 0.0, 0.0, 0.0]
    """
    grey = np.asarray(grey)
    if grey.ndim != 2 or not grey.size or grey.dtype.kind not in "buif":
        raise DataError(f"grey: expected luminance [H, W] of one pixel at least; got {grey.dtype} {list(grey.shape)}")
    grey = grey.astype(np.float64)
    for row, column in np.argwhere(~np.isfinite(grey))[:1]:
        raise DataError(f"grey: expected finite luminance; got {grey[row, column]} in row {row}, column {column}")
    grey = grey - grey.min()  # coefficients do not change, and those of a constant image are 0 exactly
    parts = []
    for image in (grey, halved(grey)):
        coefficients = normalised(image)
        parts.append(generalised_gaussian(coefficients))
        for shift in _SHIFTS:
            parts.append(asymmetric_gaussian(coefficients * np.roll(coefficients, shift, axis=(0, 1))))
    return np.concatenate(parts)


def normalised(image: np.ndarray) -> np.ndarray:
    """Luminance minus its local mean, divided by its local deviation plus 1, ``[H, W]``."""
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()

    def local_mean(values: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(values, window, 0, mode="nearest"), window, 1, mode="nearest")

    mean = local_mean(image)
    deviation = np.sqrt(np.maximum(local_mean(image**2) - mean**2, 0))
    coefficients = (image - mean) / (deviation + 1)
    return np.where(np.abs(coefficients) < _NOTHING, 0.0, coefficients)


def generalised_gaussian(values: np.ndarray) -> np.ndarray:
    """Shape (2 is normal, 1 Laplacian) and variance of a generalised Gaussian of mean 0, by moments, float64 ``[2]``.

    >>> generalised_gaussian(np.random.default_rng(0).laplace(size=100_000)).round(1).tolist()
    [1.0, 2.0]
    """
    variance, spread = np.mean(values**2), np.mean(np.abs(values))
    return np.array([_shape(spread**2 / variance), variance]) if variance > 0 else np.array([_SHAPES[-1], 0.0])


def asymmetric_gaussian(values: np.ndarray) -> np.ndarray:
    """Shape, mean, left and right variance of an asymmetric generalised Gaussian with its mode at 0, by moments,
    float64 ``[4]``.

    >>> asymmetric_gaussian(np.random.default_rng(0).normal(size=100_000)).round(1).tolist()
    [2.0, 0.0, 1.0, 1.0]
    """
    variance = np.mean(values**2)
    if not variance > 0:
        return np.array([_SHAPES[-1], 0.0, 0.0, 0.0])
    left, right = (np.sqrt(np.mean(side**2)) if side.size else 0.0 for side in (values[values < 0], values[values > 0]))
    ratio = min(left, right) / max(left, right)  # the equation is the same for a ratio and its inverse
    asymmetry = (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = _shape(np.mean(np.abs(values)) ** 2 / variance * asymmetry)
    mean = (right - left) * np.exp(gammaln(2 / shape) - (gammaln(1 / shape) + gammaln(3 / shape)) / 2)
    return np.array([shape, mean, left**2, right**2])


def halved(image: np.ndarray) -> np.ndarray:
    """An image of half its height and width, rounded down to one at least, by cubic convolution over eight pixels (as
    MATLAB's ``imresize`` and, but for the borders, Pillow's ``BICUBIC``)."""
    for axis in (0, 1):
        if image.shape[axis] > 1:
            distance = np.abs(np.arange(-3.5, 4)) / 2
            near, far = (
                1.5 * distance**3 - 2.5 * distance**2 + 1,
                -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2,
            )
            kernel = np.where(distance <= 1, near, far)
            # The eight taps of a pixel pair begin three before it: with the origin one later, pair i is centred on 2i.
            full = correlate1d(image, kernel / kernel.sum(), axis, mode="reflect", origin=-1)
            image = np.take(full, np.arange(0, image.shape[axis] // 2 * 2, 2), axis)
    return image


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Ratios E|x|^2 / E x^2 of shapes, ascending, and the shapes."""
    return np.exp(2 * gammaln(2 / _SHAPES) - gammaln(1 / _SHAPES) - gammaln(3 / _SHAPES)), _SHAPES


def _shape(ratio: float) -> float:
    return float(np.interp(ratio, *_table()))


def luminance(image: RGBImage) -> np.ndarray:
    """Luma of an image, float64 ``[H, W]`` in [0, 255]."""
    return image.pixels @ np.array(_LUMA)


class NaturalSceneEncoder:
    """An :class:`~reasonrec_fast.lm.image_encoder.ImageEncoder` of one token, :func:`natural_scene_statistics` of the
    luma.

    It has no weights, and reads images at their own size.
    """

    name, tokens, width = "natural-scene", 1, WIDTH
    digest = hashlib.blake2b(_VERSION.encode(), digest_size=16).hexdigest()
    settings: Mapping[str, Any] = {"features": _VERSION}

    def encode(
        self,
        images: Iterable[ImageSource],
        *,
        folder: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> torch.Tensor:
        """Statistics on the CPU, float32 ``[B, 1, 36]``; the arguments and errors are those of an encoder."""
        decoded = read_images(images, folder=folder, max_pixels=max_pixels)
        rows = [natural_scene_statistics(luminance(image)) for image in decoded]
        return torch.from_numpy(np.array(rows).reshape(-1, 1, WIDTH)).float()
