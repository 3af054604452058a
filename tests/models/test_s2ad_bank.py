"""The reference bank: what a query gets, and what it never gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.models.s2ad.bank import ReferenceBank

COUNT, WIDTH = 120, 8


def columns(count=COUNT, scales=("",), seed=0):
    generator = np.random.default_rng(seed)
    keys = [f"{generator.integers(1 << 60):016x}" for _ in range(count)]
    vectors = torch.from_numpy(generator.normal(size=(count, WIDTH))).float()
    names = [f"{row}.png" for row in range(count)]
    return (
        names,
        keys,
        vectors,
        generator.uniform(0.01, 0.99, count),
        [scales[row % len(scales)] for row in range(count)],
    )


@pytest.fixture(scope="module")
def bank():
    return ReferenceBank.of(*columns())


def queries(count=6):
    generator = np.random.default_rng(5)
    return torch.from_numpy(generator.normal(size=(count, WIDTH))).float(), [f"query-{row}" for row in range(count)]


def test_each_bin_gives_its_nearest_image(bank):
    vectors, keys = queries()
    found = bank.references(vectors, keys, k=4, draws=1, share=1.0)
    similarities = (vectors / vectors.norm(dim=1, keepdim=True)) @ bank.vectors.T
    for query in range(len(keys)):
        for number in range(4):
            members = np.flatnonzero((bank.percentiles >= number / 4) & (bank.percentiles < (number + 1) / 4))
            assert found.rows[query, 0, number] == members[similarities[query, members].argmax()]
    assert (np.diff(found.percentiles, axis=-1) > 0).all()


@pytest.mark.parametrize("choice", ["content", "coverage", "random"])
def test_a_query_does_not_depend_on_the_others(bank, choice):
    vectors, keys = queries()
    settings = {"k": 5, "draws": 3, "seed": 7, "choice": choice}
    together = bank.references(vectors, keys, **settings)
    order = [4, 1, 3]
    some = bank.references(vectors[order], [keys[row] for row in order], **settings)
    np.testing.assert_array_equal(some.rows, together.rows[order])
    for row in range(len(keys)):
        alone = bank.references(vectors[row : row + 1], [keys[row]], **settings)
        np.testing.assert_array_equal(alone.rows[0], together.rows[row])
    again = bank.references(vectors, keys, k=5, draws=2, seed=7, choice=choice)
    np.testing.assert_array_equal(again.rows, together.rows[:, :2])


def test_images_of_one_content_are_taken_by_their_keys():
    vectors = torch.randn(1, 64, generator=torch.manual_seed(0)).expand(40, -1)
    bank = ReferenceBank.of([""] * 40, [f"{row:02}" for row in range(40)], vectors, [0.5] * 40)
    wanted = torch.randn(70, 64, generator=torch.manual_seed(1))
    found = bank.references(wanted, [f"q{row}" for row in range(70)], k=1, draws=1, share=1.0)
    assert (found.rows == 0).all()


def test_draws_and_seeds_differ(bank):
    vectors, keys = queries()
    rows = bank.references(vectors, keys, k=5, draws=3).rows
    assert (rows[:, 0] != rows[:, 1]).mean() > 0.5  # two thirds are expected
    assert (rows != bank.references(vectors, keys, k=5, draws=3, seed=1).rows).any()
    same = bank.references(vectors, keys, k=5, draws=2, share=1.0).rows
    np.testing.assert_array_equal(same[:, 0], same[:, 1])


def test_a_draw_sees_half_of_every_bin():
    names, keys, vectors, _, _ = columns(40)
    bank = ReferenceBank.of(names, keys, vectors, np.linspace(0.1, 0.9, 40))
    drawn = bank.references(vectors[:1], ["q"], k=1, draws=400, choice="random").rows[0, :, 0]
    counts = np.bincount(drawn, minlength=40)
    assert counts.max() < 30  # 10 are expected
    nearest = bank.references(vectors[:1], ["q"], k=1, draws=400).rows[0, :, 0]
    assert 150 < np.bincount(nearest).max() < 250  # the nearest of all is in half of the draws


def test_never_the_query_itself_nor_what_is_excluded(bank):
    keys = list(bank.keys[:30])
    first = bank.references(bank.vectors[:30], keys, k=3, draws=4)
    for row in range(30):
        assert row not in first.rows[row]
    versions = [{bank.keys[found] for found in first.rows[row].ravel()} for row in range(30)]
    second = bank.references(bank.vectors[:30], keys, k=3, draws=4, exclude=versions)
    for row in range(30):
        assert not versions[row] & {bank.keys[found] for found in second.rows[row].ravel() if found >= 0}


def test_coverage_takes_the_middles_of_bins(bank):
    vectors, keys = queries()
    found = bank.references(vectors, keys, k=5, draws=1, share=1.0, choice="coverage").percentiles
    assert np.abs(found - [0.1, 0.3, 0.5, 0.7, 0.9]).max() < 0.05
    assert (found == found[0]).all()


def test_scales_are_never_mixed():
    bank = ReferenceBank.of(*columns(scales=("stars", "marks", "points")))
    vectors, keys = queries()
    scales = ["stars", None, "marks", None, "points", None]
    found = bank.references(vectors, keys, k=3, draws=8, scales=scales)
    for row, scale in enumerate(scales):
        for draw in range(8):
            assert {bank.scales[of] for of in found.rows[row, draw]} == {found.scales[row][draw]}
            assert scale in (None, found.scales[row][draw])
    assert {name for row in (1, 3, 5) for name in found.scales[row]} == {"stars", "marks", "points"}
    with pytest.raises(DataError, match="expected 'marks', 'points', 'stars' or None; got 'grades' in row 1"):
        bank.references(vectors, keys, scales=["stars", "grades", None, None, None, None])


def test_the_scale_without_a_name_is_a_scale():
    """Its queries drew from all scales, as if theirs were not known."""
    bank = ReferenceBank.of(*columns(scales=("", "marks")))
    vectors, keys = queries()
    found = bank.references(vectors, keys, k=3, draws=8, scales=[""] * len(keys))
    assert {name for names in found.scales for name in names} == {""}
    assert {bank.scales[row] for row in found.rows[found.rows >= 0]} == {""}


def test_empty_bins_give_fewer():
    bank = ReferenceBank.of(["a", "b"], ["1", "2"], torch.eye(2), [0.15, 0.95])
    found = bank.references(torch.eye(2), ["1", "x"], k=5, draws=2)
    assert found.rows.tolist() == [[[1, -1, -1, -1, -1]] * 2, [[0, 1, -1, -1, -1]] * 2]
    assert found.percentiles[0, 0].tolist() == [0.95, *[np.inf] * 4]


def test_a_bank_of_one():
    bank = ReferenceBank.of(["a"], ["1"], torch.ones(1, 2), [0.5])
    assert bank.references(torch.ones(1, 2), ["2"], k=3, draws=1).rows.tolist() == [[[0, -1, -1]]]
    with pytest.raises(DataError, match="other than itself and what is excluded; got none of scale '' in row 1"):
        bank.references(torch.ones(2, 2), ["2", "1"], k=3, draws=1)
    with pytest.raises(DataError, match="bank: expected one reference at least; got none"):
        bank.remove(["1"]).references(torch.ones(1, 2), ["2"])
    assert bank.references(torch.ones(0, 2), [], k=3, draws=1).rows.shape[0] == 0


def test_a_bank_is_the_same_however_it_was_filled(bank):
    names, keys, vectors, percentiles, scales = columns()
    shuffled = np.random.default_rng(3).permutation(COUNT)
    parts = [shuffled[:50], shuffled[50:90], shuffled[90:]]
    other = ReferenceBank.of([], [], torch.zeros(0, WIDTH), [])
    for part in parts:
        pick = [names[row] for row in part], [keys[row] for row in part]
        other = other.add(*pick, vectors[part], percentiles[part], [scales[row] for row in part])
    assert (other.names, other.keys, other.scales) == (bank.names, bank.keys, bank.scales)
    assert torch.equal(other.vectors, bank.vectors)
    gone = list(bank.keys[5:20])
    rows = [row for row in range(COUNT) if keys[row] in gone]
    texts = ([column[row] for row in rows] for column in (names, keys))
    back = other.remove(gone).add(*texts, vectors[rows], percentiles[rows])
    assert back.keys == bank.keys
    np.testing.assert_array_equal(back.percentiles, bank.percentiles)


def test_another_image_changes_only_what_it_is_nearest_to(bank):
    """The share that a draw sees does not change as a whole with one image more."""
    vectors, keys = queries()
    before = bank.references(vectors, keys, k=5, draws=3)
    more = bank.add(["new"], ["f" * 16], torch.ones(1, WIDTH), [0.5])
    after = more.references(vectors, keys, k=5, draws=3)
    named = [[[bank.keys[row] for row in draw] for draw in query] for query in before.rows]
    named_after = [[[more.keys[row] for row in draw] for draw in query] for query in after.rows]
    changed = np.array(named) != np.array(named_after)
    assert not changed[..., [0, 1, 3, 4]].any()  # the bins of other percentiles


def test_saved_and_loaded(bank, tmp_path):
    bank.save(tmp_path / "bank")
    again = ReferenceBank.load(tmp_path / "bank")
    assert (again.names, again.keys, again.scales) == (bank.names, bank.keys, bank.scales)
    assert torch.equal(again.vectors, bank.vectors)
    vectors, keys = queries()
    np.testing.assert_array_equal(again.references(vectors, keys).rows, bank.references(vectors, keys).rows)
    with pytest.raises(FileNotFoundError, match="expected a saved reference bank"):
        ReferenceBank.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percentiles": [0.5, 1.0]}, r"percentiles: expected numbers in \(0, 1\); got 1.0 in row 1"),
        ({"percentiles": [0.5]}, "percentiles: expected 2 rows, as names; got 1"),
        ({"vectors": torch.zeros(2, 3)}, "vectors: expected finite vectors that are not 0; got others in row 0"),
        ({"vectors": torch.full((2, 3), torch.nan)}, "got others in row 0"),
        ({"vectors": torch.ones(2)}, r"vectors: expected \[N, D\]; got \[2\]"),
        ({"keys": ["1", "1"]}, "keys: expected each image once; got '1' in rows 0 and 1"),
    ],
)
def test_what_is_no_bank_is_refused(changes, message):
    good = {"names": ["a", "b"], "keys": ["1", "2"], "vectors": torch.ones(2, 3), "percentiles": [0.2, 0.8]}
    with pytest.raises(DataError, match=message):
        ReferenceBank.of(**(good | changes))


def test_wrong_arguments_are_named(bank):
    vectors, keys = queries()
    for settings, message in (
        ({"k": 0}, "k: expected a whole number of at least 1; got 0"),
        ({"draws": 0}, "draws: expected"),
        ({"share": 0.0}, r"share: expected a number in \(0, 1\]; got 0.0"),
        ({"choice": "best"}, "choice: expected one of"),
        ({"scales": [None]}, "scales: expected 6, one a query; got 1"),
        ({"exclude": []}, "exclude: expected 6, one a query; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.references(vectors, keys, **settings)
    with pytest.raises(ValueError, match="queries: expected"):
        bank.references(vectors[:, :3], keys)
    with pytest.raises(DataError, match="keys: expected images that are not in the bank"):
        bank.add(["a"], [bank.keys[0]], torch.ones(1, WIDTH), [0.5])
    with pytest.raises(DataError, match="vectors: expected width 8; got 3"):
        bank.add(["a"], ["new"], torch.ones(1, 3), [0.5])
    with pytest.raises(DataError, match="keys: expected images of the bank; got 'none'"):
        bank.remove(["none"])
