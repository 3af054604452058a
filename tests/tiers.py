"""The fast and the slow tier of the tests, which ``slow.txt`` lists, and the CPU time of each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SLOW = Path(__file__).with_name("slow.txt")
FAST_SECONDS = 2.0
"""Of CPU time, its child processes included: a test of the fast tier that takes more is named at the end."""
_BEGIN = pytest.StashKey[float]()


def slow_tests() -> set[str]:
    """The files (``tests/test_x.py``) and functions (``tests/test_x.py::test_y``) that ``slow.txt`` lists."""
    lines = (line.partition("#")[0].strip() for line in SLOW.read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what ``slow.txt`` lists, before ``-m`` selects.

    Files that it lists as a whole come first: a process that began such a file last would keep the other one waiting.
    """
    listed = slow_tests()
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in listed)
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function in listed or function.partition("::")[0] in listed:
            item.add_marker("slow")


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keeps the CPU time of a test with its last report: unlike the clock's, it does not grow on a busy machine."""
    if call.when == "teardown":
        item.user_properties.append(("cpu_seconds", cpu_seconds() - item.stash[_BEGIN]))
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEGIN] = cpu_seconds()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The tests that took most CPU time, as many as ``--durations``; and those too slow for the fast tier."""
    taken = [
        (dict(report.user_properties)["cpu_seconds"], report.nodeid)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown" and "cpu_seconds" in dict(report.user_properties)
    ]
    if config.option.durations and taken:
        terminalreporter.section(f"slowest {config.option.durations} by CPU time")
        for seconds, test in sorted(taken, reverse=True)[: config.option.durations]:
            terminalreporter.write_line(f"{seconds:7.2f}s {test}")
    late = [(seconds, test) for seconds, test in taken if seconds > FAST_SECONDS]
    if "not slow" in config.option.markexpr and late:
        terminalreporter.section(
            f"more than {FAST_SECONDS:g} s of CPU time: make them faster, or list them in {SLOW.name}"
        )
        for seconds, test in sorted(late, reverse=True):
            terminalreporter.write_line(f"{seconds:7.2f}s {test}")
