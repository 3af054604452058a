"""``python -m benchmarks.residual_ranking``: the rival of an agent that learns from the same users."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reasonrec_shop import walks

from reasonrec_fast import evaluation
from reasonrec_fast.data import Histories, split_by_time
from reasonrec_fast.models.classical import Stack, StackConfig

residual = pytest.importorskip("benchmarks.residual_ranking", reason="needs the checkout")
CONFIG = """
seeds = [0]
[[datasets]]
kind = "sequences"
path = "walks"
split = "leave_one_out"
[[models]]
kind = "Stack"
tools = ["ItemKNN", "DirectedItemKNN"]
trees = 3
min_leaf = 5
[evaluation]
"""


@pytest.fixture
def folder(tmp_path):
    data = walks()
    (tmp_path / "walks").mkdir()
    lines = []
    for user in range(data.num_users):
        events = np.flatnonzero(data.users == user)
        events = events[np.argsort(data.timestamps[events], kind="stable")]
        lines.append(f"{user} " + " ".join(str(int(item)) for item in data.items[events]))
    (tmp_path / "walks" / "sequences.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


def test_the_stack_is_measured_as_experiments_measure_it(folder, monkeypatch):
    monkeypatch.setattr(residual, "PENALTIES", (1.0, 100.0))
    config, output = str(folder / "small.toml"), folder / "out.json"
    residual.main(folder, output, config, None, 8)
    report = json.loads(output.read_text())
    data = residual.load_experiment(config).datasets[0].load(folder)
    split = split_by_time(data, "leave_one_out")
    stack = Stack(StackConfig(tools=("ItemKNN", "DirectedItemKNN"), trees=3, min_leaf=5))
    stack.fit(data, split.train, split.validation)
    stack.set_histories_from(data, np.sort(np.concatenate([split.train, split.validation])))
    users = data.users[split.test]
    some = [item not in stack.seen.of_user(user) for user, item in zip(users, data.items[split.test], strict=True)]
    relevant = Histories.from_pairs(sum(some), np.arange(sum(some)), data.items[split.test][some])
    items = stack.rank(users[some], 8).items
    expected = evaluation.ranking_metrics(items, relevant, [5])
    assert report["users"] == sum(some) and 0 <= report["trust"] <= 1.5
    assert report["stack"]["hr@5"] == pytest.approx(expected["hr@5"].mean())
    assert report["stack"]["ndcg@5"] == pytest.approx(expected["ndcg@5"].mean())
    assert report["nats on others"]["corrected"] <= report["nats on others"]["stack"] + 1e-9


def test_a_correction_moves_what_it_says():
    position = np.array([1, 1, -1])
    ours = residual._metrics([np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([5.0])], position)
    assert ours["hr@5"].tolist() == [1.0, 1.0, 0.0]
    assert ours["ndcg@5"].tolist() == [1.0, 1 / np.log2(3), 0.0]
