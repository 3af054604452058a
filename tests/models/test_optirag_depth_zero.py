"""OptiRAG on its boosted trees: exits at depth 0, out-of-fold training, and saving."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonrec_fast.data import split_by_time
from reasonrec_fast.early_exit import ExitPolicy
from reasonrec_fast.early_exit.depth_zero import DepthZero
from reasonrec_fast.evaluation import auc
from reasonrec_fast.models.optirag import OptiRAG, OptiRAGConfig
from reasonrec_fast.models.optirag.boosted import BoostedEvidence, out_of_fold_logits
from reasonrec_fast.models.optirag.calibration import ExitScores, residual_scale
from reasonrec_fast.models.optirag.evidence import DENSE_FEATURES, Evidence
from reasonrec_fast.models.optirag.prompt import PromptBuilder

INF = float("inf")


@pytest.fixture(scope="module")
def cached():
    """What is fitted once for the tests that only predict."""
    return {}


@pytest.fixture
def fitted(events, config, cached):
    if "model" not in cached:
        model = cached["model"] = OptiRAG(config).fit(events)
        # The tiny model cannot improve on the trees, so a teacher differs from them by a function of a feature.
        requests = model.requests(events, np.arange(len(events)))
        deep = requests.offset + np.argsort(np.argsort(requests.features[:, 0])) / len(events)
        model.depth_zero = DepthZero.fit(requests.features, requests.offset, deep)
    return cached["model"]


def leaving(model, requests, share):
    """The model's policy, changed so that about a share of the requests leaves at depth 0 and none at later exits."""
    gain = model.depth_zero.gain(requests.features)
    row = (float(-np.quantile(gain, share)), INF, INF)
    assert len(np.unique(gain)) > 10
    return ExitPolicy((row, row))


def test_who_leaves_at_depth_zero_has_no_prompt(events, fitted, monkeypatch):
    test = split_by_time(events).test
    requests = fitted.requests(events, test)
    full = fitted.predict(requests, early_exit=False)
    monkeypatch.setattr(fitted.ranker, "policy", leaving(fitted, requests, 0.5))
    written, prefixes, write, begin = [], [], PromptBuilder._suffix, PromptBuilder._prefix
    monkeypatch.setattr(
        PromptBuilder, "_suffix", lambda self, row, *rest: [written.append(row), write(self, row, *rest)][1]
    )
    monkeypatch.setattr(PromptBuilder, "_prefix", lambda self, *rest: [prefixes.append(rest), begin(self, *rest)][1])
    requests = fitted.requests(events, test)
    assert not written and not prefixes
    result = fitted.predict(requests)
    leaves = result.depth == 0
    assert 0.3 < leaves.mean() < 0.7 and sorted(written) == sorted(requests.rows[~leaves].tolist())
    assert 0 < len(prefixes) <= len(written)
    logits = fitted.depth_zero.logits(requests.features, requests.offset)
    expected = (1 / (1 + np.exp(-logits))).astype(np.float32)
    np.testing.assert_array_equal(result.probability[leaves], expected[leaves])
    np.testing.assert_allclose(result.probability[~leaves], full.probability[~leaves], atol=1e-5)
    assert (result.depth[~leaves] == 4).all()


def test_untrained_heads_answer_what_the_trees_say(events, fitted, config):
    fresh = OptiRAG(config)
    fresh.knowledge, fresh.booster, fresh.template = fitted.knowledge, fitted.booster, fitted.template
    requests = fresh.requests(events, split_by_time(events).test[:30])
    expected = 1 / (1 + np.exp(-fitted.booster.logits(evidence_of(fitted, events, requests))))
    np.testing.assert_allclose(fresh.predict(requests).probability, expected, atol=1e-6)


def evidence_of(model, events, requests):
    builder, rows = model.request_builder(events)
    return builder.visible_evidence(rows[split_by_time(events).test[: len(requests.rows)]])


def test_out_of_fold_logits_know_no_labels_of_their_fold():
    """On random labels trees memorise their training rows; out of fold they have no gain."""
    draws = np.random.default_rng(0)
    size = 2000
    evidence = Evidence(
        draws.normal(size=(size, len(DENSE_FEATURES))).astype(np.float32),
        draws.integers(0, 5, (size, 2)),
        np.zeros((size, 4), np.int64),
        draws.normal(size=(size, 3, 2)).astype(np.float32),
    )
    labels, folds = draws.integers(0, 2, size), draws.integers(0, 200, size) % 4
    inside = BoostedEvidence.fit(evidence, labels, num_trees=300).logits(evidence)
    outside = out_of_fold_logits(evidence, labels, folds, evidence, folds, 300)
    assert auc(labels, inside) > 0.8 and abs(auc(labels, outside) - 0.5) < 0.05
    flipped = np.where(folds == 2, 1 - labels, labels)  # labels of a fold reach all others, and not itself
    again = out_of_fold_logits(evidence, flipped, folds, evidence, folds, 300)
    np.testing.assert_array_equal(again[folds == 2], outside[folds == 2])
    assert (again[folds != 2] != outside[folds != 2]).any()


def test_trees_stop_by_validation_or_by_number():
    with pytest.raises(ValueError, match="validation, num_trees: expected exactly one of the two; got neither"):
        BoostedEvidence.fit(None, np.zeros(0))


def test_refitted_trees_are_those_of_fit(events, fitted, tmp_path):
    """A folder without the model's knowledge grows the same trees from the same events."""
    parts = split_by_time(events)
    fitted.save_pretrained(tmp_path, knowledge=False)
    loaded = OptiRAG.from_pretrained(tmp_path)
    assert not (tmp_path / "booster.txt").exists() and loaded.booster is None
    loaded.refit_retriever(events, parts.train)
    first, second = (model.requests(events, parts.test) for model in (fitted, loaded))
    np.testing.assert_array_equal(first.offset, second.offset)
    with pytest.raises(RuntimeError, match="nothing tells how many trees"):
        OptiRAG(fitted.config).refit_retriever(events, parts.train)


def test_trees_are_saved_as_text_and_held_to_it(events, fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    loaded = OptiRAG.from_pretrained(tmp_path)
    test = split_by_time(events).test
    first, second = (model.requests(events, test) for model in (fitted, loaded))
    np.testing.assert_array_equal(first.offset, second.offset)
    np.testing.assert_array_equal(fitted.depth_zero.gain(first.features), loaded.depth_zero.gain(first.features))
    (tmp_path / "booster.txt").write_text((tmp_path / "booster.txt").read_text().replace("leaf", "loaf"))
    with pytest.raises(ValueError, match="booster.txt: expected the file that was saved with the model"):
        OptiRAG.from_pretrained(tmp_path)


def test_a_model_of_the_old_format_is_refused(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "format": 1}))
    with pytest.raises(ValueError, match="optirag of format 2; .* of format 1 .*train it again"):
        OptiRAG.from_pretrained(tmp_path)


def test_heads_may_stand_on_their_own(events, config, tmp_path):
    model = OptiRAG(replace(config, boosted=False, ensemble_size=2, samples=16)).fit(events)
    requests = model.requests(events, split_by_time(events).test)
    assert requests.offset is None and model.depth_zero is None and (model.predict(requests).depth > 0).all()
    model.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json"}
    with pytest.raises(ValueError, match="ensemble_size: expected 1 with boosted=True"):
        OptiRAGConfig(ensemble_size=2)


def test_a_scale_keeps_the_auc():
    """A residual that ranks within users, and moves them as a whole."""
    draws = np.random.default_rng(0)
    users = np.arange(6000) % 200
    tendency, taste = 2 * draws.normal(size=200)[users], draws.normal(size=6000)
    labels = (draws.random(6000) < 1 / (1 + np.exp(-tendency - taste))).astype(np.int64)
    residual = taste - 1.5 * draws.normal(size=200)[users]
    scores = ExitScores((tendency + residual)[None, :, None], labels, users, np.zeros(6000, bool), tendency)
    share = residual_scale(scores, 0)
    assert 0 < share < 1
    assert auc(labels, tendency + share * residual) >= auc(labels, tendency)
    assert auc(labels, tendency + (share + 0.05) * residual) < auc(labels, tendency)
    assert residual_scale(replace(scores, logits=(tendency - taste)[None, :, None]), 0) == 0


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_cold_threads_give_the_same_bits(events, fitted, tmp_path, share):
    """Sixteen threads that begin at once on a model that was just loaded, and one alone."""
    fitted.save_pretrained(tmp_path)
    torch.set_num_threads(1)
    requests = fitted.requests(events, split_by_time(events).test[:24])
    policy, interval = leaving(fitted, requests, share), sys.getswitchinterval()
    alone = OptiRAG.from_pretrained(tmp_path, device="cpu")
    alone.ranker.policy = policy
    expected = alone.predict(requests)
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(5):
            cold = OptiRAG.from_pretrained(tmp_path, device="cpu")
            cold.ranker.policy = policy
            with ThreadPoolExecutor(16) as pool:
                results = [job.result() for job in [pool.submit(cold.predict, requests) for _ in range(16)]]
            for predictions in results:
                np.testing.assert_array_equal(predictions.depth, expected.depth)
                np.testing.assert_array_equal(predictions.probability, expected.probability)
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("alone", [True, False])
def test_a_prompt_does_not_depend_on_who_else_goes_on(fitted, events, alone):
    """Where the first request of a slate left at depth 0, the others' prefix was that of a later moment."""
    requests = fitted.requests(events, split_by_time(events).test, alone=alone)
    whole = {int(row): (slate.prefix, suffix) for slate in requests.slates
             for row, suffix in zip(slate.rows, slate.suffixes, strict=True)}  # fmt: skip
    generator = np.random.default_rng(0)
    for share in (0.2, 0.7):
        wanted = np.flatnonzero(generator.random(len(requests.rows)) < share)
        some = {int(row): (slate.prefix, suffix) for slate in requests.prompts(wanted)
                for row, suffix in zip(slate.rows, slate.suffixes, strict=True)}  # fmt: skip
        assert some == {row: whole[row] for row in wanted.tolist()}
