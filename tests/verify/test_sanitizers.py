"""The operators' tests once more, on native libraries built with the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.verify
ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g"
NATIVE = "not triton and not compile and not on_host and not kernel and not budget"


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_operators_under_sanitizers(tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or "clang" in compiler or not sys.platform.startswith("linux"):
        pytest.skip("needs g++ on Linux: its sanitizers are loaded before Python")
    runtimes = [run(compiler, f"-print-file-name={name}.so").strip() for name in ("libasan", "libubsan")]
    if not all(Path(runtime).is_file() for runtime in runtimes):
        pytest.skip(f"needs the sanitizers of {compiler}")
    package = tmp_path / "package"
    shutil.copytree(ROOT / "reasonrec_fast", package / "reasonrec_fast", ignore=shutil.ignore_patterns("*.so"))
    run(
        "cmake", "-S", ROOT, "-B", tmp_path / "build", "-GNinja",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DCMAKE_CXX_FLAGS={FLAGS}",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CUDA_COMPILER=",
        f"-DTORCH_INCLUDE_DIRS={';'.join(include_paths())}",
        f"-DTORCH_LIBRARY_DIR={Path(torch.__file__).parent / 'lib'}",
        f"-DOUTPUT_DIR={package / 'reasonrec_fast'}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )  # fmt: skip
    run("cmake", "--build", tmp_path / "build")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself frees little at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    where = "import reasonrec_fast; print(reasonrec_fast.__file__)"
    assert run(sys.executable, "-c", where, cwd=package, env=environment).strip().startswith(str(package))
    printed = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "ops",
        ROOT / "tests" / "test_graph.py", "-k", NATIVE, cwd=package, env=environment,
    )  # fmt: skip
    assert " passed" in printed
