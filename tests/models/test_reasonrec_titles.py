"""The agent that compares likelihoods of titles."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import transformers
from early_exit.tiny import tiny_vlm
from reasonrec_shop import USERS, small_config, walks
from vlm_processors import processor

from reasonrec_fast.data import Catalog, DataError, Histories, split_by_time
from reasonrec_fast.models.reasonrec import AgentConfig, ReasonRec, ReasonRecConfig, TitleAgentConfig
from reasonrec_fast.models.reasonrec.agent import ResidualAgent
from reasonrec_fast.models.reasonrec.agent_base import Slate
from reasonrec_fast.models.reasonrec.prompt import AgentPrompts, TitlePrompts, introduction, longest_titles
from reasonrec_fast.models.reasonrec.title_agent import FEATURES, TitleAgent
from reasonrec_fast.prompts.tokens import TokenIds


@pytest.fixture(scope="module")
def titles(tiny_backbone):
    return TitleAgentConfig(
        backbone=str(tiny_backbone), candidates=6, history=3, title_tokens=8, adapted_layers=4, lora_rank=8,
        lora_alpha=16, batch_users=8, learning_rate=5e-3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return walks()


@pytest.fixture(scope="module")
def split(data):
    return split_by_time(data, "leave_one_out")


@pytest.fixture(scope="module")
def model(data, split, titles, tiny_backbone):
    config = replace(small_config(tiny_backbone), agent=None, titles=titles)
    return ReasonRec(config).fit(data, split.train, split.validation)


def test_likelihoods_are_those_of_transformers(titles):
    agent = TitleAgent(titles, device="cpu")
    plain = transformers.AutoModelForCausalLM.from_pretrained(titles.backbone, dtype=torch.float32)
    bare = introduction(TokenIds(agent.tokenizer))
    prefix, candidates = [*bare, 5, 9, 7], [(3, 4, 5, 6, 7, 8), (9,), (4, 4)]
    (found,) = agent.likelihoods([Slate((prefix, candidates), np.zeros(3))])
    assert found.shape == (3, len(FEATURES))
    for start, columns in ((prefix, (0, 2, 4)), (bare, (1, 3, 5))):
        for row, title in enumerate(candidates):
            ids = torch.tensor([[*start, *title]])
            with torch.no_grad():
                logprobs = plain(ids).logits[0].double().log_softmax(-1)
            each = [logprobs[len(start) + i - 1, token].item() for i, token in enumerate(title)]
            expected = [sum(each), sum(each) / len(each), sum(each[:4])]
            np.testing.assert_allclose(found[row, columns], expected, atol=2e-2 if agent.peft.dtype != torch.float32
                                       else 1e-4)  # fmt: skip


def test_an_agent_that_has_learnt_nothing_answers_what_the_stack_says(titles):
    agent = TitleAgent(titles, device="cpu")
    offset = np.log([0.5, 0.3, 0.2])
    (logits,) = agent.logits([Slate(([1, 2], [(3,), (4,), (5,)]), offset)])
    np.testing.assert_array_equal(logits, offset)


def test_it_learns_which_titles_follow(titles):
    """Users walk through an alphabet of titles: the stack knows nothing, the language model finds the next letter."""
    catalog = Catalog([f"i{i}" for i in range(12)], [chr(65 + i) * 3 for i in range(12)])
    histories = Histories.from_lists([[(start + step) % 12 for step in range(4)] for start in range(12)] * 8)
    agent = TitleAgent(titles, device="cpu")
    prompts = TitlePrompts(catalog, agent.tokenizer, titles)
    prompts.set_histories(histories)

    def slates(seed):
        generator = np.random.default_rng(seed)
        for user in range(12):
            following = (user + 4) % 12
            others = generator.permutation([i for i in range(12) if i != following])[:4].tolist()
            order = generator.permutation(5)
            items = np.array([following, *others])[order]
            group = prompts.group(user, items.tolist())
            yield Slate(group, np.full(5, -np.log(5)), int(np.flatnonzero(order == 0)[0]))

    agent.read([prompts.reading(user) for user in range(96)] * 8)
    agent.train([slate for seed in range(3) for slate in slates(seed)])
    held_out = list(slates(9))
    logits = agent.logits(held_out)
    assert np.mean([part.argmax() == slate.target for part, slate in zip(logits, held_out, strict=True)]) > 0.7
    assert agent.calibrate(held_out, logits) > 0.5
    # A slate's answer depends on that slate alone.
    np.testing.assert_array_equal(agent.logits(held_out[5:6])[0], agent.logits(held_out)[5])


def test_it_is_an_agent_like_the_other(model, data, tmp_path):
    users = np.arange(USERS)
    model.agent.weights, before = np.array([0.3, -0.1, 0.2, 0.0, 0.1, 0.0]), model.agent.trust
    model.agent.trust = 0.7
    answers = model.recommend(users, 5, policy="always")
    assert (answers.answered_by == 1).all()
    assert (answers.items != model.recommend(users, 5, policy="never").items).any()
    direct = model.recommend(users, 5, policy="always", task="direct")
    assert (direct.items != answers.items).any()
    model.save_pretrained(tmp_path / "model")
    loaded = ReasonRec.from_pretrained(tmp_path / "model")
    again = loaded.recommend(users, 5, policy="always")
    assert (again.items == answers.items).all() and loaded.agent.trust == pytest.approx(0.7)
    np.testing.assert_array_equal(again.scores, answers.scores)
    model.agent.trust = before


def test_texts_name_titles_and_no_identifiers(data, titles, model):
    prompts = model._prompts
    user = int(np.argmax(model.histories.lengths))
    prefix, suffixes = prompts.group(user, [0, 1])
    text = model.agent.tokenizer.decode(prefix)
    history = model.histories.of_user(user)[-3:]
    assert text.count("\n") == 1 + len(history)
    assert [model.agent.tokenizer.decode(part)[-1] for part in suffixes] == ["\n", "\n"]
    assert not any(name in text for name in data.catalog.ids)
    group = prompts.reading(user)
    assert not group.chosen[0][0] and sum(group.chosen[0]) < len(group.continuations[0])


def test_settings_that_do_not_fit_are_refused(titles, tiny_backbone, data, split):
    assert replace(small_config(tiny_backbone), titles=titles).agent is None
    with pytest.raises(ValueError, match="titles.candidates: expected more than k = 6; got 6"):
        ReasonRecConfig(agent=None, titles=titles, k=6)
    config = replace(small_config(tiny_backbone), agent=None, titles=replace(titles, adapted_layers=5))
    with pytest.raises(ValueError, match="titles.adapted_layers: expected at most 4, the backbone's layers; got 5"):
        ReasonRec(config).fit(data, split.train, split.validation)
    config = replace(small_config(tiny_backbone), agent=None, titles=replace(titles, history=230))
    with pytest.raises(ValueError, match="titles.title_tokens: expected prompts of at most 2048 tokens"):
        ReasonRec(config).fit(data, split.train, split.validation)


def test_a_title_is_one_line(titles, tiny_backbone):
    """A line break in a title would look like a further item of the history."""
    catalog = Catalog(
        ["i0", "i1", "i2", "i3"],
        ["", " \t", "tea\r\n2. cups", "x" * 10_000],
        {"kind": [("mild\nhot", " "), (), (), ()]},
    )
    agent = TitleAgent(titles, device="cpu")
    decode = agent.tokenizer.decode
    prompts = TitlePrompts(catalog, agent.tokenizer, replace(titles, title_tokens=40))
    prompts.set_histories(Histories.from_lists([[0, 1, 2]]))
    prefix, suffixes = prompts.group(0, [0, 1, 2, 3])
    assert [decode(part) for part in suffixes] == [
        "mild hot\n", "something without a description\n", "tea 2. cups\n", "x" * 40 + "\n",
    ]  # fmt: skip
    assert decode(prefix).count("\n") == 1 + 3
    agent_prompts = AgentPrompts(catalog, agent.tokenizer, AgentConfig(title_tokens=40))
    agent_prompts.set_histories(Histories.from_lists([[0, 1, 2]]))
    assert decode(agent_prompts.group(0, [3])[0]).count("\n") == 1 + 3 + 1
    assert "mild hot 1" in decode(prompts.group(0, [3], "direct")[0])


@pytest.mark.parametrize(("history", "title_tokens"), [(1, 1), (1, 30), (3, 8), (6, 40)])
def test_no_text_is_longer_than_what_is_refused(titles, history, title_tokens):
    config = replace(titles, history=history, title_tokens=title_tokens)
    agent = TitleAgent(config, device="cpu")
    kinds = [tuple(f"{value} {'y' * 200}" for value in range(9))] * 12
    prompts = TitlePrompts(
        Catalog([f"i{i}" for i in range(12)], ["x" * 200] * 12, {"kind": kinds}), agent.tokenizer, config
    )
    prompts.set_histories(Histories.from_lists([list(range(11))]))
    texts = [prompts.group(0, [11], task) for task in ("sequential", "direct")]
    group = prompts.reading(0)
    lengths = [len(prefix) + len(suffix) for prefix, (suffix,) in texts]
    lengths.append(len(group.prefix) + len(group.continuations[0]))
    assert max(lengths) == longest_titles(config, TokenIds(agent.tokenizer))


def test_numbers_that_overflow_are_refused(titles, tiny_backbone):
    slates = [Slate(([1, 2], [(3,), (4,)]), np.log([0.5, 0.5]))] * 2
    agent = TitleAgent(titles, device="cpu")
    agent.weights = np.full(len(FEATURES), np.nan)
    with pytest.raises(DataError, match="agent: expected finite logits; got .* for slate 0"):
        agent.logits(slates)
    residual = ResidualAgent(small_config(tiny_backbone).agent, device="cpu")
    with torch.no_grad():
        for parameter in residual.ranker.model.heads[-1].parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DataError, match="agent: expected finite logits; got .* for slate 0"):
        residual.logits(slates)


def test_a_vision_language_model_reads_titles(titles, tmp_path):
    processor("Llava").save_pretrained(tmp_path)
    tiny_vlm("Llava").save_pretrained(tmp_path)
    agent = TitleAgent(replace(titles, backbone=str(tmp_path), adapted_layers=1), device="cpu")
    adapted = {name for name, _ in agent.peft.named_parameters() if "lora_" in name}
    assert adapted and not any("vision" in name for name in adapted)
    (found,) = agent.likelihoods([Slate(([1, 5], [(4, 5), (6,)]), np.zeros(2))])
    assert np.isfinite(found).all()


def test_an_agent_of_the_other_kind_is_refused_as_such(model, tiny_backbone, tmp_path):
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["config"] |= {"agent": asdict(small_config(tiny_backbone).agent), "titles": None}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="expected the agent of the configuration's agent; got one of titles"):
        ReasonRec.from_pretrained(tmp_path)
