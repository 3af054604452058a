"""``python -m benchmarks.gpu``: everything that a GPU allows, in one command, without a network.

Builds the native libraries, runs the tests of ``tests/gpu``, times every case of ``benchmarks.run`` on the GPU (each
answer is checked first; eagerly and as CUDA graphs), reads the hot kernels' counters with ncu and runs the operators'
tests under compute-sanitizer. What is missing is left out, with its reason. Writes one JSON file and one Markdown
table, named by device and date, to ``benchmarks/results/``.
"""

from __future__ import annotations

import csv
import datetime
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
HOT = ("exit-128-bf16", "logprobs-4096-bf16", "aggregate-gowalla-fp32", "topk-8192", "route-65536-alone")
COUNTERS = {
    "gpu__time_duration.sum": "microseconds",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "compute_percent",
}
console = Console(width=140)


@dataclass
class Report:
    """Attributes: the machine; one line of outcome a step; records of the cases; counters of the hot kernels."""

    machine: dict[str, str]
    steps: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    counters: list[dict[str, Any]] = field(default_factory=list)


def main(
    output: Annotated[Path, typer.Option(help="folder of the result files")] = ROOT / "benchmarks" / "results",
    minutes: Annotated[float, typer.Option(help="after which no new step or case begins")] = 7.0,
    once: Annotated[str | None, typer.Option(help="run our side of one case a few times, for a profiler")] = None,
) -> None:
    """Build, test, time and profile on the GPU at hand."""
    if not torch.cuda.is_available():
        console.print("benchmarks.gpu: torch sees no GPU here; python -m benchmarks.run times the operators on the CPU")
        raise typer.Exit(1)
    if once is not None:
        return run_once(once)
    end = time.monotonic() + 60 * minutes
    report = Report(machine())
    steps: dict[str, Callable[[], str]] = {
        "build": build,
        "tests": tests,
        "cases": lambda: cases(report, end - 60),
        "counters": lambda: counters(report, end),
        "sanitizer": sanitizer,
    }
    for name, step in steps.items():
        report.steps[name] = step() if time.monotonic() < end else "left out: no time"
        console.print(f"{name}: {report.steps[name]}")
        write(report, output)


def machine() -> dict[str, str]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "revision": shell("git", "rev-parse", "--short", "HEAD").stdout.strip() or "unknown",
    }


def shell(*command: Any, seconds: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Runs in the repository; a command that takes too long counts as failed."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except (subprocess.TimeoutExpired, FileNotFoundError) as problem:
        return subprocess.CompletedProcess(words, 124, "", str(problem))


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {done.returncode}"


def build() -> str:
    done = shell(sys.executable, "setup.py", "build_ext", "--inplace")
    if done.returncode:
        return f"failed: {last_line(done)}"
    built = sorted(path.name.split(".")[0] for path in (ROOT / "reasonrec_fast").glob("_*.so"))
    return f"built {', '.join(built)}"


def tests() -> str:
    return last_line(shell(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"))


def cases(report: Report, end: float) -> str:
    from reasonrec_fast.benchmarking.case import run_case
    from reasonrec_fast.benchmarking.suites import SUITES, make_cases

    failed, late = [], []
    names = [name for suite in SUITES.values() for name in suite]
    for name in names:
        if time.monotonic() > end:
            late.append(name)
            continue
        try:
            (case,) = make_cases([name], "cuda")
            case = replace(case, contenders=with_graphs(case.contenders), seconds=2.0)
            report.records += [asdict(record) for record in run_case(case)]
        except Exception as problem:  # a case that fails must not cost the others their turn
            failed.append(f"{name}: {type(problem).__name__}: {str(problem).splitlines()[0]}")
        torch.cuda.empty_cache()
    done = f"{len(names) - len(failed) - len(late)} of {len(names)} timed"
    return "; ".join([done, *failed, *(f"{name}: no time" for name in late)])


def with_graphs(contenders: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """The contenders, and each that can be captured once more as a CUDA graph."""
    from reasonrec_fast.benchmarking.case import GRAPH

    found = dict(contenders)
    for name, run in contenders.items():
        graph = torch.cuda.CUDAGraph()
        try:
            run()
            with torch.cuda.graph(graph):
                result = run()
        except Exception as problem:  # capture is an offer: who reads values back cannot take it
            console.print(f"{name} cannot be captured: {str(problem).splitlines()[0]}")
            torch.cuda.synchronize()
            continue
        found[name + GRAPH] = lambda graph=graph, result=result: (graph.replay(), result)[1]
    return found


def run_once(name: str) -> None:
    from reasonrec_fast.benchmarking.case import OURS
    from reasonrec_fast.benchmarking.suites import make_cases

    (case,) = make_cases([name], "cuda")
    for _ in range(3):
        case.contenders[OURS]()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    case.contenders[OURS]()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def counters(report: Report, end: float) -> str:
    tool = shutil.which("ncu")
    if tool is None:
        return "left out: ncu is not there"
    for name in HOT:
        if time.monotonic() > end:
            return f"stopped before {name}: no time"
        done = shell(
            tool, "--csv", "--profile-from-start", "off", "--metrics", ",".join(COUNTERS),
            sys.executable, "-m", "benchmarks.gpu", "--once", name, seconds=90.0,
        )  # fmt: skip
        table = done.stdout[done.stdout.find('"ID"') :]
        if done.returncode or '"ID"' not in done.stdout:
            return f"left out: {last_line(done)}"
        kernels: dict[str, dict[str, Any]] = {}
        for row in csv.DictReader(io.StringIO(table)):
            kernel = kernels.setdefault(row["ID"], {"case": name, "kernel": row["Kernel Name"].split("(")[0]})
            value = float(row["Metric Value"].replace(",", ""))
            if row["Metric Unit"] in ("nsecond", "ns"):
                value /= 1000
            kernel[COUNTERS[row["Metric Name"]]] = value
        report.counters += kernels.values()
    return f"{len(report.counters)} kernels of {len(HOT)} cases"


def sanitizer() -> str:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "left out: compute-sanitizer is not there"
    picked = "test_equals_float64 and bfloat16"
    done = shell(
        tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu",
        "-k", picked, seconds=120.0,
    )  # fmt: skip
    return last_line(done) if done.returncode in (0, 1) else f"failed ({done.returncode}): {last_line(done)}"


def write(report: Report, output: Path) -> None:
    from reasonrec_fast.files import replacing, write_json

    device = "".join(c if c.isalnum() else "-" for c in report.machine["device"].lower()).strip("-")
    name = f"gpu-{device}-{report.machine['date']}"
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / f"{name}.json", asdict(report))
    with replacing(output / f"{name}.md") as temporary:
        temporary.write_text("\n".join(lines(report)) + "\n")


def lines(report: Report) -> list[str]:
    """The report as Markdown."""
    text = [f"# {report.machine['device']}, {report.machine['date']}", ""]
    text += [f"- {name}: {value}" for name, value in {**report.machine, **report.steps}.items()]
    text += [
        "",
        "| case | contender | median ms | spread | best peer / this | this / floor | extra MB |",
        "|" + " --- |" * 7,
    ]
    for r in report.records:
        peer, floor, extra = r["ratio_to_best_peer"], r["ratio_to_floor"], r["peak_extra_bytes"]
        cells = (
            r["case"], r["contender"], f"{r['median_ms']:.4f}", f"{r['spread']:.2f}",
            "–" if peer is None else f"{peer:.2f}", "–" if floor is None else f"{floor:.2f}",
            "–" if extra is None else f"{extra / 1e6:.1f}",
        )  # fmt: skip
        text.append("| " + " | ".join(cells) + " |")
    text += ["", "| case | kernel | µs | memory % | compute % |", "|" + " --- |" * 5]
    for k in report.counters:
        figures = (k.get(name) for name in COUNTERS.values())
        shown = " | ".join("–" if figure is None else f"{figure:.1f}" for figure in figures)
        text.append(f"| {k['case']} | {k['kernel']} | {shown} |")
    return text


if __name__ == "__main__":
    typer.run(main)
