"""Graded distortions of photographs: twelve types of five levels each, after KADID-10k's list of twenty-five.

A type is a function of pixels and a strength; the strengths of its levels are data (:data:`DISTORTIONS`), from hardly
visible to unbearable on pictures of about 512 pixels. What is random is drawn from a digest of the pixels and the type,
so that a picture's distortions do not depend on which others there are; levels share the draws, so that each has what
the one before has, and more. (Codecs and random streams are those of the installed Pillow and numpy: other versions may
give slightly other pixels.)

H. Lin, V. Hosu, D. Saupe: KADID-10k: a large-scale artificially distorted IQA database. QoMEX 2019.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy import ndimage, signal

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import ImageSource, read_image

LEVELS = 5
MIN_SIDE = 32
"""The shortest side that is distorted, in pixels: the widest blur and the largest blocks must fit."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of ITU-R BT.601, as in JPEG

Draw = np.random.Generator
Distort = Callable[[np.ndarray, float, Draw], np.ndarray]


def _gaussian_blur(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    return ndimage.gaussian_filter(pixels, (strength, strength, 0), mode="reflect")


def _lens_blur(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    reach = int(np.ceil(strength))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _convolved(pixels, np.clip(strength + 0.5 - np.hypot(rows, columns), 0, 1))  # a disk with soft edges


def _motion_blur(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    """Along a line of a direction that is the picture's own."""
    angle, reach = draw.uniform(0, np.pi), int(np.ceil(strength / 2))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = np.abs(columns * np.cos(angle) + rows * np.sin(angle))
    across = np.abs(columns * np.sin(angle) - rows * np.cos(angle))
    return _convolved(pixels, np.clip(strength / 2 + 0.5 - along, 0, 1) * np.clip(1 - across, 0, 1))


def _convolved(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    reach = kernel.shape[0] // 2
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    return signal.fftconvolve(padded, (kernel / kernel.sum())[:, :, None], mode="valid", axes=(0, 1))


def _desaturate(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    grey = (pixels @ _LUMA)[:, :, None]
    return grey + (1 - strength) * (pixels - grey)


def _jpeg(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    return _through_codec(pixels, format="JPEG", quality=int(strength))


def _jpeg2000(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    return _through_codec(pixels, format="JPEG2000", quality_mode="rates", quality_layers=[strength], irreversible=True)


def _through_codec(pixels: np.ndarray, **options: object) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(_eight_bits(pixels)).save(file, **options)  # type: ignore[arg-type]
    file.seek(0)
    with Image.open(file) as decoded:
        return np.asarray(decoded.convert("RGB"), dtype=np.float32) / 255


def _white_noise(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    return pixels + strength * draw.standard_normal(pixels.shape, dtype=np.float32)


def _impulse_noise(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    hit = draw.random(pixels.shape, dtype=np.float32) < strength
    return np.where(hit, draw.integers(0, 2, pixels.shape, dtype=np.uint8).astype(np.float32), pixels)


def _gamma(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    return pixels**strength


def _quantize(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    steps = strength - 1
    return np.floor(pixels * steps + 0.5) / steps


def _pixelate(pixels: np.ndarray, strength: float, draw: Draw) -> np.ndarray:
    block, (height, width) = int(strength), pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % block), (0, -width % block), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // block, block, padded.shape[1] // block, block, 3).mean((1, 3))
    return blocks.repeat(block, 0).repeat(block, 1)[:height, :width]


@dataclass(frozen=True)
class Distortion:
    """A type of distortion.

    Attributes:
        apply: pixels float32 ``[H, W, 3]`` in [0, 1], a strength and a random generator, to such pixels (values outside
            are cut off).
        strengths: of levels 1 to 5, each stronger than the one before.
        unit: of the strengths.
    """

    apply: Distort
    strengths: tuple[float, ...]
    unit: str


DISTORTIONS: Mapping[str, Distortion] = {
    "gaussian_blur": Distortion(_gaussian_blur, (0.7, 1.2, 2.0, 3.5, 6.0), "standard deviation in pixels"),
    "lens_blur": Distortion(_lens_blur, (1.2, 2.0, 3.5, 6.0, 10.0), "radius in pixels"),
    "motion_blur": Distortion(_motion_blur, (3.0, 6.0, 10.0, 16.0, 26.0), "length in pixels"),
    "desaturate": Distortion(_desaturate, (0.25, 0.45, 0.65, 0.85, 1.0), "share of the colour that is lost"),
    "jpeg": Distortion(_jpeg, (45.0, 25.0, 14.0, 8.0, 4.0), "quality"),
    "jpeg2000": Distortion(_jpeg2000, (20.0, 40.0, 80.0, 150.0, 300.0), "compression ratio"),
    "white_noise": Distortion(_white_noise, (0.03, 0.06, 0.1, 0.17, 0.28), "standard deviation, white is 1"),
    "impulse_noise": Distortion(_impulse_noise, (0.003, 0.01, 0.03, 0.08, 0.2), "share of the values"),
    "brighten": Distortion(_gamma, (0.8, 0.65, 0.5, 0.36, 0.24), "exponent"),
    "darken": Distortion(_gamma, (1.3, 1.7, 2.3, 3.2, 4.6), "exponent"),
    "quantize": Distortion(_quantize, (20.0, 12.0, 8.0, 5.0, 3.0), "values of each channel"),
    "pixelate": Distortion(_pixelate, (2.0, 3.0, 5.0, 8.0, 13.0), "side of the blocks in pixels"),
}
"""Types by name."""


def distort(image: ImageSource, kind: str, level: int) -> np.ndarray:
    """A distorted picture, uint8 ``[H, W, 3]``.

    Args:
        image: what :func:`~reasonrec_fast.data.images.read_image` takes.
        kind: a name of :data:`DISTORTIONS`.
        level: 1, hardly visible, to 5.

    Raises:
        DataError: another type or level, or an image that cannot be read or has a side below :data:`MIN_SIDE`.

    >>> distort(np.zeros((40, 32, 3), dtype=np.uint8), "brighten", 3).shape
    (40, 32, 3)
    """
    check_kinds((kind,))
    if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= LEVELS:
        raise DataError(f"level: expected 1 to {LEVELS}; got {level!r}")
    picture = read_image(image)
    if min(picture.size) < MIN_SIDE:
        raise DataError(f"{picture.name}: expected sides of at least {MIN_SIDE} pixels; got {picture.size}")
    distortion = DISTORTIONS[kind]
    seed = hashlib.blake2b(picture.key + kind.encode(), digest_size=16).digest()
    draw = np.random.default_rng(int.from_bytes(seed, "little"))
    pixels = picture.pixels.astype(np.float32) / 255
    return _eight_bits(distortion.apply(pixels, distortion.strengths[level - 1], draw))


def graded(image: ImageSource, kinds: Sequence[str] = tuple(DISTORTIONS)) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Each type's name and pictures of levels 1 to 5.

    A type that a picture does not show at all levels is left out: a grey picture has no colour to lose.

    Raises:
        DataError: as of :func:`distort`.

    >>> grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    >>> [kind for kind, pictures in graded(grey, ("desaturate", "darken"))]
    ['darken']
    """
    check_kinds(kinds)
    picture = read_image(image)
    for kind in kinds:
        pictures = [distort(picture, kind, level) for level in range(1, LEVELS + 1)]
        steps = [picture.pixels, *pictures]
        if not any(np.array_equal(before, after) for before, after in pairwise(steps)):
            yield kind, pictures


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse types that do not exist, are given twice, or none.

    Raises:
        DataError: such types.
    """
    strange = [kind for kind in kinds if kind not in DISTORTIONS]
    if strange or len(set(kinds)) != len(kinds) or not kinds:
        got = repr(strange[0]) if strange else "none" if not kinds else "one twice"
        raise DataError(f"kinds: expected some of {', '.join(DISTORTIONS)}; got {got}")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
