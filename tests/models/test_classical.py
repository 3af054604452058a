"""The baselines learn what they should."""

import numpy as np
import pytest
import torch

from reasonrec_fast import InteractionGraph
from reasonrec_fast.data import Interactions, split_by_time
from reasonrec_fast.evaluation import auc
from reasonrec_fast.models.classical import FM, Bias, FMConfig, Popularity
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


def test_fm_learns_interactions_that_biases_cannot(tastes):
    parts = split_by_time(tastes, "global_time")
    test = parts.test
    fm = FM(FMConfig(dim=8, epochs=20, weight_decay=0.01)).fit(tastes, parts.train, parts.validation)
    assert auc(tastes.labels[test], fm.score(tastes.users[test], tastes.items[test])) > 0.9
    bias = Bias().fit(tastes, parts.train)
    assert auc(tastes.labels[test], bias.score(tastes.users[test], tastes.items[test])) < 0.65


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
