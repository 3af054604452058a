"""SASRec, BPR and LightGCN: what they learn, what they keep, and what they leave out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonrec_fast.data import DataError, Histories, Interactions, split_by_time
from reasonrec_fast.models.classical import BPR, BPRConfig, LightGCN, LightGCNConfig, SASRec, SASRecConfig
from reasonrec_fast.models.classical.sampled_softmax import item_cross_entropy

SASREC = SASRecConfig(
    dim=16, layers=1, heads=2, dropout=0.1, epochs=12, patience=12, batch=16, learning_rate=0.01, warmup=0, max_length=8
)
LIGHTGCN = LightGCNConfig(dim=16, layers=2, epochs=30, patience=30, batch=256, learning_rate=0.02)


@pytest.fixture(scope="module")
def cycles():
    """Every user walks round a circle of 20 items, from anywhere: the next item follows from the last one alone."""
    lists = [[(start + step) % 20 for step in range(10)] for start in np.random.default_rng(0).integers(0, 20, 60)]
    return Interactions.from_columns(
        [str(u) for u, items in enumerate(lists) for _ in items],
        [str(i) for items in lists for i in items],
        [1] * 600,
        [index for items in lists for index in range(len(items))],
    )


@pytest.fixture(scope="module")
def groups():
    """Two kinds of users who have two kinds of items."""
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 40, 900), generator.integers(0, 30, 900)
    items = items - items % 2 + users % 2
    return Interactions.from_columns([str(u) for u in users], [str(i) for i in items], [1] * 900, range(900))


@pytest.mark.parametrize(
    "changes",
    [{}, {"block": "ligr", "precision": "float32"}, {"negatives": 8}, {"precision": "bfloat16", "average": 0.9}],
)
def test_sasrec_learns_what_comes_next(cycles, changes):
    parts = split_by_time(cycles, "leave_one_out")
    model = SASRec(replace(SASREC, **changes)).fit(cycles, parts.train, parts.validation)
    model.set_histories(Histories.of(cycles, np.sort(np.concatenate([parts.train, parts.validation]))))
    result = model.recommend(cycles.users[parts.test], 1).items[:, 0]
    assert (result == cycles.items[parts.test]).mean() > 0.9


def test_an_unknown_precision_is_named(cycles):
    with pytest.raises(ValueError, match="precision: expected 'auto', 'float32' or 'bfloat16'; got 'half'"):
        SASRec(replace(SASREC, precision="half")).fit(cycles, np.arange(len(cycles)))


def test_a_state_depends_on_what_came_before_alone(cycles):
    model = SASRec(SASREC).build({"users": 1, "items": 20}).eval()
    items = torch.randint(20, (3, 8))
    changed = items.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 20
    before, after = model(items), model(changed)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])


def test_labels_that_come_later_change_nothing(cycles):
    """A model that is fitted to the training rows has not seen the test items."""
    parts = split_by_time(cycles, "leave_one_out")
    items = cycles.items.copy()
    items[parts.test] = (items[parts.test] + 3) % 20
    other = replace(cycles, items=items)
    config = replace(SASREC, epochs=2)
    first, second = (SASRec(config).fit(data, parts.train, parts.validation) for data in (cycles, other))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_new_users_are_folded_in(cycles):
    model = SASRec(replace(SASREC, epochs=8)).fit(cycles, np.arange(len(cycles)))
    model.set_histories(Histories.from_lists([[3, 4, 5], [], [0] * 30]))
    result = model.recommend(np.arange(3), 3)
    assert result.items.shape == (3, 3) and not {3, 4, 5} & set(result.items[0].tolist())
    assert np.isfinite(result.scores).all() and result.items[1].tolist() == [0, 1, 2] and not result.scores[1].any()
    assert np.array_equal(model.recommend(np.array([1]), 3).items, result.items[1:2])
    with pytest.raises(DataError, match=r"histories: expected items in \[0, 20\); got 3 to 20"):
        model.set_histories(Histories.from_lists([[3, 20]]))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (LightGCN, LIGHTGCN),
        (LightGCN, replace(LIGHTGCN, loss="softmax", negatives=8)),
        (BPR, BPRConfig(dim=8, epochs=60, patience=60, batch=256, learning_rate=0.02)),
    ],
)
def test_factors_tell_the_kinds_apart(groups, kind, config):
    model = kind(config).fit(groups, np.arange(len(groups)))
    users, items = np.repeat(np.arange(groups.num_users), groups.num_items), np.tile(np.arange(groups.num_items), 40)
    same = np.array([int(groups.user_ids[u]) % 2 for u in users]) == [int(groups.catalog.ids[i]) % 2 for i in items]
    scores = model.score(users, items)
    assert scores[same].mean() > scores[~same].mean() + scores.std()
    everything = model.recommend(np.arange(40), groups.num_items)
    for user, row in enumerate(everything.items):
        left = set(range(groups.num_items)) - set(model.histories.of_user(user).tolist())
        assert set(row[row >= 0].tolist()) == left
    left_out = Histories.from_lists([[]] * 41)
    if kind is BPR:
        with pytest.raises(DataError, match=r"users: expected indices in \[0, 40\); got 40 in row 0"):
            model.recommend(np.array([40]), 1, exclude=left_out)
    else:  # a new user
        even = [item for item in range(groups.num_items) if int(groups.catalog.ids[item]) % 2 == 0]
        model.set_histories(Histories.from_lists([*[[]] * 40, even[:3]]))
        assert set(model.recommend(np.array([40]), 5).items[0].tolist()) < set(even[3:])


@pytest.mark.parametrize(("kind", "config"), [(SASRec, replace(SASREC, epochs=2)), (LightGCN, LIGHTGCN)])
def test_save_and_load(groups, tmp_path, kind, config):
    model = kind(replace(config, epochs=2)).fit(groups, np.arange(len(groups)))
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    users = np.arange(40)
    expected, result = model.recommend(users, 5), loaded.recommend(users, 5)
    assert np.array_equal(expected.items, result.items) and np.array_equal(expected.scores, result.scores)
    assert loaded.config == model.config
    with pytest.raises(ValueError, match="folder: expected a BPR of format 1"):
        BPR.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder: expected a saved model"):
        kind.from_pretrained(tmp_path / "elsewhere")


def test_training_goes_on_from_a_checkpoint(groups, tmp_path):
    rows = np.arange(len(groups))
    expected = LightGCN(replace(LIGHTGCN, epochs=4)).fit(groups, rows)

    class Killed(Exception):
        pass

    def kill(epoch, epochs, metrics):
        if epoch == 2:
            raise Killed

    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        LightGCN(replace(LIGHTGCN, epochs=4)).fit(groups, rows, checkpoint=path, progress=kill)
    result = LightGCN(replace(LIGHTGCN, epochs=4)).fit(groups, rows, checkpoint=path)
    assert torch.equal(result.embedding, expected.embedding)


def test_sampled_softmax_is_the_whole_one_where_all_are_drawn():
    torch.manual_seed(0)
    states, items, targets = torch.randn(30, 8), torch.randn(12, 8), torch.randint(12, (30,))
    whole = item_cross_entropy(states, items, targets, temperature=0.2)
    sampled = item_cross_entropy(states, items, targets, temperature=0.2, negatives=2000)
    cosines = torch.nn.functional.cosine_similarity(states[:, None], items[None], dim=-1)
    torch.testing.assert_close(whole, torch.nn.functional.cross_entropy(cosines / 0.2, targets), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sampled, whole, atol=1e-5, rtol=1e-5)


def test_wrong_configuration():
    with pytest.raises(TypeError, match="config: expected a SASRecConfig; got BPRConfig"):
        SASRec(BPRConfig())
    with pytest.raises(ValueError, match="heads: expected a divisor of dim 16; got 3"):
        SASRec(replace(SASREC, heads=3)).build({"users": 1, "items": 4})
