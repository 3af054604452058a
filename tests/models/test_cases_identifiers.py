"""Models identify users and items by the identifiers of their tables."""

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reasonrec_fast.data import DataError, Interactions, load_interactions
from reasonrec_fast.models.classical import (
    BPR,
    EASE,
    FM,
    Bias,
    BPRConfig,
    DCNv2,
    DCNv2Config,
    FMConfig,
    ItemKNN,
    LightGCN,
    LightGCNConfig,
    Popularity,
    SASRec,
    SASRecConfig,
)

MODELS = {
    "popularity": Popularity,
    "bias": Bias,
    "knn": ItemKNN,
    "ease": EASE,
    "bpr": lambda: BPR(BPRConfig(dim=8, epochs=2)),
    "lightgcn": lambda: LightGCN(LightGCNConfig(dim=8, epochs=2, layers=2)),
    "fm": lambda: FM(FMConfig(dim=4, epochs=2)),
    "dcn": lambda: DCNv2(DCNv2Config(dim=4, epochs=2)),
    "sasrec": lambda: SASRec(SASRecConfig(dim=8, epochs=2, layers=1, heads=1)),
}


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


def frame(seed=0, users=12, items=9, size=90):
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": [f"u-{number:05d}" for number in generator.integers(0, users, size)],
            "item": [f"sku/{number}" for number in generator.integers(0, items, size)],
            "timestamp": 1_600_000_000 + generator.permutation(size) * 60,
            "label": generator.integers(0, 2, size),
        }
    )


def shuffled(table, seed=1):
    return table.sample(frac=1.0, random_state=seed)


def test_answers_are_in_the_callers_identifiers(kind, tmp_path):
    table = frame()
    model = MODELS[kind]().fit(table)
    model.save_pretrained(tmp_path)
    data = load_interactions(table)
    for result in (model, type(model).from_pretrained(tmp_path)):
        by_index = result.recommend(np.arange(3), 4)
        by_name = result.recommend(list(data.user_ids[:3]), 4)
        assert np.array_equal(by_index.scores, by_name.scores)
        assert by_name.items.tolist() == [
            [None if item < 0 else data.catalog.ids[item] for item in row] for row in by_index.items
        ]
        seen = {(user, item) for user, item in zip(table["user"], table["item"], strict=True)}
        for user, row in zip(data.user_ids[:3], by_name.items, strict=True):
            assert not any((user, item) in seen for item in row)
        names = [data.user_ids[0], data.user_ids[2]], [data.catalog.ids[5], data.catalog.ids[0]]
        assert np.array_equal(result.score(*names), result.score([0, 2], [5, 0]))
        assert np.array_equal(result.score(pd.Series(names[0], index=[4, 4]), names[1]), result.score([0, 2], [5, 0]))


def test_a_table_in_another_order_is_matched(kind, tmp_path):
    table = frame()
    model = MODELS[kind]().fit(table)
    model.save_pretrained(tmp_path)
    names = sorted(set(table["user"]))
    before = model.recommend(names, 5)
    loaded = type(model).from_pretrained(tmp_path).set_histories_from_table(shuffled(table))
    after = loaded.recommend(names, 5)
    assert np.array_equal(before.items, after.items)
    assert np.allclose(before.scores, after.scores, atol=1e-6)


def test_new_users_are_served_by_their_history(kind):
    model = MODELS[kind]().fit(frame())
    new = pd.DataFrame({"user": ["new", "new"], "item": ["sku/1", "sku/2"], "timestamp": [5, 6], "label": [1, 1]})
    before = model.recommend(["u-00003"], 5)
    model.set_histories_from_table(new)
    assert np.array_equal(model.recommend(["u-00003"], 5).items, before.items)
    if kind == "bpr":
        with pytest.raises(DataError, match=r"users: expected indices in \[0, 12\); got 12 in row 0"):
            model.recommend(["new"], 5)
        return
    items = model.recommend(["new"], 9).items[0]
    assert not {"sku/1", "sku/2"} & set(items) and len([item for item in items if item]) == 7


def test_a_table_that_does_not_match_is_refused(kind, caplog):
    model = MODELS[kind]().fit(frame())
    with pytest.raises(DataError, match="data: expected items that the model knows; got 'B000'"):
        model.set_histories_from_table(
            pd.DataFrame({"user": ["u-00001"], "item": ["B000"], "timestamp": [1], "label": [1]})
        )
    with caplog.at_level(logging.WARNING, "reasonrec_fast"):
        model.set_histories_from_table(
            pd.DataFrame({"user": ["u-00001"] * 2, "item": ["B000", "sku/1"], "timestamp": [1, 2], "label": [1, 1]})
        )
    assert "1 of 2 events are of items that the model does not know" in caplog.text


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (["u-00001", "u-1"], "users: expected identifiers that the model knows; got 'u-1' in row 1"),
        (["u-00001", None], "users: expected identifiers that the model knows; got None in row 1"),
        ("u-00001", "expected several, in a list; got 'u-00001'"),
    ],
)
def test_unknown_users_are_refused(users, message):
    with pytest.raises(DataError, match=message):
        Popularity().fit(frame()).recommend(users, 3)


def test_a_model_without_identifiers_says_so(tmp_path):
    Popularity().fit(frame()).save_pretrained(tmp_path)
    (tmp_path / "identifiers.json").unlink()
    model = Popularity.from_pretrained(tmp_path)
    assert model.recommend([0], 1).items.shape == (1, 1)
    with pytest.raises(DataError, match="keeps no identifiers"):
        model.recommend(["u-00001"], 1)


def test_a_checkpoint_of_other_labels_is_refused(tmp_path):
    table, checkpoint = frame(), tmp_path / "state.safetensors"
    data = load_interactions(table)
    rows = np.arange(len(data))
    stopped = FM(FMConfig(dim=4, epochs=3))

    def stop(epoch, epochs, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.fit(data, rows, checkpoint=checkpoint, progress=stop)
    assert checkpoint.is_file()
    other = load_interactions(table.assign(label=1 - table["label"]))
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        FM(FMConfig(dim=4, epochs=3)).fit(other, rows, checkpoint=checkpoint)
    FM(FMConfig(dim=4, epochs=3)).fit(data, rows, checkpoint=checkpoint)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.text(min_size=1, max_size=3), st.text(min_size=1, max_size=3)), min_size=2, max_size=20),
    seed=st.integers(0, 9),
)
def test_any_model_of_any_table_recommends_the_same_after_it_is_shuffled(tmp_path, rows, seed):
    rows = [(user.encode("utf-8", "replace").decode(), item.encode("utf-8", "replace").decode()) for user, item in rows]
    table = pd.DataFrame(rows, columns=["user", "item"]).assign(timestamp=range(len(rows)), label=1)
    names = sorted(set(table["user"]))
    for kind in (Popularity, ItemKNN, EASE):
        model = kind().fit(table)
        model.save_pretrained(tmp_path)
        result = kind.from_pretrained(tmp_path).set_histories_from_table(shuffled(table, seed)).recommend(names, 3)
        assert np.array_equal(result.items, model.recommend(names, 3).items)


def test_integers_stay_indices():
    data = Interactions.from_columns([30, 10, 10], [7, 7, 9], [1, 1, 1], [1, 2, 3])
    model = Popularity().fit(data)
    assert model.recommend([0], 1).items.tolist() == [[1]]  # 30, who has had 7, is the first
    assert model.recommend(["30"], 1).items.tolist() == [["9"]]
