"""Folders of saved models: replaced atomically under kills and concurrent readers; other files are kept."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from reasonrec_fast import files
from reasonrec_fast.data import Interactions
from reasonrec_fast.files import atomic_write_folder, read_consistent, read_json, write_json
from reasonrec_fast.models.classical import BPR, EASE, BPRConfig, load_recommender

OWNED = ("config.json", "weights.txt", "more.txt")


def save(folder, number, names=OWNED):
    with atomic_write_folder(folder, OWNED) as temporary:
        for name in names:
            (temporary / name).write_text(str(number))


def held(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(params=["exchange", "two renames", "file by file", "mount"])
def how(request, monkeypatch):
    """On Linux; where that is not known; where folders cannot be renamed; where only the folder itself is ours."""
    if request.param != "exchange":
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    if request.param == "file by file":
        rename = Path.rename

        def refused(self, target):
            if self.name == "model":
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refused)
    if request.param == "mount":
        monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "model")
    return request.param


def test_what_is_ours_is_replaced_and_the_rest_stays(tmp_path, how):
    folder = tmp_path / "model"
    save(folder, 1)
    (folder / "notes.txt").write_text("mine")
    (folder / "logs").mkdir()
    (folder / "logs" / "a.log").write_text("mine too")
    (folder / "link").symlink_to("notes.txt")
    folder.chmod(0o750)
    save(folder, 2, OWNED[:2])
    assert held(folder) == {"config.json": "2", "weights.txt": "2", "notes.txt": "mine", "link": "mine"}
    assert (folder / "logs" / "a.log").read_text() == "mine too" and (folder / "link").is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not list(folder.glob(".*"))


def test_an_error_leaves_the_old_one(tmp_path, how):
    folder = tmp_path / "model"
    save(folder, 1)
    with pytest.raises(RuntimeError, match="full"), atomic_write_folder(folder, OWNED) as temporary:
        (temporary / "config.json").write_text("2")
        raise RuntimeError("the disk is full")
    assert held(folder) == dict.fromkeys(OWNED, "1")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not list(folder.glob(".*"))


def test_the_folder_that_one_is_in_and_links_to_folders(tmp_path, monkeypatch):
    save(tmp_path / "model", 1)
    (tmp_path / "latest").symlink_to("model")
    save(tmp_path / "latest", 2)
    assert (tmp_path / "latest").is_symlink() and held(tmp_path / "model") == dict.fromkeys(OWNED, "2")
    monkeypatch.chdir(tmp_path / "model")
    save(".", 3)
    assert held(Path.cwd()) == held(tmp_path / "model") == dict.fromkeys(OWNED, "3")


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    left, others = tmp_path / f".model.{done.pid}.1.saving", tmp_path / f".model.{os.getpid()}.1.saving"
    for folder in (left, others):
        folder.mkdir()
    save(tmp_path / "model", 1)
    assert not left.exists() and others.exists()


WRITER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[2])  # alone, so that it begins at once
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
number = 0
while True:
    number += 1
    with files.atomic_write_folder(sys.argv[1], ("config.json", "weights.txt", "more.txt")) as temporary:
        for name in ("weights.txt", "more.txt", "config.json"):
            (temporary / name).write_text(str(number))
    print(number, flush=True)
"""


def test_killed_at_any_moment_it_is_old_or_new(tmp_path):
    """Two hundred times, at random moments."""
    folder, draws = tmp_path / "model", random.Random(0)
    for _ in range(10):
        command = [sys.executable, "-c", WRITER, str(folder), files.__file__]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        for _ in range(20):  # stopped, looked at and let on; the last time killed
            time.sleep(draws.random() * 0.01)
            writer.send_signal(signal.SIGSTOP)
            result = held(folder)
            assert set(result) == set(OWNED) and len(set(result.values())) == 1, result
            writer.send_signal(signal.SIGCONT)
        writer.kill()
        writer.wait()
        result = held(folder)
        assert set(result) == set(OWNED) and len(set(result.values())) == 1, result
    save(folder, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_readers_beside_a_writer_read_one_save(tmp_path):
    folder, ended = tmp_path / "model", threading.Event()
    save(folder, 0)

    def write():
        number = 0
        while not ended.is_set():
            number += 1
            save(folder, number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            result = read_consistent(folder, lambda: [(folder / name).read_text() for name in OWNED])
            assert len(set(result)) == 1, result
    finally:
        ended.set()
        writer.join()


def test_a_folder_that_is_not_there_or_broken_is_refused_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_consistent(tmp_path / "none", lambda: (tmp_path / "none" / "a").read_text())
    write_json(tmp_path / "config.json", {})
    with pytest.raises(ValueError, match="expected the files of one saved model; KeyError: .missing"):
        read_consistent(tmp_path, lambda: read_json(tmp_path / "config.json")["missing"])


def table(seed, size=80):
    draws = np.random.default_rng(seed)
    users, items = draws.integers(0, 9, size), draws.integers(0, 12, size)
    return Interactions.from_columns([f"u{u}" for u in users], [f"i{i}" for i in items], [1] * size, range(size))


def test_another_model_in_the_folder_of_one(tmp_path):
    """A model that keeps less than the one before it, and one of other sizes, killed between two files."""
    first = BPR(BPRConfig(dim=4, epochs=1), device="cpu").fit(table(0))
    first.save_pretrained(tmp_path / "model")
    second = EASE(device="cpu").fit(table(1))

    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reasonrec_fast.models.classical.storage.write_json", killed)
        with pytest.raises(KilledError):
            second.save_pretrained(tmp_path / "model")
    result = load_recommender(tmp_path / "model")
    assert isinstance(result, BPR) and torch.equal(result.embedding, first.embedding)
    second.save_pretrained(tmp_path / "model")
    assert isinstance(load_recommender(tmp_path / "model"), EASE)


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    """The last value was taken, and the others were dropped."""
    (tmp_path / "config.json").write_text('{"exits": [1], "exits": [2]}')
    with pytest.raises(ValueError, match=r"config\.json: expected JSON; expected each key once; got \['exits'"):
        read_json(tmp_path / "config.json")
