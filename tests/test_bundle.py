"""The bundle of native libraries for a GPU machine: what is installed, what is refused, what is built there."""

import importlib.machinery
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import bundle

HOST = f"_host{importlib.machinery.EXTENSION_SUFFIXES[0]}"


@pytest.fixture
def tree(tmp_path) -> Path:
    """A checkout as it travels: the native sources, and a package without libraries."""
    root = tmp_path / "tree"
    shutil.copytree(bundle.ROOT / "csrc", root / "csrc")
    for name in ("CMakeLists.txt", "setup.py"):
        shutil.copy2(bundle.ROOT / name, root)
    (root / "reasonrec_fast").mkdir()
    return root


@pytest.fixture
def folder(tmp_path, tree) -> Path:
    """A bundle of this checkout's libraries, one of which does not load."""
    made = tmp_path / "bundle"
    (made / "libraries").mkdir(parents=True)
    for name in ("_C.so", HOST):
        shutil.copy2(bundle.ROOT / "reasonrec_fast" / name, made / "libraries")
    (made / "libraries" / "_C_cuda.so").write_bytes(b"\x7fELF but nothing else")
    (made / "made.json").write_text(json.dumps({"sources": bundle._digest(tree)}))
    return made


def test_libraries_that_load_are_installed(folder, tree):
    old = tree / "reasonrec_fast" / "_C_cuda.so"
    old.write_bytes(b"the one that was there")
    lines = bundle.install(folder, tree)
    assert [line for line in lines if "left out" not in line] == [f"bundle: {n} installed" for n in ("_C.so", HOST)]
    (refused,) = (line for line in lines if "left out" in line)
    assert refused.startswith("bundle: _C_cuda.so left out, it does not load here: ") and "\n" not in refused
    assert old.read_bytes() == b"the one that was there"
    assert sorted(path.name for path in (tree / "reasonrec_fast").iterdir()) == ["_C.so", "_C_cuda.so", HOST]


def test_bundle_of_other_sources_is_refused(folder, tree):
    (tree / "csrc" / "schema.cpp").write_text("// another")
    (line,) = bundle.install(folder, tree)
    assert line.startswith("bundle: left out: it was made of other sources than these")
    assert not list((tree / "reasonrec_fast").iterdir())


def test_no_bundle_is_one_line(tmp_path, tree):
    line = "bundle: none in none, or not a whole one (make gpu-bundle makes it)"
    assert bundle.install(tmp_path / "none", tree) == [line]


@pytest.mark.parametrize("made", [b"", b'{"sources": ', b"{}", b"[1]", b"\xff\xfe\x00"])
def test_a_bundle_that_was_cut_short_is_one_line(folder, tree, made):
    (folder / "made.json").write_bytes(made)
    (line,) = bundle.install(folder, tree)
    assert line == "bundle: none in bundle, or not a whole one (make gpu-bundle makes it)"


def test_only_our_libraries_are_installed_and_no_links(folder, tree, tmp_path):
    shutil.copy2(folder / "libraries" / "_C.so", folder / "libraries" / "_other.so")
    shutil.move(folder / "libraries" / "_C.so", tmp_path / "outside.so")
    (folder / "libraries" / "_C.so").symlink_to(tmp_path / "outside.so")
    bundle.install(folder, tree)
    assert [path.name for path in (tree / "reasonrec_fast").iterdir()] == [HOST]


def test_nothing_is_built_where_every_library_loads(monkeypatch):
    monkeypatch.setattr(bundle, "_problems", lambda libraries: dict.fromkeys(libraries))
    assert bundle.build() == ["build: not needed, every library loads"]


def test_without_nvcc_the_cuda_library_costs_one_line(monkeypatch, tree):
    monkeypatch.setattr(bundle, "missing", lambda root: {"_C_cuda.so": "it is not there"})
    monkeypatch.setattr(bundle.shutil, "which", lambda name: None)
    assert bundle.build(tree) == [
        "build: _C_cuda.so: it is not there",
        "build: _C_cuda.so is left out: nvcc is not on PATH",
    ]


def test_without_a_compiler_there_is_one_line(monkeypatch, tree):
    monkeypatch.setenv("CXX", "no-such-compiler")
    lines = bundle.build(tree)
    assert lines[-1].startswith("build: failed: reasonrec_fast: building needs a C++17 compiler")
    assert "build: _C.so: it is not there" in lines


def test_the_first_error_of_a_build_is_reported():
    output = "[1/3] cc\na.cpp:3:1: error: no 'x'\na.cpp:4:1: error: no 'y'\nninja: build stopped\n"
    assert bundle._reason(subprocess.CompletedProcess([], 1, output, "Traceback\n")) == "a.cpp:3:1: error: no 'x'"


def test_a_folder_too_large_to_travel_is_refused(monkeypatch, folder, tree):
    def build(command, cwd=None):
        if "setup.py" in command:
            target = Path(command[command.index("--build-lib") + 1], "reasonrec_fast")
            target.mkdir()
            (target / "_C.so").write_bytes(bytes(2**20))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bundle, "_shell", build)
    monkeypatch.setattr(bundle, "LARGEST", 2**20 - 1)
    with pytest.raises(RuntimeError, match="bundle: expected at most 1 MiB; got 1.0 MiB"):
        bundle.make(folder, tree)
    monkeypatch.setattr(bundle, "LARGEST", 2**21)
    first = bundle.make(folder, tree)
    assert first[0].startswith("bundle: _C.so for Python 3")
    assert bundle.make(folder, tree)[0].startswith("bundle: up to date, for Python 3")
