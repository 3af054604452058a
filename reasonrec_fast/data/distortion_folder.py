"""Folders of graded distortions with a full-reference label, made from any folder of photographs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from reasonrec_fast.data.distortions import DISTORTIONS, MIN_SIDE, check_kinds, graded
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import RGBImage, read_image
from reasonrec_fast.files import atomic_write_folder

TABLE, IMAGES = "distortions.csv", "images"
COLUMNS = ("path", "photo", "type", "level", "label")
REFERENCE = "reference"
"""The type of the photographs themselves, level 0."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".avif")
_SSIM_SIDE = 256


class DistortedSet(NamedTuple):
    """What was written.

    Attributes:
        table: the CSV file.
        photos, images: how many photographs, and how many pictures in all.
        left_out: photographs and types that do not show at all levels, such as the colour of a grey picture.
    """

    table: Path
    photos: int
    images: int
    left_out: tuple[tuple[str, str], ...]


def ssim(reference: np.ndarray, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Structural similarity of pictures with their reference, float64 ``[N]``, 1 for the reference itself.

    By torchmetrics (Apache-2.0), averaged over the three channels, after the downsampling that the authors of SSIM
    advise: means of blocks, so that the shorter side is about 256 pixels.

    Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli: Image quality assessment: from error visibility to structural
    similarity. IEEE Transactions on Image Processing 13 (4), 2004.

    Args:
        reference: uint8 ``[H, W, 3]``, sides of at least 11 pixels.
        pictures: of the same shape.

    Raises:
        DataError: a picture of another shape (with its row).
        ImportError: without the package torchmetrics.

    >>> grey = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    >>> ssim(grey, [grey, 255 - grey]).round(1).tolist()
    [1.0, -1.0]
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError(
            "labels: expected the package torchmetrics; install reasonrec-fast with the extra 'opinions'"
        ) from error
    for row, picture in enumerate(pictures):
        if picture.shape != reference.shape:
            raise DataError(f"pictures[{row}]: expected {list(reference.shape)}; got {list(picture.shape)}")
    if not len(pictures):
        return np.zeros(0)
    batch = torch.from_numpy(np.stack([reference, *pictures])).permute(0, 3, 1, 2).float() / 255
    factor = max(1, round(min(batch.shape[2:]) / _SSIM_SIDE))
    batch = torch.nn.functional.avg_pool2d(batch, factor)
    of_reference = batch[:1].expand(len(pictures), -1, -1, -1)
    values: Any = structural_similarity_index_measure(batch[1:], of_reference, data_range=1.0, reduction="none")
    return values.reshape(-1).double().numpy()


def write_distortions(
    photos: str | Path,
    output: str | Path,
    *,
    kinds: Sequence[str] = tuple(DISTORTIONS),
    longest: int | None = 512,
    progress: Callable[[int, int], None] | None = None,
) -> DistortedSet:
    """Distort every photograph of a folder, by every type at every level.

    Writes PNG files and ``distortions.csv`` with ``path`` (of the picture), ``photo`` (path within ``photos``),
    ``type``, ``level`` and ``label``: :func:`ssim` with the photograph. Within a photograph and a type, quality falls
    as the level rises; the photographs themselves are there as type ``reference``, level 0, label 1. The folder is
    replaced as a whole once all is written. :func:`~reasonrec_fast.data.opinions.load_opinions` reads it with
    ``image="path", score="label", group="type"``; split it by ``photo``.

    Args:
        photos: a folder; files in folders of it too, by their suffix (:data:`SUFFIXES`).
        output: the folder to write, outside ``photos``.
        kinds: names of :data:`~reasonrec_fast.data.distortions.DISTORTIONS`.
        longest: larger photographs are first shrunk to this longer side, in pixels, for which the strengths are meant;
            None leaves them as they are.
        progress: called with the numbers of photographs done and in all.

    Raises:
        DataError: no photographs, one that cannot be read, is too small or is there twice (with its name), or types
            that do not exist; nothing is written.
        ImportError: without the package torchmetrics.
        OSError: the folder cannot be written.
    """
    check_kinds(kinds)
    photos, output = Path(photos), Path(output)
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < MIN_SIDE):
        raise DataError(f"longest: expected a whole number of at least {MIN_SIDE}, or none; got {longest!r}")
    if not photos.is_dir():
        raise DataError(f"photos: expected a folder of photographs; there is none at {photos}")
    if output.resolve().is_relative_to(photos.resolve()):
        raise DataError(f"output: expected a folder outside {photos}; got {output}")
    names = _photographs(photos)
    _check(names, photos, longest)
    left_out: list[tuple[str, str]] = []
    count = 0
    with (
        atomic_write_folder(output, (TABLE, IMAGES)) as temporary,
        (temporary / TABLE).open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for done, name in enumerate(names, start=1):
            picture = _read(name, photos, longest)
            shown = dict(graded(picture, kinds))
            left_out += [(name, kind) for kind in kinds if kind not in shown]
            rows = [(REFERENCE, 0, picture.pixels, 1.0)]
            for kind, pictures in shown.items():
                labels = ssim(picture.pixels, pictures).tolist()
                rows += [(kind, level, *row) for level, row in enumerate(zip(pictures, labels, strict=True), start=1)]
            (temporary / IMAGES / name).mkdir(parents=True)
            for kind, level, pixels, label in rows:
                path = f"{IMAGES}/{name}/{kind}-{level}.png"
                Image.fromarray(pixels).save(temporary / path)
                table.writerow((path, name, kind, level, f"{label:.6f}"))
            count += len(rows)
            if progress is not None:
                progress(done, len(names))
    return DistortedSet(output / TABLE, len(names), count, tuple(left_out))


def _photographs(folder: Path) -> list[str]:
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    names = sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise DataError(f"photos: expected photographs ({', '.join(SUFFIXES)}) in {folder}; got none")
    return names


def _check(names: Sequence[str], folder: Path, longest: int | None) -> None:
    """Before work that takes long: every photograph can be read, is large enough, and is there once."""
    first: dict[bytes, str] = {}
    for name in names:
        key = _read(name, folder, longest).key
        if first.setdefault(key, name) != name:
            raise DataError(f"photos: expected each photograph once; got the same in {first[key]} and {name}")


def _read(name: str, folder: Path, longest: int | None) -> RGBImage:
    picture = read_image(name, folder=folder)
    if longest is not None and max(picture.size) > longest:
        width, height = (max(1, round(side * longest / max(picture.size))) for side in picture.size)
        shrunk = Image.fromarray(picture.pixels).resize((width, height), Image.Resampling.LANCZOS)
        picture = RGBImage(np.asarray(shrunk), name)
    if min(picture.size) < MIN_SIDE:
        raise DataError(
            f"{name}: expected sides of at least {MIN_SIDE} pixels; got {' x '.join(map(str, picture.size))}"
        )
    return picture
