"""Scales and standard errors of opinions."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.opinions import Opinions, load_opinion_split, load_opinions

HEADER = "image,score,source,se\n"


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def load(folder: Path, rows: str) -> Opinions:
    (folder / "o.csv").write_text(HEADER + rows)
    return load_opinions(folder / "o.csv", scale="source", deviation="se")


def test_scales_and_deviations_are_read(folder):
    opinions = load(folder, "0.png,3.5,koniq,0.25\n1.png,70,spaq,\n2.png,2,koniq,0\n")
    assert opinions.scales == ("koniq", "spaq", "koniq")
    np.testing.assert_array_equal(opinions.deviations, [0.25, np.nan, 0.0])
    some = opinions.take(np.array([2, 0]))
    assert some.images == ("2.png", "0.png") and some.scales == ("koniq", "koniq")
    np.testing.assert_array_equal(some.deviations, [0.0, 0.25])
    plain = load_opinions(folder / "o.csv")
    assert plain.scales is None and plain.deviations is None and plain.take(np.array([1])).deviations is None
    with pytest.raises(DataError, match=r"rows: expected whole numbers; got bool"):
        opinions.take(np.array([True, False, True]))
    with pytest.raises(DataError, match=r"rows: expected indices in \[0, 3\); got 3 in row 0"):
        opinions.take(np.array([3]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0.png,1,a,-0.5\n", "row 0: expected a deviation, a finite number of at least 0; got '-0.5'"),
        ("0.png,1,a,\n1.png,1,a,nan\n", "row 1: expected a deviation, a finite number of at least 0; got 'nan'"),
        ("0.png,1,a,inf\n", "row 0: expected a deviation, a finite number of at least 0; got 'inf'"),
        ("0.png,1,a,wide\n", "row 0: expected a deviation, a finite number of at least 0; got 'wide'"),
        ("0.png,1,a,1\n1.png,1,,1\n", "row 1: expected the name of a scale; got ''"),
        ("0.png,1, ,1\n", "row 0: expected the name of a scale; got ' '"),
    ],
)
def test_what_is_no_scale_or_deviation_is_refused(folder, rows, message):
    with pytest.raises(DataError, match=message):
        load(folder, rows)
    for missing in ({"scale": "whose"}, {"deviation": "whose"}):
        with pytest.raises(DataError, match="expected a column 'whose'; got 'image', 'score', 'source', 'se'"):
            load_opinions(folder / "o.csv", **missing)


def test_opinions_of_other_lengths_are_refused():
    images, scores = ("a.png", "b.png"), np.array([1.0, 2.0])
    for more, message in (
        ({"scales": ("a",)}, "scales: expected one for each of the 2 images; got 1"),
        ({"scales": ("a", None)}, "scales: expected names; got None in row 1"),
        ({"deviations": np.zeros(3)}, "deviations: expected one for each of the 2 images; got 3"),
        ({"deviations": np.array([0, np.inf])}, "deviations: expected finite numbers; got inf in row 1"),
        ({"deviations": np.array(["a", "b"])}, "deviations: expected numbers; got"),
    ):
        with pytest.raises(DataError, match=message):
            Opinions(images, scores, Path(), **more)
    whole = Opinions(images, scores, Path(), deviations=[1, 2])
    assert whole.deviations.dtype == np.float64


def test_digests_are_what_they_were_without_scales_and_deviations(folder):
    """Committed results have them."""
    plain = Opinions(("0.png", "1.png"), np.array([1.0, 2.0]), folder, ("a", "b"))
    sha256 = hashlib.sha256(plain.scores.tobytes())
    for image in plain.images:
        sha256.update(hashlib.sha256((folder / image).read_bytes()).digest())
    sha256.update(b"a\0b")
    assert plain.digest() == sha256.hexdigest()[:32]
    others = [
        plain,
        replace(plain, scales=("a", "b")),
        replace(plain, scales=("a\0b", "b")),
        replace(plain, scales=("a", "b\0b")),
        replace(plain, deviations=np.array([0.0, np.nan])),
        replace(plain, deviations=np.array([0.0, 1.0])),
        replace(plain, scales=("a", "b"), deviations=np.array([0.0, 1.0])),
    ]
    assert len({other.digest() for other in others}) == len(others)
    same = replace(plain, deviations=np.array([-0.0, -np.nan]))
    assert same.digest() == others[4].digest()


def test_parts_of_a_split_have_the_same_columns(folder):
    (folder / "train.csv").write_text(HEADER + "0.png,1,a,0.5\n1.png,2,b,\n")
    (folder / "test.csv").write_text(HEADER + "2.png,1,a,0.5\n")
    split = load_opinion_split(folder / "train.csv", folder / "test.csv", scale="source", deviation="se")
    assert split.train.scales == ("a", "b") and split.test.scales == ("a",)
    assert split.digest() != load_opinion_split(folder / "train.csv", folder / "test.csv").digest()


def test_scores_of_several_scales_are_not_compared(folder):
    opinions = load(folder, "0.png,1,a,\n1.png,2,b,\n2.png,3,a,\n")
    with pytest.raises(DataError, match="train: expected scores of one scale; got 2: 'a', 'b'"):
        opinions.check_one_scale("train")
    opinions.take(np.array([0, 2])).check_one_scale("train")
    load_opinions(folder / "o.csv").check_one_scale("train")
