"""Benchmark cases, and the records of running them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from reasonrec_fast.benchmarking.measure import Run, Timing, interleave, peak_extra_bytes
from reasonrec_fast.graph import InteractionGraph

OURS = "reasonrec_fast"
FLOOR = "floor"


@dataclass(frozen=True)
class Bound:
    """A function with its inputs. It can be repeated over copies of the inputs, so that none is in a cache.

    Attributes:
        function: depends on the inputs only.
        inputs: tensors, graphs, and tuples of them; other values are shared by the copies.
    """

    function: Callable[..., Any]
    inputs: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.function(*self.inputs)

    @property
    def num_bytes(self) -> int:
        """Size of the inputs in bytes.

        >>> Bound(torch.add, (torch.ones(2), torch.ones(3))).num_bytes
        20
        """
        return sum(map(_num_bytes, self.inputs))

    def copy(self) -> Bound:
        return Bound(self.function, tuple(map(_copied, self.inputs)))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, InteractionGraph):
        return [getattr(value, name) for name in value.__dataclass_fields__]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else [value]


def _num_bytes(value: Any) -> int:
    total = 0
    for tensor in _tensors(value):
        if not isinstance(tensor, torch.Tensor):
            continue
        parts = [tensor]
        if tensor.layout == torch.sparse_coo:
            parts = [tensor.indices(), tensor.values()]
        elif tensor.layout == torch.sparse_csr:
            parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, InteractionGraph):
        return InteractionGraph(*map(_copied, _tensors(value)))
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Work:
    """The least memory traffic and arithmetic of a case, computed from its sizes.

    Attributes:
        num_bytes: each input read once and each output written once.
        operations: additions and multiplications.
        dtype: of the operations.
    """

    num_bytes: int
    operations: int = 0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Case:
    """One input and the implementations that are compared on it.

    Attributes:
        name: of the operator.
        case: name of the case.
        dtype: of the input.
        contenders: implementations by name, ``"reasonrec_fast"`` first; all compute the same.
        floor: work that every contender must do, as a function to time or as computed seconds; None for no floor.
        check: called with a contender's name and result; raises if the result is wrong.
        results: bytes of outputs and gradients.
        seconds: time after which no further round starts.
        device: of the input.
        read_back: contenders that read values back to the host, which a CUDA graph cannot capture.
    """

    name: str
    case: str
    dtype: torch.dtype
    contenders: dict[str, Run]
    floor: Run | float | None = None
    check: Callable[[str, Any], None] = lambda name, result: None
    results: int = 0
    seconds: float = 10.0
    device: str = "cpu"
    read_back: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Record:
    """One line of a report.

    Attributes:
        name, case, contender, device, dtype: of the timed case.
        median_ms: median time; ``spread``: interquartile range over the median.
        ratio_to_best_peer: the best peer's median over this one's; larger is better. None for peers and the floor.
        ratio_to_floor: this median over the floor's; None without a floor.
        peak_extra_bytes: peak memory without inputs, outputs and gradients; None if it cannot be measured.
    """

    name: str
    case: str
    contender: str
    device: str
    dtype: str
    median_ms: float
    spread: float
    ratio_to_best_peer: float | None
    ratio_to_floor: float | None
    peak_extra_bytes: int | None


def run_case(case: Case, clock: Callable[[], float] = time.perf_counter) -> Iterator[Record]:
    """Check every contender's answer, time all of them in turns (``clock``, in seconds), and measure their memory."""
    for name, run in case.contenders.items():
        case.check(name, run())
    runs = dict(case.contenders)
    if callable(case.floor):
        runs[FLOOR] = case.floor
    timings = interleave(runs, seconds=case.seconds, clock=clock)
    floor_ms = case.floor * 1000 if isinstance(case.floor, float) else None
    if FLOOR in timings:
        floor_ms = timings[FLOOR].median_ms
    for name, timing in timings.items():
        yield Record(
            name=case.name,
            case=case.case,
            contender=name,
            device=case.device,
            dtype=str(case.dtype).removeprefix("torch."),
            median_ms=timing.median_ms,
            spread=timing.spread,
            ratio_to_best_peer=_best_peer_over(name, timings),
            ratio_to_floor=timing.median_ms / floor_ms if floor_ms else None,
            peak_extra_bytes=None if name == FLOOR else peak_extra_bytes(runs[name], case.results, case.device),
        )


def _best_peer_over(name: str, timings: dict[str, Timing]) -> float | None:
    """The best peer's median over ours; None for other contenders than ours."""
    if name != OURS:
        return None
    peers = [timing.median_ms for other, timing in timings.items() if other not in (OURS, FLOOR)]
    return min(peers) / timings[name].median_ms if peers else None


def installed(module: str) -> bool:
    """Whether a peer's module is installed; missing peers are skipped."""
    return importlib.util.find_spec(module) is not None
