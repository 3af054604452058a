"""Exits at depth 0: heads correct a logit, and requests that leave there are never tokenised."""

import json

import numpy as np
import pytest
import torch
from tiny import Letters, tiny

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.early_exit import EarlyExitModel, ExitPolicy
from reasonrec_fast.early_exit.depth_zero import DepthZero
from reasonrec_fast.early_exit.requests import GroupInputs
from reasonrec_fast.early_exit.trees import Trees
from reasonrec_fast.evaluation import auc
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.uncertainty import Limit, simulate

ROWS, INF = 24, float("inf")


@pytest.fixture(scope="module")
def backbone():
    return Decoder(tiny("Llama"))


@pytest.fixture
def ranker(backbone):
    """Heads after layers 1, 2 and 4 that read three features and correct a logit."""
    torch.manual_seed(1)
    return EarlyExitRanker(EarlyExitModel(backbone, (1, 2), num_features=3, offset=True), Letters())


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, 3, generator=generator)
    return {"features": features, "offset": 2 * torch.randn(ROWS, generator=generator)}


def texts(rows=range(ROWS)):
    return [(f"user {row % 4}", f" likes {row}") for row in rows]


def trained(ranker):
    """Heads with random weights."""
    torch.manual_seed(2)
    with torch.no_grad():
        for head in ranker.model.heads:
            head.weight.add_(0.1 * torch.randn_like(head.weight))


def test_heads_start_as_the_offset(ranker, given):
    probability = torch.sigmoid(given["offset"])
    full = ranker.predict(texts(), **given, early_exit=False)
    assert torch.equal(full.depth, torch.full((ROWS,), 4))
    torch.testing.assert_close(full.probability, probability, atol=1e-6, rtol=1e-6)
    trained(ranker)
    assert (ranker.predict(texts(), **given).probability - probability).abs().max() > 0.05
    for head in ranker.model.heads:  # what was learnt, shrunk to nothing
        head.scale.zero_()
    torch.testing.assert_close(ranker.predict(texts(), **given).probability, probability, atol=1e-6, rtol=1e-6)


def test_who_leaves_at_depth_zero_is_never_written_and_the_others_are_alone(ranker, given):
    trained(ranker)
    full = ranker.predict(texts(), **given)
    ranker.policy = ExitPolicy(((1.0, INF, INF),))
    requested = []

    def write(rows):
        requested.extend(rows.tolist())
        return texts(rows)

    ranked = ranker.predict(write, **given)
    leaves = given["offset"].abs() >= 1.0
    assert 0 < leaves.sum() < ROWS and requested == torch.where(~leaves)[0].tolist()
    assert torch.equal(ranked.depth, torch.where(leaves, 0, 4))
    assert torch.equal(ranked.probability[leaves], torch.sigmoid(given["offset"])[leaves])
    torch.testing.assert_close(ranked.probability[~leaves], full.probability[~leaves], atol=1e-6, rtol=1e-5)


def test_confidence_and_strata_of_the_caller_decide(ranker, given):
    trained(ranker)
    ranker.policy = ExitPolicy(((0.5, INF, INF), (-INF, INF, INF)))
    confidence, strata = np.linspace(0, 1, ROWS), np.arange(ROWS) % 2
    shallow = given["offset"] + 1
    ranked = ranker.predict(texts(), **given, shallow=shallow, confidence=confidence, strata=strata)
    leaves = torch.from_numpy((confidence >= 0.5) | (strata == 1))
    assert torch.equal(ranked.depth == 0, leaves)
    assert torch.equal(ranked.probability[leaves], torch.sigmoid(shallow)[leaves])
    nobody = ranker.predict(texts(), **given, confidence=np.full(ROWS, np.nan), strata=np.zeros(ROWS, np.int64))
    assert (nobody.depth > 0).all()  # NaN never leaves


def test_everyone_may_leave(ranker, given):
    ranker.policy = ExitPolicy(((-INF, INF, INF),))
    ranked = ranker.predict(lambda rows: pytest.fail("nobody goes on"), **given)
    assert (ranked.depth == 0).all()


def test_groups_share_batches_and_divide(ranker, given):
    trained(ranker)
    expected = ranker.predict(texts(), **given, early_exit=False).probability
    small = EarlyExitRanker(ranker.model, ranker.tokenizer, policy=ranker.policy, max_tokens=20)
    torch.testing.assert_close(small.predict(texts(), **given).probability, expected, atol=1e-6, rtol=1e-5)


def test_log_odds_are_known_beyond_the_digits_of_a_probability(backbone):
    """They were taken from float32 probabilities: 27.6 whatever the logit was above 17."""
    model = EarlyExitModel(backbone, (1,), offset=True).eval()
    offset = torch.tensor([12.0, 18.0, 40.0, -40.0])
    groups = [([1, 2], [[3], [4], [5], [6]])]
    logits = EarlyExitRanker(model).exit_logits(groups, GroupInputs(offset=offset))
    np.testing.assert_allclose(logits[..., 0], np.broadcast_to(offset.numpy(), (2, 4)), rtol=1e-6)
    head = model.heads[0]
    assert head.log_odds(torch.empty(0, backbone.hidden_size), None, torch.empty(0)).numel() == 0
    with pytest.raises(ValueError, match="expected heads of two answers; got 3"):
        EarlyExitModel(backbone, (1,), num_answers=3).all_log_odds(groups)


def test_calibration_begins_at_depth_zero(ranker, given):
    trained(ranker)
    labels = np.arange(ROWS) % 2
    limits = [Limit(lambda values: auc(labels, values), 1.0)]
    policy = ranker.calibrate_within(texts(), limits, **given)
    assert len(policy.thresholds[0]) == len(ranker.model.depths) - 1 == 3
    assert (ranker.predict(texts(), **given).depth == 0).all()  # anything may be lost
    guarantee = ranker.calibrate(texts(), alpha=0.3, delta=0.5, trend=True, **given)
    assert len(guarantee.thresholds) == 3


def test_trend_is_of_heads_alone():
    confidence = np.array([[9.0], [1.0], [2.0]])
    scores = np.array([[0.1], [0.2], [0.3]])
    assert simulate(scores, confidence, [INF, 0.5], trend=True)[1].tolist() == [2]
    assert simulate(scores, confidence, [INF, 0.5], trend=True, heads_from=1)[1].tolist() == [1]


def test_what_does_not_fit_is_refused(ranker, given, backbone):
    with pytest.raises(ValueError, match="offset: expected one a request; got None"):
        ranker.predict(texts(), features=given["features"])
    with pytest.raises(ValueError, match="requests: expected a sequence"):
        ranker.predict(texts, features=given["features"])
    ranker.policy = ExitPolicy(((1.0, 1.0),))
    with pytest.raises(ValueError, match="policy: expected 3 thresholds, one an exit but the last; got 2"):
        ranker.predict(texts(), **given)
    plain = EarlyExitRanker(EarlyExitModel(backbone, (1, 2), num_features=3), Letters())
    with pytest.raises(ValueError, match="offset: expected None"):
        plain.predict(texts(), **given)
    with pytest.raises(ValueError, match="features: expected .24, 3.; got None"):
        plain.predict(texts())
    with pytest.raises(ValueError, match="ensemble_size: expected 1 with an offset; got 2"):
        EarlyExitModel(backbone, ensemble_size=2, offset=True)


def test_saved_ranker_has_its_offset(ranker, given, tmp_path, backbone):
    trained(ranker)
    ranker.policy = ExitPolicy(((1.0, 0.5, INF),))
    ranker.save_pretrained(tmp_path)
    loaded = EarlyExitRanker.from_pretrained(tmp_path, tiny("Llama"), Letters())
    first, second = (model.predict(texts(), **given) for model in (ranker, loaded))
    assert torch.equal(first.probability, second.probability) and torch.equal(first.depth, second.depth)


def teacher(seed, size=3000):
    """Deep logits that differ from the offset by a function of the first feature; if the second is high, by noise."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(size, 4)).astype(np.float32)
    offset = generator.normal(size=size)
    noise = 2 * (features[:, 1] > 1) * generator.normal(size=size)
    return features, offset, offset + np.tanh(features[:, 0]) + noise


def test_depth_zero_learns_what_features_tell_and_where_they_do_not():
    depth_zero = DepthZero.fit(*teacher(0))
    features, offset, deep = teacher(1)
    known = features[:, 1] < 1
    assert np.abs(depth_zero.logits(features, offset) - deep)[known].mean() < 0.2 * np.abs(offset - deep)[known].mean()
    gain = depth_zero.gain(features)
    assert auc((~known).astype(int), gain) > 0.95
    single = slice(5, 6)
    assert depth_zero.logits(features[single], offset[single]) == depth_zero.logits(features, offset)[single]
    assert depth_zero.gain(features[single]) == gain[single]


def test_trees_are_the_text_that_was_saved(tmp_path):
    depth_zero = DepthZero.fit(*teacher(0, 400))
    expected = depth_zero.save(tmp_path)
    features, offset, _ = teacher(1, 50)
    loaded = DepthZero.load(tmp_path, expected)
    np.testing.assert_array_equal(loaded.logits(features, offset), depth_zero.logits(features, offset))
    np.testing.assert_array_equal(loaded.gain(features), depth_zero.gain(features))
    with pytest.raises(ValueError, match="features: expected .N, 4.; got .50, 3."):
        loaded.gain(features[:, :3])
    (tmp_path / "gain.txt").write_text("tree\n")
    with pytest.raises(ValueError, match="trees: expected the text whose digest"):
        DepthZero.load(tmp_path, expected)
    with pytest.raises(ValueError, match="trees: expected the format lightgbm-text"):
        Trees.load(tmp_path / "gain.txt", {"format": "pickle"})
    (tmp_path / "gain.txt").unlink()
    with pytest.raises(FileNotFoundError, match="trees: expected those of the model"):
        DepthZero.load(tmp_path, expected)


def test_a_policy_of_any_thresholds_is_stored_as_it_is():
    policy = ExitPolicy(((-np.inf, 0.5, np.inf),))
    assert ExitPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_what_goes_with_requests_is_refused_where_it_does_not_fit():
    """Requests beyond the offset were dropped; a model without depth 0 answered from a logit that was given."""
    plain = EarlyExitRanker(EarlyExitModel(Decoder(tiny("Llama")), [1]), policy=None)
    with pytest.raises(ValueError, match="shallow, confidence: expected None for a model without depth 0"):
        plain.predict([([1], [2])], shallow=torch.tensor([5.0]))
    deep = EarlyExitRanker(EarlyExitModel(Decoder(tiny("Llama")), [1], offset=True, ensemble_size=1))
    with pytest.raises(ValueError, match=r"offset: expected \[3\]; got \[2\]"):
        deep.predict([([1], [2])] * 3, offset=torch.zeros(2))


@pytest.mark.parametrize(
    ("group", "inputs", "message"),
    [
        (([1], [[2] * 100_000]), {}, "groups: expected at most"),
        (([1], [[2, 10**6]]), {}, r"groups: expected token ids in \[0, .*\); got 1000000 in group 0"),
        (([-1], [[2]]), {}, "got -1 in group 0"),
        (([1], []), {}, "groups: expected suffixes of at least one token; got none in group 0"),
        (([1], [[]]), {}, "groups: expected suffixes of at least one token; got none in group 0"),
        (([1], [[2]]), {"features": torch.zeros(1, 3)}, "features: expected None, as the heads read none; got"),
        (([1], [[2]]), {"offset": torch.zeros(1)}, "offset: expected None; got"),
        (([1], [[2]]), {"strata": torch.zeros(2, dtype=torch.int64)}, r"strata: expected \[1\]; got \[2\]"),
    ],
)
def test_groups_that_would_fail_others_do_not_join_their_batch(group, inputs, message):
    ranker = EarlyExitRanker(EarlyExitModel(Decoder(tiny("Llama")), [1]))
    with pytest.raises(ValueError, match=message):
        ranker.predict_groups([group], GroupInputs(**inputs))


def test_callers_with_and_without_strata_share_a_batch():
    """A caller without strata lent the first one to all of the batch."""
    model = EarlyExitModel(Decoder(tiny("Llama")), [1], ensemble_size=1)
    policy = ExitPolicy(((np.inf,), (-np.inf,)))
    ranker = EarlyExitRanker(model, policy=policy)
    pieces = []
    ranker._shared = lambda given: (pieces.extend(given), iter(()))[1]
    ranker.predict_groups([([1], [[2], [3]])])
    ranker.predict_groups([([1], [[2], [3]])], GroupInputs(strata=torch.ones(2, dtype=torch.int64)))
    for order in (pieces, pieces[::-1]):
        depths = [ranked.depth.tolist() for ranked in ranker._predict_pieces(order)]
        assert depths == ([[model.depths[-1]] * 2, [1, 1]] if order is pieces else [[1, 1], [model.depths[-1]] * 2])
