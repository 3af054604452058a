"""Models as folders, and as repositories of the Hugging Face hub, which is mocked."""

import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import reasonrec_fast
from reasonrec_fast import EASE, Interactions, Popularity, load_recommender
from reasonrec_fast.models.registry import ARCHITECTURES, class_of
from reasonrec_fast.pretrained import HUB_FILES, load_folder, local_folder, save_folder


@pytest.fixture
def fitted():
    data = Interactions.from_columns(["a", "a", "b", "c"], ["x", "y", "y", "z"], [1, 1, 1, 1], [1, 2, 3, 4])
    return Popularity(device="cpu").fit(data)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A mock of the hub with local folders; returns the list of its requests."""
    requested = []

    def snapshot_download(name, *, revision=None, token=None, allow_patterns=None):
        requested.append((name, revision, token, allow_patterns))
        folder = tmp_path / "hub" / name / (revision or "main")
        if not folder.is_dir():
            raise LocalEntryNotFoundError("no such repository")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requested


@pytest.mark.parametrize("load", [Popularity.from_pretrained, load_recommender, reasonrec_fast.load])
def test_a_repository_loads_by_its_name(fitted, hub, tmp_path, load):
    fitted.save_pretrained(tmp_path / "hub" / "shop" / "films" / "v2")
    loaded = load("shop/films", revision="v2", token="secret", device="cpu")
    assert loaded.recommend(["b"], 2).items.tolist() == fitted.recommend(["b"], 2).items.tolist()
    assert hub == [("shop/films", "v2", "secret", list(HUB_FILES))]  # once, and nothing that could run


def test_a_folder_comes_before_a_repository(fitted, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted.save_pretrained("shop/films")
    assert isinstance(reasonrec_fast.load("shop/films", device="cpu"), Popularity) and not hub
    with pytest.raises(ValueError, match="revision: expected None for a folder; got 'v2' for shop/films"):
        reasonrec_fast.load("shop/films", revision="v2")


@pytest.mark.parametrize("name", ["nowhere", "./shop/films", "/shop/films", "../films", "a/b/c", "shop/", "C:\\shop"])
def test_what_is_no_name_of_a_repository_is_a_folder(hub, name):
    with pytest.raises(FileNotFoundError, match="folder: expected a saved model with config.json; there is none in"):
        reasonrec_fast.load(name)
    assert not hub


def test_a_path_is_never_a_repository(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is none in shop/films"):
        Popularity.from_pretrained(local_folder(".") / "shop" / "films")
    assert not hub


def test_no_repository_and_no_hub_are_one_line(hub, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(FileNotFoundError, match="there is none in shop/films, nor on the hub: no such repository"):
        reasonrec_fast.load("shop/films")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="nor on the hub: HF_HUB_OFFLINE is set, and its cache has none"):
        reasonrec_fast.load("shop/films")


def test_offline_the_real_hub_is_not_contacted(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        reasonrec_fast.load("no-such-user-of-tests/films")


def test_a_model_is_pushed_whole(fitted, hub, monkeypatch, tmp_path):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_folder(self, *, repo_id, folder_path, **options):
            calls.append(options)
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id / "main")
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = fitted.push_to_hub("shop/films", token="secret")
    assert address == "https://hub/commit"
    assert calls[:2] == ["secret", ("shop/films", {"private": True, "exist_ok": True})]
    assert calls[2]["delete_patterns"] == list(HUB_FILES)
    assert reasonrec_fast.load("shop/films", device="cpu").recommend(["a"], 1).items.tolist() == [["z"]]
    with pytest.raises(ValueError, match="repo_id: expected 'user/repository'; got 'films'"):
        fitted.push_to_hub("films")


def test_a_folder_names_what_wrote_it(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    expected = {"architecture": "Popularity", "format": 1, "version": reasonrec_fast.__version__}
    assert {name: stored[name] for name in expected} == expected
    with pytest.raises(ValueError, match="folder: expected an EASE of format 1; .* holds 'Popularity' of format 1"):
        EASE.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "Unknown", "format": 1}')
    with pytest.raises(ValueError, match="folder: expected a saved AttributeKNN, .*optirag, .*; .* holds 'Unknown'"):
        reasonrec_fast.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds None"):
        reasonrec_fast.load(tmp_path)


def test_a_save_that_fails_leaves_the_old_model(tmp_path):
    save_folder(tmp_path / "model", "constant", 1, (), lambda folder: {"value": 3})

    def fail(folder):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        save_folder(tmp_path / "model", "constant", 1, (), fail)
    assert load_folder(tmp_path / "model", "constant", 1, lambda folder, settings: settings["value"]) == 3


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_registry_knows_where_classes_are(name):
    kind = class_of(name)
    assert callable(kind.from_pretrained) and callable(kind.save_pretrained)
    assert name in (kind.__name__, kind.__name__.lower())


def test_a_folder_of_an_earlier_version_loads(fitted, tmp_path):
    """Without the version of what wrote it."""
    fitted.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["version"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = reasonrec_fast.load(tmp_path, device="cpu")
    assert np.array_equal(loaded.recommend(["a"], 3).items, fitted.recommend(["a"], 3).items)


KILLER = """
import os, random, signal, sys, time
import numpy as np
from reasonrec_fast import BPR, BPRConfig, Interactions

folder, draws = sys.argv[1], random.Random(0)
data = Interactions.from_columns(["a", "a", "b", "c"], ["x", "y", "y", "z"], [1, 1, 1, 1], [1, 2, 3, 4])
models = [BPR(BPRConfig(dim=8 * (1 + kind), epochs=1, seed=kind), device="cpu").fit(data) for kind in range(2)]
expected = [model.recommend(["a", "b"], 3).scores for model in models]
models[0].save_pretrained(folder)
seen, kill = set(), 0
while kill < int(sys.argv[2]) or (len(seen) < 2 and kill < 400):  # a busy machine may need more of them
    kill += 1
    child = os.fork()
    if not child:
        while True:
            for kind in (1, 0):  # the folder begins with kind 0
                models[kind].save_pretrained(folder)
    time.sleep(draws.random() * 0.02 * (1 + kill // 40))  # a save takes longer there
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = BPR.from_pretrained(folder, device="cpu")
    kind = loaded.config.seed
    assert np.array_equal(loaded.recommend(["a", "b"], 3).scores, expected[kind]), kill
    assert loaded.training_digest == models[kind].training_digest != ""
    seen.add(kind)
print(sorted(seen))
"""


def test_a_model_that_is_saved_by_killed_processes_is_one_of_them(tmp_path):
    kills = os.environ.get("SAVING_KILLS", "40")
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "model"), kills], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[0, 1]"


def test_a_part_of_another_model_is_refused(fitted, tmp_path):
    """Of the same shapes, so that nothing else would tell; a stack holds models in folders of their own."""
    data = Interactions.from_columns(["a", "a", "b", "c"], ["x", "y", "z", "z"], [1, 1, 1, 1], [1, 2, 3, 4])
    fitted.save_pretrained(tmp_path / "one")
    Popularity(device="cpu").fit(data).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "one")
    message = "model.safetensors: expected the file that was saved with the model .config.json.; it holds another"
    with pytest.raises(ValueError, match=message):
        load_recommender(tmp_path / "one")

    def write(folder):
        fitted.save_pretrained(folder / "part")
        return {}

    save_folder(tmp_path / "whole", "Whole", 1, ("part",), write)
    load_folder(tmp_path / "whole", "Whole", 1, lambda folder, settings: load_recommender(folder / "part"))
    part = tmp_path / "whole" / "part"
    shutil.rmtree(part)
    shutil.copytree(tmp_path / "other", part)  # a whole model by itself
    with pytest.raises(ValueError, match="part/model.safetensors: expected the file that was saved with the model"):
        load_folder(tmp_path / "whole", "Whole", 1, lambda folder, settings: load_recommender(folder / "part"))
