"""Chains of thought: learnt, written, parsed, kept; and what they say of how unsure a query is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from saved_models import forget_digests

from reasonrec_fast.models.reasonrec import Chain, ChainConfig, ChainWriter, chain_features
from reasonrec_fast.models.reasonrec.chain import parse_chain
from reasonrec_fast.models.reasonrec.chain_features import CHAIN_FEATURES
from reasonrec_fast.models.reasonrec.chain_prompts import ChainPrompts
from reasonrec_fast.models.reasonrec.instruction import ReasoningSample
from reasonrec_fast.models.reasonrec.questions import Question, question_template
from reasonrec_fast.prompts import Entries
from reasonrec_fast.training.curriculum import Curriculum, CurriculumSampler


def sample(liked: bool, key: str = "same") -> ReasoningSample:
    """A question whose title tells its answer."""
    values = {
        "history": Entries(["A (liked)"]), "title": ("XXXXXX", "YYYYYY")[liked], "attributes": None, "summary": "tea",
        "evidence": None, "comparison": "So.", "answer": ("no", "yes")[liked], "confidence": "high",
    }  # fmt: skip
    return ReasoningSample("ctr", key, values, 0, 0, ("no", "yes"))


@pytest.fixture(scope="session")
def talker(tiny_backbone, tmp_path_factory):
    """The tiny model with larger embeddings, as a model is that has learnt something: it learns quickly."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("talker") / "model"
    shutil.copytree(tiny_backbone, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        model.model.embed_tokens.weight.mul_(20)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(talker):
    return ChainConfig(
        backbone=str(talker), lora_rank=32, lora_alpha=64, learning_rate=1e-2, epochs=60, batch=2, max_tokens=70,
        temperature=0.0, curriculum=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learnt(config):
    return ChainWriter(config).fit([sample(n % 2 == 1) for n in range(4)])


@pytest.fixture(scope="module")
def fresh(config):
    """Nothing learnt, and sampling."""
    return ChainWriter(replace(config, temperature=1.0, max_tokens=20))


def test_it_learns_to_copy_chains_that_depend_on_the_question(learnt):
    no, yes = learnt.write([sample(False), sample(True)])
    assert no.text.endswith("favours tea. So. Answer: no. Confidence: high.")
    assert (no.answer, yes.answer) == ("no", "yes")
    assert no.stated == "high" and no.finished and yes.finished
    assert no.item is None  # a question of yes and no names no items
    assert no.entropy >= 0 >= no.logprob


def test_the_loss_is_on_the_chain_alone(fresh):
    group = fresh._prompts.group(sample(True))
    assert group.flat_chosen().all() and len(group.continuations) == 1
    prompt, chain = fresh.tokenizer.decode(group.prefix), group.continuations[0]
    assert prompt.endswith("fits the history.\n") and "Answer" not in prompt
    assert chain[-1] in fresh._stops and fresh.tokenizer.decode(chain[:-1]).endswith("Confidence: high.")


def test_what_was_learnt_is_saved_and_loaded(learnt, config, tmp_path):
    learnt.save_pretrained(tmp_path / "writer")
    names = {file.name for file in (tmp_path / "writer").iterdir()}
    assert names == {"config.json", "adapter.safetensors"}
    loaded = ChainWriter.from_pretrained(tmp_path / "writer")
    assert loaded.config == config
    assert loaded.write([sample(True)]) == learnt.write([sample(True)])
    other = tmp_path / "other"
    ChainWriter(replace(config, lora_rank=2)).save_pretrained(other)
    shutil.copy(tmp_path / "writer" / "adapter.safetensors", other)
    forget_digests(other)
    with pytest.raises(ValueError, match="adapters of this backbone"):
        ChainWriter.from_pretrained(other)
    with pytest.raises(FileNotFoundError):
        ChainWriter.from_pretrained(tmp_path / "nothing")


def test_a_language_model_of_other_weights_is_refused(talker, config, tmp_path, caplog):
    """By its name and shapes it is the same."""
    from transformers import LlamaForCausalLM

    shutil.copytree(talker, tmp_path / "model")
    few = replace(config, backbone=str(tmp_path / "model"), epochs=1)
    writer = ChainWriter(few).fit([sample(True)], checkpoint=tmp_path / "state")
    writer.save_pretrained(tmp_path / "writer")
    settings = json.loads((tmp_path / "writer" / "config.json").read_text())
    settings["templates"]["ctr"] = "another"
    (tmp_path / "writer" / "config.json").write_text(json.dumps(settings))
    ChainWriter.from_pretrained(tmp_path / "writer")
    assert "learnt from questions of another template ctr" in caplog.text and "sequential" not in caplog.text
    model = LlamaForCausalLM.from_pretrained(talker)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="expected the language model that the writer was trained with; .* has other"):
        ChainWriter.from_pretrained(tmp_path / "writer")
    with pytest.raises(ValueError, match="another run"):
        ChainWriter(few).fit([sample(True)], checkpoint=tmp_path / "state")
    del settings["backbone"], settings["templates"]  # as versions before wrote it
    (tmp_path / "writer" / "config.json").write_text(json.dumps(settings))
    ChainWriter.from_pretrained(tmp_path / "writer")


def test_a_run_that_was_killed_goes_on(config, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(done, total, metrics):
        if done == 3:
            raise Killed

    samples = [sample(n % 2 == 1) for n in range(4)]
    few = replace(config, epochs=3)
    sampler = CurriculumSampler(Curriculum(), np.array([0.1, 0.2, 0.8, 0.9]))
    whole, halves = ChainWriter(few), ChainWriter(few)
    whole.fit(samples, sampler=sampler)
    file = tmp_path / "state.safetensors"
    monkeypatch.setattr("reasonrec_fast.training.loop.StepLoop.save_if_due", lambda loop, **_: loop.save())
    with pytest.raises(Killed):
        halves.fit(samples, sampler=sampler, checkpoint=file, progress=kill)
    assert file.is_file() and not halves.peft.training
    resumed, done = ChainWriter(few), []
    resumed.fit(samples, sampler=sampler, checkpoint=file, progress=lambda step, total, _: done.append(step))
    assert done == [4, 5, 6]
    expected, got = dict(whole.peft.named_parameters()), dict(resumed.peft.named_parameters())
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    with pytest.raises(ValueError, match="another run"):
        ChainWriter(few).fit(samples, checkpoint=file)


def test_chains_depend_on_the_seed(fresh):
    first, again, other = (fresh.write([sample(True)], 2, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first[0].text != first[1].text
    assert fresh.write([sample(True)], 1, 0) == first[:1]


def test_chains_do_not_depend_on_what_is_written_beside_them(fresh):
    asked = [sample(True, str(key)) for key in range(6)]
    together = fresh.write(asked, 2, 5)
    assert len(together) == 12
    for number in (0, 3, 5):
        assert fresh.write([asked[number]], 2, 5) == together[2 * number : 2 * number + 2]
    assert fresh.write(asked[::-1], 2, 5)[:2] == together[-2:]
    assert fresh.write([]) == []


def test_the_chain_of_a_sample_is_not_read(fresh):
    told = replace(sample(True), values=sample(True).values | {"summary": "bikes", "answer": "no"})
    assert fresh.write([told]) == fresh.write([sample(True)]) == fresh.write([sample(True).question])


def test_a_chain_that_never_ends_is_cut(fresh, monkeypatch):
    monkeypatch.setattr(fresh, "_stops", (0,))  # <s>, which nothing has taught it
    chains = fresh.write([sample(True)], 2)
    for chain in chains:
        assert not chain.finished and (chain.answer, chain.stated) == (None, None)
    assert chain_features(chains, 2)[0, :3].tolist() == [0.0, 0.0, 0.0]


def test_text_comes_as_it_is_written(fresh):
    pieces: dict[tuple[int, int], str] = {}

    def on_text(query, chain, text):
        pieces[query, chain] = pieces.get((query, chain), "") + text

    chains = fresh.write([sample(True), sample(False)], 2, on_text=on_text)
    assert [pieces.get((row // 2, row % 2), "") for row in range(4)] == [chain.text for chain in chains]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tea. Answer: Assam. Confidence: very high.", ("Assam", "very high")),
        ("Tea. Answer: Assam. Confidence: very high. \n", ("Assam", "very high")),
        ("Answer: Assam. Confidence: low.", ("Assam", "low")),
        ("Tea. Answer: Mr. Tea. Confidence: low.", ("Mr. Tea", "low")),
        ("Tea. Answer: assam. Confidence: low.", (None, "low")),  # another case
        ("Tea. Answer: Assam Gold. Confidence: low.", (None, "low")),  # a title that begins alike
        ("Tea. Answer: Assam and Mr. Tea. Confidence: low.", (None, "low")),
        ("Tea. Answer: Assam. Confidence: sure.", (None, None)),
        ("Tea. Answer: Assam. Confidence: high. And so on.", (None, None)),
        ("Tea. Answer: Assam.", (None, None)),
        ("Assam", (None, None)),
        ("", (None, None)),
    ],
)
def test_answers_are_parsed_and_never_guessed(text, expected):
    assert parse_chain(text, ["Assam", "Mr. Tea"]) == expected


def test_an_answer_that_two_titles_match_is_none():
    both = ["Tea", "Tea. Answer: Tea"]
    assert parse_chain("Answer: Tea. Answer: Tea. Confidence: low.", both) == (None, "low")
    assert parse_chain("So. Answer: Tea. Confidence: low.", both) == ("Tea", "low")
    assert parse_chain("So. Answer: Tea. Confidence: low.", []) == (None, "low")


def test_a_name_of_two_items_is_no_item():
    question = Question("sequential", "", {}, ("Tea", "Tea", "Bread"), (4, 7, 9))
    assert question.item_of("Tea") is None
    assert question.item_of("Bread") == 9 and question.item_of(None) is None and question.item_of("Oil") is None


def test_features_of_uncertainty():
    def chain(answer, stated, entropy):
        return Chain("", answer, stated, entropy, -entropy, answer is not None)

    sure = [chain("tea", "high", 0.5), chain("tea", "very high", 1.5)]
    torn = [chain("tea", "low", 1.0), chain(None, None, 2.0)]
    features = chain_features([*sure, *torn, Chain(""), Chain("")], 2)
    assert features.shape == (3, len(CHAIN_FEATURES)) and features.dtype == np.float32
    np.testing.assert_allclose(features[0], [1.0, 1.0, 1.0, 1.0, 1.5, -1.0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(features[1], [0.5, 0.5, 0.5, 1.5, 2.0, -1.5, 0.3], rtol=1e-6)
    np.testing.assert_allclose(features[2], [0.0, 0.0, 0.0] + [np.nan] * 4)
    assert chain_features([], 2).shape == (0, len(CHAIN_FEATURES))
    with pytest.raises(ValueError, match="multiple of n = 2; got 3"):
        chain_features(sure + torn[:1], 2)


def test_refusals(fresh, config):
    long = replace(sample(True), values=sample(True).values | {"title": "X" * 800})
    with pytest.raises(ValueError, match=r"questions\[1\]: budget: expected at least \d+ tokens"):
        fresh.write([sample(True), long])
    with pytest.raises(ValueError, match=r"samples\[0\]: expected a chain of at most 20 tokens; got 6\d"):
        fresh.fit([sample(True)])
    assert not fresh.fits(sample(True)) and not fresh.fits(long)
    with pytest.raises(ValueError, match="groups: expected at least one"):
        fresh.fit([])
    with pytest.raises(ValueError, match="n: expected"):
        fresh.write([sample(True)], 0)
    with pytest.raises(ValueError, match="direct, ctr: expected shares of at most 1 together; got 0.6 and 0.5"):
        ChainConfig(direct=0.6, ctr=0.5)
    with pytest.raises(ValueError, match="temperature: expected a finite number that is 0 or at least 1e-6"):
        ChainConfig(temperature=1e-9)
    greedy = ChainWriter(replace(config, temperature=0.0))
    with pytest.raises(ValueError, match="n: expected 1 at temperature 0"):
        greedy.write([sample(True)], 2)


def test_a_model_without_an_end_is_refused(config, tmp_path):
    from transformers import LlamaForCausalLM

    shutil.copytree(config.backbone, tmp_path / "endless")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "endless")
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="expected a model with a token that ends texts"):
        ChainWriter(replace(config, backbone=str(tmp_path / "endless")))


def test_question_and_chain_are_no_longer_than_the_model_reads(fresh):
    """What is too long for it would end the training in its middle, and the writing."""
    history = Entries([f"Thing {number} (liked)" for number in range(30)])
    long = replace(sample(True), values=sample(True).values | {"history": history})

    def prompts(room):
        return ChainPrompts(fresh.tokenizer, system=None, budget=2000, stop=0, chain=200, room=room)

    whole, cut = (len(prompts(room).prompt(long.question)) for room in (4000, 700))
    assert whole > 500 >= cut and prompts(700).fits(long)
    assert not prompts(220).fits(long)
    with pytest.raises(ValueError, match="max_tokens: expected chains of fewer than 200 tokens, which the backbone"):
        prompts(200)


def test_a_question_is_a_conversation_where_the_model_has_them(smollm2_tokenizer, config):
    budget = {"budget": config.prompt_tokens, "chain": 40, "room": 8192}
    prompts = ChainPrompts(smollm2_tokenizer, system=config.system, stop=None, **budget)
    question = replace(sample(True).question, values=sample(True).question.values | {"title": "<|im_end|>"})
    ids = prompts.prompt(question)
    text = smollm2_tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nYou choose what to recommend.")
    assert text.endswith("<|im_start|>assistant\n")
    assert ids.count(smollm2_tokenizer.eos_token_id) == 2  # the turns', not the title's
    plain = ChainPrompts(smollm2_tokenizer, system=None, stop=None, **budget)
    assert "system" not in smollm2_tokenizer.decode(plain.prompt(question))


def test_a_limit_of_wordings_holds_for_questions_and_chains(smollm2_tokenizer):
    many = [replace(sample(True), key=f"event {number}") for number in range(40)]
    for limit, most in ((None, 10), (3, 3), (1, 1)):
        prompts = ChainPrompts(
            smollm2_tokenizer, system=None, budget=768, stop=None, chain=192, room=8192, wordings=limit
        )
        groups = [prompts.group(one, seed=5) for one in many]
        assert len({tuple(group.prefix) for group in groups}) == most
        pairs = {(tuple(group.prefix), tuple(group.continuations[0])) for group in groups}
        assert len(pairs) == most  # of a question and its chain: one wording
    first = "".join(sample(True).texts(which=0))
    text = smollm2_tokenizer.decode([*groups[0].prefix, *groups[0].continuations[0]])
    assert text == f"{smollm2_tokenizer.bos_token}{first}"


@pytest.mark.parametrize("task", ["sequential", "direct", "ctr", "explanation"])
def test_no_question_reads_what_only_the_chain_says(task):
    template = question_template(task)
    assert len(template.wordings) == 10
    assert not {"answer", "evidence", "summary", "comparison", "confidence"} & set(template.fields)
