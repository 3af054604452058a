"""The stack: its fold plan, what its features may know, its tools, and what it keeps."""

from __future__ import annotations

import copy
import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from saved_models import forget_digests
from walks import walks as random_walks

from reasonrec_fast.data import Catalog, DataError, Histories, Interactions, split_by_time
from reasonrec_fast.experiments.config import EvaluationConfig
from reasonrec_fast.experiments.held_out import metrics_on_test
from reasonrec_fast.models.base import CatalogRecommender
from reasonrec_fast.models.classical import Stack, StackConfig, load_recommender
from reasonrec_fast.models.classical.stack_candidates import Groups
from reasonrec_fast.models.classical.stack_folds import leave_last_out
from reasonrec_fast.models.classical.stack_tools import Answer, Turn
from reasonrec_fast.models.classical.stack_trees import Examples, Growth, fit_trees, softmax_of_groups

USERS, ITEMS = 60, 24
CONFIG = StackConfig(
    tools=("DirectedItemKNN", "ItemKNN", "AttributeKNN"), candidates=6, depth=10, trees=20, min_leaf=5, leaves=7
)


@pytest.fixture(scope="module")
def walks():
    """Users who mostly walk on to the next item; items have a kind, by which the walks sometimes jump."""
    users, numbers = random_walks(np.random.default_rng(0), USERS, ITEMS, (5, 10))
    items = [f"i{number}" for number in numbers]
    kinds = {f"i{item}": (f"k{item % 4}", "all") for item in range(ITEMS - 2)}
    return Interactions.from_columns(
        users, items, [1] * len(users), range(len(users)), attributes={"kind": kinds},
        extra_items=[f"i{item}" for item in range(ITEMS)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def split(walks):
    return split_by_time(walks, "leave_one_out")


@pytest.fixture(scope="module")
def stack(walks, split):
    return Stack(CONFIG).fit(walks, split.train, split.validation)


def renumbered(data, seed=1):
    """The same events with other numbers of items, and the new number of each."""
    new = np.random.default_rng(seed).permutation(data.num_items)
    order = np.argsort(new)
    catalog = Catalog(
        [data.catalog.ids[old] for old in order],
        [data.catalog.titles[old] for old in order],
        {name: [column[old] for old in order] for name, column in data.catalog.attributes.items()},
    )
    return replace(data, items=new[data.items], catalog=catalog), new


def test_it_ranks_the_catalogue(stack, walks, split):
    assert isinstance(stack, CatalogRecommender)
    metrics = metrics_on_test(stack, walks, split, EvaluationConfig(ks=(3,)))
    assert metrics["hr@3"] > 0.5  # a guess among 24 items has 0.125 at most
    best = stack.recommend(["u0", "u1"], 3)
    assert all(item in walks.catalog.ids for item in best.items.ravel())


def test_item_numbers_decide_nothing(stack, walks, split):
    other, new = renumbered(walks)
    same = Stack(CONFIG).fit(other, split.train, split.validation)
    assert same.trees.num_trees == stack.trees.num_trees
    users = np.arange(USERS)
    for model in (same, stack):
        model.set_histories_from(walks if model is stack else other, split.train)
    ours, theirs = stack.rank(users, 6), same.rank(users, 6)
    np.testing.assert_array_equal(theirs.items, np.where(ours.items < 0, -1, new[ours.items]))
    np.testing.assert_allclose(theirs.features, ours.features, atol=1e-3)
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=1e-6)
    settings = EvaluationConfig(ks=(3, 5))
    ours, theirs = (metrics_on_test(*args, split, settings) for args in ((stack, walks), (same, other)))
    overall = [name for name in ours if not name.endswith("-target")]  # whose strata divide equally popular items
    assert [theirs[name] for name in overall] == pytest.approx([ours[name] for name in overall])


class Recorder:
    """A tool that keeps the histories that it was asked about."""

    def __init__(self):
        self.histories = []

    def scores(self, histories):
        self.histories += [tuple(histories.of_user(user).tolist()) for user in range(histories.num_users)]
        return np.tile(np.arange(ITEMS, 0, -1.0), (histories.num_users, 1))


def test_tools_see_nothing_of_the_event_that_the_trees_learn(walks, split):
    plan = leave_last_out(walks, split.train)
    assert len(plan.targets) == USERS == len(split.train) - len(plan.earlier)
    assert (walks.timestamps[plan.targets] == [walks.timestamps[split.train][walks.users[split.train] == user].max()
                                               for user in walks.users[plan.targets]]).all()  # fmt: skip
    changed = walks.items.copy()
    changed[plan.targets] = (changed[plan.targets] + 7) % ITEMS
    blocks = []
    for data in (walks, replace(walks, items=changed)):
        recorder, seen = Recorder(), []
        model = Stack(replace(CONFIG, trees=2)).add_tool("recorder", recorder)
        collect = model._groups

        def groups(box, data, rows, *args, collect=collect, seen=seen, **more):
            if not seen:  # the first call is about the trees' examples
                users = data.users[rows]
                views = box.views(users, args[0].select(users))
                items = box.candidates(views)
                seen.extend([users, items, box.features(items, views)])
            return collect(box, data, rows, *args, **more)

        model._groups = groups
        model.fit(data, split.train)
        blocks.append(seen)
    for one, other in zip(*blocks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_validation_is_not_learnt_but_stops_and_calibrates(walks, split, stack):
    without = Stack(CONFIG).fit(walks, split.train)
    assert without.trees.num_trees == CONFIG.trees >= stack.trees.num_trees
    assert without.calibration.slope == 0 and stack.calibration != without.calibration
    ranking = stack.set_histories_from(walks, split.train).rank(np.arange(USERS), 5)
    assert (ranking.probabilities.sum(1) < 1).all() and (np.diff(ranking.logits, axis=1) <= 0).all()
    assert (ranking.entropy >= 0).all() and (ranking.candidates >= 5).all()


def test_logits_of_an_ensemble_are_means():
    generator = np.random.default_rng(0)
    sizes = np.full(40, 6)
    features = generator.random((240, 3)).astype(np.float32)
    labels = (features[:, 0] == np.repeat(features[:, 0].reshape(40, 6).max(1), 6)).astype(np.int64)
    examples = Examples.ordered(features, sizes, labels)
    growth = Growth(trees=20, patience=3, learning_rate=0.1, leaves=4, min_leaf=5, seed=0)
    members = [fit_trees(examples, examples, replace(growth, seed=seed), ["a", "b", "c"])[0] for seed in (0, 1, 2)]
    assert not np.array_equal(members[0].predict(features), members[1].predict(features))
    whole, loss = fit_trees(examples, examples, replace(growth, ensemble_size=3), ["a", "b", "c"])
    assert whole.num_trees == sum(member.num_trees for member in members)
    mean = np.mean([member.predict(examples.features) for member in members], axis=0)
    np.testing.assert_allclose(whole.predict(examples.features), mean, atol=1e-12)
    shares = softmax_of_groups(mean, sizes)
    assert loss == pytest.approx(-np.log(shares[examples.labels == 1]).mean())


def test_groups_keep_what_is_learnt_from_and_what_is_calibrated_on():
    """User 5 has no candidates; of the others 0, 2 and 4 are every second; those of 0, 1, 4 and 6 are hits."""
    items = np.array([[0, 1], [2, 3], [4, -1], [5, 6], [1, 2], [-1, -1], [3, -1]])
    features = np.arange(14, dtype=np.float32).reshape(7, 2, 1)
    targets = np.array([1, 2, 9, 9, 2, 9, 3])
    groups = Groups(every=2)
    for rows in (slice(0, 3), slice(3, 7)):
        groups.add(items[rows], features[rows], targets[rows])
    examples = groups.examples()
    assert examples.sizes.tolist() == [2, 2, 2, 1]
    assert sorted(examples.features[examples.labels == 1, 0].tolist()) == [1.0, 2.0, 9.0, 12.0]
    assert sorted(examples.features[:, 0].tolist()) == [0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 12.0]
    trees = SimpleNamespace(predict=lambda rows: rows[:, 0].astype(np.float64))
    logits, columns = groups.logits(trees)
    assert logits.tolist() == [[0.0, 1.0], [4.0, -np.inf], [8.0, 9.0]] and columns.tolist() == [1, -1, 1]


def test_order_of_examples_depends_on_no_position():
    """Equal candidates would be in the order of the items if sums depended, in their last bits, on where rows stand."""
    row = np.random.default_rng(0).random(23).astype(np.float32)
    examples = Examples.ordered(np.tile(row, (1003, 1)), np.array([1003]), np.eye(1003, dtype=np.int64)[0])
    assert examples.labels.argmax() == 1002


def test_saved_and_loaded_it_answers_the_same(stack, walks, tmp_path):
    stack.save_pretrained(tmp_path / "stack")
    loaded = load_recommender(tmp_path / "stack")
    users = np.arange(USERS)
    for ours, theirs in zip(stack.rank(users, 5), loaded.rank(users, 5), strict=True):
        assert (ours == theirs) if isinstance(ours, dict) else np.array_equal(ours, theirs, equal_nan=True)
    np.testing.assert_array_equal(loaded.score(users, users % ITEMS), stack.score(users, users % ITEMS))
    (tmp_path / "stack" / "trees.txt").write_text("another")
    with pytest.raises(ValueError, match="trees.txt: expected the file that was saved with the model"):
        load_recommender(tmp_path / "stack")


def test_a_name_leads_out_of_no_folder(stack, tmp_path):
    """The name of a tool is the name of its folder."""
    stack.save_pretrained(tmp_path / "stack")
    stack.save_pretrained(tmp_path / "other")
    file = tmp_path / "stack" / "stack.json"
    stored = json.loads(file.read_text())
    tool = next(entry for entry in stored["tools"] if "spec" in entry)
    tool["spec"]["name"] = f"../../other/tools/{tool['name']}"
    file.write_text(json.dumps(stored))
    forget_digests(tmp_path / "stack")
    with pytest.raises(ValueError, match=r"name: expected letters, digits, - and _; got '\.\./\.\./other"):
        load_recommender(tmp_path / "stack")


def test_scores_of_pairs_are_those_of_the_ranking(stack):
    users = np.arange(USERS)
    best = stack.recommend(users, 4)
    pairs = stack.score(np.repeat(users, 4), np.where(best.items < 0, 0, best.items).ravel()).reshape(best.items.shape)
    np.testing.assert_allclose(pairs[best.items >= 0], best.scores[best.items >= 0], atol=1e-5)
    alone = [stack.recommend(users[[user]], 4).items[0] for user in (0, 7, 59)]
    np.testing.assert_array_equal(alone, best.items[[0, 7, 59]])  # whatever the others in the block
    assert stack.scores(users[:3]).shape == (3, ITEMS)


def following(histories):
    """The item after the last."""
    scores = np.zeros((histories.num_users, ITEMS))
    for user in range(histories.num_users):
        if len(histories.of_user(user)):
            scores[user, (histories.of_user(user)[-1] + 1) % ITEMS] = 1
    return scores


def test_a_function_is_a_tool(walks, split, tmp_path):
    model = Stack(replace(CONFIG, tools=("Popularity",), trees=5)).add_tool("following", following)
    model.fit(walks, split.train, split.validation)
    assert "following:score" in model.feature_names
    model.save_pretrained(tmp_path / "stack")
    loaded = Stack.from_pretrained(tmp_path / "stack")
    assert "give it to add_tool" in loaded.rank([0], 3).left_out["following"]
    np.testing.assert_array_equal(
        loaded.add_tool("following", following).rank([0], 3).logits, model.rank([0], 3).logits
    )
    with pytest.raises(ValueError, match="expected one of the functions of the fit"):
        loaded.add_tool("another", following)
    with pytest.raises(ValueError, match="expected one that no other tool has"):
        Stack(CONFIG).add_tool("ItemKNN", following)
    with pytest.raises(TypeError, match="expected a function or an object with scores"):
        Stack(CONFIG).add_tool("number", 3)


def test_a_tool_that_fails_is_refused_by_fit_and_left_out_later(walks, split):
    fails = False

    def fragile(histories):
        if fails:
            raise RuntimeError("no connection")
        return following(histories)

    with pytest.raises(DataError, match=r"scores from short; got DataError: expected scores \[2, 24\]"):
        Stack(CONFIG).add_tool("short", lambda histories: np.zeros((histories.num_users, 3))).fit(walks)
    model = Stack(replace(CONFIG, trees=5)).add_tool("fragile", fragile).fit(walks, split.train, split.validation)
    whole = model.rank(np.arange(3), 4)
    fails = True
    partial = model.rank(np.arange(3), 4)
    assert whole.left_out == {} and partial.left_out == {"fragile": "RuntimeError: no connection"}
    column = model.feature_names.index("fragile:score")
    assert np.isnan(partial.features[:, :, column]).all() and np.isfinite(partial.logits).all()
    with pytest.raises(DataError, match="expected scores from fragile; got RuntimeError"):
        Stack(CONFIG).add_tool("fragile", fragile).fit(walks, split.train)


def test_a_slow_tool_is_left_out(walks, split):
    pause = 0.0

    def slow(histories):
        time.sleep(pause)
        return following(histories)

    config = replace(CONFIG, tools=("Popularity",), trees=2, tool_seconds=0.2)
    model = Stack(config).add_tool("slow", slow).fit(walks, split.train)
    assert model.rank([0], 2).left_out == {}
    pause = 1.0
    assert model.rank([0], 2).left_out == {"slow": "no answer within 0.2 s"}
    assert model.rank([0], 2).left_out == {"slow": "its previous call has not ended"}


def asked(turn, call, seconds, after=0.0):
    """A thread that takes a turn, and a list that gets its answer and how long it took."""
    results = []

    def ask():
        time.sleep(after)
        begin = time.perf_counter()
        results.append((turn.take(call, seconds).reason, time.perf_counter() - begin))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, results


def test_callers_of_a_tool_take_turns():
    turn, running = Turn(), []

    def call():
        assert not running  # one at a time
        running.append(1)
        time.sleep(0.1)
        running.clear()
        return Answer([])

    threads, results = zip(*[asked(turn, call, 5.0) for _ in range(3)], strict=True)
    for thread in threads:
        thread.join()
    assert [result[0][0] for result in results] == [""] * 3
    assert max(result[0][1] for result in results) > 0.25  # the last one waited for two others
    assert copy.deepcopy(turn).take(lambda: Answer([], "own"), 1.0).reason == "own"


def test_a_tool_that_never_answers_costs_later_callers_no_more_than_its_time():
    turn, ends = Turn(), threading.Event()

    def never():
        ends.wait()
        return Answer([])

    first = asked(turn, never, 0.6)
    second = asked(turn, lambda: Answer([]), 0.1, after=0.2)
    third = asked(turn, lambda: Answer([]), 60.0, after=0.2)
    for thread, _ in (first, second, third):
        thread.join()
    assert first[1][0][0] == "no answer within 0.6 s"
    assert second[1][0][0] == third[1][0][0] == "its previous call has not ended"
    assert second[1][0][1] < third[1][0][1] < 30  # it waits no longer than until the first is known to be late
    begin = time.perf_counter()
    assert turn.take(lambda: Answer([]), 60.0).reason == "its previous call has not ended"
    assert time.perf_counter() - begin < 30  # and later callers do not wait
    ends.set()
    until = time.perf_counter() + 5
    while turn.take(lambda: Answer([]), 1.0).reason and time.perf_counter() < until:
        time.sleep(0.01)
    assert turn.take(lambda: Answer([]), 1.0).reason == ""


def test_few_candidates_new_users_and_no_history(stack, walks, split):
    histories = Histories.from_lists([*[[0, 1]] * USERS, [], list(range(ITEMS - 2))])
    stack.set_histories(histories)
    ranking = stack.rank([0, USERS, USERS + 1], 5)
    assert (ranking.items[1] >= 0).all()  # without a history the popular items
    assert ranking.items[2].tolist()[2:] == [-1, -1, -1] and set(ranking.items[2][:2]) == {ITEMS - 2, ITEMS - 1}
    assert (ranking.logits[2][2:] == -np.inf).all() and (ranking.probabilities[2][2:] == 0).all()
    assert np.isnan(ranking.features[2][2:]).all()
    assert stack.rank([0], 0).items.shape == (1, 0) and stack.rank([], 3).items.shape == (0, 3)
    with pytest.raises(DataError, match="users: expected indices"):
        stack.rank([USERS + 2], 3)
    with pytest.raises(DataError, match="items"):
        stack.score(["u0"], ["an item of another shop"])
    stack.set_histories_from(walks, split.train)


def test_what_the_data_cannot_carry_is_left_out_unless_it_is_named(walks, split, caplog):
    plain = replace(walks, catalog=Catalog(walks.catalog.ids, walks.catalog.ids))
    with pytest.raises(DataError, match="tools: AttributeKNN: catalog: expected items with attributes"):
        Stack(CONFIG).fit(plain, split.train)
    names = {spec.name: reason for spec, reason in Stack()._carried(plain, split.train)}
    assert "attributes" in names["AttributeKNN"] and names["EASE"] == ""
    for tools, message in (
        (("ItemKNN", "ItemKNN"), "expected different names"),
        (("Stack",), "expected one of"),
        (({"kind": "ItemKNN", "neighbors": 3},), "neighbors"),
        (({"kind": "ItemKNN", "refit": 1},), "refit: expected true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            StackConfig(tools=tools)
    with pytest.raises(DataError, match="at least two positive events"):
        Stack(CONFIG).fit(Interactions.from_columns(["a", "b"], ["x", "y"], [1, 1], [1, 2]))


def test_a_fit_that_was_killed_goes_on(walks, split, tmp_path):
    class Killed(Exception):
        pass

    def progress(done, total, metrics, part=""):
        if part == "BPR" and done == 2:
            raise Killed

    config = replace(CONFIG, tools=("ItemKNN", {"kind": "BPR", "dim": 4, "epochs": 3}), trees=3)
    with pytest.raises(Killed):
        Stack(config).fit(walks, split.train, split.validation, checkpoint=tmp_path / "state", progress=progress)
    kept = tmp_path / "state.tools"
    assert (kept / "ItemKNN-earlier" / "config.json").is_file()
    other = replace(config, tools=({"kind": "ItemKNN", "neighbours": 3},))
    with pytest.raises(ValueError, match="it is of another run"):
        Stack(other).fit(walks, split.train, split.validation, checkpoint=tmp_path / "state")
    resumed = Stack(config).fit(walks, split.train, split.validation, checkpoint=tmp_path / "state")
    assert not kept.exists()
    whole = Stack(config).fit(walks, split.train, split.validation)
    np.testing.assert_array_equal(resumed.rank(np.arange(9), 4).logits, whole.rank(np.arange(9), 4).logits)


def test_the_default_trees_grow_on_a_small_shop(walks, split):
    """A leaf of 200 candidates would be more than there are."""
    data = walks.take(np.flatnonzero(walks.users < 12))
    stack = Stack(StackConfig(tools=("ItemKNN", "Popularity"), trees=5)).fit(data)
    assert stack.trees.num_trees == 5
