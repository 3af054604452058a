"""RecBole's models as ours, where RecBole is installed."""

import importlib.util
import pickle

import numpy as np
import pytest

from reasonrec_fast.data import Histories, Interactions, split_by_time
from reasonrec_fast.evaluation import auc
from reasonrec_fast.models.classical.recbole import RecBole, RecBoleConfig, _next_items

installed = pytest.mark.skipif(importlib.util.find_spec("recbole") is None, reason="needs the extra recbole")


@pytest.fixture(scope="module")
def cycles():
    lists = [[(start + step) % 20 for step in range(10)] for start in np.random.default_rng(0).integers(0, 20, 60)]
    return Interactions.from_columns(
        [str(u) for u, items in enumerate(lists) for _ in items],
        [str(i) for items in lists for i in items],
        [1] * 600,
        [index for items in lists for index in range(len(items))],
    )


def test_without_recbole_one_line_says_so():
    if importlib.util.find_spec("recbole") is not None:
        pytest.skip("RecBole is installed")
    with pytest.raises(ModuleNotFoundError, match="RecBole: expected RecBole and what it needs, in the extra recbole"):
        RecBole()


def test_lines_hold_what_came_before(cycles):
    lines = _next_items(cycles, np.arange(len(cycles)), 2)
    assert len(lines) == 60 * 9
    user, before, target = lines[2].split("\t")
    history = Histories.of(cycles, np.arange(len(cycles))).of_user(int(user))
    assert before == " ".join(map(str, history[1:3])) and int(target) == history[3]


@installed
def test_light_sans_learns_what_comes_next(cycles, tmp_path):
    parts = split_by_time(cycles, "leave_one_out")
    settings = {"hidden_size": 16, "train_batch_size": 64, "learning_rate": 0.01, "MAX_ITEM_LIST_LENGTH": 6}
    reports = []
    model = RecBole(RecBoleConfig(model="LightSANs", settings=settings, epochs=15)).fit(
        cycles, parts.train, parts.validation, progress=lambda *report: reports.append(report)
    )
    assert reports[0][:2] == (1, 15) and "validation" in reports[0][2]
    model.set_histories(Histories.of(cycles, np.sort(np.concatenate([parts.train, parts.validation]))))
    result = model.recommend(cycles.users[parts.test], 1)
    assert (result.items[:, 0] == cycles.items[parts.test]).mean() > 0.8
    model.save_pretrained(tmp_path)
    loaded = RecBole.from_pretrained(tmp_path)
    assert np.array_equal(loaded.recommend(cycles.users[parts.test], 1).items, result.items)
    new = loaded.set_histories(Histories.from_lists([*[[]] * 70, [3, 4, 5]])).recommend(np.array([70, 3]), 3)
    assert not {3, 4, 5} & set(new.items[0].tolist()) and not new.scores[1].any()


@installed
def test_xdeepfm_learns_who_likes_what():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 40, 3000), generator.integers(0, 30, 3000)
    likes = (users % 2 == items % 2) ^ (generator.random(3000) < 0.05)
    data = Interactions.from_columns(
        [str(u) for u in users], [str(i) for i in items], likes.astype(int).tolist(), range(3000),
        attributes={"kind": {str(i): (f"k{i % 2}", "all of them") for i in range(30)}},
    )  # fmt: skip
    parts = split_by_time(data, "global_time")
    settings = {"mlp_hidden_size": [16], "cin_layer_size": [8], "train_batch_size": 256, "learning_rate": 0.01}
    model = RecBole(RecBoleConfig(model="xDeepFM", settings=settings, epochs=12)).fit(
        data, parts.train, parts.validation
    )
    assert auc(data.labels[parts.test], model.score(data.users[parts.test], data.items[parts.test])) > 0.85
    assert model.scores(np.array([0, 1])).shape == (2, data.num_items)


@installed
def test_models_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="model: expected a general, sequential or context-aware one; got 'KGAT'"):
        RecBole(RecBoleConfig(model="KGAT"))
    with pytest.raises(ValueError, match="model: expected the name of a RecBole model; got 'Nothing'"):
        RecBole(RecBoleConfig(model="Nothing"))


class _Touch:
    """Unpickling one writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@installed
@pytest.mark.parametrize("name", ["dataset_save_path", "dataloaders_save_path"])
def test_a_setting_makes_recbole_unpickle_nothing(cycles, tmp_path, name):
    """A configuration may come from the hub, and RecBole unpickles what these of its settings name."""
    stored, touched = tmp_path / "stored.pth", tmp_path / "touched"
    stored.write_bytes(pickle.dumps(_Touch(touched)))
    parts = split_by_time(cycles, "leave_one_out")
    settings = {"hidden_size": 8, "train_batch_size": 64, "MAX_ITEM_LIST_LENGTH": 6, name: str(stored)}
    RecBole(RecBoleConfig(model="LightSANs", settings=settings, epochs=1)).fit(cycles, parts.train)
    assert not touched.exists()
