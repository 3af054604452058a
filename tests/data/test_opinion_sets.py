"""Published image-quality sets, on small folders of their layouts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from opinion_layouts import LAYOUTS, cadb, kadid10k, koniq10k, spaq, table, tad66k
from scipy.io import savemat

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.opinion_sets import OPINION_SETS, load_opinion_set, split_by_group
from reasonrec_fast.data.opinions import Opinions, OpinionSplit


def load(name: str, folder: Path, **options):
    LAYOUTS[name](folder)
    return load_opinion_set(name, folder, **options)


@pytest.mark.parametrize("name", sorted(OPINION_SETS))
def test_every_set_is_read(name, tmp_path):
    loaded = load(name, tmp_path)
    parts = [loaded.train, loaded.test] if isinstance(loaded, OpinionSplit) else [loaded]
    for part in parts:
        assert set(part.scales) == {name} and np.isfinite(part.scores).all()
        assert all((part.folder / image).is_file() for image in part.images)
    assert loaded.digest() == load_opinion_set(name, str(tmp_path)).digest()
    (tmp_path / parts[0].images[0]).unlink()
    missing = re.escape(repr(parts[0].images[0]))
    with pytest.raises(DataError, match=f"row .: expected an image; there is none at {missing}"):
        load_opinion_set(name, tmp_path)
    if len(parts[0]) > 1:
        left = load_opinion_set(name, tmp_path, skip_missing=True)
        assert len(left.train if isinstance(left, OpinionSplit) else left) == len(parts[0]) - 1


def test_biq2021(tmp_path):
    split = load("biq2021", tmp_path)
    assert split.train.images == ("Images/ss03 (1).jpg", "Images/ss01 (2).jpg") and split.validation is None
    assert split.train.groups == ("ss03", "ss01") and split.train.deviations is None
    table(tmp_path / "Test (Images and MOS).csv", "Image Name,MOS,,", "ss02 (3).jpg,-0.00468,,")
    with pytest.raises(DataError, match=r"row 0: expected a number in \[0, 1\] in 'MOS'; got '-0.00468'"):
        load_opinion_set("biq2021", tmp_path)  # the other scaling


def test_biq2021_as_it_lies_beside_the_checkout(shared_data):
    if not (shared_data / "biq2021").is_dir():
        pytest.skip("needs biq2021 in the development data")
    split = load_opinion_set("biq2021", shared_data / "biq2021")
    assert (len(split.train), len(split.test)) == (2500, 1000) and set(split.test.groups) == {"ss01", "ss02", "ss03"}


def test_koniq10k_has_errors_on_the_scale_of_its_scores(tmp_path):
    """The file of its split has means on 0 to 100 beside deviations on 1 to 5."""
    split = load("koniq10k", tmp_path)
    assert (split.train.images, split.validation.images, split.test.images) == (
        ("512x384/0.jpg", "512x384/2.jpg"), ("512x384/3.jpg",), ("512x384/1.jpg",))  # fmt: skip
    assert split.train.scores[0] == 3.828571
    np.testing.assert_allclose(split.train.deviations[0], 0.527278 / np.sqrt(105))
    (tmp_path / "koniq10k_scores_and_distributions.csv").unlink()
    from_shares = load_opinion_set("koniq10k", tmp_path)
    np.testing.assert_allclose(from_shares.train.scores, split.train.scores, atol=1e-6)
    np.testing.assert_allclose(from_shares.train.deviations, split.train.deviations, rtol=1e-4)
    koniq10k(tmp_path / "whole")
    (tmp_path / "whole/koniq10k_distributions_sets.csv").unlink()
    assert len(load_opinion_set("koniq10k", tmp_path / "whole")) == 4
    path = tmp_path / "whole/koniq10k_scores_and_distributions.csv"
    path.write_text(path.read_text().replace("3.479167", "68.7"))
    with pytest.raises(DataError, match=r"row 1: expected a number in \[1, 5\] in 'MOS'; got '68.7'"):
        load_opinion_set("koniq10k", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("test", "tset"), "row 1: expected training, validation, test in 'set'; got 'tset'"),
        (("1.jpg", "0.jpg"), "expected each image once; got '0.jpg' in rows 0 and 1"),
        (("3.jpg", "4.jpg"), "row 3: expected an image of koniq10k_distributions_sets.csv; got '3.jpg'"),
        ((",set", ",part"), "expected a column 'set'; got 'image_name', "),
        (("validation", "training"), None),
    ],
)
def test_koniq10k_splits(tmp_path, change, message):
    koniq10k(tmp_path)
    path = tmp_path / "koniq10k_distributions_sets.csv"
    path.write_text(path.read_text().replace(*change))
    if message is None:
        assert load_opinion_set("koniq10k", tmp_path).validation is None
        return
    with pytest.raises(DataError, match=message):
        load_opinion_set("koniq10k", tmp_path)


def test_spaq(tmp_path):
    opinions = load("spaq", tmp_path)
    assert opinions.scores.tolist() == [48.86, 62.5] and opinions.groups == ("Cityscape+Night scene", "Cityscape")
    assert opinions.deviations is None
    sharpness = load_opinion_set("spaq", tmp_path, score="Sharpness")
    assert sharpness.scores.tolist() == [42.57, 47.5] and sharpness.scales == ("spaq:Sharpness",) * 2
    scores = tmp_path / "Annotations/MOS and Image attribute scores.csv"
    scores.rename(scores.with_name("MOS_and_Image_attribute_scores.csv"))
    (tmp_path / "Annotations/Scene category labels.csv").unlink()
    assert load_opinion_set("spaq", tmp_path).groups is None


def test_spaq_as_a_workbook(tmp_path, monkeypatch):
    spaq(tmp_path)
    scores = tmp_path / "Annotations/MOS and Image attribute scores.csv"
    expected = load_opinion_set("spaq", tmp_path)
    content = pd.read_csv(scores)
    scores.with_suffix(".xlsx").write_bytes(b"")
    scores.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(
            ImportError, match=r"expected the package openpyxl \(extra 'opinions'\), or the table as a CSV"
        ):
            load_opinion_set("spaq", tmp_path)
    pytest.importorskip("openpyxl")
    with pytest.raises(DataError, match="expected a table; "):
        load_opinion_set("spaq", tmp_path)
    content.to_excel(scores.with_suffix(".xlsx"), index=False)
    opinions = load_opinion_set("spaq", tmp_path)
    assert opinions.images == expected.images and opinions.scores.tolist() == expected.scores.tolist()


def test_kadid10k_and_its_references(tmp_path):
    opinions = load("kadid10k", tmp_path)
    np.testing.assert_allclose(opinions.deviations, 0.3 / np.sqrt(29))  # three twos, else ones, among thirty
    ratings = np.repeat([1, 2], [27, 3])
    np.testing.assert_allclose(opinions.deviations[1], ratings.std(ddof=1) / np.sqrt(30), rtol=1e-3)
    np.testing.assert_allclose(load_opinion_set("kadid10k", tmp_path, raters=10).deviations, 0.1)
    split = split_by_group(opinions, test=0.4, validation=0.2, seed=3)
    parts = [set(part.groups) for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [2, 1, 2] and len(set.union(*parts)) == 5
    assert [len(part) for part in (split.train, split.validation, split.test)] == [4, 2, 4]
    shuffled = opinions.take(np.random.default_rng(0).permutation(len(opinions)))
    again = split_by_group(shuffled, test=0.4, validation=0.2, seed=3)
    assert set(again.test.images) == set(split.test.images)
    tests = {frozenset(split_by_group(opinions, test=0.4, seed=seed).test.groups) for seed in range(8)}
    assert len(tests) > 1


def test_splits_by_group_that_are_refused():
    opinions = Opinions(("a", "b"), np.arange(2.0), Path(), groups=("x", "x"))
    with pytest.raises(DataError, match="expected more than 1 groups; got 1"):
        split_by_group(opinions)
    with pytest.raises(DataError, match="opinions: expected groups; got none"):
        split_by_group(Opinions(("a",), np.zeros(1), Path()))
    for shares in ({"test": 0.0}, {"test": 0.6, "validation": 0.4}, {"validation": -0.1}, {"test": float("nan")}):
        with pytest.raises(ValueError, match="expected shares with a sum below 1"):
            split_by_group(opinions, **shares)


def test_livec_leaves_the_raters_training_out(tmp_path):
    opinions = load("livec", tmp_path)
    assert opinions.images == ("Images/3.bmp", "Images/10.JPG") and opinions.scores.tolist() == [63.9, 12.5]
    assert opinions.deviations is None  # an average of 175 ratings is all that is known
    np.testing.assert_allclose(
        load_opinion_set("livec", tmp_path, raters=175).deviations, [17.5 / 175**0.5, 20 / 175**0.5]
    )
    savemat(tmp_path / "Data/AllStdDev_release.mat", {"AllStdDev_release": [[10.0, 17.5]]})
    with pytest.raises(DataError, match=r"AllStdDev_release.mat: expected 3 values, one an image; got 2"):
        load_opinion_set("livec", tmp_path)
    savemat(tmp_path / "Data/AllMOS_release.mat", {"MOS": [[1.0]]})
    with pytest.raises(DataError, match="AllMOS_release.mat: expected a variable 'AllMOS_release'; got none"):
        load_opinion_set("livec", tmp_path)
    (tmp_path / "Data/AllImages_release.mat").write_bytes(b"MATLAB 5.0 MAT-file, but not whole")
    with pytest.raises(DataError, match="AllImages_release.mat: expected a MATLAB file; "):
        load_opinion_set("livec", tmp_path)
    names = np.empty((1, 1), dtype=object)
    names[0, 0] = np.array([1.0, 2.0])
    savemat(tmp_path / "Data/AllImages_release.mat", {"AllImages_release": names})
    with pytest.raises(DataError, match="row 0: expected a text; got float64"):
        load_opinion_set("livec", tmp_path)


def test_agiqa3k(tmp_path):
    opinions = load("agiqa3k", tmp_path)
    np.testing.assert_allclose(opinions.deviations, np.array([0.21, 0.42]) / np.sqrt(21))
    alignment = load_opinion_set("agiqa3k", tmp_path, score="mos_align")
    assert alignment.scores.tolist() == [0.40889324, 3.0] and alignment.scales[0] == "agiqa3k:mos_align"
    np.testing.assert_allclose(alignment.deviations[1], 0.5 / np.sqrt(21))


def test_ava(tmp_path):
    opinions = load("ava", tmp_path)
    counts = np.array([0, 1, 5, 17, 38, 36, 15, 6, 5, 1])
    ratings = np.repeat(np.arange(1, 11), counts)
    np.testing.assert_allclose(opinions.scores[0], ratings.mean())
    np.testing.assert_allclose(opinions.deviations[0], ratings.std(ddof=1) / np.sqrt(len(ratings)))
    assert np.isnan(opinions.deviations[2])  # a single rating
    lists = tmp_path / "aesthetics_image_lists"
    lists.mkdir()
    (lists / "generic_ls_train.jpgl").write_text("953958\n")
    (lists / "generic_test.jpgl").write_text("953619\n")
    split = load_opinion_set("ava", tmp_path)
    assert split.train.images == ("images/953958.jpg",) and split.test.images == ("images/953619.jpg",)
    (lists / "generic_test.jpgl").write_text("953958\n")
    with pytest.raises(
        DataError, match=r"expected images of one part alone; got 'images/953958.jpg' in train and test"
    ):
        load_opinion_set("ava", tmp_path)
    (lists / "generic_test.jpgl").write_text("953619\n8\n")
    with pytest.raises(DataError, match=r"generic_test.jpgl, row 1: expected an image of AVA.txt; got '8'"):
        load_opinion_set("ava", tmp_path)
    for line, message in (
        ("1 2 0 0 0 0 0 0 0 0 0 0 0 0 1", "row 0: expected ratings; got none"),
        ("1 2 0 0 0 0 0 0 0 0 0 -1 0 0 1", "row 0: expected counts of at least 0; got"),
        ("1 2 3", "expected fifteen whole numbers a line; got a table"),
        ("1 2 x", "expected fifteen whole numbers a line; "),
    ):
        (tmp_path / "AVA.txt").write_text(line + "\n")
        with pytest.raises(DataError, match=message):
            load_opinion_set("ava", tmp_path)


def test_para(tmp_path):
    split = load("para", tmp_path)
    assert split.train.images == ("imgs/session1/a.jpg", "imgs/session1/b.jpg")
    assert split.train.groups == ("portrait", "night scene") and split.test.images == ("imgs/session2/a.jpg",)
    np.testing.assert_allclose(split.train.deviations, [0.5 / 5, 0.4 / 2])
    quality = load_opinion_set("para", tmp_path, score="qualityScore_mean")
    assert quality.train.scores.tolist() == [3.0, 2.0] and quality.test.scales == ("para:qualityScore_mean",)
    np.testing.assert_allclose(quality.train.deviations, [0.25 / 5, 1 / 2])


def test_cadb(tmp_path):
    split = load("cadb", tmp_path)
    assert split.train.images == ("images/10007.jpg", "images/10003.jpg")
    np.testing.assert_allclose(split.train.scores, [2.4, 2.2])
    np.testing.assert_allclose(split.train.deviations[1], np.std([2, 3, 2, 2, 2], ddof=1) / np.sqrt(5))
    for name, content, message in (
        (
            "split.json",
            '{"train": ["10007.jpg"], "test": ["none.jpg"]}',
            "test 0: expected scores of 1 to 5 of 'none.jpg'",
        ),
        ("split.json", '{"train": ["10007.jpg"]}', "expected a list of images 'test'; got None"),
        ("split.json", "[1", "split.json: expected JSON; "),
        ("composition_scores.json", "[]", "expected a JSON object with entries; got list"),
        ("composition_scores.json", '{"10007.jpg": {"scores": [2, 6]}}', "train 0: expected scores of 1 to 5 of"),
    ):
        cadb_again = tmp_path / message.replace("/", "")[:20]
        cadb(cadb_again)
        (cadb_again / name).write_text(content)
        with pytest.raises(DataError, match=message):
            load_opinion_set("cadb", cadb_again)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "dist_img,ref_img,dmos",
            "I01_01_01.png,I01.png,4",
            "expected a column 'var'; got 'dist_img', 'ref_img', 'dmos'",
        ),
        (
            "dist_img,ref_img,dmos,var",
            "I01_01_01.png,I01.png,5.5,0.3",
            r"row 0: expected a number in \[1, 5\] in 'dmos'",
        ),
        ("dist_img,ref_img,dmos,var", "I01_01_01.png,I01.png,,0.3", "row 0: expected a number .* in 'dmos'; got ''"),
        ("dist_img,ref_img,dmos,var", "I01_01_01.png,I01.png,4,-1", r"row 0: expected a number in \[0, 2\] in 'var'"),
        ("dist_img,ref_img,dmos,var", "../../o.png,I01.png,4,1", "row 0: .*leads out of that folder"),
        ("dist_img,ref_img,dmos,var", "I01_01_01.png,I01.png,4,1,9,9", "dmos.csv: expected a table; "),
        ("dist_img,ref_img,dmos,var", "", "dmos.csv: expected rows below the header; got none"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, header, row, message):
    kadid10k(tmp_path)
    table(tmp_path / "dmos.csv", header, row)
    with pytest.raises(DataError, match=message):
        load_opinion_set("kadid10k", tmp_path)


def test_what_is_asked_wrongly_is_refused(tmp_path):
    for name, options, message in (
        ("koniq", {}, "name: expected one of agiqa3k, ava, biq2021"),
        ("spaq", {"score": "SD"}, "score: expected one of MOS, Brightness, .*, Sharpness; got 'SD'"),
        ("spaq", {"raters": 10}, "raters: expected none, as the set has counts or no deviations; got 10"),
        ("livec", {"raters": 1}, "raters: expected a number above 1; got 1"),
        ("livec", {"raters": float("inf")}, "raters: expected a number above 1; got inf"),
    ):
        with pytest.raises(DataError, match=message):
            load_opinion_set(name, tmp_path, **options)
    with pytest.raises(DataError, match="folder: expected the folder of SPAQ"):
        load_opinion_set("spaq", tmp_path / "none")
    with pytest.raises(DataError, match="expected a folder of images, 'TestImage'; got none"):
        load_opinion_set("spaq", tmp_path)
    with pytest.raises(DataError, match="expected 'dmos.csv'; got none"):
        load_opinion_set("kadid10k", tmp_path)


def test_an_image_in_two_parts_is_refused(tmp_path):
    tad66k(tmp_path)
    table(tmp_path / "labels/merge/test.csv", "image,score", "3.jpg,7", "2.jpg,7")
    with pytest.raises(
        DataError, match=r"test.csv, row 1: expected images of one part alone; got 'TAD66K/2.jpg' in train"
    ):
        load_opinion_set("tad66k", tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path):
    outside = tmp_path / "outside"
    kadid10k(outside)
    inside = tmp_path / "inside"
    kadid10k(inside)
    (inside / "images/I01_01_01.png").unlink()
    (inside / "images/I01_01_01.png").symlink_to(outside / "images/I01_01_01.png")
    with pytest.raises(DataError, match="row 0: .*leads out of that folder"):
        load_opinion_set("kadid10k", inside)
    kadid10k(inside)
    (inside / "dmos.csv").unlink()
    (inside / "dmos.csv").symlink_to(outside / "dmos.csv")
    with pytest.raises(DataError, match="dmos.csv: .*leads out of that folder"):
        load_opinion_set("kadid10k", inside)
