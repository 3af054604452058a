"""Regression tests of OptiRAG."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from reasonrec_fast.data import DataError, Instruction, Interactions, load_interactions
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.models.optirag.knowledge import Knowledge
from reasonrec_fast.models.optirag.retriever import Retriever

RATED = pd.DataFrame(
    {"user": list("aabbc"), "item": list("xyxzy"), "timestamp": [1, 2, 3, 4, 5], "rating": [3, 5, 4, 1, 3]}
)


def knowledge(data):
    return Knowledge(data, Retriever.train(data, np.arange(len(data)), EmbeddingConfig(dim=4, steps=2)))


def test_optirag_tells_and_refuses_likes_of_another_rating(config, caplog):
    model = OptiRAG(replace(config, template="items"))
    model.knowledge = knowledge(load_interactions(RATED, like=3))
    with pytest.raises(DataError, match="like: expected 3 .*; got 4"):
        model.evaluate(load_interactions(RATED), np.arange(5))
    with caplog.at_level(logging.WARNING, "reasonrec_fast"):
        model.knowledge.match(load_interactions(RATED), np.arange(5))
    assert "ratings of 3 and more were likes; in these requests' history of 4" in caplog.text


def test_training_on_other_records_does_not_go_on_from_a_checkpoint(config, tmp_path):
    """Before, records were distinguished by their number alone."""

    class Killed(Exception):
        pass

    def die(step, steps, metrics, part):
        if part == "training" and step == 26:
            raise Killed

    def records(word):
        return [Instruction(f"Is it {word}?", f"case {number}", number % 2) for number in range(60)]

    config = replace(config, read_dense_features=False, samples=60, batch_slates=2)
    with pytest.raises(Killed):
        OptiRAG(config).fit_instructions(records("warm"), records("warm"), checkpoint=tmp_path / "a", progress=die)
    with pytest.raises(ValueError, match="checkpoint"):
        OptiRAG(config).fit_instructions(records("cold"), records("warm"), checkpoint=tmp_path / "a", progress=die)


def test_a_model_without_knowledge_is_not_given_what_another_left_in_the_folder(config, tmp_path):
    model = OptiRAG(replace(config, template="items"))
    model.knowledge = knowledge(load_interactions(RATED))
    model.save_pretrained(tmp_path)
    assert OptiRAG.from_pretrained(tmp_path).knowledge is not None
    other = OptiRAG(replace(config, template="auto"))
    other.save_pretrained(tmp_path, knowledge=False)
    loaded = OptiRAG.from_pretrained(tmp_path)
    assert loaded.knowledge is None and loaded.template is None


def test_requests_of_unknown_users_and_items_are_reported(caplog):
    """Identifiers that are written in two ways, such as 007 and 7."""
    known = knowledge(load_interactions(RATED))
    for user, reported in (("A", True), ("a", False)):
        caplog.clear()
        known.match(Interactions.from_columns([user], ["X"], [None], [9]), np.arange(1))
        assert ("none of 1 users and 1 items was there in training, such as 'A' and 'X'" in caplog.text) == reported
