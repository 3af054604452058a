"""Small folders in the layouts of published image-quality sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name, "PNG")


def table(path: Path, header: str, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def biq2021(folder: Path) -> None:
    images(folder, "Images/ss03 (1).jpg", "Images/ss01 (2).jpg", "Images/ss02 (3).jpg")
    table(folder / "Train (Images and MOS).csv", "Image Name,MOS,,", "ss03 (1).jpg,0.8471,,", "ss01 (2).jpg,0.25,,")
    table(folder / "Test (Images and MOS).csv", "Image Name,MOS,,", "ss02 (3).jpg,0.5,,")


def koniq10k(folder: Path) -> None:
    images(folder, *(f"512x384/{number}.jpg" for number in range(4)))
    table(
        folder / "koniq10k_scores_and_distributions.csv",
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore",
        "0.jpg,0,0,25,73,7,105,3.828571,0.527278,77.38",
        "1.jpg,0,3,45,47,1,96,3.479167,0.58,68.7",
        "2.jpg,1,0,20,73,2,96,3.78125,0.5272,78.6",
        "3.jpg,0,0,21,75,13,109,3.926606,0.5562,77.2",
    )
    table(
        folder / "koniq10k_distributions_sets.csv",
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set",
        "0.jpg,0.0,0.0,0.238095238095,0.695238095238,0.0666666666667,105,77.38,0.527277894494,training",
        "1.jpg,0.0,0.03125,0.46875,0.489583333333,0.0104166666667,96,68.72,0.580003024795,test",
        "2.jpg,0.0104166666667,0.0,0.208333333333,0.760416666667,0.0208333333333,96,78.6,0.527219618675,training",
        "3.jpg,0.0,0.0,0.192660550459,0.688073394495,0.119266055046,109,77.24,0.556217750099,validation",
    )


def spaq(folder: Path) -> None:
    images(folder, "TestImage/00001.jpg", "TestImage/00002.jpg")
    table(
        folder / "Annotations/MOS and Image attribute scores.csv",
        "Image name,MOS,Brightness,Colorfulness,Contrast,Noisiness,Sharpness",
        "00001.jpg,48.86,47.43,55.57,55.71,37.86,42.57",
        "00002.jpg,62.5,55.38,67.13,53.13,57.5,47.5",
    )
    table(
        folder / "Annotations/Scene category labels.csv",
        "Image name,Animal,Cityscape,Night scene",
        "00002.jpg,0,1,0",
        "00001.jpg,0,0.5,0.5",
    )


def kadid10k(folder: Path) -> None:
    names = [f"I{reference:02d}_01_{level:02d}.png" for reference in range(1, 6) for level in (1, 2)]
    images(folder, *(f"images/{name}" for name in names))
    rows = [f"{name},{name[:3]}.png,{4.57 if name[7:9] == '01' else 1.1},0.3" for name in names]
    table(folder / "dmos.csv", "dist_img,ref_img,dmos,var", *rows)


def livec(folder: Path) -> None:
    images(folder, "Images/trainingImages/t1.bmp", "Images/3.bmp", "Images/10.JPG")
    names = np.empty((3, 1), dtype=object)
    names[:, 0] = ["t1.bmp", "3.bmp", "10.JPG"]
    (folder / "Data").mkdir()
    savemat(folder / "Data/AllImages_release.mat", {"AllImages_release": names})
    savemat(folder / "Data/AllMOS_release.mat", {"AllMOS_release": [[40.0, 63.9, 12.5]]})
    savemat(folder / "Data/AllStdDev_release.mat", {"AllStdDev_release": [[10.0, 17.5, 20.0]]})


def agiqa3k(folder: Path) -> None:
    images(folder, "images/AttnGAN_normal_000.jpg", "images/midjourney_1.jpg")
    table(
        folder / "data.csv",
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align",
        "AttnGAN_normal_000.jpg,statue of a man,,,,0.965602553,0.21,0.40889324,0.615607722",
        'midjourney_1.jpg,"only triangles, anime",,,anime style,3.5,0.42,3,0.5',
    )


def ava(folder: Path) -> None:
    images(folder, "images/953619.jpg", "images/953958.jpg", "images/7.jpg")
    (folder / "AVA.txt").write_text(
        "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396\n2 953958 10 7 15 26 26 21 10 8 1 2 1 21 1396\n"
        "3 7 0 0 0 0 0 0 0 0 0 1 0 0 1\n"
    )


def para(folder: Path) -> None:
    images(folder, "imgs/session1/a.jpg", "imgs/session1/b.jpg", "imgs/session2/a.jpg")
    levels = ",".join(f"aestheticScore_{level / 2:.1f}" for level in range(2, 11))
    moments = ",".join(f"{name}Score_{moment}" for name in ("aesthetic", "quality") for moment in ("mean", "std"))
    header = f"imageName,sessionId,semantic,{levels},{moments}"
    table(
        folder / "annotation/PARA-GiaaTrain.csv",
        header,
        "a.jpg,session1,portrait,0,0,0,0,10,0,15,0,0,3.6,0.5,3,0.25",
        "b.jpg,session1,night scene,1,0,3,0,0,0,0,0,0,1.75,0.4,2,1",
    )
    table(folder / "annotation/PARA-GiaaTest.csv", header, "a.jpg,session2,food,0,0,0,0,0,0,0,9,0,4.5,0,4,0.3")


def tad66k(folder: Path) -> None:
    images(folder, "TAD66K/1.jpg", "TAD66K/2.jpg", "TAD66K/3.jpg")
    table(folder / "labels/merge/train.csv", "image,score", "1.jpg,6.5", "2.jpg,3.25")
    table(folder / "labels/merge/test.csv", "image,score", "3.jpg,7")


def cadb(folder: Path) -> None:
    images(folder, "images/10003.jpg", "images/10007.jpg", "images/10064.jpg")
    marks = {
        "10003.jpg": {"scores": [2.0, 3.0, 2.0, 2.0, 2.0], "dist": [0.0, 0.8, 0.2, 0.0, 0.0], "mean": 2.2},
        "10007.jpg": {"scores": [2.0, 2.0, 4.0, 2.0, 2.0], "dist": [0.0, 0.8, 0.0, 0.2, 0.0], "mean": 2.4},
        "10064.jpg": {"scores": [3.0, 3.0, 3.0, 3.0, 3.0], "dist": [0.0, 0.0, 1.0, 0.0, 0.0], "mean": 3.0},
    }
    (folder / "composition_scores.json").write_text(json.dumps(marks))
    (folder / "split.json").write_text(json.dumps({"train": ["10007.jpg", "10003.jpg"], "test": ["10064.jpg"]}))


LAYOUTS = {
    layout.__name__: layout
    for layout in (agiqa3k, ava, biq2021, cadb, kadid10k, koniq10k, livec, para, spaq, tad66k)
}  # fmt: skip
