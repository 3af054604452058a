"""``python -m benchmarks.gpu``: its dry run, and what only a GPU would show, with stand-ins for the tools."""

import importlib.util
import json
import math
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import counters, sanitizers, tests_step
from benchmarks.gpu.report import Report, Step
from benchmarks.gpu.steps import PLAN, Steps
from benchmarks.gpu.tools import Done, Log, Shell
from benchmarks.gpu.workers import MOST_STARTS, Workers

ROOT = Path(__file__).resolve().parents[1]
NCU = """\
==PROF== Connected to process 4711 (/usr/bin/python3.12)
==PROF== Profiling "partial_kernel" - 0: 0%....50%....100% - 3 passes
a line of the program
==PROF== Disconnected from process 4711
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"Section Name","Metric Name","Metric Unit","Metric Value"
""" + "".join(
    f'"{launch_id}","4711","python3.12","127.0.0.1","{kernel}","1","7","(128, 1, 1)","(8, 16, 1)","0","9.0",'
    f'"Command line profiler metrics","{metric}","{unit}","{value}"\n'
    for launch_id, kernel, values in (
        (7, "at::cuda::<unnamed>::spin_kernel(long)", ("1,000", "0", "0", "0", "8", "0", "0")),
        (0, "partial_kernel", ("24,512", "81.25", "40.5", "55.0", "117", "65,801,216", "1,024")),
        (1, "void at::native::reduce_kernel<512>(T1, T2)", ("3,040", "n/a", "2", "12", "32", "0", "0")),
    )
    for (metric, unit), value in zip(
        (
            ("gpu__time_duration.sum", "ns"),
            ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "%"),
            ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "%"),
            ("sm__warps_active.avg.pct_of_peak_sustained_active", "%"),
            ("launch__registers_per_thread", "register/thread"),
            ("dram__bytes_read.sum", "byte"),
            ("dram__bytes_write.sum", "byte"),
        ),
        values,
        strict=True,
    )
)


def run_module(*arguments, **environment):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture
def shell(tmp_path):
    return Shell(Log(tmp_path / "log.txt"), {"PYTHONPATH": str(ROOT / "tests")})


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts an executable of a name on PATH that notes its arguments, prints and exits."""

    def make(name, output, status=0):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / f"{name}.out").write_text(output)
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.args\ncat {tmp_path}/{name}.out\nexit {status}\n')
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        return lambda: (tmp_path / f"{name}.args").read_text().splitlines()

    return make


@pytest.fixture
def without(monkeypatch):
    """Removes tools from PATH."""

    def hide(*names):
        folders = [f for f in os.environ["PATH"].split(os.pathsep) if not any(Path(f, n).exists() for n in names)]
        monkeypatch.setenv("PATH", os.pathsep.join(folders))

    return hide


def test_a_short_time_is_kept_and_named(tmp_path):
    begin = time.monotonic()
    done = run_module("--dry-run", "--output", tmp_path, "--minutes", "0.1")
    assert time.monotonic() - begin < 40
    report = json.loads(next(tmp_path.glob("gpu-*.json")).read_text())
    assert list(report["steps"]) == list(PLAN), done.stdout
    assert "left out: no time" in {step["outcome"] for step in report["steps"].values()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(tmp_path):
    done = run_module("--output", tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--dry-run" in done.stderr and "benchmarks.run" in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_folder_is_one_line(tmp_path):
    assert "--output" in run_module("--dry-run").stderr
    (tmp_path / "file").touch()
    done = run_module("--dry-run", "--output", tmp_path / "file")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "can be written" in done.stderr


def test_a_driver_that_is_too_old_is_named(tool, monkeypatch):
    from benchmarks.gpu import machine

    tool("nvidia-smi", "470.57.02\n")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver 470.57.02 is older" in machine.why_no_gpu()


def test_an_old_gpu_and_missing_tools_are_named(without, monkeypatch):
    from benchmarks.gpu import machine

    @dataclass
    class Card:
        name: str = "Tesla T4"
        major: int = 7
        minor: int = 5
        total_memory: int = 2**34
        multi_processor_count: int = 40

    without("nvcc", "ncu", "compute-sanitizer")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card())
    lines = machine.versions()["lines"]
    assert [line for line in lines if "is not there" in line] == [
        "nvcc is not there", "ncu is not there", "compute-sanitizer is not there",
    ]  # fmt: skip
    assert any("expected at least 8.0; got 7.5" in line for line in lines)


# -- workers


def test_a_unit_that_fails_costs_itself(shell):
    records = []
    workers = Workers(shell, "rehearsed_units", rehearsal=True, unit_seconds=4, on_record=records.append)
    outcome = workers.run(time.monotonic() + 120)
    assert outcome.done == ["good", "breaks-capture", "last"]
    assert outcome.errors["raises"] == "ValueError: x: expected 1; got 2"
    assert "died (7)" in outcome.errors["dies"]
    assert "took longer than 4 s" in outcome.errors["hangs"]
    assert "not permitted when stream is capturing" in outcome.errors["never-captures"]
    assert [record.get("part") for record in records if record["unit"] == "breaks-capture"] == ["first", "second"]
    assert outcome.left == []


def test_what_has_no_time_is_named(shell):
    outcome = Workers(shell, "rehearsed_units", rehearsal=True).run(time.monotonic() + 8)
    assert {"hangs", "last"} <= set(outcome.left)
    assert outcome.line().endswith("without time")


def test_a_module_that_does_not_load_is_reported(shell):
    outcome = Workers(shell, "there_is_no_such_module", rehearsal=True).run(time.monotonic() + 60)
    assert "there_is_no_such_module" in outcome.line()


def test_shares_are_disjoint(shell):
    records = []
    workers = Workers(shell, "rehearsed_units", rehearsal=True, count=2, unit_seconds=4, on_record=records.append)
    outcome = workers.run(time.monotonic() + 120)
    assert sorted(outcome.done) == ["breaks-capture", "good", "last"]
    assert set(outcome.errors) == {"raises", "dies", "hangs", "never-captures"}


def test_a_share_that_gets_no_further_is_given_up_with_its_reason(tmp_path):
    """A start that reports its units, then as many as are allowed without progress."""
    starts = tmp_path / "starts"
    variables = {"PYTHONPATH": str(ROOT / "tests"), "REHEARSED_STARTS": str(starts)}
    shell = Shell(Log(tmp_path / "log.txt"), variables)
    outcome = Workers(shell, "rehearsed_deaths", rehearsal=True).run(time.monotonic() + 240)
    assert starts.read_text().split() == ["start"] * (1 + MOST_STARTS)
    assert "died (7)" in outcome.errors["first"]
    assert outcome.errors["second"] == outcome.errors["third"]
    assert "the GPU has fallen off the bus" in outcome.errors["second"]
    assert outcome.left == [] and outcome.done == []


def test_processes_beside_each_other_are_given_their_threads(shell, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    given = []
    monkeypatch.setattr(
        shell, "run", lambda command, **options: given.append(options["environment"]) or Done(1, "no", 0.0)
    )
    Workers(shell, "rehearsed_units", rehearsal=False, count=8).run(time.monotonic() + 60)
    assert given == [{"OMP_NUM_THREADS": "2"}] * 8
    del given[:]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    tests_step.run(shell, 60, rehearsal=False)
    assert given == [{"OMP_NUM_THREADS": "1"}]


# -- commands


def test_a_command_is_stopped_with_its_children(shell, tmp_path):
    script = f"sleep 30 & echo $! > {tmp_path}/child; wait"
    done = shell.run(["sh", "-c", script], seconds=1)
    assert done.stopped == "stopped after 1 s" and done.seconds < 10
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or ") Z " in state.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the child runs on")


def test_a_long_output_is_logged_at_both_ends(shell, tmp_path):
    script = "print('begins'); [print('x' * 1000) for _ in range(4000)]; print('ends')"
    done = shell.run([sys.executable, "-c", script], seconds=60)
    assert done.last_line == "ends" and len(done.output) > 4_000_000
    log = (tmp_path / "log.txt").read_text()
    assert "begins" in log and "\nends" in log and "lines left out" in log
    assert len(log) < 2_500_000


def test_a_command_that_is_not_there(shell):
    done = shell.run(["there-is-no-such-command"], seconds=5)
    assert done.status is None and "does not start" in done.stopped


# -- ncu, compute-sanitizer, pytest


def test_counters_are_read_from_ncus_csv():
    first, second = counters.kernels(NCU, ["exit-128-bf16", "topk-64"])
    assert first == {
        "case": "exit-128-bf16", "kernel": "partial_kernel", "ns": 24512.0, "dram_percent": 81.25, "sm_percent": 40.5,
        "occupancy_percent": 55.0, "registers": 117.0, "dram_bytes_read": 65801216.0, "dram_bytes_written": 1024.0,
    }  # fmt: skip
    assert second["kernel"] == "at::native::reduce_kernel<512>" and second["dram_percent"] is None
    assert counters.kernels("==ERROR== no counters\n", ["x"]) == []


def test_ncu_leaves_the_clocks_alone(tool, shell, tmp_path):
    arguments = tool("ncu", NCU)
    results = []
    csv_file = tmp_path / "counters.csv"
    line = counters.collect(shell, time.monotonic() + 60, rehearsal=False, on_kernels=results.extend, csv_file=csv_file)
    assert line.startswith(f"1 of {len(counters.HOT)} cases; ")  # the others have no marker in ncu's output
    assert f"{counters.HOT[1]}: no counters" in line
    assert [kernel["case"] for kernel in results] == [counters.HOT[0]] * 2
    assert csv_file.read_text().count("partial_kernel") == 7
    (called,) = arguments()
    assert "--clock-control none --print-units base --csv --profile-from-start off" in called
    assert f"--once {','.join(counters.HOT)} --minutes 0.6" in called


def test_an_ncu_that_fails_is_reported(tool, shell, tmp_path):
    tool("ncu", "==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n", status=1)
    line = counters.collect(
        shell, time.monotonic() + 60, rehearsal=False, on_kernels=lambda result: None, csv_file=tmp_path / "c.csv"
    )
    assert line.startswith(f"0 of {len(counters.HOT)} cases; ncu: ==ERROR== Failed")
    assert line.count("LibraryNotLoaded") == 1


def test_no_ncu_and_no_sanitizer(without, shell, tmp_path):
    without("ncu", "compute-sanitizer")
    options = {"rehearsal": False, "on_kernels": lambda result: None, "csv_file": tmp_path / "c.csv"}
    assert counters.collect(shell, time.monotonic() + 60, **options) == "left out: ncu is not there"
    result = sanitizers.check(shell, time.monotonic() + 60, rehearsal=False)
    assert set(result.values()) == {"left out: compute-sanitizer is not there"}


@pytest.mark.parametrize(("status", "errors"), [(0, 0), (9, 2)])
def test_sanitizers_report_their_summary(tool, shell, status, errors):
    arguments = tool("compute-sanitizer", f"========= ERROR SUMMARY: {errors} errors\n", status)
    result = sanitizers.check(shell, time.monotonic() + 60, rehearsal=False)
    assert set(result) == {"memcheck", "racecheck"}
    for line in result.values():
        assert line.startswith("failed") == bool(errors) and f"{errors} errors" in line
    assert any("--tool memcheck" in called for called in arguments())


def test_memcheck_sees_each_tensor_by_itself(shell, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "compute-sanitizer"
    script.write_text(
        '#!/bin/sh\necho "========= ERROR SUMMARY: 0 errors $* caching:$PYTORCH_NO_CUDA_MEMORY_CACHING"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    result = sanitizers.check(shell, time.monotonic() + 60, rehearsal=False)
    assert result["memcheck"].endswith("caching:1") and result["racecheck"].endswith("caching:")
    assert "--report-api-errors no" in result["memcheck"]  # torch and Triton ask for what a driver need not have


def test_a_sanitizer_that_says_no_summary_has_failed(tool, shell):
    tool("compute-sanitizer", "nothing of use\n", 0)
    result = sanitizers.check(shell, time.monotonic() + 60, rehearsal=False)
    assert result["racecheck"] == "failed: no summary: 'nothing of use'"


@pytest.mark.parametrize("prefix", ["", "[gw3] [ 33%] "])
def test_tests_are_counted_even_when_stopped(prefix):
    lines = [("PASSED", "tests/gpu/test_a.py::test_x[two words]"), ("FAILED", "tests/gpu/test_a.py::test_y")]
    texts = [f"{prefix}{result} {name} " if prefix else f"{name} {result}   [ 10%]" for result, name in lines]
    actual = tests_step.counted(Done(-9, "\n".join(["collected", *texts]), 60.0, "stopped after 60 s"))
    assert actual["counts"] == {"passed": 1, "failed": 1}
    assert actual["failures"] == ["tests/gpu/test_a.py::test_y"]
    assert actual["line"] == "1 failed, 1 passed; stopped after 60 s"


# -- the report


def test_ratios_compare_graphs_with_graphs(tmp_path):
    times = [
        {"unit": "c", "part": "reasonrec_fast", "graph_us": 10.0, "eager_us": 60.0, "ceiling_us": 5.0},
        {"unit": "c", "part": "torch", "graph_us": 30.0, "eager_us": 40.0, "ceiling_us": 5.0},
        {"unit": "c", "part": "floor", "graph_us": 8.0, "ceiling_us": 5.0},
        {"unit": "d", "part": "reasonrec_fast", "problem": "ValueError: x", "ceiling_us": 5.0},
    ]
    report = Report(date="2026-01-02", versions={"device": "A|B", "packages": {}}, times=times)
    report.steps["times"] = Step("1 of 2 done", "failed", 3.0, ["d: ValueError: x"])
    report.engine.append({"kernels": [], **dict.fromkeys(("ms", "spread", "tokens_a_second"), math.nan)})
    report.engine[0] |= dict.fromkeys(
        ("tokens", "contender", "requests_a_second", "device_ms", "host_ms", "launches", "launches_a_layer"), 1
    )
    report.engine[0]["synchronisations"] = 0
    report.write(tmp_path)
    stored = json.loads((tmp_path / "gpu-a-b-2026-01-02.json").read_text())
    ours = stored["times"][0]
    assert (ours["over_floor"], ours["best_peer_over"], ours["over_ceiling"]) == (1.25, 3.0, 2.0)
    assert stored["times"][3]["over_floor"] is None
    assert stored["engine"][0]["ms"] is None  # JSON has no NaN
    assert "- times: d: ValueError: x" in (tmp_path / "gpu-a-b-2026-01-02.md").read_text()


def test_a_step_that_breaks_does_not_keep_the_next_from_beginning(tmp_path, monkeypatch):
    shell = Shell(Log(tmp_path / "log.txt"))
    steps = Steps(tmp_path, shell, minutes=5, rehearsal=True)
    for name in PLAN:
        monkeypatch.setattr(steps, f"_{name}", lambda end: Step("fine", "done", 0.0))
    monkeypatch.setattr(steps, "_checks", lambda end: 1 / 0)
    steps.run(lambda line: None)
    outcomes = {name: step.outcome for name, step in steps.report.steps.items()}
    assert outcomes.pop("checks") == "failed: ZeroDivisionError: division by zero"
    assert set(outcomes.values()) == {"fine"}


def test_the_page_has_the_present_predictions():
    """To mend it: python -m benchmarks.gpu --predict, between the two marks."""
    from benchmarks.gpu.predict import page

    text = (ROOT / "docs" / "gpu.md").read_text()
    assert text.split("<!-- predict -->\n")[1].split("<!-- end -->")[0] == "\n".join(page()) + "\n"


@pytest.mark.parametrize(
    ("option", "values", "expected"),
    [("--minutes", ("0", "-1", "nan", "inf"), "a number above 0"), ("--only", ("checks,time", ""), "some of build,")],
)
def test_a_time_that_is_none_and_steps_that_are_not_there_are_refused(tmp_path, option, values, expected):
    for value in values:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", tmp_path, option, value],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1 and done.stderr.startswith(f"benchmarks.gpu: {option}: expected {expected}")
    assert not list(tmp_path.iterdir())


def test_the_page_says_what_failed_what_is_right_and_in_which_units():
    report = Report(
        steps={
            "tests": Step("failed: no module named pytest", "failed", 1.0),
            "times": Step("2 of 2 done", "done", 2.0),
        },
        ceilings={"copy": 3.0e12, "product-bfloat16": 8e14, "launch": 2e-6},
        checks=[{"unit": "topk/edges/float32", "worst": 0.25}, {"unit": "topk/ties/float32", "worst": 0.5}],
    )
    page = "\n".join(report.lines())
    assert "## What went wrong or was left out\n\n- tests: failed: no module named pytest\n\n" in page
    assert "- copy: 3.00 TB/s\n- product-bfloat16: 800.0 Tflop/s\n- launch: 2.00 µs\n" in page
    assert "| topk | 2 | 0.500 | topk/ties/float32 |" in page


def test_a_report_that_cannot_be_written_costs_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    Report().write(tmp_path / "file")
    assert capsys.readouterr().err == f"report: not written to {tmp_path / 'file'}: Not a directory\n"


def test_counters_without_names_of_kernels_are_kept(monkeypatch):
    output = '"ID","Metric Name","Metric Value"\n"0","gpu__time_duration.sum","1,200"\n'
    monkeypatch.setattr(counters, "MARKER", "")  # each kernel is one
    assert counters.kernels(output, ["a case"]) == []
    monkeypatch.setattr(counters, "MARKER", "spin")
    marked = output.replace('"ID",', '"ID","Kernel Name",').replace('"0",', '"0","spin_kernel",')
    marked += '"1",,"gpu__time_duration.sum","1,200"\n'
    assert counters.kernels(marked, ["a case"]) == [{"case": "a case", "kernel": "unknown", "ns": 1200.0}]


def test_tools_that_print_bytes_are_read(tmp_path, monkeypatch):
    from benchmarks.gpu.machine import _last_line

    tool = tmp_path / "nvidia-smi"
    tool.write_bytes(b"#!/bin/sh\nprintf '580\\377.1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert _last_line("nvidia-smi") == "580\ufffd.1"


@pytest.mark.parametrize(("second", "failed"), [("nvjet_sm90_tst_64x8_splitK_NNT", False), ("stream_kernel", True)])
def test_a_race_within_a_closed_library_is_not_ours(tool, shell, second, failed):
    """As racecheck reported cuBLAS's split products on an H200."""
    output = (
        "========= Error: Race reported between Read access at nvjet_sm90_tst_64x8_splitK_NNT+0xb30\n"
        f"=========     and Write access at {second}+0x2f50 [192 hazards]\n"
        "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    )
    tool("compute-sanitizer", output, 9)
    line = sanitizers.check(shell, time.monotonic() + 60, rehearsal=False)["racecheck"]
    assert line.startswith("failed") == failed
    assert failed or line.endswith("all within NVIDIA's libraries: nvjet_sm90_tst_64x8_splitK_NNT")
