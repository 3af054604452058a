"""ReasonRec: a stack whose best candidates a language model may put in another order."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from reasonrec_shop import ITEMS, STACK, USERS, small_config, walks
from saved_models import forget_digests

from reasonrec_fast import load
from reasonrec_fast.data import UNLABELLED, Catalog, DataError, Histories, split_by_time
from reasonrec_fast.experiments.config import load_experiment
from reasonrec_fast.experiments.reasonrec import evaluate_agent
from reasonrec_fast.experiments.runner import run_experiment
from reasonrec_fast.models.base import CatalogRecommender
from reasonrec_fast.models.classical import Stack
from reasonrec_fast.models.reasonrec import AgentConfig, ReasonRec, ReasonRecConfig
from reasonrec_fast.models.reasonrec.agent import ResidualAgent
from reasonrec_fast.models.reasonrec.prompt import AgentPrompts, CoLikes
from reasonrec_fast.models.reasonrec.storage import remove_checkpoints


@pytest.fixture(scope="module")
def data():
    return walks()


@pytest.fixture(scope="module")
def split(data):
    return split_by_time(data, "leave_one_out")


@pytest.fixture(scope="module")
def config(tiny_backbone):
    return small_config(tiny_backbone)


@pytest.fixture(scope="module")
def model(data, split, config):
    return ReasonRec(config).fit(data, split.train, split.validation)


@pytest.fixture
def trusted(model):
    """The model with an agent whose corrections count in full."""
    scale = model.agent.ranker.model.heads[-1].scale
    before = float(scale)
    scale.fill_(1.0)
    yield model
    scale.fill_(before)


def test_it_is_a_recommender_of_the_registry(model, tmp_path):
    assert isinstance(model, CatalogRecommender)
    model.save_pretrained(tmp_path)
    assert isinstance(load(tmp_path), ReasonRec)


def test_an_agent_that_has_learnt_nothing_answers_what_the_stack_says(data, model, config):
    fresh = ResidualAgent(config.agent)
    ranking = model.stack.rank(np.arange(5), 6)
    slates = [model._slates.write(ranking, np.arange(5), row) for row in range(5)]
    for slate, logits in zip(slates, fresh.logits(slates), strict=True):
        assert np.abs(logits - slate.offset).max() < 1e-3


def test_the_agent_puts_the_same_candidates_in_another_order(trusted):
    users = np.arange(USERS)
    stack, agent = (trusted.recommend(users, 6, policy=policy) for policy in ("never", "always"))
    assert (np.sort(stack.items, 1) == np.sort(agent.items, 1)).all()
    assert (stack.items != agent.items).any()
    assert set(stack.answered_by.tolist()) == {0} and set(agent.answered_by.tolist()) == {1}
    assert (np.diff(agent.scores, axis=1) < 0).all()


def test_beyond_the_agents_candidates_the_order_is_the_stacks(trusted):
    stack, agent = (trusted.recommend(np.arange(8), 9, policy=policy) for policy in ("never", "always"))
    assert (stack.items[:, 6:] == agent.items[:, 6:]).all()
    assert (np.diff(agent.scores, axis=1)[agent.items[:, 1:] >= 0] < 0).all()


@pytest.mark.parametrize("policy", ["gain", "risk", "budget", "always", "consult"])
def test_an_answer_depends_on_its_own_query_alone(trusted, policy):
    together = trusted.recommend(np.arange(20), 4, policy=policy, budget=0.5)
    for user in (0, 7, 19):
        alone = trusted.recommend(np.array([user]), 4, policy=policy, budget=0.5)
        assert alone.items[0].tolist() == together.items[user].tolist()
        assert alone.answered_by[0] == together.answered_by[user]
        np.testing.assert_allclose(alone.scores[0], together.scores[user], atol=1e-4)


def test_who_is_not_sent_to_the_agent_costs_nothing_of_it(model, monkeypatch):
    def refuse(*_):
        raise AssertionError("the agent was asked")

    monkeypatch.setattr(model.agent, "logits", refuse)
    model.recommend(np.arange(5), 3, policy="never")
    model.recommend(np.arange(5), 3, policy="budget", budget=0.0)
    with pytest.raises(AssertionError):
        model.recommend(np.arange(5), 3, policy="always")


def test_budgets_are_shares_of_the_validation_users(model):
    users = np.arange(USERS)
    ranking, horizons = model.stack.rank(users, model.candidates), model.horizons(users)
    asked = [(model.decide(ranking, horizons, "budget", share).destination > 0).mean() for share in (0.0, 0.5, 1.0)]
    assert asked[0] == 0 and asked[2] == 1 and 0.2 < asked[1] < 0.8


def test_identifiers_go_in_and_come_out(data, model):
    by_name, by_index = model.recommend(["u3", "u1"], 3), model.recommend(np.array([3, 1]), 3)
    assert by_name.items.tolist() == [[data.catalog.ids[item] for item in row] for row in by_index.items]


@pytest.mark.parametrize("policy", ["gain", "always", "risk"])
def test_a_loaded_model_answers_the_same(model, tmp_path, policy):
    model.save_pretrained(tmp_path)
    loaded = ReasonRec.from_pretrained(tmp_path)
    users = np.arange(USERS)
    before, after = (one.recommend(users, 5, policy=policy) for one in (model, loaded))
    assert before.items.tolist() == after.items.tolist()
    assert before.answered_by.tolist() == after.answered_by.tolist()
    np.testing.assert_allclose(before.confidence, after.confidence)
    assert loaded.agent.trust == model.agent.trust
    loaded.save_pretrained(tmp_path / "again")
    again = ReasonRec.from_pretrained(tmp_path / "again").recommend(users, 5, policy=policy)
    assert (again.scores == after.scores).all()


def test_a_run_that_was_killed_goes_on(data, split, config, model, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(done, total, metrics=None, part=""):
        if part.startswith("agent") and done == 3:
            raise Killed

    with pytest.raises(Killed):
        ReasonRec(config).fit(data, split.train, split.validation, checkpoint=tmp_path / "state", progress=kill)
    assert (tmp_path / "state.stack" / "config.json").is_file()

    def refuse(*_, **__):
        raise AssertionError("the stack was fitted again")

    monkeypatch.setattr("reasonrec_fast.models.classical.stack.Stack.fit", refuse)
    resumed = ReasonRec(config).fit(data, split.train, split.validation, checkpoint=tmp_path / "state")
    expected, got = (one.recommend(np.arange(USERS), 6, policy="always") for one in (model, resumed))
    assert (expected.items == got.items).all()
    remove_checkpoints(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    other = replace(config, stack=replace(STACK, trees=5))
    with pytest.raises(Killed):
        ReasonRec(config).fit(data, split.train, split.validation, checkpoint=tmp_path / "state", progress=kill)
    with pytest.raises(ValueError, match="is of another run"):
        ReasonRec(other).fit(data, split.train, split.validation, checkpoint=tmp_path / "state")


def test_prompts_do_not_depend_on_how_items_are_numbered(data, config, model):
    new = np.random.default_rng(1).permutation(ITEMS)
    order = np.argsort(new)
    catalog = Catalog(
        [f"other {old}" for old in order],
        [data.catalog.titles[old] if data.catalog.has_title(old) else f"other {old}" for old in order],
        {name: [column[old] for old in order] for name, column in data.catalog.attributes.items()},
    )
    tokenizer = model.agent.tokenizer
    first, second = (AgentPrompts(known, tokenizer, config.agent) for known in (data.catalog, catalog))
    histories = Histories.of(data, np.arange(len(data)))
    first.set_histories(histories)
    second.set_histories(Histories(histories.indptr, new[histories.items]))
    for user in range(10):
        for task in ("sequential", "direct"):
            candidates = list(range(ITEMS))
            before = first.group(user, candidates, task, [{"EASE": 3}] * ITEMS)
            assert before == second.group(user, new[candidates].tolist(), task, [{"EASE": 3}] * ITEMS)
            words = tokenizer.decode(before[0]) + "".join(tokenizer.decode(suffix) for suffix in before[1])
            assert not any(f"i{item}" in words.split() for item in range(ITEMS))


def test_direct_prompts_name_no_history(model):
    prefix, _ = model._prompts.group(0, [1, 2], "direct")
    sequential, _ = model._prompts.group(0, [1, 2], "sequential")
    assert "latest first" in model.agent.tokenizer.decode(sequential)
    assert "latest first" not in model.agent.tokenizer.decode(prefix)


def test_a_user_is_no_evidence_for_themselves():
    likes = CoLikes(Histories.from_lists([[0, 1], [0, 1], [0]]), 3)
    assert likes.support(0, 0, 1) == (2, 1)
    assert likes.best(0, [0], 1) == (0, 2, 1)
    assert likes.best(1, [0], 2) is None


def test_reasons_are_counted_from_the_data(data, model):
    reason = model.explain(["u0"], ["i5"])[0]
    history = [data.catalog.ids[item] for item in model.histories.of_user(0)]
    kinds = [f"kind {int(item[1:]) % 4}" for item in history if int(item[1:]) < ITEMS - 2]
    assert dict(reason.tastes)["all"] == len(kinds)
    assert ("kind 1" in reason.shared) == ("kind 1" in kinds)
    assert "Title F" in reason.text
    if reason.evidence is not None:
        title, others, common = reason.evidence
        assert title in {f"Title {chr(65 + int(item[1:]))}" for item in history} and 0 < common <= others
    assert all(rank >= 1 for rank in reason.tools.values())
    assert model.explain([], []) == []


def test_the_report_measures_every_user(data, split, trusted):
    report = evaluate_agent(trusted, data, split, ks=(2, 4), timed=2)
    assert report.users == len(np.unique(data.users[split.test]))
    before, seen = trusted.histories, trusted.seen
    trusted.set_histories_from(data, np.sort(np.concatenate([split.train, split.validation])))
    answers = trusted.recommend(np.arange(USERS), 4, policy="always")
    trusted.set_histories(before, seen=seen)
    targets = np.full(USERS, -1)
    targets[data.users[split.test]] = data.items[split.test]
    hit = answers.items == targets[:, None]
    assert report.policies["always"].metrics["hr@4"] == pytest.approx(hit.any(1).mean())
    assert report.policies["always"].metrics["hr@2"] == pytest.approx(hit[:, :2].any(1).mean())
    room = report.room
    assert room["hr@2"] >= max(report.stack["hr@2"], report.policies["always"].metrics["hr@2"])
    assert report.policies["always"].shares == {"stack": 0.0, "agent": 1.0, "consult": 0.0}
    assert json.dumps(report.curve)
    with pytest.raises(ValueError, match="ks: expected at most 6"):
        evaluate_agent(trusted, data, split, ks=(10,))
    flat = report.metrics("consult")
    assert flat["ndcg@4"] == report.policies["consult"].metrics["ndcg@4"] == flat["consult/ndcg@4"]
    assert flat["always/hr@4/difference/value"] == pytest.approx(flat["always/hr@4"] - flat["stack/hr@4"])
    assert report.metrics("never")["hr@4"] == report.stack["hr@4"]
    shares = report.policies["risk"].shares
    whole = sum(shares[who] * level["hr@4"] for who, level in report.levels.items())
    assert whole == pytest.approx(report.policies["risk"].metrics["hr@4"])
    assert set(report.milliseconds) == {"stack", "agent", "consult"}


def test_an_experiment_measures_the_agent(data, config, tmp_path):
    lines = ["user,item,timestamp,label"]
    for user, item, moment in zip(data.users, data.items, data.timestamps, strict=True):
        lines.append(f"{data.user_ids[user]},{data.catalog.ids[item]},{2 * 10**9 + moment},1")
    (tmp_path / "events.csv").write_text("\n".join(lines))
    agent = json.dumps({"backbone": config.agent.backbone}).replace(":", " =").replace('"backbone"', "backbone")
    agent = agent.removesuffix("}") + ", layers = 2, candidates = 6, train_candidates = 4, lora_rank = 2}"
    text = f"""seeds = [0]
[[datasets]]
kind = "table"
path = "events.csv"
[[models]]
kind = "ReasonRec"
k = 2
stack = {{ tools = ["DirectedItemKNN", "ItemKNN"], candidates = 6, depth = 10, trees = 10, min_leaf = 5, leaves = 7 }}
agent = {agent}
[evaluation]
task = "agent"
ks = [2, 4]
"""
    (tmp_path / "e.toml").write_text(text)
    (run,) = run_experiment(load_experiment(tmp_path / "e.toml"), tmp_path, tmp_path / "r.jsonl")
    assert {"hr@4", "trust", "auroc", "stack/ndcg@2", "room/hr@2", "risk/share/stack"} <= set(run.metrics)
    for metric in [name for name, value in run.metrics.items() if value is None]:
        assert run.undefined[metric]
    (tmp_path / "e.toml").write_text(text.replace("[2, 4]", "[2, 10]"))
    with pytest.raises(ValueError, match="ks: expected at most 6, the agent's candidates; got 10"):
        run_experiment(load_experiment(tmp_path / "e.toml"), tmp_path, tmp_path / "r.jsonl")
    (tmp_path / "e.toml").write_text(text + "negatives = 9")
    with pytest.raises(ValueError, match="expected 0 and true with task 'agent'"):
        load_experiment(tmp_path / "e.toml")


def test_an_agent_that_is_not_trusted_is_not_asked(data, split, trusted, monkeypatch):
    trusted.agent.ranker.model.heads[-1].scale.fill_(0.0)

    def refuse(*_):
        raise AssertionError("the agent was asked")

    monkeypatch.setattr(trusted.agent, "logits", refuse)
    answers = trusted.recommend(np.arange(5), 3, policy="always")
    assert answers.answered_by.tolist() == [0] * 5
    report = evaluate_agent(trusted, data, split, ks=(2,), timed=2).to_dict()
    assert report["policies"]["always"]["shares"] == {"stack": 1.0, "agent": 0.0, "consult": 0.0}
    assert report["milliseconds"]["agent"] is None and report["milliseconds"]["stack"] > 0


def test_likes_are_counted_once(model, monkeypatch):
    """Not again for each answer that is explained, and again for other histories."""
    counted = []
    real = CoLikes.__init__
    monkeypatch.setattr(CoLikes, "__init__", lambda self, *given: (counted.append(1), real(self, *given))[1])
    before, seen = model.histories, model.seen
    model.set_histories(before, seen=seen)
    for _ in range(3):
        model.explain(["u0"], ["i5"])
        model.recommend(np.arange(3), 2, policy="always")
    assert len(counted) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "luck"}, "policy: expected one of gain, risk, budget, always, consult, never; got 'luck'"),
        ({"budget": 1.5, "policy": "budget"}, "budget: expected a share"),
        ({"task": "ctr"}, "task: expected 'sequential' or 'direct'; got 'ctr'"),
    ],
)
def test_refusals(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.recommend(np.arange(2), 2, **arguments)


def test_more_refusals(data, split, model, config):
    with pytest.raises(DataError, match="validation: expected rows, which the agent learns from"):
        ReasonRec(config).fit(data, split.train)
    with pytest.raises(DataError, match="users: expected identifiers that the model knows; got 'nobody' in row 1"):
        model.recommend(["u0", "nobody"], 2)
    with pytest.raises(DataError, match="fitted with ctr"):
        model.predict_ctr(data, np.arange(2))
    with pytest.raises(DataError, match="expected one that is fitted"):
        ReasonRec(config).recommend(np.arange(2), 2)
    with pytest.raises(ValueError, match="more than k = 20"):
        ReasonRecConfig(k=20)
    with pytest.raises(ValueError, match="train_candidates"):
        AgentConfig(train_candidates=1)


def test_without_an_agent_the_stack_answers(data, split, tmp_path):
    model = ReasonRec(ReasonRecConfig(stack=STACK, agent=None, k=2)).fit(data, split.train, split.validation)
    answers = model.recommend(np.arange(5), 3, policy="always")
    assert answers.answered_by.tolist() == [0] * 5
    assert (answers.items == model.stack.recommend(np.arange(5), 3).items).all()
    model.save_pretrained(tmp_path)
    assert ReasonRec.from_pretrained(tmp_path).agent is None


def test_a_user_without_history_and_one_with_few_candidates(data, split, model):
    two = Histories.from_lists([[], list(range(ITEMS - 1))])
    before, seen = model.histories, model.seen
    try:
        model.set_histories(two)
        answers = model.recommend(np.array([0, 1]), 4, policy="always")
        assert answers.horizon[0] == 1.0
        assert (answers.items[0] >= 0).all()
        assert (answers.items[1] >= 0).sum() == 1 and answers.answered_by[1] == 0  # one candidate: nothing to order
    finally:
        model.set_histories(before, seen=seen)


def test_files_of_another_backbone_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    shutil.copy(tmp_path / "agent" / "head.safetensors", tmp_path / "agent" / "adapter.safetensors")
    forget_digests(tmp_path)
    with pytest.raises(ValueError, match="adapters of this backbone"):
        ReasonRec.from_pretrained(tmp_path)


def test_configurations_are_read_from_files(config):
    stored = json.loads(json.dumps(config.to_dict()))
    assert ReasonRecConfig.from_dict(stored) == config
    with pytest.raises(ValueError, match="agent: .*got 'layer'"):
        ReasonRecConfig.from_dict({"agent": {"layer": 3}})


def test_clicks(events, config):
    from reasonrec_fast.models.optirag import OptiRAGConfig
    from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig

    ctr = OptiRAGConfig(
        backbone=config.agent.backbone, exits=(2, 4), samples=40, calibration_requests=20, folds=2, lora_rank=2,
        retriever=EmbeddingConfig(steps=10),
    )  # fmt: skip
    parts = split_by_time(events)
    model = ReasonRec(replace(config, ctr=ctr)).fit(events, parts.train, parts.validation)
    probability = model.predict_ctr(events, parts.test[:10])
    assert probability.shape == (10,) and ((probability > 0) & (probability < 1)).all()
    assert model.score_events(events, parts.test[:10]).argmax() == probability.argmax()


def test_what_the_model_of_clicks_refuses_is_refused_before_the_stack_is_fitted(events, config, monkeypatch):
    from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig

    given = []
    monkeypatch.setattr(OptiRAG, "fit", lambda self, data, *rows, **_: given.extend(rows))
    parts = split_by_time(events)
    both = replace(config, agent=None, ctr=OptiRAGConfig(backbone=config.agent.backbone, exits=(2, 4)))
    unlabelled = replace(events, labels=np.where(np.arange(len(events)) % 3 == 0, UNLABELLED, events.labels))
    ReasonRec(both).fit(unlabelled, parts.train, parts.validation)
    assert [(rows % 3 > 0).all() for rows in given] == [True, True]
    assert len(np.concatenate(given)) == (np.concatenate([parts.train, parts.validation]) % 3 > 0).sum()
    monkeypatch.setattr(Stack, "fit", lambda *a, **k: pytest.fail("the stack is fitted before the refusal"))
    for train, validation, message in (
        (parts.train, None, r"validation: expected rows, which the model of clicks \(ctr\) is stopped by; got None"),
        (None, parts.validation, "validation: expected other rows than those of train; got row"),
        (parts.train, parts.validation[events.labels[parts.validation] == 1], "validation: expected both classes"),
        (parts.train, parts.validation[events.labels[parts.validation] == 0], "validation: expected both classes"),
        (parts.train[events.labels[parts.train] == 1], parts.validation, "train: expected both classes"),
    ):
        with pytest.raises((DataError, ValueError), match=message):
            ReasonRec(both).fit(events, train, validation)
