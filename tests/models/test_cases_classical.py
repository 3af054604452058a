"""Classical models: arrays in any form, repeated events, and what recommendations leave out."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from reasonrec_fast.data import UNLABELLED, DataError, Histories, Interactions, split_by_time
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.held_out import metrics_on_test
from reasonrec_fast.models.classical import (
    BPR,
    EASE,
    FM,
    Bias,
    BPRConfig,
    DCNv2,
    DCNv2Config,
    FMConfig,
    ItemKNN,
    LightGCN,
    LightGCNConfig,
    Popularity,
    SASRec,
    SASRecConfig,
)

MODELS = {
    "popularity": Popularity,
    "bias": Bias,
    "knn": ItemKNN,
    "ease": EASE,
    "bpr": lambda: BPR(BPRConfig(dim=4, epochs=1)),
    "lightgcn": lambda: LightGCN(LightGCNConfig(dim=4, epochs=1)),
    "fm": lambda: FM(FMConfig(dim=4, epochs=1)),
    "dcn": lambda: DCNv2(DCNv2Config(dim=4, epochs=1, deep=(4,))),
    "sasrec": lambda: SASRec(SASRecConfig(dim=4, heads=1, epochs=1, max_length=5)),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def make(request):
    return request.param


@pytest.fixture(scope="module")
def shop():
    """Ratings, of which low ratings are dislikes; every user has repeated items."""
    generator = np.random.default_rng(0)
    users, items = np.repeat(np.arange(20), 12), generator.integers(0, 30, 240)
    labels = generator.integers(0, 2, 240)
    return Interactions.from_columns(users.tolist(), items.tolist(), labels.tolist(), range(240))


def test_all_that_a_user_has_had_is_left_out(make, shop, tmp_path):
    rows = np.arange(200)
    model = make().fit(shop, rows)
    model.save_pretrained(tmp_path)
    for recommender in (model, type(model).from_pretrained(tmp_path)):
        result = recommender.recommend(np.arange(shop.num_users), 30).items
        for user, row in enumerate(result):
            seen = set(shop.items[rows][shop.users[rows] == user].tolist())
            assert set(row.tolist()) - {-1} == set(range(shop.num_items)) - seen
        liked = Histories.of(shop, rows)
        assert all(np.array_equal(recommender.histories.of_user(u), liked.of_user(u)) for u in range(shop.num_users))


def test_users_and_items_come_in_any_container(make, shop):
    model = make().fit(shop, range(240))
    users, items = np.array([3, 0, 7]), np.array([5, 2, 9])
    scores, best = model.score(users, items), model.recommend(users, 4)
    assert np.array_equal(make().fit(shop, np.arange(240)[::-1]).score(users, items), scores)
    for contain in (
        list,
        torch.from_numpy,
        lambda a: pd.Series(a, index=[2, 1, 0]),
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: a.astype(np.uint8),
        lambda a: a.astype(object),
    ):
        assert np.array_equal(model.score(contain(users), contain(items)), scores)
        result = model.recommend(contain(users), 4)
        assert np.array_equal(result.items, best.items) and np.array_equal(result.scores, best.scores)
    assert model.score([], []).shape == (0,) and model.recommend([], 4).items.shape == (0, 4)
    assert model.recommend(users, 0).items.shape == (3, 0)


REFUSED = [
    (lambda m: m.score([0], [-1]), "items: expected indices in .* got -1 in row 0"),
    (lambda m: m.score([0, 0], [0, 99]), "items: expected indices in .* got 99 in row 1"),
    (lambda m: m.score([0, -1], [0, 0]), "users: expected indices .* got -1 in row 1"),
    (lambda m: m.score([0, 1], [0]), "items: expected a vector like users, of 2 rows; got 1"),
    (lambda m: m.score([0.0], [1]), "users: expected whole numbers; got float64 0.0"),
    (lambda m: m.score(["nobody"], [1]), "users: expected identifiers that the model knows; got 'nobody' in row 0"),
    (lambda m: m.score([0], [1.7]), "items: expected whole numbers; got float64 1.7"),
    (lambda m: m.score([True], [1]), "users: expected whole numbers; got bool"),
    (lambda m: m.score(0, 1), "users: expected a vector"),
    (lambda m: m.scores([-1]), "users: expected indices .* got -1 in row 0"),
    (lambda m: m.recommend([-1], 2), "users: expected indices .* got -1 in row 0"),
    (lambda m: m.recommend([0, 99], 2), r"users: expected indices in \[0, 20\); got 99 in row 1"),
    (lambda m: m.recommend([0], -1), "k: expected a whole number of at least 0; got -1"),
    (lambda m: m.recommend([0], 1.5), "k: expected a whole number of at least 0; got 1.5"),
    (lambda m: m.recommend([2], 2, exclude=Histories.from_lists([[0]])), r"users: .* in \[0, 1\); got 2"),
    (lambda m: m.recommend([0], 2, exclude=Histories.from_lists([[99]])), "histories: expected items in .* got 99"),
    (lambda m: m.recommend([0], 2, exclude=[[0]]), "exclude: expected Histories; got list"),
    (
        lambda m: m.recommend([0], 2, exclude=Histories(np.array([0, 9]), np.array([1]))),
        "histories: expected an indptr",
    ),
    (lambda m: m.set_histories([[0]]), "histories: expected Histories; got list"),
    (
        lambda m: m.set_histories(Histories.from_lists([[0]]), seen=Histories.from_lists([[0], [1]])),
        "seen: expected a vector like",
    ),
]


def test_what_cannot_be_scored_is_refused(make, shop):
    model = make().fit(shop, np.arange(240))
    for call, message in REFUSED:
        with pytest.raises(DataError, match=f"^{message}"):
            call(model)
    for rows, message in (
        (np.ones(240, dtype=bool), "train: expected whole numbers; got bool"),
        ([0, 999], r"train: expected indices in \[0, 240\); got 999 in row 1"),
        ([0, -1], "train: .* got -1 in row 1"),
        ([0, 1, 0], "train: expected every row once; got row 0 twice"),
    ):
        with pytest.raises(DataError, match=message):
            make().fit(shop, rows)
        with pytest.raises(DataError, match=message.replace("train", "validation")):
            make().fit(shop, range(240), rows)
    for call in (lambda m: m.score([0], [0]), lambda m: m.recommend([0], 1), lambda m: m.set_histories(model.seen)):
        with pytest.raises(DataError, match="model: expected one that is fitted or loaded; got a new one"):
            call(make())


@pytest.mark.parametrize("kind", ["bpr", "popularity"])
def test_a_broken_model_recommends_nothing(shop, kind):
    model = MODELS[kind]().fit(shop, np.arange(240))
    with torch.no_grad():
        next(iter(model.state_dict().values())).fill_(float("nan"))
    with pytest.raises(DataError, match="users: expected scores that are numbers; got NaN for user 3 in row 0"):
        model.recommend([3], 2)


def test_repeated_items_fold_in_as_they_are_trained(shop):
    model = LightGCN(LightGCNConfig(dim=8, epochs=2)).fit(shop, np.arange(240))
    once = model.set_histories(Histories.from_lists([*[[]] * 20, [1, 2, 3]])).scores([20])
    again = model.set_histories(Histories.from_lists([*[[]] * 20, [1, 2, 1, 3, 3, 1]])).scores([20])
    assert torch.equal(once, again)


@pytest.mark.parametrize("negatives", [0, 5])
def test_targets_that_were_had_before_are_unreachable_and_counted(negatives):
    lists = [[0, 1, 2, 3], [1, 2, 3, 1], [2, 3, 0, 4], [3, 0, 4, 3]]
    data = Interactions.from_columns(
        [user for user, items in enumerate(lists) for _ in items], [item for items in lists for item in items],
        [1] * 16, list(range(4)) * 4, extra_items=[str(item) for item in range(12)],
    )  # fmt: skip
    parts = split_by_time(data, "leave_one_out")
    model = Popularity().fit(data, parts.train)
    result = metrics_on_test(model, data, parts, EvaluationConfig(ks=(6 if negatives else 12,), negatives=negatives))
    if negatives:
        assert result["unreachable"] == 0
    else:
        assert result["unreachable"] == 2 and result["hr@12"] == result["recall@12"] == 1.0
        assert model.ndcg(data, parts.test, k=12) == pytest.approx(result["ndcg@12"])


def events(labels):
    users, items = np.repeat(np.arange(4), 3), np.arange(12) % 5
    return Interactions.from_columns(users.tolist(), items.tolist(), labels, range(12))


@pytest.mark.parametrize("validation", [None, [9, 10, 11]])
def test_nothing_is_fitted_to_nothing(make, validation):
    model = make()
    with pytest.raises(DataError, match="^train: expected at least one row; got none"):
        model.fit(events([1, 0] * 6), [], validation)
    with pytest.raises(DataError, match="^train: expected at least one positive event; got none in 9 rows"):
        model.fit(events([0] * 12), range(9), validation)
    with pytest.raises(DataError, match="model: expected one that is fitted"):
        model.recommend([0], 1)


def test_likes_alone_are_learned_beside_negatives_that_are_drawn(make, caplog):
    data = events([1] * 12)
    with caplog.at_level(logging.INFO, "reasonrec_fast"):
        model = make().fit(data, range(12))
    assert ("drawn as dislikes" in caplog.text) == isinstance(model, (Bias, FM, DCNv2))
    assert np.array_equal(model.seen.items, Histories.seen(data, np.arange(12)).items)
    if isinstance(model, Bias):
        shown = np.unique(data.items)
        assert model.score([0] * 5, range(5))[shown].mean() > 0


@pytest.mark.parametrize("kind", ["bias", "fm", "dcn"])
def test_events_without_a_label_teach_nothing_of_labels(kind):
    labels = [1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    data = events([*labels[:9], None, None, None])
    assert (data.labels[9:] == UNLABELLED).all()
    without, given = (MODELS[kind]().fit(data, rows) for rows in (range(9), range(12)))
    assert np.array_equal(without.score([0, 1, 2], [0, 1, 2]), given.score([0, 1, 2], [0, 1, 2]))


def test_sequences_of_one_event_teach_no_next_one():
    with pytest.raises(DataError, match="^train: expected a user with at least two positive events"):
        MODELS["sasrec"]().fit(events([1, 0, 0] * 4), range(12))


def test_a_model_that_is_not_fitted_is_not_saved(make, tmp_path):
    with pytest.raises(DataError, match="^model: expected one that is fitted or loaded; got a new one"):
        make().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_row_of_both_parts_is_refused(make):
    """It would be learnt, and stop the training as if it were not."""
    data = Interactions.from_columns(
        ["a", "a", "a", "b", "b", "b"], ["x", "y", "z", "y", "x", "z"], [1, 1, 0, 1, 0, 1], range(6)
    )
    for train in (np.arange(5), None):
        with pytest.raises(DataError, match="validation: expected other rows than those of train; got row 4 in both"):
            make().fit(data, train, np.array([4]))
