"""Readers of published image-quality and aesthetics sets, one a set: folder, score column and raters in, rows out.

Each tells in its docstring what its folder must hold, and what of the set is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.opinion_tables import (
    Rows,
    image_folder,
    lookup,
    numbers,
    of_histograms,
    one_of,
    read_json_object,
    read_mat,
    read_table,
)

Parts = Mapping[str, Rows]
"""``{"all": rows}``, or the parts of a published split by name: train, validation (where there is one), test."""


def read_biq2021(folder: Path, score: str, raters: float) -> Parts:
    """``Train (Images and MOS).csv`` and ``Test ...`` with ``Image Name`` and ``MOS`` (the one of the two scalings that
    the authors publish which is 0 to 1) and ``Images/``; or ``train.csv`` and ``test.csv`` with ``image``, ``mos`` and
    ``source``. The group is the source, ``ss01`` to ``ss03``. Their workbook with deviations could not be checked."""
    parts = {}
    for part in ("train", "test"):
        path = one_of(folder, (f"{part.title()} (Images and MOS).csv", f"{part}.csv"))
        if path.name == f"{part}.csv":
            table = read_table(path, ("image", "mos", "source"))
            images, groups, values = list(table["image"]), list(table["source"]), list(table["mos"])
        else:
            table = read_table(path, ("Image Name", "MOS"))
            images = [f"Images/{name}" for name in table["Image Name"]]
            groups, values = [name.split(" ")[0] for name in table["Image Name"]], list(table["MOS"])
        parts[part] = Rows(path, images, numbers(values, path, "MOS", 0, 1), None, groups)
    return parts


def read_koniq10k(folder: Path, score: str, raters: float) -> Parts:
    """``koniq10k_scores_and_distributions.csv`` (``MOS`` and ``SD`` on 1 to 5, ``c_total`` ratings) and the split in
    ``koniq10k_distributions_sets.csv``, where it is there. That file's own ``MOS`` is on 0 to 100 while its ``SD`` is
    on 1 to 5, so without the first file mean and error are taken from its shares ``c1`` to ``c5``. Images in
    ``1024x768/`` or ``512x384/``."""
    images = image_folder(folder, ("1024x768", "512x384"))
    scores, sets = folder / "koniq10k_scores_and_distributions.csv", folder / "koniq10k_distributions_sets.csv"
    path = one_of(folder, (scores.name, sets.name))
    levels = tuple(f"c{level}" for level in range(1, 6))
    has_split = sets.is_file()
    split = read_table(one_of(folder, (sets.name,)), ("image_name", "set", *levels, "c_total")) if has_split else None
    if path == scores:
        table = read_table(path, ("image_name", "MOS", "SD", "c_total"))
        means = numbers(list(table["MOS"]), path, "MOS", 1, 5)
        ratings = numbers(list(table["c_total"]), path, "c_total", 1)
        errors = numbers(list(table["SD"]), path, "SD", 0) / np.sqrt(ratings)
    else:
        assert split is not None
        table = split
        ratings = numbers(list(table["c_total"]), path, "c_total", 1)
        shares = np.stack([numbers(list(table[level]), path, level, 0, 1) for level in levels], 1)
        means, errors = of_histograms(shares * ratings[:, None], range(1, 6), path)
    rows = Rows(path, [images + name for name in table["image_name"]], means, errors)
    if split is None:
        return {"all": rows}
    names = {"training": "train", "validation": "validation", "test": "test"}
    for row, part in enumerate(split["set"]):
        if part not in names:
            raise DataError(f"{sets}, row {row}: expected {', '.join(names)} in 'set'; got {part!r}")
    rows_of = lookup(list(split["image_name"]), sets, list(table["image_name"]), path)
    part_of = np.array([names[split["set"].iloc[row]] for row in rows_of])
    return {part: rows.where(part_of == part) for part in names.values() if part != "validation" or part in part_of}


def read_spaq(folder: Path, score: str, raters: float) -> Parts:
    """``Annotations/MOS and Image attribute scores`` (``Image name``, ``MOS``, ``Brightness``, ``Colorfulness``,
    ``Contrast``, ``Noisiness``, ``Sharpness``; 0 to 100) and, where it is there, ``Scene category labels`` (a share a
    category), each as ``.csv`` or ``.xlsx``, with blanks or underscores; images in ``TestImage/``. The group is the
    image's scenes, joined by ``+``. There are no deviations, and no split."""
    images = image_folder(folder, ("TestImage",))
    path = one_of(folder, _annotations("MOS and Image attribute scores"))
    table = read_table(path, ("Image name", score))
    groups = None
    if any((folder / name).is_file() for name in _annotations("Scene category labels")):
        scenes_path = one_of(folder, _annotations("Scene category labels"))
        scenes = read_table(scenes_path, ("Image name",))
        categories = [name for name in scenes.columns if name != "Image name"]
        shares = {name: numbers(list(scenes[name]), scenes_path, name, 0, 1) for name in categories}
        joined = ["+".join(name for name in categories if shares[name][row] > 0) for row in range(len(scenes))]
        groups = [
            joined[row] for row in lookup(list(scenes["Image name"]), scenes_path, list(table["Image name"]), path)
        ]
    values = numbers(list(table[score]), path, score, 0, 100)
    return {"all": Rows(path, [images + name for name in table["Image name"]], values, None, groups)}


def _annotations(title: str) -> tuple[str, ...]:
    names = (title, title.replace(" ", "_"))
    return tuple(f"Annotations/{name}{suffix}" for suffix in (".csv", ".xlsx") for name in names)


def read_kadid10k(folder: Path, score: str, raters: float) -> Parts:
    """``dmos.csv`` with ``dist_img``, ``ref_img``, ``dmos`` (1 to 5, larger is better in spite of the name) and
    ``var``, and ``images/``. The column ``var`` holds standard deviations with divisor n: 1.1 with 0.3, and 1.2 with
    0.4, are three and six twos among thirty ratings. The group is the reference;
    :func:`~reasonrec_fast.data.opinion_sets.split_by_group` keeps references apart."""
    path = one_of(folder, ("dmos.csv",))
    table = read_table(path, ("dist_img", "ref_img", "dmos", "var"))
    images = image_folder(folder, ("images",))
    errors = numbers(list(table["var"]), path, "var", 0, 2) / np.sqrt(raters - 1)  # 2: half of the scale
    values = numbers(list(table["dmos"]), path, "dmos", 1, 5)
    return {"all": Rows(path, [images + name for name in table["dist_img"]], values, errors, list(table["ref_img"]))}


def read_livec(folder: Path, score: str, raters: float) -> Parts:
    """``Data/AllImages_release.mat``, ``AllMOS_release.mat`` (0 to 100) and ``AllStdDev_release.mat``, and ``Images/``.
    The seven images on which the raters were trained (``t1.bmp`` and so on, in ``Images/trainingImages/``) are left
    out."""
    path = one_of(folder, ("Data/AllImages_release.mat",))
    names = read_mat(path, "AllImages_release")
    columns = []
    for variable, most in (("AllMOS_release", 100.0), ("AllStdDev_release", 50.0)):
        its_path = one_of(folder, (f"Data/{variable}.mat",))
        values = read_mat(its_path, variable)
        if len(values) != len(names):
            raise DataError(f"{its_path}: expected {len(names)} values, one an image; got {len(values)}")
        columns.append(numbers(list(values), its_path, variable, 0, most))
    errors = None if np.isnan(raters) else columns[1] / np.sqrt(raters)
    rows = Rows(path, [f"Images/{name}" for name in names], columns[0], errors)
    return {"all": rows.where(np.array([not name.startswith("t") for name in names], dtype=bool))}


def read_agiqa3k(folder: Path, score: str, raters: float) -> Parts:
    """``data.csv`` with ``name``, ``mos_quality``, ``std_quality``, ``mos_align``, ``std_align``; images in
    ``images/``, ``AGIQA-3K/`` or beside it. No group: which model made an image could only be guessed from its name."""
    path = one_of(folder, ("data.csv",))
    deviation = score.replace("mos_", "std_")
    table = read_table(path, ("name", score, deviation))
    images = image_folder(folder, ("images", "AGIQA-3K", "."))
    errors = numbers(list(table[deviation]), path, deviation, 0) / np.sqrt(raters)
    return {
        "all": Rows(path, [images + name for name in table["name"]], numbers(list(table[score]), path, score), errors)
    }


def read_ava(folder: Path, score: str, raters: float) -> Parts:
    """``AVA.txt``: fifteen numbers a line, of which the second is the image and the third to twelfth are the counts of
    ratings 1 to 10; images ``images/ID.jpg`` or ``image/ID.jpg``. With ``aesthetics_image_lists`` the parts are
    ``generic_ls_train.jpgl`` and ``generic_test.jpgl``; images in neither are left out."""
    path = one_of(folder, ("AVA.txt",))
    try:
        table = np.loadtxt(path, dtype=np.int64, ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path}: expected fifteen whole numbers a line; {error}") from error
    if table.shape[1:] != (15,) or not len(table):
        raise DataError(f"{path}: expected fifteen whole numbers a line; got a table {list(table.shape)}")
    for row in np.flatnonzero((table[:, 2:12] < 0).any(1))[:1]:
        raise DataError(f"{path}, row {row}: expected counts of at least 0; got {table[row, 2:12].tolist()}")
    images = image_folder(folder, ("images", "image"))
    means, errors = of_histograms(table[:, 2:12], range(1, 11), path)
    rows = Rows(path, [f"{images}{image}.jpg" for image in table[:, 1]], means, errors)
    lists = {"train": "generic_ls_train.jpgl", "test": "generic_test.jpgl"}
    if not (folder / "aesthetics_image_lists").is_dir():
        return {"all": rows}
    parts = {}
    for part, name in lists.items():
        its_path = one_of(folder, (f"aesthetics_image_lists/{name}",))
        listed = its_path.read_text(encoding="utf-8-sig").split()
        keep = np.zeros(len(table), dtype=bool)
        keep[lookup([str(image) for image in table[:, 1]], path, listed, its_path)] = True
        parts[part] = rows.where(keep)
    return parts


def read_para(folder: Path, score: str, raters: float) -> Parts:
    """``annotation/PARA-GiaaTrain.csv`` and ``PARA-GiaaTest.csv`` with ``imageName``, ``sessionId``, ``semantic`` (the
    group), the counts ``aestheticScore_1.0`` to ``aestheticScore_5.0`` in halves, and ``..._mean`` and ``..._std`` of
    every attribute (1 to 5); images ``imgs/SESSION/IMAGE``. The number of ratings is the sum of the counts."""
    levels = tuple(f"aestheticScore_{level / 2:.1f}" for level in range(2, 11))
    parts = {}
    for part in ("train", "test"):
        path = one_of(folder, (f"annotation/PARA-Giaa{part.title()}.csv",))
        deviation = f"{score.removesuffix('_mean')}_std"
        table = read_table(path, ("imageName", "sessionId", "semantic", *levels, score, deviation))
        ratings = np.stack([numbers(list(table[level]), path, level, 0) for level in levels]).sum(0)
        for row in np.flatnonzero(ratings < 1)[:1]:
            raise DataError(f"{path}, row {row}: expected ratings; got none")
        errors = numbers(list(table[deviation]), path, deviation, 0, 2) / np.sqrt(ratings)
        images = [f"imgs/{a}/{b}" for a, b in zip(table["sessionId"], table["imageName"], strict=True)]
        values = numbers(list(table[score]), path, score, 1, 5)
        parts[part] = Rows(path, images, values, errors, list(table["semantic"]))
    return parts


def read_tad66k(folder: Path, score: str, raters: float) -> Parts:
    """``labels/merge/train.csv`` and ``test.csv`` with ``image`` and ``score``; images in ``TAD66K/``, ``imgs/`` or the
    folder itself. No deviations; the themes are in other files, which are not read."""
    images = image_folder(folder, ("TAD66K", "imgs", "."))
    parts = {}
    for part in ("train", "test"):
        path = one_of(folder, (f"labels/merge/{part}.csv",))
        table = read_table(path, ("image", "score"))
        values = numbers(list(table["score"]), path, "score")
        parts[part] = Rows(path, [images + name for name in table["image"]], values)
    return parts


def read_cadb(folder: Path, score: str, raters: float) -> Parts:
    """``composition_scores.json`` (image to ``scores``, the five raters' marks of 1 to 5; its authors' reader asks for
    this name) and ``split.json`` (``train`` and ``test``, lists of images); images in ``images/``."""
    path = one_of(folder, ("composition_scores.json",))
    marks = read_json_object(path)
    split_path = one_of(folder, ("split.json",))
    split = read_json_object(split_path)
    images = image_folder(folder, ("images",))
    parts = {}
    for part in ("train", "test"):
        names = split.get(part)
        if not isinstance(names, list) or not names:
            raise DataError(f"{split_path}: expected a list of images {part!r}; got {names!r}")
        counts = np.zeros((len(names), 5))
        for row, name in enumerate(names):
            its = marks.get(name) if isinstance(name, str) else None
            given = its.get("scores") if isinstance(its, dict) else None
            if not isinstance(given, list) or not all(mark in (1, 2, 3, 4, 5) for mark in given):
                raise DataError(f"{split_path}, {part} {row}: expected scores of 1 to 5 of {name!r}; got {given!r}")
            for mark in given:
                counts[row, int(mark) - 1] += 1
        means, errors = of_histograms(counts, range(1, 6), path)
        parts[part] = Rows(split_path, [images + name for name in names], means, errors)
    return parts
