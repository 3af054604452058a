"""The device of these tests, and runs in CUDA graphs; see ``on_gpu.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from on_gpu import ON_GPU, REHEARSAL, parts


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_FailuresAtOnce(config))


class _FailuresAtOnce:
    """Tells a failure when it happens: a run that is stopped prints no summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and reporter is not None and not hasattr(self._config, "workerinput"):
            reporter.write_line(f"\n--- {report.nodeid}\n{report.longreprtext}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if ON_GPU:
        return
    if REHEARSAL:  # of models, whose tests train, two are enough
        seen: Counter[str] = Counter()
        for item in list(items):
            name = item.nodeid.split("[")[0]
            seen[name] += 1
            if "test_devices_on_gpu" in name and seen[name] > 2:
                items.remove(item)
                config.hook.pytest_deselected(items=[item])
        return
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def device() -> str:
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture
def second_device() -> str:
    if torch.cuda.device_count() < 2 and not REHEARSAL:
        pytest.skip("needs two GPUs")
    return "cuda:1" if ON_GPU else "cpu"


@pytest.fixture
def replayed() -> Callable[[Callable[[], Any]], list[torch.Tensor]]:
    """Run something, then again without synchronisation, then capture it, spoil its results and replay the graph."""

    def run_thrice(run: Callable[[], Any]) -> list[torch.Tensor]:
        run()  # compiles kernels, fills caches
        if not ON_GPU:
            return parts(run())
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = parts(run())
        for part in captured:
            part.zero_()
        graph.replay()
        return captured

    return run_thrice
