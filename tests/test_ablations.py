"""``python -m benchmarks.ablations``: figures by hand, and answers of another run, which are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from reasonrec_shop import STACK, small_config, walks

from reasonrec_fast.data import split_by_time
from reasonrec_fast.models.classical import Stack
from reasonrec_fast.models.reasonrec import AgentConfig, ReasonRecConfig

ablations = pytest.importorskip("benchmarks.ablations", reason="needs the checkout")
CONFIG = """
seeds = [0]
[[datasets]]
kind = "table"
path = "events.csv"
split = "{split}"
time_unit = "count"
[[models]]
kind = "Stack"
tools = ["ItemKNN"]
[evaluation]
"""
ANSWERS = {
    "offset": [[2.0, 1.0, 0.0], [2.0, 1.0, 1.0], [1.0, 0.0, -np.inf]],
    "corrected": [[0.0, 1.0, 2.0], [2.0, 1.0, 1.0], [1.0, 0.0, -np.inf]],
    "position": [2, 2, -1],
    "horizon": [0.1, 0.5, 0.9],
    "count": [5, 1, 9],
    "trust": 0.25,
    "row": [0, 1, 2],
}


def test_metrics_by_hand(monkeypatch):
    """The third candidate comes first in full, and stays behind its equal; without a target there is no likelihood."""
    answers = {name: np.array(value) for name, value in ANSWERS.items()}
    stack, agent = (ablations.values_of(answers, trust) for trust in (0.0, 1.0))
    half = 1 / np.log2(4)
    assert stack["ndcg@5"].tolist() == [half, half, 0.0] and agent["ndcg@5"].tolist() == [1.0, half, 0.0]
    assert stack["hr@5"].tolist() == [1.0, 1.0, 0.0]
    gain = agent["nats"] - stack["nats"]
    np.testing.assert_allclose(gain, [2.0, 0.0, np.nan])
    other = answers | {"corrected": answers["offset"]}
    monkeypatch.setattr(ablations.evaluation, "paired_means", partial(ablations.evaluation.paired_means, resamples=9))
    report = ablations.report_of({ablations.ALL: answers, "thoughts": other}, {}, {})
    part = report["arms"]["thoughts"]
    for group, users in (("all users", 3), ("coldest users", 1), ("targets with at most 2 events", 1)):
        added = (1 - half) / 3 if users == 3 else 0.0
        assert part["full trust, what the part adds"][group]["ndcg@5"]["value"] == pytest.approx(added)
        assert part["full trust, over the stack"][group]["ndcg@5"]["value"] == 0
    assert part["full trust, what the part adds"]["coldest users"]["nats"] is None
    assert "| thoughts | 0.25 | all users |" in ablations.table(report)


def test_arms_that_change_nothing_are_none():
    whole = AgentConfig(thoughts=2, item_vectors=True, reasoning_weight=0.1)
    assert len(ablations.arms_of(whole)) == 8
    assert list(ablations.arms_of(replace(whole, thoughts=0, reasoning_weight=0.0, curriculum=None))) == [
        ablations.ALL, "curriculum: reversed", "tools", "item vectors",
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "events.csv").write_text("user,item,label,timestamp\n" + _lines(9))
    (tmp_path / "small.toml").write_text(CONFIG.format(split="leave_one_out"))
    return tmp_path


def _lines(items):
    return "".join(f"u{row % 7},i{row * 5 % items},1,{row}\n" for row in range(50))


def test_answers_of_another_run_are_refused(folder, monkeypatch):
    """They would be reported under this run's seed and settings."""
    made = []

    def answers(config, *_):
        made.append(config)
        return {name: torch.tensor(value) for name, value in ANSWERS.items()}

    monkeypatch.setattr(ablations, "_answers", answers)
    monkeypatch.setattr(ablations, "report_of", lambda found, base, run: run)  # its intervals take a second
    monkeypatch.setattr(ablations, "table", str)

    def run(seed=0, agent=None, arm=("tools",), config="small.toml"):
        if agent is not None:
            (folder / "agent.json").write_text(json.dumps(agent))
        ablations.main(
            folder, folder / "out.json", str(folder / config), None if agent is None else folder / "agent.json",
            list(arm), True, seed,
        )  # fmt: skip
        return json.loads((folder / "out.json").read_text())

    assert run()["seed"] == run()["seed"] == 0 and len(made) == 1
    refused = "expected answers of these events, settings and seed; .*tools.answers.safetensors is of another run"
    for other in ({"seed": 1}, {"agent": {"layers": 3}}):
        with pytest.raises(SystemExit, match=refused):
            run(**other)
    with pytest.raises(SystemExit, match=refused):
        run(arm=("thoughts", "tools"), agent={"layers": 3})
    assert len(made) == 1  # before the first agent learns
    (folder / "events.csv").write_text("user,item,label,timestamp\n" + _lines(8))
    with pytest.raises(SystemExit, match=refused):
        run()
    (folder / ".out.json.state" / "tools.answers.safetensors").unlink()
    assert run(agent={"seed": 5})["seed"] == 5
    (folder / "several.toml").write_text(CONFIG.format(split="user_time"))
    with pytest.raises(SystemExit, match="expected a data set that leaves one event of a user out; got user_time"):
        run(config="several.toml")


def test_arms_share_a_stack_whoever_was_killed(tmp_path):
    """One that an arm had fitted by itself before it was killed is taken, and none is in the way of another's."""
    state = tmp_path / "state"
    for own in ("one", "two"):
        (state / own).mkdir(parents=True)
        (state / own / "config.json").write_text(own)
    for own in ("one", "two", "three", "one"):
        ablations._share(state / own, state / "stack")
        assert (state / own).is_symlink() and (state / own / "config.json").read_text() == "one"
    ablations._share(state / "before", state / "later")
    assert not (state / "before").exists()  # until its target is written


def test_arms_answer_over_one_stack(tiny_backbone, tmp_path):
    data = walks()
    agent = replace(small_config(tiny_backbone).agent, epochs=0.5, candidates=6)
    config = ReasonRecConfig(stack=STACK, agent=agent)
    split = split_by_time(data, "leave_one_out")
    (tmp_path / "run").mkdir()
    made = [ablations._answers(config, data, split, tmp_path / "run", arm, None) for arm in ("a", "b")]
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_symlink()) == [
        "a.safetensors.stack", "b.safetensors.stack",
    ]  # fmt: skip
    assert (tmp_path / "run" / "stack" / "config.json").is_file()
    for name, values in made[0].items():
        assert torch.equal(values, made[1][name])


def test_a_ranking_that_is_remembered_is_that_of_its_question(tmp_path, monkeypatch):
    """Of its users, depth, histories and stack alone."""
    monkeypatch.setattr(ablations, "_MANY", 2)
    data = walks()
    split = split_by_time(data, "leave_one_out")
    stack = Stack(STACK).fit(data, split.train, split.validation)
    users, earlier = np.arange(6), np.sort(np.concatenate([split.train, split.validation]))

    def ranked():
        kept = [stack.rank(users, 3), stack.rank(users[::-1], 3), stack.rank(users, 2), stack.rank(users[:1], 2)]
        stack.set_histories_from(data, earlier)
        kept.append(stack.rank(users, 3))
        stack.set_histories_from(data, split.train)
        return kept

    plain = ranked()
    for _ in range(2):
        with ablations.remembered_rankings(tmp_path):
            for ours, theirs in zip(ranked(), plain, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    np.testing.assert_array_equal(one, other)
    assert len(list(tmp_path.iterdir())) == 4
