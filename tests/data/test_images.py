"""Images of every kind are read right, or refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.images import RGBImage, path_within, read_image

Image.init()
WRITTEN = [
    kind for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF") if kind in Image.SAVE
]


def photo(width: int = 5, height: int = 4, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels(kind: str) -> None:
    pixels = photo()
    read = read_image(encoded(Image.fromarray(pixels), kind))
    assert read.pixels.dtype == np.uint8 and np.array_equal(read.pixels, pixels)
    assert read.size == (5, 4)


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("JPEG2000", {"irreversible": False})])
def test_other_lossless_formats(kind: str, options: dict[str, object]) -> None:
    pixels = photo(64, 48)
    assert np.array_equal(read_image(encoded(Image.fromarray(pixels), kind, **options)).pixels, pixels)


def test_every_source_gives_the_same_image_and_key(tmp_path: Path) -> None:
    pixels = photo()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    strided = np.asfortranarray(pixels)[:, ::1]
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), data, bytearray(data), memoryview(data), image, pixels,
               strided, RGBImage(pixels)]  # fmt: skip
    read = [read_image(source) for source in sources]
    assert all(np.array_equal(image.pixels, pixels) for image in read)
    assert len({image.key for image in read}) == 1 and len(read[0].key) == 32
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    assert read_image(other).key != read[0].key
    assert read_image(np.zeros((2, 8, 3), np.uint8)).key != read_image(np.zeros((4, 4, 3), np.uint8)).key


def test_pixels_are_read_only_and_independent_of_the_source() -> None:
    pixels = photo()
    read = read_image(pixels)
    before = read.pixels.copy()
    pixels[:] = 0
    assert np.array_equal(read.pixels, before)
    with pytest.raises(ValueError, match="read-only"):
        read.pixels[0, 0, 0] = 1


def test_greyscale_and_one_bit() -> None:
    grey = photo(channels=1)
    for source in (grey, grey[:, :, None], encoded(Image.fromarray(grey), "PNG")):
        assert np.array_equal(read_image(source).pixels, np.repeat(grey[:, :, None], 3, axis=2))
    bits = Image.fromarray(grey > 127)
    assert np.array_equal(read_image(encoded(bits, "PNG")).pixels[:, :, 0], np.where(grey > 127, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (3, 7), dtype=np.uint16)
    wide[0, :2] = 0, 65535
    expected = np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(read_image(encoded(Image.fromarray(wide), kind)).pixels, expected)
    assert np.array_equal(read_image(Image.fromarray(wide)).pixels, expected)


def test_sixteen_bit_colour_is_read_as_sixteen_bit_grey_is() -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (3, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    assert np.array_equal(read_image(png(7, 3, 16, 2, rows)).pixels, (wide >> 8).astype(np.uint8))
    grey = wide[:, :, 0]
    hidden = int(grey[1, 2])
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    read = read_image(png(7, 3, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", hidden)))).pixels
    assert read[1, 2].tolist() == [255, 255, 255]
    assert read[0, 0, 0] == grey[0, 0] >> 8


def test_the_transparent_value_of_a_png_has_the_depth_of_its_pixels() -> None:
    wide = np.array([[[0x1234] * 3, [0x3434] * 3, [0, 0, 0]]], dtype=">u2")
    transparent = chunk(b"tRNS", struct.pack(">HHH", *[0x1234] * 3))
    read = read_image(png(3, 1, 16, 2, b"\0" + wide.tobytes(), transparent)).pixels
    assert read[0, :, 0].tolist() == [255, 0x34, 0]
    for bits, packed, levels in ((2, b"\x1b", [0, 85, 170, 255]), (4, b"\x01\x23", [0, 17, 34, 51])):
        read = read_image(png(4, 1, bits, 0, b"\0" + packed, chunk(b"tRNS", struct.pack(">H", 1)))).pixels
        assert read[0, :, 0].tolist() == [levels[0], 255, *levels[2:]]


def test_cmyk() -> None:
    solid = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.abs(read_image(encoded(solid, "JPEG", quality=95)).pixels.astype(int) - [0, 255, 255]).max() <= 3
    assert read_image(encoded(solid, "TIFF")).pixels[0, 0].tolist() == [0, 255, 255]


def test_palettes_and_transparency_lie_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert read_image(encoded(palette, "PNG")).pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    for kind in ("PNG", "GIF"):
        read = read_image(encoded(palette, kind, transparency=1)).pixels
        assert read.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    alpha = np.array([[[100, 100, 100, 255], [100, 100, 100, 0], [0, 0, 0, 128]]], np.uint8)
    for source in (alpha, encoded(Image.fromarray(alpha), "PNG")):
        assert read_image(source).pixels[0, :, 0].tolist() == [100, 255, 127]
    shadow = Image.new("LA", (1, 1), (0, 0))
    assert read_image(encoded(shadow, "PNG")).pixels.tolist() == [[[255, 255, 255]]]
    premultiplied = Image.new("RGBA", (1, 1), (0, 0, 0, 0)).convert("RGBa")
    assert read_image(premultiplied).pixels.tolist() == [[[255, 255, 255]]]
    keyed = encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "PNG", transparency=(1, 2, 3))
    assert read_image(keyed).pixels.tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read_image(data).pixels[8, 8].tolist() == [255, 0, 0]
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
        opened.seek(1)
        assert read_image(opened).pixels[8, 8].tolist() == [0, 255, 0]
        assert opened.tell() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    pixels = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), kind, exif=exif)
    turned = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.transpose(1, 0, 2),
              np.rot90(pixels, -1), pixels[::-1, ::-1].transpose(1, 0, 2), np.rot90(pixels)]  # fmt: skip
    assert np.array_equal(read_image(data).pixels, turned[orientation - 1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_file_that_is_cut_off_is_refused(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(photo(64, 64)), kind)
    (tmp_path / "cut.img").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.img: expected a whole image"):
        read_image("cut.img", folder=tmp_path)


def test_filling_truncated_files_with_grey_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="LOAD_TRUNCATED_IMAGES"):
        read_image(encoded(Image.fromarray(photo()), "PNG"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of what it skips in EXIF and TIFF
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WRITTEN), st.data())
def test_a_damaged_file_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(Image.fromarray(photo(24, 16)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_image(bytes(whole), max_pixels=10_000).pixels.shape[2] == 3
    except DataError as error:
        assert "expected" in str(error)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=rf"image of {len(data)} bytes: expected a whole image .*; got something else"):
        read_image(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    for side in (8_000, 12_000, 60_000):  # within Pillow's bounds, where it warns, and where it refuses
        (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, b""))  # there are no pixels to decode
        with pytest.raises(DataError, match=r"bomb\.png: expected at most 50000000 pixels; .*\d{8}"):
            read_image(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="image: expected at most 19 pixels; got 5 x 4 = 20"):
        read_image(photo(), max_pixels=19)
    assert read_image(photo(), max_pixels=20).size == (5, 4)
    with pytest.raises(DataError, match="expected at most 19 pixels"):
        read_image(RGBImage(photo()), max_pixels=19)


@pytest.mark.parametrize("bound", [0, -1, 1.5, True, None])
def test_a_bound_that_makes_no_sense_is_refused(bound: object) -> None:
    with pytest.raises(ValueError, match="max_pixels: expected a whole number of at least 1"):
        read_image(photo(), max_pixels=bound)  # type: ignore[arg-type]


def test_one_pixel() -> None:
    assert read_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).pixels.tolist() == [[[1, 2, 3]]]


def test_a_path_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    Image.fromarray(photo()).save(tmp_path / "secret.png")
    Image.fromarray(photo()).save(folder / "inner" / "a.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "alias.png").symlink_to(folder / "inner" / "a.png")
    for path in ("../secret.png", "inner/../../secret.png", "link.png", "out/secret.png", tmp_path / "secret.png"):
        with pytest.raises(DataError, match=r"expected a path inside .*images; it leads out of that folder"):
            read_image(path, folder=folder)
    for path in ("inner/a.png", "inner/../inner/a.png", "alias.png", folder / "inner" / "a.png"):
        assert read_image(path, folder=folder).size == (5, 4)
    (tmp_path / "images-of-others").mkdir()
    with pytest.raises(DataError):
        path_within("../images-of-others", folder)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")
    with pytest.raises(OSError):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: expected an image file"):
        read_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    "array",
    [photo().astype(np.float32) / 255, photo().astype(np.int64), photo().transpose(2, 0, 1), photo(channels=2),
     photo()[None], np.zeros(3, np.uint8), np.zeros((2, 2), bool)],
)  # fmt: skip
def test_arrays_of_other_kinds_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=rf"expected a uint8 array .*; got {array.dtype} \["):
        read_image(array)
    if array.ndim != 2:
        with pytest.raises(DataError, match="expected pixels uint8"):
            RGBImage(array)


def test_values_of_unknown_range_and_no_pixels_are_refused() -> None:
    for image, kind in ((Image.new("F", (2, 2)), "floats"), (Image.new("I", (2, 2)), "32-bit integers")):
        for source in (image, encoded(image, "TIFF")):
            with pytest.raises(DataError, match=rf"expected 8 or 16 bits a channel; got {kind}"):
                read_image(source)
    with pytest.raises(DataError, match="expected at least one pixel; got 0 x 3"):
        read_image(np.zeros((3, 0, 3), np.uint8))
    with pytest.raises(DataError, match="expected at least one pixel"):
        read_image(Image.new("RGB", (0, 0)))
    for source in (None, 3, ["a.png"]):
        with pytest.raises(TypeError, match="expected a path, bytes, a PIL image or a uint8 array"):
            read_image(source)  # type: ignore[arg-type]
