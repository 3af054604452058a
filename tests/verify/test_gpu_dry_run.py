"""A whole dry run of ``python -m benchmarks.gpu``: every step, the GPU tests in Triton's interpreter among them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import engine, timing
from benchmarks.gpu.steps import PLAN

pytestmark = pytest.mark.verify
ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 900
"""Seconds of a dry run, on a machine that others use too."""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The report of a whole dry run, its seconds and its folder."""
    folder = tmp_path_factory.mktemp("rehearsal")
    begin = time.monotonic()
    # More than it may take, so that on a busy machine the bound fails and not a step without time.
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(folder), "--minutes", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = folder.glob("gpu-*.json")
    return json.loads(report.read_text()), seconds, folder


def test_every_step_is_there_and_nothing_failed(rehearsed):
    report, _, _ = rehearsed
    assert list(report["steps"]) == list(PLAN)
    states = {name: step["state"] for name, step in report["steps"].items()}
    assert set(states.values()) == {"done"}, report["steps"]
    allowed = ("is not there", "device: ")
    lines = [line for step in report["steps"].values() for line in step["lines"]]
    assert all(any(part in line for part in allowed) for line in lines), lines


def test_every_case_was_checked_and_timed(rehearsed):
    report, _, _ = rehearsed
    assert {record["unit"] for record in report["times"]} == set(timing.CASES)
    for record in report["times"]:
        assert record.get("graph_us") or "waits for values" in record["problem"], record
        assert record["ceiling_us"] > 0
    ours = [record for record in report["times"] if record["part"] == "reasonrec_fast"]
    assert len(ours) == len(timing.CASES)
    assert all(record["copies"] >= 1 and record["host_us"] > 0 for record in ours)
    operators = {record["unit"].split("/")[0] for record in report["checks"]}
    assert operators >= {"engine", "optirag", "packed_attention", "aggregate", "topk", "route", "route_to"}
    assert len(report["engine"]) == len(engine.BATCHES) * len(engine.CONTENDERS)
    assert report["tests"]["counts"]["passed"] > 80


def test_a_dry_run_ends_in_time(rehearsed):
    """Some two minutes where little else computes: the bound holds that nothing hangs or grows manyfold."""
    _, seconds, _ = rehearsed
    assert 0 < seconds < MOST_SECONDS


def test_what_a_lent_machine_gives_back_is_small(rehearsed):
    _, _, folder = rehearsed
    files = sorted(folder.iterdir())
    assert len(files) <= 6
    assert all(file.stat().st_size < 16 * 2**20 for file in files)
    assert {file.suffix for file in files} >= {".json", ".md", ".txt"}
    page = next(folder.glob("*.md")).read_text()
    assert "| exit-128-bf16 | reasonrec_fast |" in page and "a rehearsal" in page
