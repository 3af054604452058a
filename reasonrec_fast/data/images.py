"""Images as eight-bit RGB pixels: read right, or refused by name."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from reasonrec_fast.data.errors import DataError

try:
    from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ImportError("images: expected the package pillow; install reasonrec-fast with the extra 'vision'") from error

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | RGBImage"

MAX_PIXELS = 50_000_000
"""The default bound on width times height. Fifty megapixels are 150 MB of pixels."""

# Pillow knows many more, and hands some of them to other programs (EPS to Ghostscript).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_WHITE = (255, 255, 255, 255)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF


@dataclass(frozen=True, eq=False)
class RGBImage:
    """A decoded image.

    Attributes:
        pixels: uint8 ``[height, width, 3]``, read-only; sRGB values as they were stored (colour profiles are not
            applied).
        name: where it came from, for messages.

    Raises:
        DataError: pixels of another type or shape.
    """

    pixels: np.ndarray
    name: str = "image"

    def __post_init__(self) -> None:
        pixels = self.pixels
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.shape[2:] != (3,)
            or not pixels.size
        ):
            shape = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise DataError(f"{self.name}: expected pixels uint8 [H, W, 3]; got {shape}")
        pixels = np.ascontiguousarray(pixels).view()
        pixels.flags.writeable = False
        object.__setattr__(self, "pixels", pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @cached_property
    def key(self) -> bytes:
        """32 bytes that stand for the content: a digest of size and pixels, whatever file they came from."""
        digest = hashlib.blake2b(struct.pack("<QQ", *self.size), digest_size=32, person=b"rgb8")
        digest.update(self.pixels.data)
        return digest.digest()


def read_image(
    source: ImageSource, *, folder: str | os.PathLike[str] | None = None, max_pixels: int = MAX_PIXELS
) -> RGBImage:
    """Decode an image.

    Greyscale is repeated over the channels; of 16 bits a channel the upper 8 are kept; CMYK and palettes are
    converted; what is transparent lies on white; a picture is turned as its EXIF orientation says; of an animation or
    of several pages the first is read.

    Args:
        source: a path, the bytes of a file, a PIL image (of an animation the present frame), a uint8 array ``[H, W]``,
            ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]`` (RGBA), or what this function returned.
        folder: paths are relative to it, and may not lead out of it, neither by ``..`` nor by a link.
        max_pixels: the largest width times height that is decoded. It is known before anything is decoded.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an image of a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF), broken or
            cut off, of more pixels than ``max_pixels``, a path outside ``folder``, or values of unknown range (floats,
            32-bit integers).
        ValueError: ``max_pixels`` is not a whole number of at least 1.
        TypeError: something else than a source of the above.

    >>> import numpy as np
    >>> read_image(np.zeros((2, 3), dtype=np.uint8)).pixels.shape
    (2, 3, 3)
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise ValueError(f"max_pixels: expected a whole number of at least 1; got {max_pixels!r}")
    if isinstance(source, RGBImage):
        _check_size(*source.size, max_pixels, source.name)
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _from_opened(source, max_pixels, "image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), max_pixels, f"image of {len(source)} bytes")
    if isinstance(source, str | os.PathLike):
        path = path_within(source, folder)
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{source}: expected an image file; got something else than a file")
            return _from_file(file, max_pixels, str(source))
    raise TypeError(
        f"image: expected a path, bytes, a PIL image or a uint8 array [H, W, 3]; got {type(source).__name__}"
    )


def read_images(
    sources: Iterable[ImageSource], *, folder: str | os.PathLike[str] | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[RGBImage]:
    """Decode images in turn; what :func:`read_image` refuses is refused with its row.

    >>> import numpy as np
    >>> [image.size for image in read_images([np.zeros((2, 3), dtype=np.uint8)])]
    [(3, 2)]
    """
    if isinstance(sources, str | bytes | os.PathLike | np.ndarray | Image.Image | RGBImage):
        raise TypeError(f"images: expected a list of images; got {type(sources).__name__}")
    for row, source in enumerate(sources):
        try:
            image = read_image(source, folder=folder, max_pixels=max_pixels)
        except DataError as error:
            raise DataError(f"images[{row}]: {error}") from error
        except TypeError as error:
            raise TypeError(f"images[{row}]: {error}") from error
        yield image


def path_within(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> Path:
    """A path as it is meant: relative to ``folder``, and with all links followed inside it.

    Raises:
        DataError: it leads out of the folder.

    >>> path_within("../secret.png", "images")
    Traceback (most recent call last):
    reasonrec_fast.data.errors.DataError: ../secret.png: expected a path inside images; it leads out of that folder
    """
    if folder is None:
        return Path(path)
    root = Path(os.path.realpath(folder))
    resolved = Path(os.path.realpath(root / path))
    if not resolved.is_relative_to(root):
        raise DataError(f"{os.fspath(path)}: expected a path inside {os.fspath(folder)}; it leads out of that folder")
    return resolved


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would block for ever


def _check_size(width: int, height: int, max_pixels: int, name: str) -> None:
    if width < 1 or height < 1:
        raise DataError(f"{name}: expected at least one pixel; got {width} x {height}")
    if width * height > max_pixels:
        raise DataError(f"{name}: expected at most {max_pixels} pixels; got {width} x {height} = {width * height}")


def _from_array(array: np.ndarray, max_pixels: int) -> RGBImage:
    expected = "image: expected a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(f"{expected}; got {array.dtype} {list(array.shape)}")
    _check_size(array.shape[1], array.shape[0], max_pixels, "image")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return RGBImage(_rgb(Image.fromarray(np.ascontiguousarray(array))))


def _from_file(file: Any, max_pixels: int, name: str) -> RGBImage:
    Image.init()
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            f"{name}: expected PIL.ImageFile.LOAD_TRUNCATED_IMAGES to be off, since what is missing of a file that is "
            "cut off would be grey; got True"
        )
    with _refusing_what_is_broken(max_pixels, name):
        opened = Image.open(file, formats=[known for known in _FORMATS if known in Image.OPEN])
    with opened:
        return _from_opened(opened, max_pixels, name)


def _from_opened(opened: Image.Image, max_pixels: int, name: str) -> RGBImage:
    _check_size(*opened.size, max_pixels, name)
    with _refusing_what_is_broken(max_pixels, name):
        tiles = getattr(opened, "tile", None) if opened.format == "PNG" else None
        stored = tiles[0][3] if tiles else None
        opened.load()
        _scale_transparency(opened.info, stored)
        upright = ImageOps.exif_transpose(opened)
    tags = getattr(opened, "tag_v2", {})  # of TIFF
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format == "PPM"):
        if tags.get(_BITS_PER_SAMPLE, (16,)) != (16,) or tags.get(_PHOTOMETRIC, 1) != 1:
            raise DataError(
                f"{name}: expected 8 or 16 bits a channel, 0 as black; got a greyscale TIFF of another kind"
            )
        return RGBImage(_upper_bits(np.asarray(upright), opened.info.get("transparency")), name)
    if opened.mode in ("I", "F"):
        kind = "32-bit integers" if opened.mode == "I" else "floats"
        raise DataError(f"{name}: expected 8 or 16 bits a channel; got {kind}, whose range is not known")
    with _refusing_what_is_broken(max_pixels, name):
        return RGBImage(_rgb(upright), name)


def _scale_transparency(info: dict[Any, Any], stored: Any) -> None:
    """Bring the transparent value of a PNG, which Pillow leaves as it is stored, to the eight bits of its pixels."""
    transparent = info.get("transparency")
    if isinstance(transparent, int) and stored in ("L;2", "L;4"):
        info["transparency"] = transparent * (85 if stored == "L;2" else 17)
    elif isinstance(transparent, tuple) and stored == "RGB;16B":
        info["transparency"] = tuple(value >> 8 for value in transparent)


@contextmanager
def _refusing_what_is_broken(max_pixels: int, name: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: expected a whole image ({', '.join(_FORMATS)}); got something else") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own bound
        raise DataError(f"{name}: expected at most {max_pixels} pixels; {error}") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them trip over
        raise DataError(f"{name}: expected a whole image; {type(error).__name__}: {error}") from error


def _upper_bits(values: np.ndarray, transparent: int | None) -> np.ndarray:
    grey = (values.astype(np.int64) >> 8).astype(np.uint8)
    if transparent is not None:
        grey[values == transparent] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return np.array(image.convert("RGB"))
