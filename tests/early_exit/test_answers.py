"""More than two answers, and answers of several tokens, against transformers' own forward."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_ranker import requests_of
from tiny import FAMILIES, Letters, tiny

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.early_exit import Answers, EarlyExitModel, ExitHead, ExitPolicy, RowScores
from reasonrec_fast.lm.chat import PairPrompt
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.serving import RankingService
from reasonrec_fast.training.exits import Batch, ExitTraining, train_exits
from reasonrec_fast.uncertainty import Limit

LEVELS = ("bad", "dull", "good", "best")  # the first and the last begin with the same letter
ONE_TOKEN = ("a", "b", "c", "d", "e")
INF = float("inf")


@torch.no_grad()
def plain(model, texts, answers, reading):
    """Probabilities of the answers by the causal model itself, answer by answer, ``[N, L]``."""
    rows = []
    for text in texts:
        scores = []
        for answer in answers:
            ids = Letters()(answer, add_special_tokens=False)["input_ids"]
            ids = ids[:1] if reading == "first_token" else ids
            logits = model(torch.tensor([[*text, *ids]])).logits[0, len(text) - 1 : -1].float()
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
            scores.append(logprobs.mean() if reading == "mean" else logprobs.sum())
        rows.append(torch.stack(scores).softmax(-1))
    return torch.stack(rows)


def ranker_of(model, answers, reading=None, **options):
    return EarlyExitRanker.from_model(model, Letters(), answers, reading=reading, exits=(1, 2), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("answers", "reading"), [(ONE_TOKEN, None), (LEVELS, None), (LEVELS, "mean"), (("no", "na"), "sum")]
)
def test_full_depth_is_the_plain_model(family, answers, reading):
    model, requests = tiny(family), requests_of(0, 12)
    by_default = "sum" if answers is LEVELS else "first_token"
    expected = plain(model, [[*p, *c] for p, c in requests], answers, reading or by_default)
    assert expected.log().std(0).max() > 1e-3
    for options in ({}, {"prefix_cache_bytes": 1 << 20}, {"max_tokens": 20}):
        scores = ranker_of(model, answers, reading, **options).predict(requests)
        torch.testing.assert_close(scores.probabilities, expected, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(scores.probability, expected[:, -1], atol=2e-4, rtol=1e-3)
        assert scores.depth.tolist() == [4] * 12
        assert scores.prediction.tolist() == expected.argmax(-1).tolist()
        torch.testing.assert_close(
            scores.expected(range(len(answers))), expected @ torch.arange(len(answers)).float(), atol=1e-3, rtol=1e-3
        )


def test_adapters_count_for_whole_answers():
    requests = requests_of(1, 6)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(tiny("Llama"), lora)
    model.eval()
    ranker, texts = ranker_of(model, LEVELS), [[*p, *c] for p, c in requests]
    both = []
    for off in (False, True):
        with model.disable_adapter() if off else torch.no_grad():
            expected = plain(model, texts, LEVELS, "sum")
            torch.testing.assert_close(ranker.predict(requests).probabilities, expected, atol=2e-4, rtol=1e-3)
            both.append(expected)
    assert (both[0] - both[1]).abs().max() > 1e-2


def test_heads_start_from_what_hooks_make_of_the_lm_head():
    """Its weight alone was copied, so that full depth was another model's."""
    model, requests = tiny("Llama"), requests_of(1, 6)
    before = ranker_of(model, ONE_TOKEN).predict(requests).probabilities
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 2)
    expected = plain(model, [[*p, *c] for p, c in requests], ONE_TOKEN, "sum")
    torch.testing.assert_close(
        ranker_of(model, ONE_TOKEN).predict(requests).probabilities, expected, atol=2e-4, rtol=1e-3
    )
    assert (expected - before).abs().max() > 1e-2


def test_both_ways_of_sharing_give_the_same():
    """Long prefixes with short candidates, whose answers repeat the candidate, and the other way round."""
    model = tiny("Llama")
    for prefix, candidate in ((40, 1), (1, 30), (0, 9)):
        generator = np.random.default_rng(prefix)
        first = generator.integers(1, 97, prefix).tolist()
        requests = [(first, generator.integers(1, 97, candidate).tolist()) for _ in range(5)]
        expected = plain(model, [[*p, *c] for p, c in requests], LEVELS, "sum")
        torch.testing.assert_close(
            ranker_of(model, LEVELS).predict(requests).probabilities, expected, atol=2e-4, rtol=1e-3
        )


@pytest.mark.parametrize("answers", [ONE_TOKEN, LEVELS])
def test_who_leaves_has_the_answer_of_the_head(answers):
    """Requests that stay have the full-depth scores, independent of the others; in calls, services and from threads."""
    ranker, requests = ranker_of(tiny("Llama"), answers), requests_of(2)
    full = ranker.predict(requests)
    encoded = ranker.encode(requests)
    at_exits, sureness = ranker._all_exits(requests, "margin", _nothing(), None, None)
    np.testing.assert_allclose(at_exits[-1], full.probabilities, atol=1e-5)
    threshold = float(np.quantile(sureness[0], 0.5)) + 1e-4
    ranker.policy = ExitPolicy(((threshold, INF),), "margin")
    early = ranker.predict(requests)
    left = sureness[0] >= threshold
    assert 0 < left.sum() < len(requests) and (early.depth.numpy() == np.where(left, 1, 4)).all()
    expected = np.where(left[:, None], at_exits[0], full.probabilities)
    np.testing.assert_allclose(early.probabilities, expected, atol=1e-5)
    assert np.abs(at_exits[0] - full.probabilities.numpy())[left].max() > 1e-2
    with RankingService(ranker) as service:
        np.testing.assert_allclose(service.submit(requests).result().probabilities, expected, atol=1e-5)
    groups = [(list(ids[:start]), [list(ids[start:])]) for ids, start in encoded]
    np.testing.assert_allclose(ranker.predict_groups(groups).probabilities, expected, atol=1e-5)
    for row in range(4):
        np.testing.assert_allclose(ranker.predict(requests[row : row + 1]).probabilities[0], expected[row], atol=1e-5)


def _nothing():
    from reasonrec_fast.early_exit.requests import GroupInputs

    return GroupInputs()


def test_calibration_of_more_answers(tmp_path):
    model, requests = tiny("Llama"), requests_of(3, 200)
    for answers in (ONE_TOKEN, LEVELS):
        ranker = ranker_of(model, answers)
        full = ranker.predict(requests)
        guarantee = ranker.calibrate(requests, alpha=0.5)
        early = ranker.predict(requests)
        assert (early.prediction != full.prediction).float().mean() <= 0.5 and ranker.policy.measure == "margin"
        assert guarantee.thresholds == ranker.policy.thresholds[0]
        target = full.expected(range(len(answers))).numpy()

        def closeness(scores, target=target):
            return -float(np.abs(scores - target).mean())

        with pytest.raises(ValueError, match=f"levels: expected one for each of {len(answers)} answers; got None"):
            ranker.calibrate_within(requests, [Limit(closeness, 0.3)])
        with pytest.raises(ValueError, match=f"levels: expected {len(answers)}, one an answer; got 2"):
            ranker.calibrate_within(requests, [Limit(closeness, 0.3)], levels=[0, 1])
        ranker.calibrate_within(requests, [Limit(closeness, 0.3)], levels=range(len(answers)))
        early = ranker.predict(requests)
        assert closeness(early.expected(range(len(answers))).numpy()) >= -0.3 - 1e-5
        ranker.save_pretrained(tmp_path / answers[0])
        loaded = EarlyExitRanker.from_pretrained(tmp_path / answers[0], model, Letters())
        assert loaded.answers == ranker.answers and loaded.policy == ranker.policy
        assert torch.equal(loaded.predict(requests).probabilities, early.probabilities)


def test_heads_of_more_answers_are_trained():
    """Which of three tokens ends the text is learnt at the first exit."""
    torch.manual_seed(0)
    model = EarlyExitModel(Decoder(tiny("Llama")), [1], num_answers=3, ensemble_size=2)
    generator, batches = np.random.default_rng(0), []
    for _ in range(60):
        labels = generator.integers(0, 3, 16)
        groups = [([5, 6], [[int(generator.integers(10, 90)), 20 + int(label)] for label in labels])]
        batches.append(Batch(groups, torch.from_numpy(labels)))
    settings = ExitTraining(mode="heads", head_learning_rate=3e-2, pairwise_weight=0.0)
    train_exits(model, batches, lambda batch: batch, settings)
    scores = model.predict(batches[0].groups, policy=ExitPolicy(((-INF,),), "margin"))
    assert (scores.prediction == batches[0].labels).float().mean() > 0.9 and set(scores.depth.tolist()) == {1}
    for wrong in (ExitTraining(mode="distil", pairwise_weight=0.0), ExitTraining()):
        with pytest.raises(ValueError, match="pairwise_weight 0 and loss 'binary' for 3 answers"):
            train_exits(model, batches, lambda batch: batch, wrong)


def test_an_offset_of_more_answers():
    """Untrained heads return the scores of depth 0, and requests that leave there are not tokenised."""
    ranker = EarlyExitRanker(EarlyExitModel(Decoder(tiny("Llama")), [1], num_answers=3, offset=True))
    offset = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 2
    requests = [([1, 2], [3, row + 4]) for row in range(5)]
    scores = ranker.predict(requests, offset=offset)
    torch.testing.assert_close(scores.probabilities, offset.softmax(-1))
    margins = offset.softmax(-1).topk(2).values.diff(dim=-1).abs()[:, 0]
    ranker.policy = ExitPolicy(((float(margins.median()) - 1e-5, INF),), "margin")
    scores = ranker.predict(lambda rows: [requests[row] for row in rows], offset=offset)
    assert sorted(scores.depth.tolist()) == [0, 0, 0, 4, 4]
    torch.testing.assert_close(scores.probabilities, offset.softmax(-1))
    with pytest.raises(ValueError, match=r"offset: expected \[5, 3\]; got \[5\]"):
        ranker.predict(requests, offset=offset[:, 0], early_exit=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Answers.of(Letters(), ("a",)), ValueError, "answers: expected 2 to 64; got 1"),
        (lambda: Answers.of(Letters(), ("a", "")), ValueError, "at least one token in each; got none in ''"),
        (lambda: Answers.of(Letters(), ("ab", "ab")), ValueError, "different ones; got the tokens of 'ab' twice"),
        (lambda: Answers.of(Letters(), "yes"), TypeError, "positive one last; got 'yes'"),
        (lambda: Answers.of(Letters(), ("a", 1)), TypeError, "answers: expected several texts"),
        (lambda: Answers.of(Letters(), ("ab", "ac"), "first_token"), ValueError, "begin with different tokens"),
        (lambda: Answers.of(Letters(), ("a", "b"), "last"), ValueError, "reading: expected one of"),
        (lambda: ExitHead(8, num_answers=1), ValueError, "num_answers: expected 2 to 64; got 1"),
        (lambda: ExitHead(8, num_answers=65), ValueError, "num_answers: expected 2 to 64; got 65"),
        (lambda: RowScores.empty(1, 3, torch.device("cpu")).expected([1]), ValueError, "levels: expected 3"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# rank(query, documents)


def test_documents_are_ranked_as_cross_encoders_do():
    ranker = ranker_of(tiny("Llama"), ("n", "y"))
    documents = ["tea", "a pot {x}", "tea", "cups", "{query}"]
    scores = ranker.predict([("tea?", document) for document in documents]).probability.tolist()
    results = ranker.rank("tea?", documents)
    assert [result["corpus_id"] for result in results] == sorted(range(5), key=lambda i: (-scores[i], i))
    assert all(result["score"] == pytest.approx(scores[result["corpus_id"]], abs=1e-6) for result in results)
    assert results.index({"corpus_id": 0, "score": scores[0]}) < [r["corpus_id"] for r in results].index(2)
    best = ranker.rank("tea?", documents, top_k=2, return_documents=True)
    assert best == [{**result, "text": documents[result["corpus_id"]]} for result in results[:2]]
    ranker.prompt = PairPrompt("Q: {query} D: {document}?")
    other = ranker.rank("tea?", documents)
    expected = ranker.predict([("Q: tea? D: ", f"{document}?") for document in documents]).probability
    for result in other:
        assert result["score"] == pytest.approx(float(expected[result["corpus_id"]]), abs=1e-6)
    refused = ((("q", "text"), TypeError), (("q", []), ValueError), ((1, ["a"]), TypeError), (("q", [1]), TypeError))
    for wrong, error in refused:
        with pytest.raises(error):
            ranker.rank(*wrong)
    with pytest.raises(ValueError, match="top_k: expected a whole number of at least 1; got 0"):
        ranker.rank("q", ["a"], top_k=0)
    for template in ("{document}{query}", "{query}", "{query}{document}{other}", "{query}{query}{document}"):
        with pytest.raises(ValueError, match="template: expected"):
            PairPrompt(template)
