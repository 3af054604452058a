"""Graded distortions: stronger by level, the same for the same pixels, and written as a whole."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from reasonrec_fast.data.distortion_folder import ssim, write_distortions
from reasonrec_fast.data.distortions import DISTORTIONS, LEVELS, distort, graded
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.opinions import load_opinions


def photograph(seed: int = 0, height: int = 120, width: int = 160) -> np.ndarray:
    """Colourful, with large and small structure."""
    generator = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(generator.standard_normal((height, width, 3)), (s, s, 0)) for s in (0.8, 3, 8)]
    mixed = sum(layer / layer.std() for layer in layers)
    return np.clip(128 + 30 * mixed, 0, 255).astype(np.uint8)


def test_twelve_types_of_five_levels():
    assert len(DISTORTIONS) == 12
    for kind, distortion in DISTORTIONS.items():
        steps = np.diff(distortion.strengths)
        assert len(distortion.strengths) == LEVELS and ((steps > 0).all() or (steps < 0).all()), kind


@pytest.mark.parametrize("kind", sorted(DISTORTIONS))
def test_every_level_is_farther_from_the_photograph(kind):
    picture = photograph()
    pictures = dict(graded(picture, [kind]))[kind]
    distances = [np.abs(picture.astype(float) - distorted).mean() for distorted in pictures]
    assert (np.diff([0, *distances]) > 0).all()
    assert all(distorted.shape == picture.shape and distorted.dtype == np.uint8 for distorted in pictures)
    for level, distorted in enumerate(pictures, start=1):  # the same again, whatever else was distorted
        np.testing.assert_array_equal(distort(picture.copy(), kind, level), distorted)
    assert not np.array_equal(distort(photograph(1), kind, 3), pictures[2])


def test_what_some_types_do():
    picture = photograph()
    grey = distort(picture, "desaturate", 5)
    assert (np.ptp(grey.astype(int), axis=2) <= 1).all()
    np.testing.assert_allclose(grey.mean(2), picture @ np.array([0.299, 0.587, 0.114]), atol=1)
    assert {len(np.unique(distort(picture, "quantize", level)[:, :, 0])) for level in (5,)} == {3}
    blocks = distort(picture, "pixelate", 2)  # of three pixels
    assert np.array_equal(blocks[:3, :3], np.broadcast_to(blocks[:1, :1], (3, 3, 3)))
    np.testing.assert_allclose(blocks[0, 0], picture[:3, :3].mean((0, 1)), atol=0.51)
    hit = [(distort(picture, "impulse_noise", level) != picture) for level in (3, 4)]
    assert hit[0].mean() == pytest.approx(0.03, abs=0.01) and (hit[1] | ~hit[0]).all()  # more hits, the same ones too
    assert (distort(picture, "brighten", 1) >= picture).all() and (distort(picture, "darken", 1) <= picture).all()
    for blur in ("gaussian_blur", "lens_blur", "motion_blur"):
        flat = np.full((40, 40, 3), 77, dtype=np.uint8)
        assert (distort(flat, blur, 5) == 77).all(), blur  # the edges too
        assert abs(distort(picture, blur, 4).mean() - picture.mean()) < 2


def test_types_that_a_picture_does_not_show_are_left_out():
    picture = photograph()
    assert "desaturate" not in dict(graded(np.repeat(picture[:, :, :1], 3, axis=2)))
    of_flat = set(dict(graded(np.full((32, 32, 3), 200, dtype=np.uint8))))
    assert {"white_noise", "impulse_noise", "brighten", "darken"} <= of_flat
    assert not of_flat & {"gaussian_blur", "lens_blur", "motion_blur", "desaturate", "pixelate"}


@pytest.mark.parametrize(
    ("kind", "level", "size", "message"),
    [
        ("blur", 1, 32, "kinds: expected some of gaussian_blur, .*; got 'blur'"),
        ("jpeg", 0, 32, "level: expected 1 to 5; got 0"),
        ("jpeg", 6, 32, "level: expected 1 to 5; got 6"),
        ("jpeg", True, 32, "level: expected 1 to 5; got True"),
        ("jpeg", 1, 31, r"expected sides of at least 32 pixels; got \(31, 32\)"),
    ],
)
def test_what_cannot_be_distorted_is_refused(kind, level, size, message):
    with pytest.raises(DataError, match=message):
        distort(np.zeros((32, size, 3), dtype=np.uint8), kind, level)
    with pytest.raises(DataError, match="kinds: expected some of .*; got one twice"):
        next(graded(photograph(), ("jpeg", "jpeg")))


def test_ssim_is_that_of_the_library_on_small_pictures():
    metric = structural_similarity_index_measure
    picture = photograph()
    pictures = [picture, distort(picture, "white_noise", 2), distort(picture, "jpeg", 5)]
    as_batch = [torch.from_numpy(one).permute(2, 0, 1)[None].float() / 255 for one in pictures]
    expected = [float(metric(one, as_batch[0], data_range=1.0)) for one in as_batch]
    np.testing.assert_allclose(ssim(picture, pictures), expected, atol=1e-6)
    assert ssim(picture, pictures)[0] == 1.0 and ssim(picture, []).shape == (0,)
    large = np.repeat(np.repeat(photograph(0, 44, 44), 12, axis=0), 12, axis=1)  # two by two pixels are one
    np.testing.assert_allclose(ssim(large, [large[::-1]]), ssim(large[::2, ::2], [large[::-2, ::2]]), atol=1e-6)
    with pytest.raises(DataError, match=r"pictures\[1\]: expected \[120, 160, 3\]; got \[120, 159, 3\]"):
        ssim(picture, [picture, picture[:, 1:]])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(photograph(0, 48, 64)).save(folder / "b.png")
    Image.fromarray(photograph(1, 48, 64)[:, :, 0]).save(folder / "more" / "a.PNG")
    (folder / "README.txt").write_text("no photograph")
    (folder / ".hidden.png").write_bytes(b"no photograph")
    return folder


def test_a_folder_is_written_with_labels(photos, tmp_path):
    output, kinds, seen = tmp_path / "distorted", ("desaturate", "jpeg", "darken"), []
    written = write_distortions(photos, output, kinds=kinds, progress=lambda *done: seen.append(done))
    assert (written.photos, written.images, written.left_out) == (2, 27, (("more/a.PNG", "desaturate"),))
    assert seen == [(1, 2), (2, 2)] and sorted(path.name for path in output.iterdir()) == ["distortions.csv", "images"]
    table = pd.read_csv(written.table)
    assert list(table.columns) == ["path", "photo", "type", "level", "label"] and len(table) == 27
    assert table["label"].between(-1, 1).all() and (table.groupby("type")["level"].max().drop("reference") == 5).all()
    reference = table[table["type"] == "reference"]
    assert reference["label"].tolist() == [1.0, 1.0] and reference["level"].tolist() == [0, 0]
    row = table[(table["photo"] == "b.png") & (table["type"] == "jpeg") & (table["level"] == 2)].iloc[0]
    pixels = np.asarray(Image.open(output / row["path"]))
    np.testing.assert_array_equal(pixels, distort(photograph(0, 48, 64), "jpeg", 2))
    assert row["label"] == pytest.approx(ssim(photograph(0, 48, 64), [pixels])[0], abs=1e-6)
    opinions = load_opinions(written.table, image="path", score="label", group="type")
    assert len(opinions) == 27 and set(opinions.groups) == {"reference", *kinds}
    before = written.table.read_bytes()
    (output / "notes.txt").write_text("mine")
    again = write_distortions(photos, output, kinds=kinds)
    assert again.table.read_bytes() == before and (output / "notes.txt").read_text() == "mine"


def test_large_photographs_are_shrunk(photos, tmp_path):
    written = write_distortions(photos, tmp_path / "small", kinds=("darken",), longest=44)
    sizes = {Image.open(written.table.parent / path).size for path in pd.read_csv(written.table)["path"]}
    assert sizes == {(44, 33)}
    with pytest.raises(DataError, match="b.png: expected sides of at least 32 pixels; got 40 x 30"):
        write_distortions(photos, tmp_path / "smaller", longest=40)
    with pytest.raises(DataError, match="longest: expected a whole number of at least 32, or none; got 8"):
        write_distortions(photos, tmp_path / "smaller", longest=8)


def test_folders_that_are_refused_leave_nothing(photos, tmp_path):
    output = tmp_path / "distorted"
    (photos / "c.jpg").write_bytes((photos / "b.png").read_bytes()[:200])
    with pytest.raises(DataError, match="c.jpg: expected a whole image"):
        write_distortions(photos, output)
    (photos / "c.jpg").unlink()
    Image.fromarray(photograph(0, 48, 64)).save(photos / "c.bmp")
    with pytest.raises(DataError, match="expected each photograph once; got the same in b.png and c.bmp"):
        write_distortions(photos, output)
    (photos / "c.bmp").unlink()
    Image.new("RGB", (1, 1)).save(photos / "c.bmp")
    with pytest.raises(DataError, match="c.bmp: expected sides of at least 32 pixels; got 1 x 1"):
        write_distortions(photos, output)
    (photos / "c.bmp").unlink()
    (photos / "c.bmp").symlink_to(tmp_path / "outside.bmp")
    Image.new("RGB", (40, 40)).save(tmp_path / "outside.bmp")
    with pytest.raises(DataError, match="c.bmp: .*leads out of that folder"):
        write_distortions(photos, output)
    for folder, where, message in (
        (photos, photos / "distorted", "output: expected a folder outside"),
        (tmp_path / "none", output, "photos: expected a folder of photographs; there is none at"),
        (tmp_path / "empty", output, r"photos: expected photographs \(.jpg, .*\) in .*empty; got none"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            write_distortions(folder, where)
    with pytest.raises(DataError, match="kinds: expected some of .*; got none"):
        write_distortions(photos, output, kinds=())
    assert not output.exists() and not list(tmp_path.glob(".*"))


def test_without_the_library_there_is_one_line(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match="expected the package torchmetrics; install .* with the extra 'opinions'"):
        write_distortions(photos, tmp_path / "distorted", kinds=("jpeg",))
    assert not (tmp_path / "distorted").exists() and not list(tmp_path.glob(".*"))
