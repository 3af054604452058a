"""The cheap tools of a stack, each against a plain implementation of its definition."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from word_encoder import WordEncoder

from reasonrec_fast.data import DataError, Histories, Interactions
from reasonrec_fast.models import item_texts
from reasonrec_fast.models.classical import (
    SVD,
    AttributeKNN,
    AttributeKNNConfig,
    BSARec,
    BSARecConfig,
    DirectedItemKNN,
    DirectedItemKNNConfig,
    HybridKNN,
    HybridKNNConfig,
    ItemKNN,
    SASRec,
    SASRecConfig,
    SVDConfig,
    TextKNN,
    TextKNNConfig,
    TextTower,
    TextTowerConfig,
    load_recommender,
)
from reasonrec_fast.models.classical.sampled_softmax import binary_cross_entropy, item_cross_entropy

ITEMS = 15
SMALL = {"dim": 16, "layers": 1, "heads": 2, "epochs": 20, "warmup": 0, "max_length": 8, "dropout": 0.0, "batch": 16,
         "learning_rate": 0.01, "precision": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def walks() -> Interactions:
    """40 users who walk over 15 items, mostly to the next one, with repetitions; attributes and titles for some."""
    generator = np.random.default_rng(0)
    users, items, times = [], [], []
    for user in range(40):
        item = int(generator.integers(ITEMS))
        for step in range(int(generator.integers(1, 9))):
            users.append(f"u{user}")
            items.append(f"i{item}")
            times.append(step)
            item = (item + 1) % ITEMS if generator.random() < 0.7 else int(generator.integers(ITEMS))
    return Interactions.from_columns(
        users, items, [1] * len(users), times,
        titles={f"i{item}": f"{('red', 'blue')[item % 2]} thing {item // 4}" for item in range(ITEMS - 2)},
        attributes={"kind": {f"i{item}": (f"k{item % 3}", f"m{item % 2}") for item in range(ITEMS - 2)}},
    )  # fmt: skip


@pytest.fixture
def encoder(monkeypatch) -> None:
    monkeypatch.setattr(item_texts, "TextEncoder", WordEncoder)


def decayed(data: Interactions, decay: float) -> np.ndarray:
    """Weights of each user's items, ``[U, I]``."""
    liked, weights = Histories.of(data, np.arange(len(data))), np.zeros((data.num_users, data.num_items))
    for user in range(data.num_users):
        for age, item in enumerate(liked.of_user(user)[::-1]):
            weights[user, item] += decay**age
    return weights


@pytest.mark.parametrize(("window", "shrinkage", "decay"), [(50, 10.0, 0.75), (2, 0.0, 1.0), (1, 3.0, 0.0)])
def test_directed_item_knn_is_its_definition(walks, window, shrinkage, decay):
    liked = Histories.of(walks, np.arange(len(walks)))
    pairs, counts = np.zeros((walks.num_items, walks.num_items)), np.bincount(liked.items)
    for user in range(liked.num_users):
        row = liked.of_user(user)
        for later in range(len(row)):
            for earlier in range(max(later - window, 0), later):
                if row[earlier] != row[later]:
                    pairs[row[earlier], row[later]] += 1 / (later - earlier)
    similarity = pairs / (np.sqrt(counts[:, None] * counts) + shrinkage)
    expected = np.zeros((liked.num_users, walks.num_items))
    for user in range(liked.num_users):
        for age, item in enumerate(liked.of_user(user)[::-1]):
            expected[user] += decay**age * similarity[item]
    model = DirectedItemKNN(DirectedItemKNNConfig(window=window, shrinkage=shrinkage, decay=decay)).fit(walks)
    np.testing.assert_allclose(model.scores(np.arange(liked.num_users)).numpy(), expected, rtol=1e-6)
    assert not model.set_histories(Histories.from_lists([[]])).scores(np.zeros(1, int)).any()


def test_directed_item_knn_needs_a_pair():
    data = Interactions.from_columns(["a", "b"], ["x", "y"], [1, 1], [1, 2])
    with pytest.raises(DataError, match="train: expected a user with at least two positive events, a pair in order"):
        DirectedItemKNN().fit(data)
    with pytest.raises(ValueError, match=r"decay: expected a finite number in \[0, 1\]; got 1.5"):
        DirectedItemKNNConfig(decay=1.5)


@pytest.mark.parametrize("decay", [0.75, 1.0, 0.0])
def test_attributes_are_compared_by_tf_idf(walks, decay):
    rows = [{value for column in walks.catalog.attributes.values() for value in column[i]} for i in range(ITEMS)]
    values = sorted(set().union(*rows))
    vectors = np.array([[float(value in row) for value in values] for row in rows])
    vectors *= np.log(ITEMS / vectors.sum(0))
    described = vectors.any(1)
    vectors[described] /= np.linalg.norm(vectors[described], axis=1, keepdims=True)
    scores = decayed(walks, decay) @ vectors @ vectors.T
    expected = np.where(described, scores - scores[:, described].mean(1, keepdims=True), 0)
    model = AttributeKNN(AttributeKNNConfig(decay=decay)).fit(walks)
    np.testing.assert_allclose(model.scores(np.arange(walks.num_users)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("attributes", [False, True])
def test_titles_are_compared_by_their_embeddings(walks, encoder, attributes):
    catalog, untitled = walks.catalog, [item for item in range(ITEMS) if not walks.catalog.has_title(item)]
    texts = [f"{title}. {', '.join(kind)}" if attributes else title
             for title, kind in zip(catalog.titles, catalog.attributes["kind"], strict=True)]  # fmt: skip
    titled = np.setdiff1d(np.arange(ITEMS), untitled)
    vectors = np.zeros((ITEMS, item_texts.WIDTH))
    vectors[titled] = WordEncoder().encode([texts[item] for item in titled]).numpy()
    vectors[titled] -= vectors[titled].mean(0)
    vectors[titled] /= np.linalg.norm(vectors[titled], axis=1, keepdims=True)
    weights = decayed(walks, 0.75)
    expected = weights / weights.sum(1, keepdims=True) @ vectors @ vectors.T
    model = TextKNN(TextKNNConfig(decay=0.75, attributes=attributes)).fit(walks)
    result = model.scores(np.arange(walks.num_users)).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert len(untitled) == 2 and not result[:, untitled].any()


def test_svd_is_the_low_pass_filter_of_the_graph(walks):
    liked = decayed(walks, 1.0) > 0
    users, items = np.sqrt(liked.sum(1)), np.sqrt(liked.sum(0))
    vectors = np.linalg.svd(liked / users[:, None] / items)[2][:5].T
    weights = decayed(walks, 0.75)
    expected = weights / weights.sum(1, keepdims=True) / items @ vectors @ vectors.T * items
    result = SVD(SVDConfig(dim=5)).fit(walks).scores(np.arange(walks.num_users)).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(AttributeKNN, "items with attributes"), (TextKNN, "items with titles"), (TextTower, "items with titles")],
)
def test_a_catalogue_that_says_nothing_is_refused(kind, expected):
    data = Interactions.from_columns(["a", "a"], ["x", "y"], [1, 1], [1, 2])
    with pytest.raises(DataError, match=f"catalog: expected {expected}; got none in 2 items"):
        kind().fit(data)


SEQUENTIAL = {
    "bias": lambda: SASRec(SASRecConfig(**SMALL, item_bias=True)),
    "softmax": lambda: SASRec(SASRecConfig(**SMALL, loss="softmax", item_bias=True)),
    "sampled": lambda: SASRec(SASRecConfig(**SMALL, loss="softmax", negatives=5, item_bias=True)),
    "bce": lambda: SASRec(SASRecConfig(**SMALL, loss="bce", negatives=3)),
    "bsarec": lambda: BSARec(BSARecConfig(**SMALL)),
    "tower": lambda: TextTower(TextTowerConfig(**SMALL, hidden=16)),
}


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_sequential_models_learn_the_next_item_and_are_the_same_again(walks, encoder, kind, tmp_path):
    model = SEQUENTIAL[kind]().fit(walks)
    titled = [item for item in range(ITEMS) if walks.catalog.has_title(item)]
    following = {int(name[1:]): item for item, name in enumerate(walks.catalog.ids)}
    model.set_histories(Histories.from_lists([[item] for item in titled]))
    users = np.arange(len(titled))
    best = model.recommend(users, 4).items
    hits = [
        following[(int(walks.catalog.ids[item][1:]) + 1) % ITEMS] in row for item, row in zip(titled, best, strict=True)
    ]
    assert np.mean(hits) > 0.6
    np.testing.assert_allclose(
        model.scores(users).detach().numpy().ravel(),
        model.score(np.repeat(users, ITEMS), np.tile(np.arange(ITEMS), len(users))), atol=1e-5,
    )  # fmt: skip
    again = SEQUENTIAL[kind]().fit(walks).set_histories(model.histories)
    assert np.array_equal(again.recommend(users, 4).scores, model.recommend(users, 4).scores)
    model.save_pretrained(tmp_path)
    assert np.array_equal(load_recommender(tmp_path).recommend(users, 4).scores, model.recommend(users, 4).scores)


def test_a_bias_is_learned_and_is_what_users_without_a_history_see(walks):
    model = SASRec(SASRecConfig(**SMALL, item_bias=True)).fit(walks)
    assert model.bias.abs().max() > 0.01
    scores = model.set_histories(Histories.from_lists([[]])).scores(np.zeros(1, int))
    torch.testing.assert_close(scores[0], model.bias)


@pytest.mark.parametrize("kind", ["bias", "bce", "bsarec", "tower"])
def test_a_stopped_training_goes_on_to_the_same_model(walks, encoder, kind, tmp_path):
    whole = SEQUENTIAL[kind]().fit(walks)

    def stop(part, epoch, *report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SEQUENTIAL[kind]().fit(walks, checkpoint=tmp_path / "state", progress=stop)
    resumed = SEQUENTIAL[kind]().fit(walks, checkpoint=tmp_path / "state")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_no_position_reads_a_later_item(walks):
    model = BSARec(BSARecConfig(**{**SMALL, "epochs": 0})).fit(walks).eval()
    items = torch.randint(ITEMS, (3, 6), generator=torch.Generator().manual_seed(0))
    changed = items.clone()
    changed[:, 4:] = (items[:, 4:] + 1) % ITEMS
    torch.testing.assert_close(model(changed)[:, :4], model(items)[:, :4])
    assert not torch.allclose(model(changed)[:, 4:], model(items)[:, 4:], atol=1e-3)


def test_losses_are_their_definitions():
    generator = torch.Generator().manual_seed(0)
    states, items, bias = (torch.randn(*size, generator=generator) for size in ((30, 8), (12, 8), (12,)))
    targets = torch.randint(12, (30,), generator=generator)
    logits = states @ items.T + bias
    expected = torch.nn.functional.cross_entropy(logits, targets)
    whole = item_cross_entropy(states, items, targets, cosine=False, bias=bias)
    shares = torch.bincount(targets, minlength=12) / 30
    sampled = item_cross_entropy(states, items, targets, cosine=False, bias=bias, negatives=2000, shares=shares)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=1e-4)
    binary = binary_cross_entropy(states, items, targets, bias=bias, negatives=20_000)
    others = torch.ones(30, 12).scatter(1, targets[:, None], 0)
    against = (torch.nn.functional.softplus(logits) * others).sum(1) / 11
    positive = torch.nn.functional.softplus(-logits.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(binary, (positive + against).mean(), atol=0.01, rtol=0.01)


def test_binary_cross_entropy_needs_negatives():
    with pytest.raises(ValueError, match="negatives: expected at least 1 with loss 'bce'; got 0"):
        SASRecConfig(loss="bce")


def test_a_hybrid_adds_the_scores_of_its_parts(walks, encoder, tmp_path):
    model = HybridKNN(HybridKNNConfig(directed=1.0, titles=0.5, attributes=0.25, items=2.0)).fit(walks)
    users = np.arange(walks.num_users)
    expected = np.zeros((walks.num_users, walks.num_items))
    parts = {DirectedItemKNN: 1.0, TextKNN: 0.5, AttributeKNN: 0.25, ItemKNN: 2.0}
    for kind, weight in parts.items():
        scores = kind().fit(walks).scores(users).double().numpy()
        expected += weight * scores / np.maximum(np.abs(scores).max(1, keepdims=True), 1e-30)
    np.testing.assert_allclose(model.scores(users).numpy(), expected, atol=1e-5)
    assert not model.scores(users).isnan().any()  # also of users with one item, whom no order says anything of
    model.save_pretrained(tmp_path / "model")
    loaded = load_recommender(tmp_path / "model")
    np.testing.assert_array_equal(loaded.scores(users), model.scores(users))
    later = Histories.from_lists([[3]] * walks.num_users)
    model.set_histories(later), loaded.set_histories(later)
    assert len(np.unique(model.scores(users), axis=0)) == 1
    np.testing.assert_array_equal(loaded.scores(users), model.scores(users))


def test_a_hybrid_says_which_part_cannot_read_the_data(walks):
    bare = Interactions.from_columns(["a", "a", "b"], ["x", "y", "x"], [1] * 3, range(3))
    with pytest.raises(DataError, match="titles: expected data that this part can read, or the weight 0; "):
        HybridKNN().fit(bare)
    model = HybridKNN(HybridKNNConfig(titles=0, attributes=0)).fit(bare)
    assert model.recommend(["b"], 1).items.tolist() == [["y"]]
    with pytest.raises(ValueError, match="expected a weight above 0; got 0 for all"):
        HybridKNNConfig(directed=0, titles=0, attributes=0, items=0)


def test_a_hybrid_of_two_trainings_is_refused(walks, encoder, tmp_path):
    config = HybridKNNConfig(titles=0, attributes=0)
    HybridKNN(config).fit(walks).save_pretrained(tmp_path / "one")
    HybridKNN(config).fit(walks, np.arange(len(walks) - 5)).save_pretrained(tmp_path / "other")
    shutil.rmtree(tmp_path / "one" / "items")
    shutil.copytree(tmp_path / "other" / "items", tmp_path / "one" / "items")
    with pytest.raises(ValueError, match=r"items/\S+: expected the file that was saved with the model"):
        load_recommender(tmp_path / "one")
    settings = json.loads((tmp_path / "one" / "config.json").read_text())
    del settings["files"]  # as versions before wrote it
    (tmp_path / "one" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="expected parts of the same training; got those of several"):
        load_recommender(tmp_path / "one")
