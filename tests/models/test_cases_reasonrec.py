"""ReasonRec where something is missing, too large, of another run, or fails."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from walks import walks as random_walks

from reasonrec_fast.data import Catalog, DataError, Histories, Interactions, Split, split_by_time
from reasonrec_fast.experiments.reasonrec import evaluate_agent
from reasonrec_fast.models.classical import Stack, StackConfig
from reasonrec_fast.models.reasonrec import AgentConfig, ReasonRec, ReasonRecConfig
from reasonrec_fast.models.reasonrec.agent import digest_of_weights
from reasonrec_fast.models.reasonrec.answers import ndcg
from reasonrec_fast.models.reasonrec.observe import _picture
from reasonrec_fast.models.reasonrec.prompt import AgentPrompts, longest_prompt
from reasonrec_fast.models.reasonrec.routing import GainRouter
from reasonrec_fast.models.reasonrec.storage import remove_checkpoints

USERS, ITEMS = 40, 12
STACK = StackConfig(tools=("ItemKNN",), candidates=6, depth=10, trees=5, min_leaf=5, leaves=7)


class Killed(Exception):
    """Stands for the end of a process."""


def kill(done, total, metrics=None, part=""):
    if part.startswith("agent") and done == 2:
        raise Killed


def kill_at_the_end(done, total, metrics=None, part=""):
    if part.startswith("agent") and done == total:
        raise Killed


def by_number(histories):
    """A user's tool."""
    return np.tile(np.arange(ITEMS, dtype=float), (histories.num_users, 1))


def walks(num_items=ITEMS, kind="kind"):
    users, numbers = random_walks(np.random.default_rng(0), USERS, num_items, (4, 7))
    items = [f"i{number}" for number in numbers]
    ids = [f"i{item}" for item in range(num_items)]
    return Interactions.from_columns(
        users, items, [1] * len(users), range(len(users)), titles={name: f"Title {name[1:]}" for name in ids},
        attributes={"kind": {name: (f"{kind} {number % 3}",) for number, name in enumerate(ids)}}, extra_items=ids,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return walks()


@pytest.fixture(scope="module")
def split(data):
    return split_by_time(data, "leave_one_out")


@pytest.fixture(scope="module")
def config(tiny_backbone):
    agent = AgentConfig(
        backbone=str(tiny_backbone), layers=1, candidates=6, train_candidates=3, lora_rank=2, batch_users=4
    )
    return ReasonRecConfig(stack=STACK, agent=agent, k=2)


@pytest.fixture(scope="module")
def model(data, split, config):
    return ReasonRec(config).fit(data, split.train, split.validation)


def with_agent(config, **changes):
    return replace(config, agent=replace(config.agent, **changes))


def with_tool(config, function):
    model = ReasonRec(config)
    model.stack.add_tool("mine", function)
    return model


def test_the_end_of_a_training_removes_its_own_state_alone(tmp_path):
    for name in ("run", "run.ctr", "run-notes.csv", "run2.stack.state"):
        (tmp_path / name).write_text("x")
    for name in ("run.stack", "run.stack.state.tools", "running", "run[1].stack"):
        (tmp_path / name).mkdir()
    remove_checkpoints(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run-notes.csv", "run2.stack.state", "run[1].stack", "running"
    ]  # fmt: skip
    remove_checkpoints(tmp_path / "run[1]")
    assert not (tmp_path / "run[1].stack").exists()


@pytest.mark.parametrize("changes", [{"learning_rate": 0.1}, {"history": 1}, {"evidence": False}, {"lora_alpha": 64}])
def test_a_checkpoint_of_other_settings_of_the_agent_is_refused(data, split, config, tmp_path, changes):
    with pytest.raises(Killed):
        ReasonRec(config).fit(
            data, split.train, split.validation, checkpoint=tmp_path / "state", progress=kill_at_the_end
        )
    assert (tmp_path / "state").is_file()
    with pytest.raises(ValueError, match="it is of another run"):
        ReasonRec(with_agent(config, **changes)).fit(data, split.train, split.validation, checkpoint=tmp_path / "state")


def test_a_resumed_run_has_its_functions(data, split, config, tmp_path):
    rows = data, split.train, split.validation
    with pytest.raises(Killed):
        with_tool(config, by_number).fit(*rows, checkpoint=tmp_path / "state", progress=kill)
    resumed = with_tool(config, by_number).fit(*rows, checkpoint=tmp_path / "state")
    whole = with_tool(config, by_number).fit(*rows)
    answers, expected = (one.recommend(np.arange(USERS), 4, policy="always") for one in (resumed, whole))
    assert answers.left_out == {}
    assert (answers.items == expected.items).all()


def test_nothing_is_learnt_without_a_tool(data, split, config):
    calls, last = [], 1 << 30

    def fails_later(histories):
        calls.append(histories.num_users)
        if len(calls) >= last:
            raise RuntimeError("service down")
        return by_number(histories)

    with_tool(config, fails_later).fit(data, split.train, split.validation)
    last = len(calls)  # the agent's candidates
    calls.clear()
    with pytest.raises(DataError, match="expected scores from mine; got RuntimeError: service down"):
        with_tool(config, fails_later).fit(data, split.train, split.validation)


def test_learning_waits_for_slow_tools(data, split, config, caplog):
    import time

    def slow(histories):
        time.sleep(0.05)
        return by_number(histories)

    with_tool(replace(config, stack=replace(STACK, tool_seconds=0.01)), slow).fit(data, split.train, split.validation)
    assert "tool mine is left out" not in caplog.text


def test_what_cannot_be_learnt_from_is_refused_before_the_stack_is_fitted(data, split, config, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the stack was fitted")

    monkeypatch.setattr(Stack, "fit", refuse)
    with pytest.raises(DataError, match="validation: expected positive events"):
        ReasonRec(config).fit(data, split.train, np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match=r"validation: expected other rows than those of train; got row [0-9]+ in both"):
        ReasonRec(config).fit(data, None, split.validation)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ReasonRec(with_agent(config, backbone="/nowhere")).fit(data, split.train, split.validation)
    with pytest.raises(ValueError, match=r"agent.history, agent.title_tokens: expected prompts of at most 2048 tokens"):
        ReasonRec(with_agent(config, history=500)).fit(data, split.train, split.validation)


def test_a_stack_needs_no_positive_validation_event(data, split):
    assert Stack(STACK).fit(data, split.train, np.zeros(0, dtype=np.int64)).trees.num_trees == STACK.trees


def test_users_with_one_candidate_teach_nothing(config):
    data = walks(5)  # of most users, all items but one are in the history
    split = split_by_time(data, "leave_one_out")
    model = ReasonRec(config).fit(data, split.train, split.validation)
    answers = model.recommend(np.arange(USERS), 4, policy="always")
    assert ((answers.items >= 0).sum(1) <= 1).any()
    assert (answers.answered_by[(answers.items >= 0).sum(1) <= 1] == 0).all()


def test_the_confidence_is_measured_as_a_hit_of_its_own_k(data, split, model):
    first, second = (evaluate_agent(model, data, split, ks=ks, timed=1) for ks in ((2, 4), (4,)))
    assert first.confidence == second.confidence and first.curve == second.curve
    assert set(second.stack) == {"hr@4", "ndcg@4"}


def test_a_report_leaves_the_model_as_it_was(data, split, model):
    before = model.histories
    model.set_histories_from(data, np.arange(len(data)))
    answers = model.recommend(np.arange(USERS), 3)
    evaluate_agent(model, data, split, ks=(2,), timed=1)
    assert (model.recommend(np.arange(USERS), 3).scores == answers.scores).all()
    model.set_histories(before)


def test_a_report_names_what_it_was_measured_without(data, split, config, tmp_path):
    with_tool(config, by_number).fit(data, split.train, split.validation).save_pretrained(tmp_path)
    report = evaluate_agent(ReasonRec.from_pretrained(tmp_path), data, split, ks=(2,), timed=1)
    assert "give it to add_tool" in report.to_dict()["left_out"]["mine"]


def test_nothing_to_measure_is_said(data, split, model):
    nothing = Split(split.train, split.validation, np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match="split: expected a like in the test part"):
        evaluate_agent(model, data, nothing, ks=(2,))


def test_several_targets_a_user_are_measured_in_full(data, config):
    split = split_by_time(data, "user_time", validation=0.2, test=0.4)
    model = ReasonRec(config).fit(data, split.train, split.validation)
    model.agent.ranker.model.heads[-1].scale.fill_(1.0)
    report = evaluate_agent(model, data, split, ks=(2, 4), timed=1)
    earlier = np.sort(np.concatenate([split.train, split.validation]))
    model.set_histories(Histories.of(data, earlier), seen=Histories.seen(data, earlier))
    values = []
    for user in np.unique(data.users[split.test]):
        targets = set(data.items[split.test][data.users[split.test] == user]) - set(model.seen.of_user(user).tolist())
        if targets:
            values.append(bool(targets & set(model.recommend(np.array([user]), 2, policy="always").items[0].tolist())))
    assert report.users == len(values)
    assert report.policies["always"].metrics["hr@2"] == pytest.approx(np.mean(values))


def test_attributes_may_be_whole_descriptions(config, model):
    """A prompt is bounded, and so is a sentence; what is counted stays whole."""
    long = "a long description " * 500
    catalog = Catalog(["a", "b"], ["Tea " * 300, "b"], {"about": [(long,), (long, *(f"v{n}" for n in range(50)))]})
    prompts = AgentPrompts(catalog, model.agent.tokenizer, config.agent)
    prompts.set_histories(Histories.from_lists([[0, 1] * 30]))
    for task in ("sequential", "direct"):
        prefix, suffixes = prompts.group(0, [0, 1], task, [{"ItemKNN": 1000}] * 2)
        assert len(prefix) + max(map(len, suffixes)) <= longest_prompt(config.agent, 1)


def test_reasons_are_sentences_whatever_attributes_are(config):
    data = walks(kind="a long description " * 100)
    split = split_by_time(data, "leave_one_out")
    model = ReasonRec(replace(config, agent=None)).fit(data, split.train)
    reason = model.explain(["u0"], ["i3"])[0]
    assert len(reason.text) < 1500 and len(reason.tastes[0][0]) > 1000


def test_no_more_is_said_of_attributes_than_is_known(data, split, config):
    bare = replace(data, catalog=Catalog(data.catalog.ids, data.catalog.titles))
    model = ReasonRec(replace(config, agent=None)).fit(bare, split.train)
    assert "these attributes" not in model.explain(["u0"], ["i3"])[0].text


def test_more_items_than_there_are(model):
    few, many = model.recommend(np.arange(3), ITEMS), model.recommend(np.arange(3), 100_000)
    assert many.items.shape == many.scores.shape == (3, 100_000)
    assert (many.items[:, :ITEMS] == few.items).all() and (many.items[:, ITEMS:] == -1).all()
    assert (many.scores[:, :ITEMS] == few.scores).all() and np.isneginf(many.scores[:, ITEMS:]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": ""}, "policy: expected one of"),
        ({"policy": ["gain"]}, "policy: expected one of"),
        ({"budget": "0.5"}, r"budget: expected a share in \[0, 1\]; got '0.5'"),
        ({"budget": True}, "budget: expected a share"),
        ({"budget": float("nan")}, "budget: expected a share"),
    ],
)
def test_arguments_of_another_kind(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.recommend(np.arange(2), 2, **arguments)


def test_the_stack_decides_between_equal_logits():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    assert [ndcg(values, target, 3) for target in range(4)] == pytest.approx([1.0, 1 / np.log2(3), 0.5, 0.0])


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "../a", "/etc/hostname"])
def test_identifiers_that_are_no_names_of_files_have_no_picture(tmp_path, name):
    assert _picture(tmp_path, name) is None


def test_parts_of_two_trainings_are_refused(data, split, config, model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    other = ReasonRec(replace(config, agent=None)).fit(data, split.train[:-1], split.validation)
    other.save_pretrained(tmp_path / "other")
    shutil.rmtree(tmp_path / "one" / "stack")
    shutil.copytree(tmp_path / "other" / "stack", tmp_path / "one" / "stack")
    with pytest.raises(ValueError, match=r"stack/\S+: expected the file that was saved with the model"):
        ReasonRec.from_pretrained(tmp_path / "one")
    settings = json.loads((tmp_path / "one" / "config.json").read_text())
    del settings["files"]  # as versions before wrote it
    (tmp_path / "one" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="of the same training; got those of two"):
        ReasonRec.from_pretrained(tmp_path / "one")


def test_another_language_model_of_the_same_shape_is_refused(model, config, tiny_backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path / "model")
    shutil.copytree(tiny_backbone, tmp_path / "other")
    weights = load_file(tiny_backbone / "model.safetensors")
    name = next(name for name in weights if "layers.0" in name and "q_proj" in name)
    save_file(weights | {name: weights[name] * 1.1}, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    stored = (tmp_path / "model" / "config.json").read_text()
    changed = stored.replace(str(tiny_backbone), str(tmp_path / "other"))
    (tmp_path / "model" / "config.json").write_text(changed)
    with pytest.raises(ValueError, match="expected the language model that the agent was trained with"):
        ReasonRec.from_pretrained(tmp_path / "model")


def test_a_digest_of_weights_is_the_same_in_both_types():
    linear = torch.nn.Linear(300, 20)
    digest = digest_of_weights(linear)
    assert digest_of_weights(linear.to(torch.bfloat16)) == digest
    with torch.no_grad():
        linear.bias.add_(1.0)
    assert digest_of_weights(linear) != digest


def test_gains_of_one_query():
    router = GainRouter.fit(np.zeros((1, 3), dtype=np.float32), np.ones(1))
    assert router.predict(np.zeros((2, 3), dtype=np.float32)).tolist() == [1.0, 1.0]
