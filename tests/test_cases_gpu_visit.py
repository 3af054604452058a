"""What a visit to a GPU measures and checks."""

import builtins
import sys
from types import SimpleNamespace

import torch

from benchmarks.gpu import model_checks


def test_the_time_of_imports_counts(monkeypatch):
    """Under ncu imports take long; what is killed before it ends by itself has printed nothing."""
    from benchmarks.gpu import __main__ as program

    now, real, ends = [1000.0], builtins.__import__, []

    def slow(name, *arguments, **named):
        if name.startswith("benchmarks.gpu"):
            now[0] += 20.0
        return real(name, *arguments, **named)

    for module in ("timing", "device"):
        real(f"benchmarks.gpu.{module}")
    timing = sys.modules["benchmarks.gpu.timing"]
    monkeypatch.setattr(timing, "run_once", lambda names, device, end: ends.append(end))
    monkeypatch.setattr(program, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(builtins, "__import__", slow)
    program.run_once("topk-64", True, 0.5)
    monkeypatch.undo()
    assert ends == [1030.0]


def test_the_checks_see_a_replay(monkeypatch):
    """The first rank of a size runs layer by layer: what the service does afterwards, in bfloat16, is unseen."""
    ranks = []

    class Model:
        exits = (1,)
        backbone = None

        def float(self):
            return self

        def predict(self, *arguments, **named):
            ranks.append(self)
            return SimpleNamespace(depth=torch.ones(4), probability=torch.tensor([0.1, 0.9, 0.2, 0.8]))

    there = Model()
    models = iter([Model(), there])
    monkeypatch.setattr(model_checks, "random_ranker", lambda *arguments, **named: next(models))
    monkeypatch.setattr(model_checks, "_check_exits", lambda *arguments: None)
    device = SimpleNamespace(tiny=True, kind="cuda")
    model_checks._engine("slates", torch.bfloat16, device)
    assert sum(model is there for model in ranks) >= 3  # at first sight, recorded, replayed
