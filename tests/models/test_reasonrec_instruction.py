"""R-VIT samples: chains of thought made of training events before the label, without identifiers."""

import re
from dataclasses import replace

import numpy as np
import pytest

from reasonrec_fast.data import UNLABELLED, Catalog, DataError, Interactions
from reasonrec_fast.data.explanations import Explanation
from reasonrec_fast.models.reasonrec.instruction import ReasoningConverter, explanation_sample
from reasonrec_fast.models.reasonrec.rationale import Rationales, stated_confidence
from reasonrec_fast.prompts import load_template

TASKS = ("sequential", "direct", "ctr", "explanation")


def shop(seed=0, users=30, events=300):
    generator = np.random.default_rng(seed)
    kinds = ("Tea", "Books", "Bikes")
    items = [f"9{n:03d}" for n in range(20)]
    return Interactions.from_columns(
        [f"user-{u}" for u in generator.integers(0, users, events)],
        [items[i] for i in generator.integers(0, 20, events)],
        generator.integers(0, 2, events).tolist(),
        np.sort(generator.choice(10_000, events, replace=False)).tolist(),
        titles={item: f"Thing {'ABCDEFGHIJKLMNOPQRST'[n]}" for n, item in enumerate(items) if n != 3},
        attributes={"kind": {item: (kinds[n % 3],) for n, item in enumerate(items)}},
        extra_items=items,
    )


def samples(data, rows, timed=True, candidates=4):
    converter, generator = ReasoningConverter(data, rows, timed=timed), np.random.default_rng(1)
    for row in range(len(data)):
        yield row, "ctr", converter.ctr(row)
        if data.labels[row] == 1:
            named = generator.permutation([int(data.items[row]), *generator.integers(0, 20, candidates)])
            named = list(dict.fromkeys(named.tolist()))
            yield row, "sequential", converter.sequential(row, named)
            yield row, "direct", converter.direct(row, named)


@pytest.mark.parametrize("task", TASKS)
def test_there_are_ten_wordings_of_each_task(task):
    template = load_template(f"reason_{task}")
    assert len(template.wordings) == 10 and template.task == task
    assert len({wording.prefix for wording in template.wordings}) == 10
    drawn = {template.draw(0, key).name for key in range(300)}
    assert len(drawn) == 10


def test_samples_hold_nothing_later_than_their_label():
    data = shop()
    rows = np.arange(200)
    before = {(row, task): sample for row, task, sample in samples(data, rows) if row < 200}
    changed = replace(data, labels=data.labels.copy(), items=data.items.copy())
    changed.labels[150:] ^= 1  # what comes later, and what is not of the training part
    changed.items[200:] = (changed.items[200:] + 7) % 20
    after = {(row, task): sample for row, task, sample in samples(changed, rows) if row < 150}
    assert len(after) > 200
    written = 0
    for key, sample in after.items():
        if key in before and sample is not None and before[key] is not None:
            if sample.task != "ctr" and before[key].values["candidates"] != sample.values["candidates"]:
                continue  # candidates are drawn by the test
            assert sample.texts(0) == before[key].texts(0)
            written += 1
    assert written > 100


def test_events_without_a_label_are_no_history():
    """Nobody knows whether they were liked: they are not, and count nothing."""
    data = shop()
    data.labels[np.random.default_rng(2).random(len(data)) < 0.5] = UNLABELLED
    labelled = np.flatnonzero(data.labels != UNLABELLED)
    whole, without = (ReasoningConverter(data, rows, timed=True) for rows in (np.arange(len(data)), labelled))
    for row in labelled.tolist():
        assert whole.ctr(row) == without.ctr(row)


def test_without_times_a_users_own_later_events_do_not_count():
    data = shop()
    row = 120
    user, moment = int(data.users[row]), int(data.timestamps[row])
    later = np.flatnonzero((data.users == user) & (data.timestamps >= moment))
    facts, others = (
        Rationales(data, rows, timed=False)
        for rows in (np.arange(len(data)), np.setdiff1d(np.arange(len(data)), later))
    )
    for known in range(20):
        for candidate in range(20):
            assert facts.support(user, known, candidate, moment) == others.support(user, known, candidate, moment)
    np.testing.assert_array_equal(facts.liked(user, moment), others.liked(user, moment))


def test_no_identifier_is_in_a_sample():
    data = shop()
    identifiers = {*data.user_ids, *data.catalog.ids}
    count = 0
    for _, _, sample in samples(data, np.arange(len(data))):
        if sample is not None:
            text = " ".join(sample.texts(0))
            assert not any(name in text for name in identifiers)
            count += 1
    assert count > 400
    untitled = data.catalog.ids.index("9003")
    assert Rationales(data, np.arange(9), timed=True).title(untitled) == "Tea"


@pytest.mark.parametrize("task", ["sequential", "direct", "ctr"])
def test_the_chain_ends_in_the_answer_and_a_confidence(task):
    data = shop()
    for row, kind, sample in samples(data, np.arange(200)):
        if sample is not None and kind == task:
            for which in range(10):
                question, chain = sample.texts(which=which)
                answer = sample.values["answer"]
                assert chain.endswith(f" Answer: {answer}. Confidence: {sample.values['confidence']}.")
                assert task == "ctr" or answer in question
            assert (sample.user, sample.item) == (data.users[row], data.items[row])


def test_what_a_chain_counts_can_be_read_in_its_question():
    data = shop()
    counted = dict.fromkeys(("taste", "evidence", "shared", "rated"), 0)
    for _, _, sample in samples(data, np.arange(200)):
        if sample is None:
            continue
        for which in range(10):
            question, chain = sample.texts(which=which)
            chain = chain[: chain.index(" Answer: ")]
            for taste in re.findall(r"(?:Tea|Books|Bikes) \(\d+ of \d+\)", chain):
                assert taste in question
                counted["taste"] += 1
            for others, known, common, title in re.findall(
                r"Of (\d+) others who liked (.+?), (\d+) liked (.+?)\.", chain
            ):
                assert title in question and f"{common} of {others} others who liked {known} liked it" in question
                counted["evidence"] += 1
            for title, kind in re.findall(r"(Thing \w) shares (Tea|Books|Bikes)", chain):
                assert f"{title} ({kind}" in question and f"{kind} (" in question.replace(f"{title} ({kind}", "")
                counted["shared"] += 1
            for events, liked in re.findall(r"Of (\d+) earlier items like .+?, the user liked (\d+)\.", chain):
                kind = str(sample.values["attributes"])
                labels = re.findall(rf"\({kind}; (liked|not liked)\)", question)
                labels += re.findall(rf"{kind} \((liked|not liked)\)", question)  # the item without a title
                assert (len(labels), labels.count("liked")) == (int(events), int(liked))
                counted["rated"] += 1
    assert min(counted.values()) > 300


def test_shared_tastes_can_be_read_beside_an_item_with_many_attributes():
    """The question names three of them: those that a chain may speak of."""
    data = shop()
    generator, words = np.random.default_rng(4), [letter * 120 for letter in "FEDCBA"]
    kinds = [tuple(generator.permutation(words)[: generator.integers(3, 6)].tolist()) for _ in data.catalog.ids]
    data = replace(data, catalog=Catalog(data.catalog.ids, data.catalog.titles, {"kind": kinds}))
    found = 0
    for _, task, sample in samples(data, np.arange(200)):
        if sample is None or task == "ctr":
            continue
        question, chain = sample.texts(which=0)
        for title, shared in re.findall(r"(Thing \w) shares ([A-Z and]+)\.", chain):
            told = re.search(rf"{title} \(([^;)]+)", question)[1]
            assert all(value in told.split(", ") for value in shared.split(" and "))
            found += 1
        for taste in re.findall(r"[A-Z]{9,} \(\d+ of \d+\)", chain):
            assert taste in question
    assert found > 100


def test_a_long_description_of_a_taste_is_cut_in_questions():
    data = shop()
    kinds = {
        "kind": [tuple(f"{value} {'long ' * 60}" for value in values) for values in data.catalog.attributes["kind"]]
    }
    long = replace(data, catalog=Catalog(data.catalog.ids, data.catalog.titles, kinds))
    found = [sample for _, task, sample in samples(long, np.arange(200)) if sample is not None and task == "sequential"]
    assert max(len(str(sample.values["profile"])) for sample in found) < 3 * 130


def test_support_counts_other_users():
    data = Interactions.from_columns(
        ["a", "b", "c", "a", "b", "c", "d"], ["x", "x", "x", "y", "y", "z", "x"], [1, 1, 1, 1, 1, 1, 0], range(7)
    )
    facts = Rationales(data, np.arange(7), timed=True)
    assert facts.support(0, 0, 1, 99) == (2, 1)
    assert facts.support(0, 0, 1, 4) == (2, 0)  # b's y is at 4 itself
    assert facts.support(3, 0, 1, 99) == (3, 2)


def test_an_explanation_is_the_answer():
    line = Explanation(
        1, 2, "Leaf", "Enjoys herbal teas and quiet rooms.", "A quiet room for herbal teas.", "It is calm."
    )
    question, chain = explanation_sample(line, ["Others like its cakes."]).texts(0)
    assert "It is calm." not in question and "Others like its cakes." in question
    assert "It is calm. Confidence:" in chain and "quiet" in chain
    assert "herbal" in explanation_sample(line).values["summary"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, d: c.sequential(int(np.flatnonzero(d.labels == 0)[0]), [1]), "row: expected a like; got label 0"),
        (lambda c, d: c.sequential(int(np.flatnonzero(d.labels == 1)[0]), []), "candidates: expected the item of row"),
        (lambda c, d: c.ctr(len(d)), r"row: expected one in \[0, 300\); got 300"),
        (lambda c, d: stated_confidence(1.2), r"probability: expected in \[0, 1\]; got 1.2"),
    ],
)
def test_what_makes_no_sample_is_refused(call, message):
    data = shop()
    with pytest.raises((DataError, ValueError), match=message):
        call(ReasoningConverter(data, np.arange(200), timed=True), data)
