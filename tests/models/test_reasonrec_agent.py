"""The agent that corrects the stack by a head: what it learns, and beside what."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from reasonrec_shop import small_config, walks

from reasonrec_fast.data import DataError, split_by_time
from reasonrec_fast.models.classical import Stack
from reasonrec_fast.models.reasonrec import ReasonRec, thinking
from reasonrec_fast.models.reasonrec.agent import ResidualAgent, Slate
from reasonrec_fast.training.sft import SupervisedGroup, supervised_loss


@pytest.fixture(scope="module")
def data():
    return walks()


@pytest.fixture(scope="module")
def split(data):
    return split_by_time(data, "leave_one_out")


@pytest.fixture(scope="module")
def config(tiny_backbone):
    return small_config(tiny_backbone)


def test_the_agent_learns_what_the_stack_does_not_know(config):
    """The target is the candidate with an x in it; the stack thinks that it is the last."""
    generator = np.random.default_rng(0)

    def slate():
        target = int(generator.integers(4))
        texts = [[5, 200 if index == target else 100 + index, 7] for index in range(4)]
        return Slate(([1, 2, 3], texts), np.log(np.array([0.2, 0.2, 0.2, 0.4])), target)

    agent = ResidualAgent(replace(config.agent, epochs=4.0, learning_rate=1e-2, head_learning_rate=3e-2))
    agent.train([slate() for _ in range(60)])
    held_out = [slate() for _ in range(30)]
    logits = agent.logits(held_out)
    assert np.mean([values.argmax() == one.target for one, values in zip(held_out, logits, strict=True)]) > 0.8
    assert agent.calibrate(held_out, logits) > 0.5


def test_the_agent_learns_chains_of_thought_beside(config):
    """Both losses fall, the chains' alone with its weight, and what is learnt depends on the seed alone."""
    slates = [Slate(([1, 2], [[5, 200], [5, 101]]), np.log(np.array([0.4, 0.6])), 0) for _ in range(24)]
    chains = [SupervisedGroup([1, 2, first], [[40, 41, 42, 43]]) for first in range(3, 9)]
    settings = replace(config.agent, epochs=3.0, learning_rate=2e-2, reasoning_weight=0.1, reasoning_batch=6)

    def learnt(reasoning):
        agent = ResidualAgent(settings)
        said = {}
        agent.train(slates, reasoning=reasoning, progress=lambda done, _, values: said.update({done: values["loss"]}))
        with torch.no_grad(), agent.adapters.unmerged():
            loss = float(supervised_loss(agent.peft, chains))
        return loss, said, agent.logits(slates[:1])[0]

    with torch.no_grad():
        before = float(supervised_loss(ResidualAgent(settings).peft, chains))
    after, said, logits = learnt(chains)
    without, plain, _ = learnt([])
    assert after < before - 0.15 and after < without - 0.15 and logits.argmax() == 0, (before, after, without)
    assert said[1] == pytest.approx(plain[1] + 0.1 * before, abs=0.02)


def test_chains_beside_the_agent_are_of_the_training_part(data, split, config, monkeypatch):
    agent = replace(config.agent, reasoning_weight=0.1, reasoning_samples=12, timed=True)
    given = []
    train = ResidualAgent.train

    def keep(self, *args, reasoning=(), **named):
        given.extend(reasoning)
        train(self, *args, reasoning=reasoning, **named)

    monkeypatch.setattr(ResidualAgent, "train", keep)
    model = ReasonRec(replace(config, agent=agent)).fit(data, split.train, split.validation)
    assert 0 < len(given) <= 12
    texts = [model.agent.tokenizer.decode(group.continuations[0]) for group in given]
    assert all(re.search(r"Answer: .*Confidence: [a-z ]+\.", text) for text in texts)
    seeds, samples = [], thinking.training_samples

    def keep_seed(*args):
        seeds.append(args[-1].seed)
        return samples(*args)

    monkeypatch.setattr(thinking, "training_samples", keep_seed)
    ReasonRec(replace(config, agent=replace(agent, seed=1), seed=3)).fit(data, split.train, split.validation)
    assert seeds == [4]  # which ones are drawn, as all else of the agent
    unsaid = replace(config, agent=replace(agent, timed=None))
    monkeypatch.setattr(Stack, "fit", lambda *a, **k: pytest.fail("the stack is fitted before the refusal"))
    with pytest.raises(DataError, match=r"agent\.timed: expected true or false, as the events' moments are a counter"):
        ReasonRec(unsaid).fit(data, split.train, split.validation)


def test_a_checkpoint_of_an_agent_with_other_settings_is_refused(config, tmp_path):
    slates = [Slate(([1, 2], [[5, 200], [5, 101]]), np.log(np.array([0.4, 0.6])), 0) for _ in range(4)]
    chains = [SupervisedGroup([1, 2], [[40, 41]])]
    settings = replace(config.agent, reasoning_weight=0.1)
    ResidualAgent(settings).train(slates, reasoning=chains, checkpoint=tmp_path / "state")
    for other, reasoning in (({"seed": 1}, chains), ({"reasoning_weight": 0.2}, chains), ({}, [])):
        with pytest.raises(ValueError, match="it is of another run"):
            ResidualAgent(replace(settings, **other)).train(slates, reasoning=reasoning, checkpoint=tmp_path / "state")


def test_an_agent_that_shall_learn_chains_and_has_none_is_refused(data, split, config):
    """It would be taken for one that had learnt them."""
    agent = replace(config.agent, reasoning_weight=0.1, reasoning_samples=12, timed=True)
    titles = tuple(title and title * 40 for title in data.catalog.titles)
    long = replace(data, catalog=replace(data.catalog, titles=titles))
    with pytest.raises(DataError, match=r"agent\.reasoning_weight: expected 0, or .*; got 12 that are all too long"):
        ReasonRec(replace(config, agent=agent)).fit(long, split.train, split.validation)


def test_an_agent_that_only_harms_is_not_trusted(config):
    agent = ResidualAgent(config.agent)
    slates = [Slate(([1], [[2], [3]]), np.log(np.array([0.8, 0.2])), 0) for _ in range(5)]
    assert agent.calibrate(slates, [np.array([-3.0, 1.0])] * 5) == 0.0
    assert agent.trust == 0.0
