"""A bundle of native libraries for a GPU machine that is available for minutes only: built before, or there if needed.

``make gpu-bundle`` builds the folder; ``python -m benchmarks.gpu`` installs it, and builds libraries that do not load.
Nothing here imports ``reasonrec_fast``, which needs the libraries.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".gpu-bundle"
_SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
LARGEST = 30 * 2**20  # bytes of a bundle
# Peers that the GPU machine lacks, and whose dependencies it has (trl is not one: it needs datasets).
PEERS = ("liger-kernel>=0.6,<1",)
_LOAD = """
import importlib.util, sys, torch
path, name, first = sys.argv[1:]
if first and name == "_C_cuda":
    torch.ops.load_library(first)
if name == "_host":
    spec = importlib.util.spec_from_file_location("reasonrec_fast._host", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
else:
    torch.ops.load_library(path)
"""


def make(folder: Path = FOLDER, root: Path = ROOT) -> list[str]:
    """Build the libraries for this Python and torch, and fetch the peers, unless the folder is up to date.

    Returns:
        Lines of text that describe the contents.

    Raises:
        RuntimeError: the build failed, a library does not load here, or the folder is larger than :data:`LARGEST`.
    """
    made = {**_machine(), "sources": _digest(root)}
    if _made(folder) == made:
        return [f"{folder.name}: up to date, for {_named(made)}"]
    shutil.rmtree(folder, ignore_errors=True)
    libraries = folder / "libraries"
    libraries.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        done = _shell(
            [sys.executable, "setup.py", "build_ext", "--build-lib", temporary, "--build-temp", f"{temporary}/build"],
            cwd=root,
        )
        if done.returncode:
            raise RuntimeError(f"bundle: the build failed: {_reason(done)}")
        for library in sorted(Path(temporary, "reasonrec_fast").glob("_*.so")):
            shutil.copy2(library, libraries / library.name)
    problems = _problems(list(libraries.glob("_*.so")))
    for path, problem in problems.items():
        if problem:
            raise RuntimeError(f"bundle: {path.name} does not load: {problem}")
    done = _shell(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", folder / "site", *PEERS]
    )
    peers = f"site: {', '.join(PEERS)}" if done.returncode == 0 else f"site: left out: {_reason(done)}"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > LARGEST:
        raise RuntimeError(f"bundle: expected at most {LARGEST / 2**20:.0f} MiB; got {size / 2**20:.1f} MiB")
    (folder / "made.json").write_text(
        json.dumps(made, indent=1) + "\n"
    )  # written last: an interrupted bundle is rebuilt
    names = ", ".join(sorted(path.name for path in problems))
    return [f"bundle: {names} for {_named(made)}", peers, f"{folder.name}: {size / 2**20:.1f} MiB"]


def install(folder: Path = FOLDER, root: Path = ROOT) -> list[str]:
    """Copy those of the bundle's libraries that load on this machine into the package at ``root``.

    A library that does not load is skipped, and the existing one is kept.

    Returns:
        Lines of text that describe what was done.
    """
    made = _made(folder)
    if made is None:
        return [f"bundle: none in {folder.name}, or not a whole one (make gpu-bundle makes it)"]
    if made["sources"] != _digest(root):
        return ["bundle: left out: it was made of other sources than these (make gpu-bundle makes it again)"]
    lines = []
    carried = [folder / "libraries" / name for name in ("_C.so", f"_host{_SUFFIX}", "_C_cuda.so")]
    for path, problem in _problems([path for path in carried if path.is_file() and not path.is_symlink()]).items():
        if problem:
            lines.append(f"bundle: {path.name} left out, it does not load here: {problem}")
            continue
        try:
            # Replace the file instead of overwriting it: processes that have mapped the old one keep its contents.
            shutil.copy2(path, root / "reasonrec_fast" / f"{path.name}.new")
            (root / "reasonrec_fast" / f"{path.name}.new").replace(root / "reasonrec_fast" / path.name)
            lines.append(f"bundle: {path.name} installed")
        except OSError as problem:
            lines.append(f"bundle: {path.name} left out, it cannot be copied: {problem.strerror}")
    if (folder / "site").is_dir():
        names = sorted(path.name for path in (folder / "site").iterdir() if path.suffix == ".dist-info")
        lines.append(f"bundle: {', '.join(names)} in {folder.name}/site, for PYTHONPATH")
    return lines


def missing(root: Path = ROOT) -> dict[str, str]:
    """Libraries of the package at ``root`` that do not load on this machine, with the reason.

    ``_C_cuda`` is checked only if torch is built for CUDA.
    """
    problems = {path: problem for path, problem in _problems(_expected(root)).items() if problem}
    return {path.name: problem for path, problem in problems.items()}


def build(root: Path = ROOT) -> list[str]:
    """Build the libraries into the package at ``root`` if one of them does not load.

    Returns:
        Lines of text that describe what was done, including a missing compiler.
    """
    missing_libraries = missing(root)
    if not missing_libraries:
        return ["build: not needed, every library loads"]
    lines = [f"build: {name}: {problem}" for name, problem in missing_libraries.items()]
    if shutil.which("nvcc") is None and "_C_cuda.so" in missing_libraries:
        lines.append("build: _C_cuda.so is left out: nvcc is not on PATH")
        if len(missing_libraries) == 1:
            return lines
    done = _shell([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=root)
    if done.returncode:
        return [*lines, f"build: failed: {_reason(done)}"]
    still_missing = missing(root)
    built = [path.name for path in _expected(root) if path.name not in still_missing]
    return [
        *lines,
        f"build: {', '.join(built)} built and loaded",
        *(f"build: {n}: {p}" for n, p in still_missing.items()),
    ]


def _made(folder: Path) -> dict[str, str] | None:
    """The machine and sources that the bundle was built for; None if it is missing or incomplete."""
    try:
        made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) and isinstance(made.get("sources"), str) else None


def _expected(root: Path) -> list[Path]:
    import torch

    names = ["_C.so", f"_host{_SUFFIX}"]
    if torch.version.cuda is not None:
        names.append("_C_cuda.so")
    return [root / "reasonrec_fast" / name for name in names]


def _problems(libraries: list[Path]) -> dict[Path, str | None]:
    """Loads each library in a process of its own; the error of each, or None."""
    first = next((path for path in libraries if path.name == "_C.so" and path.is_file()), "")

    def load(path: Path) -> str | None:
        if not path.is_file():
            return "it is not there"
        done = _shell([sys.executable, "-c", _LOAD, path, path.name.split(".")[0], first])
        return _reason(done) if done.returncode else None

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(libraries, pool.map(load, libraries), strict=True))


def _digest(root: Path) -> str:
    """SHA-256 of all sources of the libraries."""
    digest = hashlib.sha256()
    for path in sorted([root / "CMakeLists.txt", root / "setup.py", *(root / "csrc").rglob("*.*")]):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _machine() -> dict[str, str]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}


def _named(machine: dict[str, str]) -> str:
    return f"Python {machine['python']}, torch {machine['torch']}, {machine['machine']}"


def _shell(command: list[Any], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The first line with a compiler error, else the last line."""
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "error :" in line]
    return (errors[:1] or lines[-1:] or [f"exit status {done.returncode}"])[0]


def main() -> None:
    """Make the bundle and print its contents."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    try:
        lines = make(folder)
    except RuntimeError as problem:
        sys.exit(str(problem))
    print("\n".join(lines))
    print("\nTake the checkout with this folder to the GPU machine, and run there, in the checkout:\n")
    print(f'  PYTHONPATH={folder.name}/site python3 -m benchmarks.gpu --output "$OUT"')


if __name__ == "__main__":
    main()
