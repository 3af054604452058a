"""Explanations sampled from a tiny random language model and chosen by minimum Bayes risk."""

import json
import re
import zlib

import pytest
import torch

import reasonrec_fast
from reasonrec_fast.data import DataError
from reasonrec_fast.data.explanations import Explanation
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.models.classical import minimum_risk
from reasonrec_fast.models.reasonrec import explanation_generator
from reasonrec_fast.models.reasonrec.explanation import ExplanationWriter, ExplanationWriterConfig
from reasonrec_fast.models.reasonrec.explanation_generator import ExplanationGenerator, GeneratorConfig
from reasonrec_fast.models.reasonrec.explanation_prompts import ExplanationPrompts
from reasonrec_fast.models.reasonrec.sample_store import SampleStore


class Words:
    """Vectors of texts by their words, in place of the sentence encoder."""

    def __init__(self, device=None):
        pass

    def encode(self, texts, batch=64):
        vectors = torch.zeros(len(texts), 64)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, zlib.crc32(word.encode()) % 64] += 1
        return torch.nn.functional.normalize(vectors)


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr(minimum_risk, "TextEncoder", Words)
    # A random model ends no sentence.
    monkeypatch.setattr(explanation_generator, "whole_sentences", lambda text, complete: " ".join(text.split()))


def line(number, thing):
    return Explanation(
        number, 9000 + number, f"{thing.title()} House", f"Reader{number} likes rooms.", f"Fans of {thing}.",
        f"Good {thing} at table {number}.",
    )  # fmt: skip


THINGS = ("tea", "books", "bikes", "bread")
TRAIN = [line(number, THINGS[number % 4]) for number in range(12)]
VALID = [line(50 + number, thing) for number, thing in enumerate(THINGS[:2])]
TEST = [line(80 + number, thing) for number, thing in enumerate(THINGS)]
QUERIES = [line.query for line in TEST]


@pytest.fixture
def settings(tiny_backbone):
    return {
        "backbone": str(tiny_backbone), "samples": 3, "examples": 2, "neighbours": 3, "weight": 0.1,
        "max_new_tokens": 5, "adapted_layers": 2, "lora_rank": 2,
    }  # fmt: skip


def writer(settings, **more):
    return ExplanationWriter(ExplanationWriterConfig(**(settings | more)), device="cpu")


def prompt_text(tiny_backbone, query, **options):
    tokenizer = load_language_model(str(tiny_backbone), torch.float32, device="cpu")[1]
    options = {"examples": 2, "reads_user": False, "budget": 2000} | options
    prefix, suffix = ExplanationPrompts(TRAIN, tokenizer, Words(), **options)(query)
    return tokenizer.decode([*prefix, *suffix], skip_special_tokens=True)


def test_prompt_shows_the_nearest_pairs_and_then_its_own(tiny_backbone):
    assert prompt_text(tiny_backbone, TEST[1].query) == (
        "Item: Books House. Fans of books.\nWhy: Good books at table 5.\n\n"
        "Item: Books House. Fans of books.\nWhy: Good books at table 1.\n\n"
        "Item: Books House. Fans of books.\nWhy:"
    )
    assert prompt_text(tiny_backbone, TEST[1].query, examples=0) == "Item: Books House. Fans of books.\nWhy:"
    assert prompt_text(tiny_backbone, TEST[1].query, examples=1, reads_user=True) == (
        "User: Reader1 likes rooms.\nItem: Books House. Fans of books.\nWhy: Good books at table 1.\n\n"
        "User: Reader81 likes rooms.\nItem: Books House. Fans of books.\nWhy:"
    )


def test_no_prompt_holds_its_own_explanation_nor_identifiers(tiny_backbone):
    for own in TRAIN:
        text = prompt_text(tiny_backbone, own.query, examples=11)
        assert own.explanation not in text
        assert sum(other.explanation in text for other in TRAIN) == 11
        assert not re.search(r"9\d\d\d", text)


def test_a_budget_drops_the_least_similar_examples_and_refuses_what_is_longer(tiny_backbone):
    text = prompt_text(tiny_backbone, TEST[1].query, budget=110)
    assert "table 1." in text and "table 5." not in text
    with pytest.raises(ValueError, match="budget: expected at least 39 tokens"):
        prompt_text(tiny_backbone, TEST[1].query, budget=20)


def test_texts_come_from_samples_neighbours_and_templates_and_depend_on_their_pair_alone(settings):
    model = writer(settings).fit(TRAIN)
    pools = model._candidates(QUERIES)
    samples = model._generator.sample([model._prompts(query) for query in QUERIES], 3)
    assert all(samples)
    for query, (texts, _), of_model in zip(QUERIES, pools, samples, strict=True):
        assert set(texts) == set(of_model) | set(model.candidates(query))
    texts = model.explain(QUERIES)
    assert all(text in pool[0] for text, pool in zip(texts, pools, strict=True))
    assert [model.explain([query])[0] for query in QUERIES[::-1]] == texts[::-1]
    alone = writer(settings, with_neighbours=False).fit(TRAIN)._candidates(QUERIES)
    assert [texts for texts, _ in alone] == [list(dict.fromkeys(texts)) for texts in samples]


def test_samples_go_on_after_what_the_item_offers(settings, monkeypatch):
    text = "The user would enjoy the business for its old chairs, great tea, and calm."
    monkeypatch.setattr(ExplanationGenerator, "sample", lambda self, prompts, count: [[text, "Short, but no."]])
    variant = "The user would enjoy the business because it offers Fans of books, great tea, and calm."
    assert writer(settings).fit(TRAIN)._candidates(QUERIES[1:2])[0][1] == [variant]
    assert writer(settings, opening="").fit(TRAIN)._candidates(QUERIES[1:2])[0][1] == []
    # A variant is chosen where it is the most similar to the item, and agrees with nothing else than the candidates.
    model = writer(settings, weight=0.0, with_neighbours=False).fit(TRAIN)
    pool = model._weighed(QUERIES[1:2])[0]
    assert pool.texts == [text, "Short, but no.", variant]
    assert pool.agreement[2] == pytest.approx(minimum_risk.agreement([variant, text, "Short, but no."])[0])
    assert pool.agreement[0] == pytest.approx(minimum_risk.agreement([text, "Short, but no."])[0])


def test_fine_tuning_lowers_the_loss_and_is_saved(settings, tmp_path):
    seen = []
    model = writer(settings, epochs=3, patience=3, learning_rate=0.02, average=0.0)
    model.fit(TRAIN, VALID, progress=lambda done, total, metrics: seen.append(metrics))
    assert seen[-1]["best"] >= seen[0]["validation"] and seen[-1]["loss"] < seen[0]["loss"]
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "config.json", "texts.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    loaded = reasonrec_fast.load(tmp_path, device="cpu")
    assert isinstance(loaded, ExplanationWriter) and loaded.explain(QUERIES) == model.explain(QUERIES)
    prompts = [loaded._prompts(query) for query in QUERIES]
    assert loaded._generator.sample(prompts, 3) == model._generator.sample(prompts, 3)
    assert loaded._generator.sample(prompts, 3) != writer(settings).fit(TRAIN)._generator.sample(prompts, 3)


def test_a_killed_run_goes_on(settings, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total, metrics):
        if done == 1:
            raise Killed

    tuned = {"epochs": 2, "patience": 2, "average": 0.0, "learning_rate": 0.01}
    whole = writer(settings, **tuned).fit(TRAIN, VALID)
    with pytest.raises(Killed):
        (dead := writer(settings, **tuned)).fit(TRAIN, VALID, checkpoint=tmp_path / "state", progress=kill)
    with pytest.raises(DataError, match="model: expected one that is fitted or loaded; got a new one"):
        dead.explain(QUERIES)
    epochs = []
    resumed = writer(settings, **tuned).fit(
        TRAIN, VALID, checkpoint=tmp_path / "state", progress=lambda done, *_: epochs.append(done)
    )
    assert epochs == [2]
    assert resumed.explain(QUERIES) == whole.explain(QUERIES)
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        writer(settings, **tuned, seed=1).fit(TRAIN, VALID, checkpoint=tmp_path / "state")


def test_samples_are_drawn_once(settings, tmp_path, monkeypatch):
    first = writer(settings).fit(TRAIN, checkpoint=tmp_path / "state")
    texts = first.explain(QUERIES[:3])
    again = writer(settings).fit(TRAIN, checkpoint=tmp_path / "state")
    with monkeypatch.context() as patched:
        patched.setattr("reasonrec_fast.lm.generate.TextGenerator.generate", lambda *_: pytest.fail("drawn again"))
        assert again.explain(QUERIES[:3]) == texts
    other = writer(settings, temperature=0.5).fit(TRAIN, checkpoint=tmp_path / "state")
    assert other._generator.sample([other._prompts(QUERIES[0])], 3) != first._generator.sample(
        [first._prompts(QUERIES[0])], 3
    )


def test_a_line_of_the_store_that_was_cut_is_dropped_and_another_refused(tmp_path):
    path = tmp_path / "samples.jsonl"
    SampleStore(path).add("a", ["x", "y"])
    path.write_text(path.read_text() + '["b", ["')
    store = SampleStore(path)
    assert store["a"] == ["x", "y"] and "b" not in store
    store.add("b", [])
    assert SampleStore(path)["b"] == []
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"samples.jsonl, line 1: expected a key and its texts"):
        SampleStore(path)


def test_refusals(settings, tiny_backbone):
    with pytest.raises(ValueError, match="samples: expected a whole number of at least 1; got 0"):
        writer(settings, samples=0)
    with pytest.raises(ValueError, match="templates: expected one of title, item_profile, offer in each"):
        writer(settings, templates=("Nice.",))
    with pytest.raises(ValueError, match=r"opening: expected \{offer\} in it; got 'It is'"):
        writer(settings, opening="It is")
    with pytest.raises(DataError, match="validation: expected explanations to choose the weight on; got none"):
        writer(settings, weight=None).fit(TRAIN)
    with pytest.raises(ValueError, match="adapted_layers: expected at most 4; got 5"):
        ExplanationGenerator(GeneratorConfig(backbone=str(tiny_backbone), epochs=1, adapted_layers=5), device="cpu")
    with pytest.raises(FileNotFoundError, match="model: expected a folder with config.json"):
        writer(settings, backbone="/nowhere/else").fit(TRAIN)


def test_grpo_raises_the_reward(settings):
    """Explanations with more of a letter: what is rewarded becomes likelier."""
    config = GeneratorConfig(
        backbone=settings["backbone"], adapted_layers=4, max_new_tokens=5, lora_rank=8, iterations=25, prompts=4,
        group=8, temperature=0.1, policy_learning_rate=2e-2,
    )  # fmt: skip
    generator = ExplanationGenerator(config, device="cpu")
    prompts = [([5, 6, 7], [number + 8]) for number in range(4)]
    seen = []

    def reward(index, texts):
        assert 0 <= index < 4 and len(texts) == 8
        return [sum(character < "P" for character in text) / 5 for text in texts]

    generator.reinforce(prompts, reward, progress=lambda done, total, metrics: seen.append(metrics["reward"]))
    assert len(seen) == 25 and sum(seen[10:]) / 15 > sum(seen[:3]) / 3 + 0.05
    assert generator.is_adapted


def test_a_writer_is_reinforced_by_what_its_choice_weighs(settings, tmp_path, monkeypatch):
    rewards = []
    real = ExplanationGenerator.reinforce

    def watched(self, prompts, reward, **options):
        def kept(index, texts):
            rewards.append((index, texts, reward(index, texts)))
            return rewards[-1][2]

        real(self, prompts, kept, **options)

    monkeypatch.setattr(ExplanationGenerator, "reinforce", watched)
    model = writer(settings, iterations=2, prompts=3, group=2, policy_learning_rate=1e-2)
    model.fit(TRAIN, VALID, checkpoint=tmp_path / "state")
    assert len(rewards) == 6 and (tmp_path / "state.grpo").is_file()
    index, texts, values = rewards[0]
    own = TRAIN[index]
    others = model.candidates(own.query, without=index)
    assert own.explanation not in others and own.explanation in model.candidates(own.query)
    overlap = minimum_risk.overlaps([texts[0], *others])[0, 1:].mean()
    item, text = Words().encode([f"{own.title}. {own.query.item_profile}", texts[0]])
    assert values[0] == pytest.approx(0.9 * overlap + 0.1 * float(item @ text), abs=1e-6)
    model.save_pretrained(tmp_path / "model")
    assert ExplanationWriter.from_pretrained(tmp_path / "model", device="cpu").explain(QUERIES) == model.explain(
        QUERIES
    )
    again = writer(settings, iterations=2, prompts=3, group=2, policy_learning_rate=1e-2)
    again.fit(TRAIN, VALID, checkpoint=tmp_path / "state")  # a run that was killed after GRPO goes on from its end
    assert len(rewards) == 6 and again.explain(QUERIES) == model.explain(QUERIES)


def test_grpo_without_samples_to_compare_is_refused(settings):
    with pytest.raises(ValueError, match="temperature: expected one above 0 with iterations of GRPO"):
        writer(settings, iterations=1, temperature=0.0)
    with pytest.raises(ValueError, match="group: expected a whole number of at least 2; got 1"):
        writer(settings, iterations=1, group=1)
