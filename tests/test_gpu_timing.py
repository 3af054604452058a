"""``benchmarks.gpu``: clocks, graphs, contenders that fail, and shares of the time, without a GPU."""

import os
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import engine, timing, worker
from benchmarks.gpu.device import CaptureFailed, Cuda, Rehearsal
from benchmarks.gpu.report import Step
from benchmarks.gpu.steps import PLAN, Steps
from benchmarks.gpu.tools import Log, Shell
from benchmarks.gpu.workers import Outcome, threads_of
from reasonrec_fast.benchmarking.case import Bound
from reasonrec_fast.benchmarking.suites import SUITES, WORK


class NoCapture(Rehearsal):
    def capture(self, runs):
        raise CaptureFailed("operation not permitted when stream is capturing")


def test_a_capture_that_breaks_keeps_the_eager_time():
    with pytest.raises(CaptureFailed) as problem:
        timing.measured(lambda: None, NoCapture())
    assert problem.value.args[1]["eager_us"] > 0


def test_a_contender_that_fails_costs_itself(monkeypatch):
    """Ours may be wrong: the peers and the floor are timed all the same, and the unit has failed."""

    def fails():
        raise ValueError("x: expected 1; got 2")

    case = SimpleNamespace(
        contenders={"reasonrec_fast": fails, "torch": lambda: torch.ones(1)}, floor=lambda: torch.ones(1),
        read_back=(), dtype=torch.float32, check=lambda name, result: None,
    )  # fmt: skip
    monkeypatch.setattr(timing, "_case", lambda unit, device: case)
    records = []
    with pytest.raises(ValueError, match="x: expected 1"):
        timing.run("a case", Rehearsal(), records.append, set())
    assert [record["part"] for record in records] == ["reasonrec_fast", "torch", "floor"]
    assert ["graph_us" in record for record in records] == [False, True, True]


def test_a_contender_that_fails_leaves_its_tensors(monkeypatch):
    """What it made is gone when the next one begins, or that one may find no memory."""
    made = []

    def fails():
        large = torch.ones(8)
        made.append(weakref.ref(large))
        try:
            raise ValueError(f"x: expected 1; got {large.sum()}")
        except ValueError as problem:
            raise RuntimeError("no answer") from problem

    seen = []
    case = SimpleNamespace(
        contenders={"reasonrec_fast": fails, "torch": lambda: seen.append(made[0]())}, floor=None,
        read_back=(), dtype=torch.float32, check=lambda name, result: None,
    )  # fmt: skip
    monkeypatch.setattr(timing, "_case", lambda unit, device: case)
    with pytest.raises(RuntimeError, match="no answer"):
        timing.run("a case", Rehearsal(), lambda record: None, set())
    assert seen and seen[0] is None


def test_a_lost_context_ends_the_case(monkeypatch):
    class Lost(Rehearsal):
        def healthy(self):
            return False

    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    case = SimpleNamespace(
        contenders={"reasonrec_fast": fails, "torch": lambda: torch.ones(1)}, floor=1e-6,
        read_back=(), dtype=torch.float32, check=lambda name, result: None,
    )  # fmt: skip
    monkeypatch.setattr(timing, "_case", lambda unit, device: case)
    records = []
    with pytest.raises(RuntimeError, match="illegal memory access"):
        timing.run("a case", Lost(), records.append, set())
    assert [record["part"] for record in records] == ["reasonrec_fast"]


@pytest.mark.parametrize(
    ("problem", "state"),
    [("ValueError: x", "failed"), ("no graph: y", "done"), ("no graph: it waits for values on the host", "done")],
)
def test_times_of_which_a_contender_failed_have_failed(tmp_path, monkeypatch, problem, state):
    """Also where another contender's capture broke off after it, and a new process ended the case without an error."""
    steps = Steps(tmp_path, Shell(Log(tmp_path / "log.txt")), minutes=5, rehearsal=True)

    class Ended:
        def __init__(self, module, on_record, **options):
            self.on_record = on_record

        def run(self, end):
            self.on_record({"unit": "topk-64", "part": "reasonrec_fast", "problem": problem})
            return Outcome(["topk-64"])

    monkeypatch.setattr(steps, "_workers", Ended)
    step = steps._times(time.monotonic() + 60)
    assert step.state == state and step.outcome == "1 of 1 done"
    assert step.lines == ([] if "waits for values" in problem else [f"topk-64/reasonrec_fast: {problem}"])


def test_processes_beside_each_other_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert threads_of(8) == {"OMP_NUM_THREADS": "2"} and threads_of(12) == {"OMP_NUM_THREADS": "1"}
    assert threads_of(1) == {}


def test_inputs_rotate_past_the_cache_or_through_the_graph():
    device = Rehearsal()
    device.runs, device.rotating_bytes = 20, 2**20
    large = Bound(torch.neg, (torch.ones(2**18 // 4),))
    copies = timing.rotating(large, device)
    assert len(copies) == 4
    assert len({copy.inputs[0].data_ptr() for copy in copies}) == 4
    assert all(torch.equal(copy(), large()) for copy in copies)
    assert len(timing.rotating(Bound(torch.neg, (torch.ones(4),)), device)) == 20
    assert len(timing.rotating(Bound(torch.neg, (torch.ones(2**20),)), device)) == 1


def test_every_operator_case_states_its_work():
    cases = {
        name for suite, results in SUITES.items() if not suite.startswith(("engine", "generate")) for name in results
    }
    assert set(WORK) == cases
    assert set(timing.CASES) <= cases
    assert all(work.num_bytes > 0 for work in WORK.values())
    assert timing.least_seconds("exit-128-bf16", 3e12, {"bfloat16": 8e14}) == pytest.approx(65.8e6 / 3e12, rel=1e-3)
    assert timing.least_seconds("logprobs-4096-bf16", 3e12, {"bfloat16": 8e14}) == pytest.approx(696e9 / 8e14, rel=1e-2)


def test_a_profile_counts_launches_and_waits():
    @dataclass
    class Event:
        key: str
        count: int
        device_type: str
        self_device_time_total: float = 0.0

    events = [
        Event("aten::mm", 60, "DeviceType.CPU", 500.0),
        Event("cudaLaunchKernel", 200, "DeviceType.CPU"),
        Event("cuLaunchKernelEx", 40, "DeviceType.CPU"),
        Event("cudaStreamSynchronize", 3, "DeviceType.CPU"),
        Event("sm90_gemm", 60, "DeviceType.CUDA", 500.0),
        Event("attention_kernel", 30, "DeviceType.CUDA", 700.0),
    ]
    result = engine.summary(events, 30)
    assert result["launches"] == 240 and result["launches_a_layer"] == 8
    assert result["synchronisations"] == 3
    assert result["device_ms"] == pytest.approx(1.2)
    assert [kernel["kernel"] for kernel in result["kernels"]] == ["attention_kernel", "sm90_gemm"]


class FakeCuda:
    """What ``torch.cuda`` gives to a clock and a capture."""

    def __init__(self, monkeypatch, fails=False):
        self.calls = calls = []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                calls.append("record")

            def synchronize(self):
                calls.append("synchronize")

            def elapsed_time(self, end):
                return 2.5  # milliseconds

        class Graph:
            def replay(self):
                calls.append("replay")

        class Capture:
            def __init__(self, graph):
                assert isinstance(graph, Graph)

            def __enter__(self):
                calls.append("begin")

            def __exit__(self, *problem):
                calls.append("end")
                if fails:
                    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

        for name, value in {"Event": Event, "CUDAGraph": Graph, "graph": Capture}.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_events_stand_around_a_run(monkeypatch):
    fake = FakeCuda(monkeypatch)
    assert Cuda().seconds(lambda: fake.calls.append("run")) == 0.0025
    assert fake.calls == ["record", "run", "record", "synchronize"]


def test_a_graph_holds_all_runs(monkeypatch):
    fake = FakeCuda(monkeypatch)
    replay = Cuda().capture([lambda index=index: fake.calls.append(index) for index in range(3)])
    replay()
    assert fake.calls == ["begin", 0, 1, 2, "end", "replay"]


def test_a_capture_that_breaks_off_says_so_in_one_line(monkeypatch):
    FakeCuda(monkeypatch, fails=True)
    with pytest.raises(CaptureFailed, match=r"operation not permitted when stream is capturing$"):
        Cuda().capture([lambda: None])


def test_a_capture_that_breaks_off_tells_what_failed_first(monkeypatch):
    """The end of a failed capture raises an error without the cause."""
    FakeCuda(monkeypatch, fails=True)

    def waits():
        raise ValueError("it waits for the host")

    with pytest.raises(CaptureFailed, match="^ValueError: it waits for the host$"):
        Cuda().capture([waits])


def test_some_steps_alone_have_longer_shares(tmp_path, monkeypatch):
    shell, lines = Shell(Log(tmp_path / "log.txt")), []
    monkeypatch.setattr(Steps, "_checks", lambda self, end: Step("checked", "done", 0.0))
    monkeypatch.setattr(Steps, "_times", lambda self, end: Step("timed", "done", 0.0))
    steps = Steps(tmp_path, shell, minutes=1, rehearsal=False, names=["times", "checks"])
    steps.run(lines.append)
    assert list(steps.report.steps) == ["checks", "times"] and lines[0].startswith("checks: checked")
    every = Steps(tmp_path, shell, minutes=1, rehearsal=False)
    assert every._longest("times") == pytest.approx(60 * PLAN["times"].most)
    assert every._longest("times") < steps._longest("times") <= 60


def test_memory_that_is_out_names_the_batch(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine, "timed", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"a batch of \d+ tokens and \d+ requests did not fit") as problem:
        engine.run("4096/reasonrec_fast", Rehearsal(), lambda record: None, set())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 80 * 2**30))
    line = worker.explained(problem.value)
    assert line.startswith("out of memory (1.0 of 80.0 GiB free): OutOfMemoryError: a batch of")


def test_a_process_under_a_profiler_ends_before_its_time():
    command = [sys.executable, "-m", "benchmarks.gpu", "--once", "exit-128-bf16,topk-64", "--minutes", "0", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no time for more\n"  # it would have been "exit-128-bf16: ran" first
