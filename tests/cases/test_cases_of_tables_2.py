"""OptiRAG: a request's score depends on nothing but the request."""

import pickle

import numpy as np
import pandas as pd
import pytest

from reasonrec_fast.data import load_interactions
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.models.optirag.evidence import EvidenceBuilder
from reasonrec_fast.models.optirag.knowledge import Knowledge
from reasonrec_fast.models.optirag.retriever import Retriever

BEGIN = 1_600_000_000


@pytest.fixture
def knowledge():
    g = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "user": [f"u{u}" for u in g.integers(0, 20, 300)],
            "item": [f"f{i}" for i in g.integers(0, 10, 300)],
            "label": g.integers(0, 2, 300),
            "timestamp": (np.sort(g.integers(0, 10_000, 300)) + BEGIN) * 1000 + g.integers(1, 999, 300),
        }
    )
    data = load_interactions(table)
    assert data.time_unit == "ms"
    return Knowledge(data, Retriever.train(data, np.arange(300), EmbeddingConfig(dim=8, steps=2)))


def dense_features(knowledge, **columns):
    data = load_interactions(pd.DataFrame(columns), allow_unlabelled=True)
    matched = knowledge.match(data, np.flatnonzero(data.labels < 0))
    result = EvidenceBuilder(matched.table, knowledge.index("genres"), OptiRAGConfig().num_neighbours, matched.ticks)
    return result.build(matched.rows).dense_features


def test_new_user_in_seconds_for_a_model_trained_in_milliseconds(knowledge):
    moment = BEGIN + 20_000
    query = {"user": ["new"], "item": ["f1"], "label": [None]}
    seconds = dense_features(knowledge, **query, timestamp=[moment])
    milliseconds = dense_features(knowledge, **query, timestamp=[moment * 1000 + 1])
    np.testing.assert_allclose(seconds, milliseconds)
    assert seconds[0, 5] > 0  # others have rated the item


def test_knowledge_is_copied_after_it_was_queried(knowledge):
    query = {"user": ["u1"], "item": ["f1"], "label": [None], "timestamp": [(BEGIN + 20_000) * 1000 + 1]}
    before = dense_features(knowledge, **query)
    np.testing.assert_array_equal(dense_features(pickle.loads(pickle.dumps(knowledge)), **query), before)
