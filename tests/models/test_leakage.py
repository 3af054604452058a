"""Neither later events nor a request's own edge affect its evidence and prompt."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from reasonrec_fast.data import split_by_time
from reasonrec_fast.models.optirag.dataset import RequestBuilder
from reasonrec_fast.models.optirag.retriever import Retriever


@pytest.fixture
def tokenizer(tiny_backbone):
    return AutoTokenizer.from_pretrained(tiny_backbone)


def flipped(events, rows):
    """The same events with other labels in some rows."""
    labels = events.labels.copy()
    labels[rows] = 1 - labels[rows]
    return replace(events, labels=labels)


def same(first, second):
    assert np.array_equal(first.dense_features, second.dense_features)
    assert [(s.prefix, s.suffixes) for s in first.slates] == [(s.prefix, s.suffixes) for s in second.slates]


def test_retriever_learns_from_training_rows_alone(events, config):
    parts = split_by_time(events)
    later = np.concatenate([parts.validation, parts.test])
    first = Retriever.train(events, parts.train, config.retriever)
    second = Retriever.train(flipped(events, later), parts.train, config.retriever)
    assert torch.equal(first.item_embeddings, second.item_embeddings)
    assert torch.equal(first.item_bias, second.item_bias)
    assert first.graph.num_edges <= len(parts.train)


@pytest.mark.parametrize("index", [0, 17, 60, 119])
def test_requests_hold_only_what_was_strictly_before(events, config, tokenizer, index):
    parts = split_by_time(events)
    retriever = Retriever.train(events, parts.train, config.retriever)
    row = parts.test[index : index + 1]
    not_before = np.flatnonzero(events.timestamps >= events.timestamps[row[0]])
    assert row[0] in not_before
    first = RequestBuilder(events, parts.train, retriever, tokenizer, config).requests(row)
    second = RequestBuilder(flipped(events, not_before), parts.train, retriever, tokenizer, config).requests(row)
    same(first, second)


def test_events_of_the_same_moment_are_not_before(events, config, tokenizer):
    """All events at one moment: no user has a history."""
    parts = split_by_time(events)
    still = replace(events, timestamps=np.full(len(events), 7))
    retriever = Retriever.train(events, parts.train, config.retriever)
    requests = RequestBuilder(still, parts.train, retriever, tokenizer, config).requests(parts.test)
    assert all("Nothing is known" in tokenizer.decode(slate.prefix) for slate in requests.slates)
    assert (requests.dense_features[:, 5] == 0).all()  # item_events


def test_other_users_count_by_their_training_events_alone(events, config, tokenizer):
    parts = split_by_time(events)
    retriever = Retriever.train(events, parts.train, config.retriever)
    row = parts.test[-1:]
    others = np.concatenate([parts.validation, parts.test])
    others = others[events.users[others] != events.users[row[0]]]
    first = RequestBuilder(events, parts.train, retriever, tokenizer, config).requests(row)
    second = RequestBuilder(flipped(events, others), parts.train, retriever, tokenizer, config).requests(row)
    same(first, second)


def test_own_earlier_events_of_any_part_count(events, config, tokenizer):
    parts = split_by_time(events)
    retriever = Retriever.train(events, parts.train, config.retriever)
    row = parts.test[-1:]
    own = parts.validation[events.users[parts.validation] == events.users[row[0]]]
    own = own[events.timestamps[own] < events.timestamps[row[0]]]
    assert len(own)
    first = RequestBuilder(events, parts.train, retriever, tokenizer, config).requests(row)
    second = RequestBuilder(flipped(events, own), parts.train, retriever, tokenizer, config).requests(row)
    assert not np.array_equal(first.dense_features, second.dense_features)


@pytest.mark.parametrize("index", [5, 100, 300])
def test_training_request_does_not_know_its_own_edge(events, config, tokenizer, index):
    """Neither its label nor anything later of its user, in the prompt or in the embeddings behind it."""
    parts = split_by_time(events)
    row = parts.train[index]
    own = parts.train[events.users[parts.train] == events.users[row]]
    later = own[events.timestamps[own] >= events.timestamps[row]]
    results = []
    for data in (events, flipped(events, later)):
        retriever = Retriever.train(data, parts.train, config.retriever)
        requests = RequestBuilder(data, parts.train, retriever, tokenizer, config).training_requests()
        slate = next(s for s in requests.slates if index in s.rows)
        suffix = slate.suffixes[int(np.flatnonzero(slate.rows == index)[0])]
        results.append((requests.dense_features[index], suffix, slate))
    assert np.array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_prefix_speaks_of_the_moment_of_the_first_request(events, config, tokenizer):
    parts = split_by_time(events)
    retriever = Retriever.train(events, parts.train, config.retriever)
    builder = RequestBuilder(events, parts.train, retriever, tokenizer, config)
    for slate in builder.requests(parts.test).slates:
        rows = parts.test[slate.rows]
        assert len(set(events.users[rows])) == 1
        first = events.timestamps[rows].min()
        known = ((events.users == events.users[rows[0]]) & (events.timestamps < first)).sum()
        assert f"has rated {known} films" in tokenizer.decode(slate.prefix)
