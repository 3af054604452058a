"""What goes with requests is held to them, answers to the model; whole answers of every model; rankers of before."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas
import peft
import pytest
import torch
from test_answers import LEVELS, ONE_TOKEN, plain, ranker_of, requests_of
from tiny import VISION_LANGUAGE, Letters, tiny, tiny_vlm, vlm_inputs

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.early_exit import Answers, EarlyExitModel, ExitPolicy
from reasonrec_fast.early_exit.requests import GroupInputs
from reasonrec_fast.lm import segments_of
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.output import OutputHead
from reasonrec_fast.serving import RankingService

INF, NAN = float("inf"), float("nan")
REQUESTS = [([1, 2], [3, row + 4]) for row in range(5)]
OFFSET = torch.tensor([3.0, -3.0, 0.1, 0.2, -0.1])
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


@pytest.fixture(scope="module")
def model():
    return tiny("Llama")


def with_offset(model, thresholds=None, **options):
    policy = None if thresholds is None else ExitPolicy(thresholds, "ratio")
    return EarlyExitRanker(EarlyExitModel(Decoder(model), [1], offset=True, **options), policy=policy)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offset": OFFSET[:, None]}, r"offset: expected \[5\]; got \[5, 1\]"),
        ({"offset": OFFSET[:4]}, r"offset: expected \[5\]; got \[4\]"),
        ({"offset": torch.tensor([0, NAN, 0, 0, 0])}, "offset: expected finite numbers; got others in row 1"),
        ({"offset": torch.tensor([0, 0, INF, 0, 0])}, "offset: expected finite numbers; got others in row 2"),
        ({"shallow": OFFSET[:1]}, r"shallow: expected \[5\]; got \[1\]"),
        ({"confidence": np.zeros(1)}, r"confidence: expected \[5\]; got \[1\]"),
        ({"confidence": np.zeros(3)}, r"confidence: expected \[5\]; got \[3\]"),
        ({"strata": np.zeros(1, int)}, r"strata: expected \[5\]; got \[1\]"),
        ({"strata": np.full(5, -1)}, r"strata: expected rows of the policy's thresholds, \[0, 1\); got -1 in row 0"),
        ({"strata": np.arange(5)}, r"strata: expected rows of the policy's thresholds, \[0, 1\); got 1 in row 1"),
        ({"shallow": OFFSET * NAN, "confidence": np.arange(5)}, "leaves at depth 0; got nan in row 1"),
        ({"features": torch.zeros(5, 1)}, r"features: expected None, as the heads read none; got \[5, 1\]"),
    ],
)
def test_inputs_of_other_rows_are_refused(model, given, message):
    """One row was spread over all, rows too many were read from the beginning, stratum -1 was the last."""
    ranker = with_offset(model, ((1.0, INF),))
    with pytest.raises(ValueError, match=message):
        ranker.predict(REQUESTS, **{"offset": OFFSET, **given})
    if "strata" not in given and "shallow" not in given:
        with pytest.raises(ValueError, match=message):
            ranker.calibrate(REQUESTS, alpha=0.5, **{"offset": OFFSET, **given})


def test_inputs_as_arrays_and_what_may_be_unknown(model):
    ranker = with_offset(model, ((1.0, INF),))
    expected = ranker.predict(REQUESTS, offset=OFFSET)
    assert expected.depth.tolist() == [0, 0, 4, 4, 4]
    arrays = ranker.predict(REQUESTS, offset=OFFSET.numpy(), strata=[0] * 5)
    assert torch.equal(arrays.probability, expected.probability) and torch.equal(arrays.depth, expected.depth)
    unknown = ranker.predict(REQUESTS, offset=OFFSET, shallow=torch.tensor([3.0, NAN, NAN, 0, 0]))  # NaN never leaves
    assert unknown.depth.tolist() == [0, 4, 4, 4, 4] and unknown.probability.isfinite().all()
    for wrong in (1, 2):  # one row was the answer of all
        with pytest.raises(ValueError, match=f"requests: expected 3, one a row that goes on; got {wrong}"):
            ranker.predict(lambda rows, wrong=wrong: REQUESTS[:wrong], offset=OFFSET)
    with pytest.raises(TypeError, match=r"strata: expected whole numbers; got torch.float64"):
        ranker.predict(REQUESTS, offset=OFFSET, strata=np.zeros(5))


def test_inputs_of_more_answers_and_of_features(model):
    offset = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for shallow in (offset[0], offset[:1]):
        with pytest.raises(ValueError, match=r"shallow: expected \[5, 3\]"):
            with_offset(model, num_answers=3).predict(REQUESTS, offset=offset, shallow=shallow)
    ranker = EarlyExitRanker(EarlyExitModel(Decoder(model), [1], num_features=2))
    features = torch.randn(7, 2)
    for wrong in (features, features[:4], None, features[:5] * NAN):
        with pytest.raises(ValueError, match="features: expected"):
            ranker.predict(REQUESTS, features=wrong)
    assert ranker.predict(REQUESTS, features=features[:5]).probability.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(1, 2)}, ValueError, r"features: expected \[1, 3\]; got \[1, 2\]"),
        ({"features": torch.full((1, 3), NAN)}, ValueError, "features: expected finite numbers; got others in row 0"),
        ({"features": None}, ValueError, r"features: expected \[1, 3\]; got None"),
        ({"offset": torch.zeros(1, 1)}, ValueError, r"offset: expected \[1\]; got \[1, 1\]"),
        ({"offset": torch.tensor([INF])}, ValueError, "offset: expected finite numbers; got others in row 0"),
        ({"offset": None}, ValueError, "offset: expected one a request; got None"),
        ({"strata": torch.zeros(1)}, TypeError, "strata: expected whole numbers; got torch.float32"),
    ],
)
def test_inputs_of_groups_that_would_fail_others(model, change, error, message):
    """Columns of other widths failed every caller of the batch that was made of all."""
    ranker = EarlyExitRanker(EarlyExitModel(Decoder(model), [1], num_features=3, offset=True))
    given = {"features": torch.zeros(1, 3), "offset": torch.zeros(1)}
    with pytest.raises(error, match=message):
        ranker.predict_groups([([1, 2], [[3, 4]])], GroupInputs(**(given | change)))


def test_callers_with_numbers_of_other_types_share_a_batch(model):
    """Float64 features made the whole batch float64, which the heads cannot read."""
    ranker = EarlyExitRanker(EarlyExitModel(Decoder(model), [1], num_features=3, offset=True))
    features, offset, groups = torch.randn(1, 3), torch.tensor([0.5]), [([1, 2], [[3, 4]])]
    pieces = []
    ranker._shared = lambda given: (pieces.extend(given), iter(()))[1]
    ranker.predict_groups(groups, GroupInputs(features, offset))
    ranker.predict_groups(groups, GroupInputs(features.double().numpy(), offset.double().numpy()))
    first, second = ranker._predict_pieces(pieces)
    assert torch.equal(first.probability, second.probability)
    alone = ranker.predict([([1, 2], [3, 4])], features=features.double().numpy(), offset=[0.5])
    torch.testing.assert_close(alone.probability, first.probability)


@pytest.mark.parametrize("options", [{"offset": True}, {"num_features": 2}])
def test_a_service_for_heads_that_read_more_is_refused(model, options):
    """Every call of it failed."""
    with pytest.raises(ValueError, match="ranker: expected heads that read neither features nor an offset"):
        RankingService(EarlyExitRanker(EarlyExitModel(Decoder(model), [1], **options)))


def test_policies_of_another_size(model):
    ranker = ranker_of(model, LEVELS)
    for policy, message in (
        (ExitPolicy(((0.5,),), "margin"), "policy: expected 2 thresholds, one an exit but the last; got 1"),
        (ExitPolicy((), "margin"), "policy: expected thresholds of at least one stratum; got none"),
    ):
        ranker.policy = policy
        with pytest.raises(ValueError, match=message):
            ranker.predict(REQUESTS)
        assert ranker.predict(REQUESTS, early_exit=False).depth.tolist() == [4] * 5
    ranker.policy = ExitPolicy(((INF, INF),), "margin")
    with pytest.raises(ValueError, match="strata: expected rows of the policy's thresholds"):
        ranker.predict_groups([([1], [[2]])], GroupInputs(strata=torch.tensor([-1])))


# Answers


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Answers(("a", "b"), ((5,), (6,), (7,)), "sum"), ValueError, "expected those of 2 answers; got 3"),
        (lambda: Answers.of(Letters(), {"No", "Yes"}), TypeError, "several texts in order, the positive one last"),
        (lambda: Answers.of(Letters(), {"No": 0, "Yes": 1}), TypeError, "several texts in order"),
    ],
)
def test_answers_that_are_no_answers(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_answers_of_another_model(model):
    for ids, strange in (((5, 1000), 1000), ((5, -3), -3)):
        with pytest.raises(ValueError, match=rf"answers: expected token ids in \[0, 97\); got {strange} in 'a'"):
            EarlyExitRanker(
                EarlyExitModel(Decoder(model), [1]),
                answers=Answers(("a", "b"), (ids, (5, 6)), "sum"),
                output=OutputHead(model),
            )

    class Larger(Letters):
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [100 + ord(letter) for letter in text]}

    with pytest.raises(ValueError, match=r"answers: expected token ids in \[0, 97\); got 210 in 'n'"):
        EarlyExitRanker.from_model(model, Larger(), ("n", "y"))
    for options in ({"offset": True}, {"num_features": 2}):  # full depth would read neither
        with pytest.raises(ValueError, match="answers: expected reading 'first_token' for heads with an offset or"):
            EarlyExitRanker(
                EarlyExitModel(Decoder(model), [1], **options),
                answers=Answers.of(Letters(), ("no", "na")),
                output=OutputHead(model),
            )


def test_a_text_without_room_for_the_answers_fails_nobody_else(model):
    """The error was raised in the shared batch, and failed all of its callers."""
    ranker, good = ranker_of(model, LEVELS), requests_of(5, 6)
    expected = ranker.predict(good).probabilities
    longest = ([5] * 100, [6] * (256 - 100 - 4))
    full = ranker.predict([longest]).probabilities
    torch.testing.assert_close(full, plain(model, [[*longest[0], *longest[1]]], LEVELS, "sum"), **CLOSE)
    longer, message = (
        ([5] * 101, longest[1]),
        "expected at most 252 tokens a text, before 4 of the longest answer; got 253",
    )
    for call in (lambda: ranker.predict([longer]), lambda: ranker.predict_groups([(longer[0], [longer[1]])])):
        with pytest.raises(ValueError, match=message):
            call()
    with RankingService(ranker, max_wait_ms=50.0) as service:
        with pytest.raises(ValueError, match=message):
            [service.submit(good), service.submit([longer])]
        torch.testing.assert_close(service.submit(good).result().probabilities, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="expected at most 256 tokens a text; got 300"):
        ranker.predict([([5] * 200, [6] * 100)])


@pytest.mark.parametrize("reading", ["sum", "mean"])
def test_batches_hold_no_more_than_their_tokens(model, monkeypatch, reading):
    """A row is read once for each answer; batches were counted without them."""
    from reasonrec_fast.early_exit import answers as module

    sizes = []
    original = module.PackedBatch

    def counted(decoder, groups, *more):
        batch = original(decoder, groups, *more)
        sizes.append((batch.layout.num_tokens, batch.layout.num_rows))
        return batch

    monkeypatch.setattr(module, "PackedBatch", counted)
    requests = requests_of(6, 12)
    for most in (1, 40, 4096):
        sizes.clear()
        scores = ranker_of(model, LEVELS, reading, max_tokens=most).predict(requests)
        assert all(tokens <= most or rows == 1 for tokens, rows in sizes) and (len(sizes) > 1) == (most < 4096)
        torch.testing.assert_close(
            scores.probabilities, plain(model, [[*p, *c] for p, c in requests], LEVELS, reading), **CLOSE
        )


@torch.no_grad()
def plain_vlm(model, inputs, answers):
    scores = []
    for answer in answers:
        ids = Letters()(answer, add_special_tokens=False)["input_ids"]
        length, more = inputs["input_ids"].shape[1], dict(inputs)
        more["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        more["attention_mask"] = torch.ones_like(more["input_ids"])
        if "mm_token_type_ids" in more:
            more["mm_token_type_ids"] = torch.nn.functional.pad(more["mm_token_type_ids"], (0, len(ids)))
        logits = model(**more).logits[0, length - 1 : -1].float()
        scores.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
    return torch.stack(scores).softmax(-1)


@pytest.mark.parametrize("kind", VISION_LANGUAGE)
def test_whole_answers_behind_images(kind):
    """Also after an image at the end of the text; wherever the text is divided."""
    model, texts, expected = tiny_vlm(kind), [], []
    for seed, text in enumerate([[1, 5, "image", 6], [1, "image", 3, "image", 8, 9], [1, "image"], [1, 2, 3]]):
        inputs = vlm_inputs(kind, [text], seed=seed)
        texts += segments_of(model, inputs)
        expected.append(plain_vlm(model, inputs, LEVELS))
    expected = torch.stack(expected)
    assert expected.log().std(0).max() > 0.1
    for half in (0, 1, 2):
        requests = []
        for text in texts:
            at = len(text) * half // 2
            at = text.boundary(at) if hasattr(text, "boundary") else at
            requests.append((text[:at], text[at:]))
        for options in ({}, {"max_tokens": 15, "prefix_cache_bytes": 1 << 20}):
            scores = ranker_of(model, LEVELS, **options).predict(requests)
            torch.testing.assert_close(scores.probabilities.log(), expected.log(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "modules_to_save"])
def test_whole_answers_follow_adapters_of_the_head(kind):
    """As documented: heads are copies, and answers of several tokens use the model's own."""
    options = {
        "lora": {"target_modules": ["q_proj", "lm_head"]},
        "dora": {"target_modules": ["v_proj", "lm_head"], "use_dora": True},
        "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    }[kind]
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny("Llama"), peft.LoraConfig(r=4, init_lora_weights=False, **options)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    requests = requests_of(7, 6)
    texts, ranker = [[*p, *c] for p, c in requests], ranker_of(model, ONE_TOKEN, "sum", prefix_cache_bytes=1 << 20)
    on = plain(model, texts, ONE_TOKEN, "sum")
    torch.testing.assert_close(ranker.predict(requests).probabilities, on, **CLOSE)
    with model.disable_adapter():
        off = plain(model, texts, ONE_TOKEN, "sum")
        torch.testing.assert_close(ranker.predict(requests).probabilities, off, **CLOSE)
    assert (on - off).abs().max() > 1e-2


def test_threads_with_whole_answers(model):
    requests = [requests_of(seed, 5) for seed in range(8)]
    _, margins = ranker_of(model, LEVELS)._all_exits(
        [pair for some in requests for pair in some], "margin", GroupInputs(), None, None
    )
    policy = ExitPolicy(((float(np.median(margins[0])) + 1e-4, INF),), "margin")
    expected = [ranker_of(model, LEVELS, policy=policy).predict(some) for some in requests]
    assert {1, 4} <= {depth for scores in expected for depth in scores.depth.tolist()}
    ranker = ranker_of(model, LEVELS, policy=policy, prefix_cache_bytes=1 << 14)

    def call(number):
        groups = [(list(prefix), [list(candidate)]) for prefix, candidate in requests[number % 8]]
        return ranker.predict_groups(groups) if number % 3 else ranker.predict(requests[number % 8])

    with ThreadPoolExecutor(8) as pool:
        for number, scores in enumerate(pool.map(call, range(48))):
            torch.testing.assert_close(scores.probabilities, expected[number % 8].probabilities, atol=1e-5, rtol=1e-4)


# Documents, NaN, rankers of before


def test_documents_of_a_table_and_nan(model):
    ranker = ranker_of(model, ("n", "y"))
    documents = ["tea", "cups", "pots"]
    expected = ranker.rank("q", documents, return_documents=True)
    column = pandas.Series(documents, index=[2, 0, 1])  # read by position
    assert ranker.rank("q", column, return_documents=True) == expected
    assert ranker.rank("q", (document for document in documents), return_documents=True) == expected
    for wrong in ({"tea", "cups"}, {"tea": 1}):
        with pytest.raises(TypeError, match="documents: expected a sequence of texts; got"):
            ranker.rank("q", wrong)
    broken = tiny("Llama")
    with torch.no_grad():
        broken.model.embed_tokens.weight[Letters()("b", add_special_tokens=False)["input_ids"][0]] = NAN
    for answers in (("n", "y"), ("no", "na")):
        ranker = ranker_of(broken, answers)
        with pytest.raises(ValueError, match="got nan for document 1"):  # it was among the results, in no order
            ranker.rank("q", ["a", "b", "c"])
        with pytest.raises(ValueError, match="got nan for request 1"):
            ranker.calibrate([("q", "a"), ("q", "b"), ("q", "c")] * 20, alpha=0.5)


def test_rankers_of_before_load(model, tmp_path):
    """Written without answers, their number, features or an offset: two, by their first tokens."""
    ranker, requests = ranker_of(model, ("n", "y")), requests_of(8, 12)
    ranker.policy = ExitPolicy(((1.0, 2.0),))
    expected = ranker.predict(requests)
    ranker.save_pretrained(tmp_path / "ranker")
    path = tmp_path / "ranker" / "config.json"
    stored = json.loads(path.read_text())
    for name in ("answers", "num_answers", "num_features", "offset"):
        del stored[name]
    path.write_text(json.dumps(stored))
    loaded = EarlyExitRanker.from_pretrained(tmp_path / "ranker", model, Letters())
    scores = loaded.predict(requests)
    assert loaded.answers is None and loaded.model.num_answers == 2 and loaded.policy == ranker.policy
    assert torch.equal(scores.probability, expected.probability) and torch.equal(scores.depth, expected.depth)
    assert torch.equal(scores.probabilities, expected.probabilities)
    assert loaded.rank("q", ["tea", "cups"]) == ranker.rank("q", ["tea", "cups"])
    loaded.save_pretrained(tmp_path / "again")
    again = EarlyExitRanker.from_pretrained(tmp_path / "again", model, Letters())
    assert torch.equal(again.predict(requests).probability, expected.probability)


def test_tables_and_arrays_are_read_by_position(model):
    """A table's column was read by its index, so that scores belonged to other rows."""
    ranker = EarlyExitRanker.from_model(model, Letters(), ("n", "y"))
    for requests in (REQUESTS, [("history", letter) for letter in "abcde"]):
        column = pandas.Series(requests, index=[4, 2, 0, 1, 3])
        assert torch.equal(ranker.predict(column).probability, ranker.predict(requests).probability)
        promises = [ranker.calibrate(rows, alpha=0.5, users=range(5)).loss for rows in (column, requests)]
        assert promises[0] == promises[1]
        ranker.policy = None
    deep = with_offset(model, ((1.0, INF),))
    expected = deep.predict(REQUESTS, offset=OFFSET)
    backwards = OFFSET.numpy()[::-1].copy()[::-1]
    for given in (pandas.Series(OFFSET.numpy(), index=range(9, 14)), backwards, OFFSET.numpy().astype(">f4")):
        found = deep.predict(REQUESTS, offset=given, strata=pandas.Series([0] * 5, index=range(9, 14)))
        assert torch.equal(found.probability, expected.probability)
    learnt = deep.predict(REQUESTS, offset=OFFSET.clone().requires_grad_(), confidence=OFFSET.abs().requires_grad_())
    assert torch.equal(learnt.depth, expected.depth) and not learnt.probability.requires_grad
    features = EarlyExitRanker(EarlyExitModel(Decoder(model), [1], num_features=2))
    rows = np.arange(10.0).reshape(5, 2)
    for given in (rows, pandas.DataFrame(rows, index=range(9, 14)), rows.astype(int)):  # float64 was an error of torch
        found = features.predict(REQUESTS, features=given).probability
        assert torch.equal(found, features.predict(REQUESTS, features=torch.from_numpy(rows).float()).probability)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offset": OFFSET.numpy() + 1j}, "offset: expected numbers; got complex64"),
        ({"offset": OFFSET + 1j}, "offset: expected numbers; got torch.complex64"),
        ({"offset": OFFSET > 0}, "offset: expected numbers; got torch.bool"),
        ({"offset": np.full(5, 1e300)}, "offset: expected finite numbers; got others in row 0"),
        ({"offset": np.ma.masked_array(OFFSET.numpy(), [0, 1, 0, 0, 0])}, "offset: expected a value .* in row 1"),
        ({"offset": ["a"] * 5}, "offset: expected numbers"),
        ({"offset": OFFSET, "strata": np.full(5, 2**63, np.uint64)}, "strata: expected indices"),
    ],
)
def test_what_is_no_number_is_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        with_offset(model, ((1.0, INF),)).predict(REQUESTS, **given)


@pytest.mark.parametrize(
    "requests", [("ab", "cd"), "abcd", ["ab"], [("a", "b", "c")], {0: ("a", "b")}, {("a", "b")}, None, [("a", None)],
                 pandas.DataFrame({"prefix": ["a"], "candidate": ["b"]}), zip("a", "b", strict=True)],
)  # fmt: skip
def test_what_is_no_list_of_pairs_is_refused(model, requests):
    """A single pair of texts of two letters was read as two requests."""
    ranker = EarlyExitRanker.from_model(model, Letters(), ("n", "y"))
    for work in (ranker.predict, lambda rows: ranker.calibrate(rows, alpha=0.5)):
        with pytest.raises(TypeError, match=r"requests: expected .*\(prefix, candidate\) pairs; got"):
            work(requests)


def test_settings_of_another_kind_are_refused(model):
    for options in ({"max_tokens": 1.5}, {"max_tokens": True}, {"prefix_cache_bytes": "1G"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected a whole number"):
            EarlyExitRanker.from_model(model, Letters(), ("n", "y"), **options)
    ranker = EarlyExitRanker.from_model(model, Letters(), ("n", "y"))
    for top_k in (1.5, True, "1"):
        with pytest.raises(ValueError, match="top_k: expected a whole number of at least 1; got"):
            ranker.rank("q", ["a", "b"], top_k)
    with pytest.raises(TypeError, match="documents: expected a sequence of texts; got None"):
        ranker.rank("q", None)
    with pytest.raises(ValueError, match="users: expected a vector like requests, of 5 rows; got 1"):
        ranker.calibrate(REQUESTS, alpha=0.5, users=[1])
    with pytest.raises(ValueError, match="alpha: expected a number in \\(0, 1\\); got 'x'"):
        ranker.calibrate(REQUESTS, alpha="x")
    with pytest.raises(ValueError, match="requests: expected at least one; got none"):
        ranker.calibrate([], alpha=0.5)
    for levels in ("ab", None, {1, 2}, [NAN, 1], [1], [1, 2, 3]):
        with pytest.raises(ValueError, match="levels: expected"):
            ranker.predict(REQUESTS).expected(levels)
    scores = ranker.predict(REQUESTS)
    assert torch.equal(scores.expected(pandas.Series([1, 5], index=[9, 8])), scores.expected([1, 5]))
    with pytest.raises(ValueError, match=r"requests: request 1: expected Unicode without lone surrogates"):
        ranker.predict([("a", "b"), ("a", "\ud800")])


@pytest.mark.parametrize("family", ["Llama", "Gemma"])
@pytest.mark.parametrize("kind", ["layer norm", "modules_to_save", "hook"])
def test_what_is_around_the_final_norm_is_in_the_heads(family, kind):
    """An adapter's norm was left out: heads had the base model's."""
    model = tiny(family)
    if kind == "layer norm":
        model = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["norm"])).eval()
    elif kind == "modules_to_save":
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], init_lora_weights=False)
        model = peft.get_peft_model(model, config).eval()
    else:
        gain = torch.linspace(0.5, 2.0, 32)
        model.model.norm.register_forward_hook(lambda module, inputs, output: output * gain)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if kind != "hook" and "norm" in name and weight.requires_grad:
                weight.add_(torch.linspace(-0.5, 1.0, 32))
    ranker = EarlyExitRanker.from_model(model, Letters(), ("n", "y"))
    ids = [ranker.encode([pair])[0][0] for pair in (("a", "b"), ("history", " c"))]
    tokens = [Letters()(letter, add_special_tokens=False)["input_ids"][0] for letter in "ny"]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[0, -1, tokens].softmax(-1)[1] for row in ids]
    found = ranker.predict([("a", "b"), ("history", " c")]).probability
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)
