"""Models of clicks, models of items by items, and the plainest baselines: what they learn and what they keep."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from reasonrec_fast import InteractionGraph
from reasonrec_fast.data import DataError, Histories, Interactions, split_by_time
from reasonrec_fast.evaluation import auc
from reasonrec_fast.models.classical import (
    EASE,
    FM,
    Bias,
    DCNv2,
    DCNv2Config,
    EASEConfig,
    FMConfig,
    ItemKNN,
    ItemKNNConfig,
    Popularity,
)
from reasonrec_fast.models.classical.ctr import _Batches
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig, GraphEmbeddings


@pytest.fixture(scope="module")
def tastes():
    """Two kinds of users who like two kinds of items, with a little noise."""
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 60, 4000), generator.integers(0, 50, 4000)
    likes = (users % 2 == items % 2) ^ (generator.random(4000) < 0.05)
    return Interactions.from_columns(
        [str(u) for u in users],
        [str(i) for i in items],
        likes.astype(int).tolist(),
        range(4000),
        attributes={"kind": {str(i): (f"k{i % 2}",) for i in range(50)}},
    )


def test_popularity_counts_training_events(tastes):
    scores = Popularity().fit(tastes, np.arange(100)).score(np.zeros(50, int), np.arange(tastes.num_items))
    assert scores.sum() == 100


def test_bias_learns_base_rates():
    data = Interactions.from_columns(["a", "a", "b", "b"] * 5, ["x", "y"] * 10, [1, 1, 0, 0] * 5, range(20))
    model = Bias().fit(data, np.arange(20))
    by_user = model.score(np.array([0, 1]), np.array([0, 0]))
    assert by_user[0] > 0 > by_user[1]
    assert np.abs(model.item_bias()).max() < 0.1


CLICKS = [
    (FM, FMConfig(dim=8, epochs=20, weight_decay=0.01)),
    (DCNv2, DCNv2Config(dim=8, deep=(16,), epochs=20, weight_decay=0.01, learning_rate=3e-3)),
    (DCNv2, DCNv2Config(dim=8, deep=(16,), epochs=20, structure="stacked", learning_rate=3e-3, history=0)),
]


@pytest.mark.parametrize(("kind", "config"), CLICKS)
def test_models_of_clicks_learn_interactions_that_biases_cannot(tastes, kind, config):
    parts = split_by_time(tastes, "global_time")
    test = parts.test
    model = kind(config).fit(tastes, parts.train, parts.validation)
    assert auc(tastes.labels[test], model.score(tastes.users[test], tastes.items[test])) > 0.9
    bias = Bias().fit(tastes, parts.train)
    assert auc(tastes.labels[test], bias.score(tastes.users[test], tastes.items[test])) < 0.65


@pytest.mark.parametrize(("kind", "config"), CLICKS[:2])
def test_models_of_clicks_score_who_is_new(tastes, kind, config):
    """A user by what they liked, an item by its attributes."""
    old = np.flatnonzero([int(i) < 45 for i in np.array(tastes.catalog.ids)[tastes.items]])
    model = kind(replace(config, hidden=0.3)).fit(tastes, old)
    even = np.array([int(i) % 2 == 0 for i in tastes.catalog.ids])
    new = tastes.num_users + 3
    liked = [[]] * new + [np.flatnonzero(even)[:20].tolist()]
    model.set_histories(Histories.from_lists(liked))
    scores = model.scores(np.array([new]))[0].numpy()
    unseen = np.array([int(i) >= 45 for i in tastes.catalog.ids])
    assert scores[even & unseen].min() > scores[~even & unseen].max()


@pytest.mark.parametrize(("kind", "config"), CLICKS)
def test_scores_of_all_items_are_those_of_pairs(tastes, kind, config):
    model = kind(replace(config, epochs=1)).fit(tastes, np.arange(500))
    users = np.array([3, 0, 59])
    pairs = model.score(np.repeat(users, tastes.num_items), np.tile(np.arange(tastes.num_items), 3))
    np.testing.assert_allclose(model.scores(users).numpy().ravel(), pairs, atol=1e-5)


def test_a_training_event_sees_what_came_before_it(tastes):
    batches = _Batches(FMConfig(history=5, batch=7), tastes, np.arange(300))
    seen = 0
    for batch in batches(0):
        for index, (user, item) in enumerate(zip(batch.users, batch.items, strict=True)):
            (row,) = np.flatnonzero((tastes.users[:300] == user) & (tastes.items[:300] == item))[:1]
            own_rows = np.flatnonzero((tastes.users == user) & (tastes.labels == 1))
            if np.sum((tastes.users[:300] == user) & (tastes.items[:300] == item)) == 1:
                assert batch.liked.of_user(index).tolist() == tastes.items[own_rows[own_rows < row]][-5:].tolist()
                seen += 1
    assert seen > 200


def _had(histories, num_items):
    seen = np.zeros((histories.num_users, num_items))
    for user in range(histories.num_users):
        seen[user, histories.of_user(user)] = 1
    return seen


def test_item_knn_and_ease_against_dense_references(tastes):
    histories = Histories.of(tastes, np.arange(1000))
    seen = _had(histories, tastes.num_items)
    gram = seen.T @ seen
    norms = np.sqrt(np.diag(gram))
    like = gram / (norms[:, None] * norms + 2.0)
    np.fill_diagonal(like, 0)
    knn = ItemKNN(ItemKNNConfig(neighbours=tastes.num_items, shrinkage=2.0)).fit(tastes, np.arange(1000))
    np.testing.assert_allclose(knn.scores(np.arange(60)).numpy(), seen @ like, rtol=1e-4, atol=1e-5)
    few = ItemKNN(ItemKNNConfig(neighbours=3, shrinkage=2.0)).fit(tastes, np.arange(1000))
    kept = np.zeros_like(like)
    for item, row in enumerate(like):
        kept[item] = np.where(row >= np.sort(row)[-3], row, 0)  # with those that tie with the third
    np.testing.assert_allclose(few.scores(np.arange(60)).numpy(), seen @ kept, rtol=1e-4, atol=1e-5)
    inverse = np.linalg.inv(gram + 30.0 * np.eye(tastes.num_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    ease = EASE(EASEConfig(regularisation=30.0)).fit(tastes, np.arange(1000))
    np.testing.assert_allclose(ease.scores(np.arange(60)).numpy(), seen @ weights, rtol=1e-3, atol=1e-5)
    with pytest.raises(DataError, match="data: expected at most max_items = 49 items; got 50"):
        EASE(EASEConfig(max_items=49)).fit(tastes, np.arange(10))
    with pytest.raises(ValueError, match="regularisation: expected a finite number above 0; got -1"):
        EASEConfig(regularisation=-1e9)


@pytest.mark.parametrize("regularisation", [0.5, 250.0, 1e-7])
def test_ease_of_few_users_solves_the_smaller_system(monkeypatch, regularisation):
    """More than a block of items, of which some are nobody's; by the items where the digits would not suffice."""
    generator = np.random.default_rng(0)
    dense = (generator.random((40, 1100)) < 0.1).astype(np.float32)
    dense[:, :3] = [0, 1, 1]
    liked = csr_matrix(dense)
    more = csr_matrix(np.vstack([dense, np.zeros((600, 1100), np.float32)]))  # of too many users
    few_way = "_inverse_by_users" if regularisation > 1e-6 else "_inverse_by_items"
    models = []
    for matrix, way in ((liked, few_way), (more, "_inverse_by_items")):
        model = EASE(EASEConfig(regularisation=regularisation))
        for other in {"_inverse_by_users", "_inverse_by_items"} - {way}:
            monkeypatch.setattr(model, other, None)
        model.fit_interactions(matrix)
        models.append(model.weights)
    assert models[0].abs().max() > 1e-3
    torch.testing.assert_close(*models, rtol=1e-4, atol=1e-6)


def test_ease_refuses_a_regularisation_that_float64_cannot_invert():
    """Ranks below the items' number are invertible by the regularisation alone: weights were off by a hundredth."""
    liked = csr_matrix((np.random.default_rng(0).random((5, 30)) < 0.8).astype(np.float32))
    for regularisation in (1e-300, 1e-12):
        with pytest.raises(DataError, match=f"regularisation: expected a larger one, .* got {regularisation}"):
            EASE(EASEConfig(regularisation=regularisation)).fit_interactions(liked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = EASE(EASEConfig(regularisation=1e300))
        model.fit_interactions(liked)
    assert torch.equal(model.weights, torch.zeros(30, 30))


@pytest.mark.parametrize("model", [Popularity(), Bias(), ItemKNN(), EASE(), *(kind(config) for kind, config in CLICKS)])
def test_save_load_and_fold_in(tastes, tmp_path, model):
    model.fit(tastes, np.arange(2000))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    users = np.arange(60)
    expected, result = model.recommend(users, 5), loaded.recommend(users, 5)
    assert np.array_equal(expected.items, result.items) and np.array_equal(expected.scores, result.scores)
    assert loaded.config == model.config
    for user, row in enumerate(result.items):
        assert not set(row.tolist()) & set(loaded.histories.of_user(user).tolist())
    histories = Histories.from_lists([*[[]] * 80, [1, 2, 3]])
    new = loaded.set_histories(histories).recommend(np.array([80]), 3)
    assert not {1, 2, 3} & set(new.items[0].tolist()) and np.isfinite(new.scores).all()


def test_graph_embeddings_learn_who_likes_what(tastes):
    parts = split_by_time(tastes, "global_time")
    liked, disliked = (
        InteractionGraph.from_edges(
            tastes.users[rows], tastes.items[rows], num_users=tastes.num_users, num_items=tastes.num_items
        )
        for rows in (parts.train[tastes.labels[parts.train] == label] for label in (1, 0))
    )
    model = GraphEmbeddings(liked, EmbeddingConfig(dim=16, steps=60, batch=1024)).fit(disliked)
    test = parts.test
    scores = model.score(torch.from_numpy(tastes.users[test]), torch.from_numpy(tastes.items[test]))
    assert auc(tastes.labels[test], scores.numpy()) > 0.85
    again = GraphEmbeddings(liked, EmbeddingConfig(dim=16, steps=60, batch=1024)).fit(disliked)
    assert torch.equal(model.embedding, again.embedding)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda:1"), "gpu0"])
def test_moving_to_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match="device: expected 'cpu'"):
        Popularity(device="cpu").to(device)
    with pytest.raises(ValueError, match="device: expected 'cpu'"):
        Popularity(device="cpu").to(device=device)
