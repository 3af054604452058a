"""``reasonrec-fast evaluate`` on every task: explanations, judging, and OptiRAG with the other models, on tiny data."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from task_runs import evaluate, toml

import reasonrec_fast
from reasonrec_fast.data import DataError, split_by_time
from reasonrec_fast.data.explanations import Explanation, ExplanationQuery, load_explanation_split
from reasonrec_fast.experiments import held_out
from reasonrec_fast.experiments.config import EvaluationConfig, load_experiment
from reasonrec_fast.experiments.runner import run_experiment
from reasonrec_fast.models.base import CatalogRecommender, Explainer, Judge, Recommender
from reasonrec_fast.models.classical import EASE
from reasonrec_fast.models.classical.explanation import (
    ConstantText,
    NearestText,
    NearestTextConfig,
    ProfileText,
    ProfileTextConfig,
)
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
