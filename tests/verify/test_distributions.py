"""The wheel and the source distribution install and work outside the checkout."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.verify
ROOT = Path(__file__).resolve().parents[2]
CHECK = (
    "import torch, reasonrec_fast as r; "
    "from reasonrec_fast.models.optirag.prompt import Template; Template.load('films'); "
    "g = r.InteractionGraph.from_edges([0, 0, 1], [0, 1, 1]); "
    "print(r.__file__, r.ops.aggregate(g, torch.eye(4)).sum().item())"
)


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_installs_outside_the_checkout(distributions, pattern, tmp_path):
    """Into an environment of its own, which sees the torch and the libraries of this one."""
    (archive,) = distributions.glob(pattern)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # A new environment of Python 3.11 and older brings a setuptools that would hide the one to build with.
    run(python, "-m", "pip", "uninstall", "--yes", "setuptools")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    libraries = [path for path in sys.path if path.endswith("-packages")]
    Path(site, "libraries.pth").write_text("\n".join(libraries) + "\n")
    run(python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--force-reinstall", archive)
    printed = (
        run(python, "-P", "-c", CHECK, cwd=tmp_path)
        if sys.version_info >= (3, 11)
        else run(python, "-c", CHECK, cwd=tmp_path)
    )
    assert str(tmp_path) in printed


def test_without_a_compiler_there_is_one_clear_sentence(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("reasonrec_fast: building needs a C++17 compiler")
