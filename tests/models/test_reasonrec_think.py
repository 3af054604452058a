"""ReasonRec deliberates: samples of the training part, chains over the stack's candidates."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from walks import walks as random_walks

from reasonrec_fast.data import Catalog, DataError, Histories, Interactions, split_by_time
from reasonrec_fast.experiments import demo_reasonrec
from reasonrec_fast.models.classical import Stack, StackConfig
from reasonrec_fast.models.reasonrec import Chain, ChainConfig, ReasonRec, ReasonRecConfig
from reasonrec_fast.models.reasonrec.prompt import CoLikes
from reasonrec_fast.models.reasonrec.questions import mixed_order
from reasonrec_fast.models.reasonrec.rationale import Descriptions
from reasonrec_fast.models.reasonrec.storage import remove_checkpoints
from reasonrec_fast.models.reasonrec.thinking import is_timed, training_samples, user_questions

USERS, ITEMS = 40, 16
STACK = StackConfig(tools=("DirectedItemKNN", "ItemKNN"), candidates=6, depth=10, trees=15, min_leaf=5, leaves=7)


def walks(dislikes=True):
    """Users who mostly walk on to the next item, and dislike some; all events have moments of their own."""
    generator = np.random.default_rng(0)
    users, numbers = random_walks(generator, USERS, ITEMS, (5, 9))
    items = [f"i{number}" for number in numbers]
    labels = (generator.random(len(users)) < (0.85 if dislikes else 1)).astype(int).tolist()
    kinds = {f"i{item}": (f"kind {item % 4}",) for item in range(ITEMS)}
    order = generator.permutation(len(users))
    return Interactions.from_columns(
        [users[n] for n in np.argsort(order)], [items[n] for n in np.argsort(order)],
        [labels[n] for n in np.argsort(order)], range(len(users)), attributes={"kind": kinds},
        titles={f"i{item}": f"Title {chr(65 + item)}" for item in range(ITEMS - 1)},
        extra_items=[f"i{item}" for item in range(ITEMS)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return walks()


@pytest.fixture(scope="module")
def split(data):
    return split_by_time(data, "leave_one_out")


@pytest.fixture(scope="module")
def chain(tiny_backbone):
    return ChainConfig(
        backbone=str(tiny_backbone), samples=30, candidates=4, lora_rank=2, batch=4, max_tokens=400, temperature=1.0,
        timed=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(chain):
    return ReasonRecConfig(stack=STACK, agent=None, chain=chain, k=2)


@pytest.fixture(scope="module")
def model(data, split, config):
    fitted = ReasonRec(config).fit(data, split.train, split.validation)
    fitted.chain.config = replace(config.chain, max_tokens=24)  # what it writes is noise: less of it
    return fitted


@pytest.fixture(scope="module")
def stack(model):
    return model.stack


def test_samples_are_of_all_tasks(data, split, stack, chain):
    samples, lengths = training_samples(stack, data, split.train, replace(chain, direct=0.4, ctr=0.3))
    assert {sample.task for sample in samples} == {"sequential", "direct", "ctr"}
    assert len(samples) == len(lengths) <= 30 and lengths.min() >= 0
    for sample in samples:
        assert sample.values["answer"] in sample.choices
        if sample.task != "ctr":
            assert sample.item in sample.choice_items and len(sample.choices) <= 4
            assert sample.question.item_of(sample.values["answer"]) == sample.item
            assert not set(sample.choice_items) & set(_before(data, sample))
    likes = walks(dislikes=False)
    some = training_samples(stack, likes, split.train, chain)[0]
    assert {sample.task for sample in some} == {"sequential", "direct"}


def _before(data, sample):
    """What the user of a sample had in hand before its event, of all parts."""
    row = int(np.flatnonzero(data.keys() == np.uint64(sample.key))[0])
    return data.items[:row][data.users[:row] == sample.user].tolist()


def test_the_target_is_among_the_candidates_only_where_the_stack_names_it(data, split, stack, chain):
    whole = training_samples(stack, data, split.train, replace(chain, ctr=0.0, samples=1000))[0]
    few = training_samples(stack, data, split.train, replace(chain, ctr=0.0, samples=1000, candidates=2))[0]
    assert 0 < len(few) < len(whole) < len(split.train)


def test_the_order_of_candidates_tells_nothing_of_their_ranks(data):
    words, ranked = Descriptions(data.catalog), np.array([3, 9, 1, 12])
    orders = [mixed_order(words, np.array([item, other]), ranked) for item in range(ITEMS) for other in range(ITEMS)]
    for place in range(4):
        shares = np.bincount([order[place] for order in orders], minlength=ITEMS)[ranked] / len(orders)
        assert (np.abs(shares - 0.25) < 0.1).all()
    assert mixed_order(words, np.array([5]), ranked[::-1]) == mixed_order(words, np.array([5]), ranked)


def test_samples_do_not_depend_on_how_items_are_numbered(data, split, chain):
    """The identifiers stay with their items; the numbers are others."""
    new = np.random.default_rng(1).permutation(ITEMS)
    order = np.argsort(new)
    catalog = Catalog(
        [data.catalog.ids[old] for old in order],
        [data.catalog.titles[old] for old in order],
        {name: [column[old] for old in order] for name, column in data.catalog.attributes.items()},
    )
    renumbered = replace(data, items=new[data.items], catalog=catalog)
    texts = []
    for events in (data, renumbered):
        fitted = Stack(STACK).fit(events, split.train, split.validation)
        samples = training_samples(fitted, events, split.train, chain)[0]
        texts.append([(sample.task, *sample.texts(0), sample.choices) for sample in samples])
    assert len(texts[0]) > 10
    assert texts[0] == texts[1]
    assert not any(f"i{item}" in " ".join(sample[1:3]).split() for sample in texts[0] for item in range(ITEMS))


def test_samples_hold_nothing_later_than_their_event(data, split, stack, chain):
    """With the same stack, whatever comes after an event may change."""
    few = replace(chain, samples=1000, ctr=0.3)
    before = {sample.key: sample for sample in training_samples(stack, data, split.train, few)[0]}
    middle = len(data) // 2
    changed = replace(data, items=data.items.copy())
    changed.items[middle:] = (changed.items[middle:] + 5) % ITEMS
    after = {sample.key: sample for sample in training_samples(stack, changed, split.train, few)[0]}
    early = set(map(str, data.keys(np.arange(middle)).tolist())) & set(before)
    assert len(early) > 20
    # Which events are asked for clicks is drawn over all of them, so tasks may differ; of equal tasks texts may not.
    same = [key for key in early if key in after and after[key].task == before[key].task]
    assert len(same) > 0.9 * len(early)
    assert all(before[key].texts(0) == after[key].texts(0) for key in same)


def test_the_stack_is_as_before_the_samples(data, split, model, chain):
    stack = model.stack
    kept = stack.histories, stack.seen, stack.rank(np.arange(5), 4).items
    training_samples(stack, data, split.train, chain)
    assert stack.histories is kept[0] and stack.seen is kept[1]
    assert (stack.rank(np.arange(5), 4).items == kept[2]).all()


def test_without_chain_nothing_changes(data, split, config, model):
    plain = ReasonRec(replace(config, chain=None)).fit(data, split.train, split.validation)
    users = np.arange(USERS)
    first, second = (one.recommend(users, 5) for one in (plain, model))
    assert (first.items == second.items).all() and (first.scores == second.scores).all()
    assert plain.chain is None
    with pytest.raises(DataError, match="fitted with chain in its configuration"):
        plain.think(users)


def test_chains_of_users(model):
    chains = model.think(np.array([3, 7, 3]), 2)
    assert len(chains) == 6 and all(isinstance(chain, Chain) and chain.text for chain in chains)
    assert chains[:2] == chains[4:] and chains[0] != chains[1]
    assert model.think(np.array([7]), 1) == chains[2:3]
    assert model.think(np.array([7]), 1, seed=1) != chains[2:3]
    assert model.think(np.array([7]), 1, task="direct") != chains[2:3]
    by_name = model.think(["u7"], 1)
    assert by_name[0].text == model.think(np.flatnonzero(np.array(model.known_users.ids) == "u7"), 1)[0].text


def test_answers_are_items_of_the_stack(model, monkeypatch):
    def write(questions, n, seed, *, on_text):
        assert all(question.task == "sequential" for question in questions)
        on_text(0, 0, "so")
        return [Chain("so", question.choices[1], "high", 1.0, -1.0, True, question.items[1]) for question in questions]

    monkeypatch.setattr(model.chain, "write", write)
    said = []
    before = model.histories, model.seen
    try:
        lists = [model.histories.of_user(user) for user in range(USERS)]
        lists[list(model.known_users.ids).index("u0")] = np.zeros(0, dtype=np.int64)
        model.set_histories(Histories.from_lists(lists))
        chains = model.think(["u0", "u9"], 1, k=3, on_text=lambda *words: said.append(words))
    finally:
        model.set_histories(before[0], seen=before[1])
    assert not chains[0].text and not chains[0].finished  # it has no history
    assert said == [(1, 0, "so")]
    assert chains[1].item in model.known_items.ids


def test_questions_are_those_of_training(data, split, stack, chain):
    """A question of a user whose history ends before an event equals the event's, but for the drawn wording."""
    samples = training_samples(stack, data, split.train, replace(chain, ctr=0.0, samples=1000))[0]
    line = Descriptions(data.catalog)
    for sample in samples[:10]:
        row = int(np.flatnonzero(data.keys() == np.uint64(sample.key))[0])
        mine = split.train[(data.users[split.train] == sample.user) & (split.train < row)]
        history = data.items[mine[data.labels[mine] == 1]]
        items = np.array(sample.choice_items)[::-1]
        before = split.train[data.timestamps[split.train] < data.timestamps[row]]
        likes = CoLikes(Histories.of(data, before), data.num_items)
        question = user_questions(data.catalog, likes, [sample.user], [history], [items], sample.task, chain.history)[0]
        assert question.values == sample.question.values and question.choices == sample.choices
        assert mixed_order(line, history, items) == list(sample.choice_items)


def test_a_user_of_whom_nothing_is_known_has_no_question(data):
    empty, some = np.zeros(0, dtype=np.int64), np.array([1, 2])
    likes = CoLikes(Histories.of(data, np.arange(len(data))), data.num_items)
    asked = user_questions(data.catalog, likes, [0, 1], [empty, some], [some, empty], "sequential", 5)
    assert asked == [None, None]


def test_what_a_chain_says_of_a_candidate_stands_in_its_question(data, split, stack, chain):
    """Counts and attributes are there to be read, so that a chain need not make them up."""
    samples = training_samples(stack, data, split.train, replace(chain, ctr=0.0, samples=1000))[0]
    counts = 0
    for sample in samples:
        question, told = sample.texts(0)
        for others, known, common in re.findall(r"Of (\d+) others who liked (.+?), (\d+) liked", told):
            counts += 1
            assert f"{common} of {others} others who liked {known} liked it" in question
    assert counts > 5


def test_a_loaded_model_thinks_the_same(model, config, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "chain" / "adapter.safetensors").is_file()
    loaded = ReasonRec.from_pretrained(tmp_path)
    assert loaded.think(np.arange(3), 2) == model.think(np.arange(3), 2)
    (tmp_path / "chain" / "adapter.safetensors").unlink()
    with pytest.raises((FileNotFoundError, ValueError, OSError)):
        ReasonRec.from_pretrained(tmp_path)


def test_a_run_that_was_killed_goes_on_with_the_chains(data, split, config, model, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    parts = []

    def kill(done, total, metrics=None, part=""):
        parts.append(part)
        if part == "chain" and done == 2:
            raise Killed

    monkeypatch.setattr("reasonrec_fast.training.loop.StepLoop.save_if_due", lambda loop, **_: loop.save())
    with pytest.raises(Killed):
        ReasonRec(config).fit(data, split.train, split.validation, checkpoint=tmp_path / "state", progress=kill)
    assert (tmp_path / "state.chain").is_file() and "chain" in parts

    def refuse(*_, **__):
        raise AssertionError("the stack was fitted again")

    monkeypatch.setattr("reasonrec_fast.models.classical.stack.Stack.fit", refuse)
    steps = []
    resumed = ReasonRec(config).fit(
        data, split.train, split.validation, checkpoint=tmp_path / "state",
        progress=lambda done, total, metrics=None, part="": steps.append((part, done)),
    )  # fmt: skip
    assert ("chain", 3) in steps and ("chain", 2) not in steps
    remove_checkpoints(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
    resumed.chain.config = model.chain.config
    assert resumed.think(np.arange(3)) == model.think(np.arange(3))


def test_refusals(data, split, model, config):
    with pytest.raises(ValueError, match="task: expected 'sequential' or 'direct'; got 'ctr'"):
        model.think(np.arange(2), task="ctr")
    with pytest.raises(DataError, match="got 'nobody' in row 1"):
        model.think(["u0", "nobody"])
    with pytest.raises(DataError, match="k: expected"):
        model.think(np.arange(2), k=0)
    with pytest.raises(ValueError, match="n: expected"):
        model.think(np.arange(2), 0)
    wordless = replace(data, catalog=Catalog(data.catalog.ids, data.catalog.ids, {}))
    with pytest.raises(DataError, match="to learn chains of; got none in"):
        ReasonRec(config).fit(wordless, split.train, split.validation)
    stored = config.to_dict()
    assert ReasonRecConfig.from_dict(stored) == config
    stored["chain"]["chain"] = 3
    with pytest.raises(ValueError, match="chain: expected"):
        ReasonRecConfig.from_dict(stored)


def test_moments_of_a_counter_are_not_taken_for_times(data, split, config):
    """Positions within each user's own sequence cannot be compared between users, and a counter of all events can."""
    unsaid = replace(config, chain=replace(config.chain, timed=None))
    with pytest.raises(DataError, match=r"chain\.timed: expected true or false, as the events' moments are a counter"):
        ReasonRec(unsaid).fit(data, split.train, split.validation)
    assert is_timed(replace(data, time_unit="s"), unsaid.chain)
    assert not is_timed(data, replace(config.chain, timed=False))


def test_a_question_has_a_line_for_each_line_of_its_template():
    """Line breaks in titles and attributes are none in a question; what has no title is named by attributes, once."""
    catalog = Catalog(
        ["a", "b", "c"], ["Tea\nGreen", "b", "Cup"], {"kind": [("hot\ndrink",), ("black\ntea", "cheap"), ("ware",)]}
    )
    likes = CoLikes(Histories.from_lists([[0], [0, 1], [0, 1, 2]]), 3)
    asked = user_questions(catalog, likes, [0], [np.array([0])], [np.array([1, 2])], "sequential", 5)
    assert asked[0] is not None and set(asked[0].choices) == {"black tea, cheap", "Cup"}
    text = str(asked[0].values["candidates"])
    assert "\n" not in text and text.count("black tea") == 1
    assert "black tea, cheap (2 of 2 others who liked Tea Green liked it)" in text
    assert "Cup (ware; 1 of 2 others who liked Tea Green liked it)" in text


def test_the_demo_answers_users_before_their_last_event(data, split, model, config, tmp_path, monkeypatch):
    (tmp_path / "settings.json").write_text(json.dumps(config.to_dict()))
    model.chain.save_pretrained(tmp_path / "chains")
    monkeypatch.setattr(demo_reasonrec, "load_movielens_small", lambda: data)
    monkeypatch.setattr(demo_reasonrec, "SETTINGS", tmp_path / "settings.json")
    monkeypatch.setattr(demo_reasonrec, "MOVIELENS_CHAINS", tmp_path / "chains")
    answers = demo_reasonrec.run_reasonrec_demo(users=2, k=3, say=lambda line: None)
    held_out = {data.user_ids[data.users[row]]: data.catalog.titles[data.items[row]] for row in split.test}
    assert [answer.user for answer in answers] != sorted(held_out)[:2] and len(answers) == 2
    for answer in answers:
        assert answer.next_film in (held_out[answer.user], "a film without a title")
        assert answer.next_film not in answer.liked and len(answer.films) == len(answer.reasons) == 3
        assert not set(answer.films) & set(answer.liked)
        assert answer.answered_by == "stack" and 0 <= answer.confidence <= 1 and answer.chain
    said = []
    monkeypatch.setattr(demo_reasonrec, "MOVIELENS_CHAINS", tmp_path / "nothing")
    without = demo_reasonrec.run_reasonrec_demo(users=2, k=3, say=said.append)
    assert [replace(answer, chain="", chain_film=None) for answer in answers] == without
    assert "adapters are not in this checkout" in said[-1]
    for wrong in ({"users": -1}, {"k": -1}, {"users": 2.5}):
        with pytest.raises(ValueError, match="expected a whole number of at least 0"):
            demo_reasonrec.run_reasonrec_demo(**wrong)
