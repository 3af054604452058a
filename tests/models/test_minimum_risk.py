"""Explanations by minimum Bayes risk without a language model, on a stand-in for the sentence encoder."""

import re
import zlib

import numpy as np
import pytest
import torch

import reasonrec_fast
from reasonrec_fast.data import DataError
from reasonrec_fast.data.explanations import Explanation
from reasonrec_fast.models.classical import minimum_risk
from reasonrec_fast.models.classical.minimum_risk import (
    MinimumRiskText,
    MinimumRiskTextConfig,
    agreement,
    offer_of,
    overlaps,
)


class Words:
    """Vectors of texts by their words."""

    def __init__(self, device=None):
        self.calls = 0

    def encode(self, texts, batch=64):
        self.calls += 1
        vectors = torch.zeros(len(texts), 64)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, zlib.crc32(word.encode()) % 64] += 1
        return torch.nn.functional.normalize(vectors)


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr(minimum_risk, "TextEncoder", Words)


def line(number, thing, title):
    return Explanation(
        number, 100 + number, title, f"Likes {thing} and quiet rooms.", f"Lovers of fine {thing} would enjoy {title}.",
        f"The user would enjoy {title} because it has good {thing} for every day.",
    )  # fmt: skip


TRAIN = [line(n, thing, f"{thing.title()} House {n}") for n, thing in enumerate(["tea", "books", "bikes", "bread"] * 5)]
TEST = [line(50 + n, thing, f"New {thing.title()}") for n, thing in enumerate(["tea", "books", "bikes", "bread"])]


def slow_overlap(first, second):
    """ROUGE-L by the definition, by recursion over all cells."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (first, second))
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return 2 * table[-1, -1] / (len(a) + len(b)) if a or b else 0.0


def test_overlap_is_rouge_l():
    texts = [line.explanation for line in TRAIN[:6]] + ["", "Tea.", "tea good good tea", "good tea tea good"]
    expected = [[slow_overlap(first, second) for second in texts] for first in texts]
    np.testing.assert_allclose(overlaps(texts), expected)
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    for first in texts[:6]:
        for second in texts[6:]:
            if second:
                value = scorer.score(first, second)["rougeL"].fmeasure
                assert overlaps([first, second])[0, 1] == pytest.approx(value)


def test_agreement_leaves_a_text_itself_out():
    assert agreement(["a b", "a b", "c"]).tolist() == [0.5, 0.5, 0.0]
    assert agreement(["alone"]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("profile", "offer"),
    [
        ("Fans of fast Chinese food would enjoy Panda.", "fast Chinese food"),
        ("Users who enjoy comfort food like pizza would appreciate it.", "comfort food like pizza"),
        ("Ramen enthusiasts looking for a cozy spot would enjoy Kumako.", "a cozy spot"),
        ("A museum.", "A museum"),
        ("", ""),
    ],
)
def test_what_an_item_offers(profile, offer):
    assert offer_of(profile) == offer


def test_the_text_speaks_of_its_own_pair():
    model = MinimumRiskText(MinimumRiskTextConfig(neighbours=6, weight=0.5)).fit(TRAIN)
    queries = [line.query for line in TEST]
    texts = model.explain(queries)
    for text, query, thing in zip(texts, queries, ("tea", "books", "bikes", "bread"), strict=True):
        assert thing in text.lower()
        assert "House" not in text  # names of other items are replaced
        assert text in model.candidates(query)
    assert model.explain(queries[::-1]) == texts[::-1]
    assert [model.explain([query])[0] for query in queries] == texts


def test_the_weight_is_chosen_on_validation(tmp_path):
    with pytest.raises(DataError, match="validation: expected explanations to choose the weight on; got none"):
        MinimumRiskText().fit(TRAIN)
    model = MinimumRiskText(MinimumRiskTextConfig(neighbours=6)).fit(TRAIN, TEST)
    assert model.texts["weight"] in minimum_risk.WEIGHTS
    model.save_pretrained(tmp_path)
    loaded = reasonrec_fast.load(tmp_path)
    queries = [line.query for line in TEST]
    assert isinstance(loaded, MinimumRiskText) and loaded.explain(queries) == model.explain(queries)


def test_braces_of_titles_mean_nothing():
    odd = Explanation(1, 2, "{offer} \\1 (x", "Likes {title}.", "Fans of {title} would enjoy it.", "It is {title}.")
    model = MinimumRiskText(MinimumRiskTextConfig(neighbours=1, weight=0.0)).fit([odd])
    assert any("{offer} \\1 (x. Fans of {title} would enjoy it." in text for text in model.candidates(odd.query))


def test_templates_without_fields_are_refused():
    with pytest.raises(
        ValueError, match=r"templates: expected one of title, item_profile, offer in each; got 'Nice\.'"
    ):
        MinimumRiskTextConfig(templates=("Nice.",))
