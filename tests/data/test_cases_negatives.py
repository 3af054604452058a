"""Samplers: from threads, in forked processes, where nothing can be written, and of bad arguments."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import reasonrec_fast
from reasonrec_fast.data import DataError, Histories, Interactions, load_sequences, sample_of_users, split_by_time
from reasonrec_fast.data.negatives import NegativeSampler


@pytest.fixture
def sampler():
    generator = np.random.default_rng(0)
    return NegativeSampler(Histories.from_lists([generator.integers(0, 500, 30).tolist() for _ in range(300)]), 500)


def draw(sampler, rows=20_000):
    return sampler.draw(np.arange(rows) % 300, 4, np.random.default_rng(7))


def test_threads_draw_at_once_and_alike(sampler):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected, results = draw(sampler), [None] * 6
        torch.set_num_threads(3)  # the rows of one call are divided too
        assert np.array_equal(draw(sampler), expected)

        def work(index):
            for _ in range(5):
                results[index] = draw(sampler)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(sample, expected) for sample in results)


class Drawn(torch.utils.data.Dataset):
    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.sampler.draw(np.array([index]), 3, np.random.default_rng(index))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_workers_draw_after_their_parent_did(sampler):
    draw(sampler)
    data = Drawn(sampler)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    result = np.concatenate([batch.numpy() for batch in loader])
    assert np.array_equal(result, np.stack([data[index] for index in range(8)]))


def test_imports_and_draws_where_nothing_can_be_written(tmp_path):
    """Files stand in the way of every folder for machine code: a stand-in for a read-only disk that holds for root."""
    package = Path(reasonrec_fast.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "_C_cuda*")
    shutil.copytree(package, tmp_path / "reasonrec_fast", ignore=ignored)
    (tmp_path / "reasonrec_fast" / "data" / "__pycache__").write_text("no folder")
    (tmp_path / "home").write_text("no folder")
    home = str(tmp_path / "home")
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"HOME": home, "XDG_CACHE_HOME": home, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    code = (
        "import numpy as np, reasonrec_fast.models.classical, reasonrec_fast.evaluation\n"
        "from reasonrec_fast.data import Histories\n"
        "from reasonrec_fast.data.negatives import NegativeSampler\n"
        "print(NegativeSampler(Histories.from_lists([[0, 1]]), 3).draw([0], 2, np.random.default_rng(0)).tolist())"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "[[2, 2]]"


def test_users_in_any_container():
    sampler = NegativeSampler(Histories.from_lists([[0, 1], [0, 2], [1, 2]]), 3)
    generator = np.random.default_rng(0)
    expected = [[2], [1], [0]]
    users = np.arange(3)
    for given in (
        [0, 1, 2],
        torch.arange(3),
        pd.Series([0, 1, 2], index=[2, 1, 0]),
        users[::-1][::-1],
        users.astype("u1"),
    ):
        assert sampler.draw(given, 1, generator).tolist() == expected
    assert sampler.draw([], 2, generator).shape == (0, 2)


HAD = Histories.from_lists([[0, 1], [2]])
EVENTS = Interactions.from_columns(["a", "a", "b"], ["x", "y", "x"], [1, 0, 1], [1, 2, 3])
REFUSED = [
    (lambda: NegativeSampler(HAD, 3).draw([0, -1], 1, np.random.default_rng(0)), r"users: .*\[0, 2\); got -1 in row 1"),
    (lambda: NegativeSampler(HAD, 3).draw([0, 9], 1, np.random.default_rng(0)), "users: .* got 9 in row 1"),
    (
        lambda: NegativeSampler(HAD, 3).draw([0.0], 1, np.random.default_rng(0)),
        "users: expected whole numbers; got float64",
    ),
    (
        lambda: NegativeSampler(HAD, 3).draw([True], 1, np.random.default_rng(0)),
        "users: expected whole numbers; got bool",
    ),
    (lambda: NegativeSampler(HAD, 3).draw([0], -1, np.random.default_rng(0)), "count: expected a whole number"),
    (lambda: NegativeSampler(HAD, 3).draw([0], 1.5, np.random.default_rng(0)), "count: expected a whole number"),
    (
        lambda: NegativeSampler(HAD, 3).draw([1, 0], 2, np.random.default_rng(0), distinct=True),
        "count: expected at most 1, the items that user 0 in row 1 has not had; got 2",
    ),
    (lambda: NegativeSampler(Histories.from_lists([[]]), 0), "num_items: expected a whole number of at least 1; got 0"),
    (lambda: NegativeSampler(HAD, 2**62), "num_items: expected fewer than 2"),
    (
        lambda: NegativeSampler(Histories(np.array([0, 9]), np.array([1])), 3),
        "histories: expected an indptr that rises",
    ),
    (
        lambda: NegativeSampler(Histories(np.array([0, 2, 1]), np.array([1])), 3),
        "histories: expected an indptr that rises",
    ),
    (lambda: NegativeSampler(HAD, 2), r"histories: expected items in \[0, 2\); got 0 to 2 \(row 2\)"),
    (lambda: Histories.from_lists([[0], [1.5]]), "lists, list 1: expected whole numbers; got float64 1.5"),
    (lambda: Histories.from_lists([["a"]]), "lists, list 0: expected whole numbers"),
    (lambda: Histories.from_lists([[None]]), "lists, list 0: expected whole numbers; got None in row 0"),
    (lambda: Histories.from_pairs(2, [0, 5], [1, 1]), r"users: expected indices in \[0, 2\); got 5 in row 1"),
    (lambda: Histories.from_pairs(2, [0, 1], [1]), "items: expected a vector like users, of 2 rows; got 1"),
    (lambda: HAD.select([-1]), "users: .* got -1 in row 0"),
    (lambda: HAD.latest([-1], 2), "users: .* got -1 in row 0"),
    (lambda: HAD.of_user(-1), "user: expected an index"),
    (lambda: Histories.of(EVENTS, [0, 0]), "rows: expected every row once; got row 0 twice"),
    (lambda: Histories.of(EVENTS, np.ones(3, dtype=bool)), "rows: expected whole numbers; got bool"),
    (lambda: sample_of_users(EVENTS, [-1], 1), "rows: .* got -1 in row 0"),
    (lambda: sample_of_users(EVENTS, [0, 1], 0), "size: expected a whole number of at least 1; got 0"),
    (lambda: split_by_time(EVENTS, validation="0.1"), "validation: expected a share"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_drawn_from_is_refused(call, message):
    with pytest.raises(DataError, match=f"^{message}"):
        call()


def test_rows_in_any_order_give_histories_in_time_order():
    assert Histories.seen(EVENTS, [2, 1, 0]).items.tolist() == [0, 1, 0]
    pairs = Histories.from_pairs(2, pd.Series([1, 0], index=[1, 0]), pd.Series([7, 8], index=[1, 0]))
    assert [pairs.of_user(user).tolist() for user in (0, 1)] == [[8], [7]]


def test_sequences_of_one_user_twice_or_too_large_numbers_are_named(tmp_path):
    (tmp_path / "sequences.txt").write_text("1 2 3\n\n2 3\n")
    assert load_sequences(tmp_path).num_users == 2
    (tmp_path / "sequences.txt").write_text("1 2 3\n1 4\n")
    with pytest.raises(DataError, match="line 2: expected another user than in line 1; got '1'"):
        load_sequences(tmp_path)
    (tmp_path / "sequences.txt").write_text("1 99999999999999999999\n")
    with pytest.raises(DataError, match="line 1: expected whole numbers"):
        load_sequences(tmp_path)
