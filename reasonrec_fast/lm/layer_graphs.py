"""Consecutive layers as CUDA graphs: one launch instead of some forty for each layer.

A graph has fixed shapes. A batch is therefore padded to one of a few sizes; the padding is a separate text at the end,
whose tokens attend to each other alone. Hidden states, rotary parts and the tiles of the attention are copied into
buffers that the graph reads. The first batch of a size runs layer by layer, so that sizes that occur once are not
recorded.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch

from reasonrec_fast.devices import to_device
from reasonrec_fast.lm.decoder import Decoder, Rotary
from reasonrec_fast.lm.fused_layers import run_layers
from reasonrec_fast.ops import library
from reasonrec_fast.ops.packed_attention import MOST_WIDTH

_logger = logging.getLogger(__name__)
MOST_GRAPHS = 256
"""Graphs of a backbone; the least recently used is evicted first."""
_LEAST = 64
_LEAST_TILES = 32

Run = Callable[[], None]


def padded_size(count: int) -> int:
    """The tokens that a batch of ``count`` is padded to: eight sizes between one power of two and the next.

    >>> [padded_size(count) for count in (1, 64, 65, 1000, 1025, 4000)]
    [64, 64, 72, 1024, 1152, 4096]
    """
    step = max(1 << max(count - 1, 1).bit_length() - 1, _LEAST) // 8
    return max(-(-count // step) * step, _LEAST)


@dataclass
class _Buffers:
    """The memory that the graphs of one size read and write.

    Attributes:
        plan: tiles of the attention, followed by the bounds of every token; on the device.
        holds: the sources that were last copied into ``plan`` and ``rotary``.
    """

    hidden: torch.Tensor
    rotary: Rotary
    plan: torch.Tensor
    holds: tuple[Any, Any] = (None, None)


@dataclass
class Prepared:
    """The input of a graph that depends on the layout alone; reused while the rows are the same.

    Attributes:
        size: tokens, including the padding.
        tiles: of the attention, including the padding.
        plan: as in :class:`_Buffers`, on the host.
    """

    size: int
    tiles: int
    plan: torch.Tensor
    blocks: Any


@dataclass
class _State:
    graphs: OrderedDict[tuple[int, ...], Run | None] = field(default_factory=OrderedDict)
    buffers: dict[tuple[int, int], _Buffers] = field(default_factory=dict)
    mark: tuple[Any, ...] | None = None


class LayerGraphs:
    """The graphs of a backbone. Any number of threads may use it; calls are serialised.

    Args:
        record: records a graph of a function, and returns a function that replays it.
    """

    def __init__(self, record: Callable[[Run], Run] | None = None) -> None:
        self._record = record or _CudaGraphs()
        self._state, self._lock = _State(), threading.Lock()
        self._stream: Any = None
        self._done: Any = None
        self._broken = False

    def prepare(self, backbone: Decoder, segments: torch.Tensor, tokens: int) -> Prepared:
        """Plan the attention of a layout's ``tokens`` tokens, all of which have keys."""
        from reasonrec_fast.kernels import packed_attention as kernels  # imports Triton

        config = backbone.base.config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        size = padded_size(tokens)
        rows = segments.numpy()
        if size > tokens:
            rows = np.concatenate([rows, [[tokens, size - tokens, 0, 0, tokens, 1]]])
        blocks = kernels.choose_blocks(backbone.dtype, _head_width(backbone), size * heads)
        tiles, bounds = kernels.plan_tiles(rows, size, size, kernels.tile_tokens(blocks, heads // groups))
        count = 1 << max(len(tiles) - 1, _LEAST_TILES - 1).bit_length()  # a program with an empty tile returns at once
        plan = torch.zeros(count * 6 + 2 * size, dtype=torch.int32, device="cpu")  # not torch's default device
        plan[: tiles.size] = torch.from_numpy(tiles.reshape(-1))
        plan[count * 6 :] = torch.from_numpy(bounds.reshape(-1))
        return Prepared(size, count, plan, blocks)

    def follow(self, backbone: Decoder) -> bool:
        """Whether the layers may be recorded; graphs of other modules or of other weights' memory are dropped."""
        mark = weights_mark(backbone)
        with self._lock:
            if mark is not None and mark != self._state.mark:
                self._finish()
                self._state = _State(mark=mark)
            return mark is not None and not self._broken

    def run(
        self, backbone: Decoder, first: int, last: int, hidden: torch.Tensor, rotary: Rotary, prepared: Prepared
    ) -> torch.Tensor | None:
        """Output ``[T, D]`` of the layers ``first`` to ``last`` (from 1), or None if there is no graph (yet)."""
        # Kernels are launched on the current device, and its current stream is recorded.
        with self._lock, library.device_of("early_exit", [hidden]):
            if self._broken:
                return None
            state, key = self._state, (first, last, prepared.size, prepared.tiles)
            if key not in state.graphs:
                state.graphs[key] = None
                return None
            state.graphs.move_to_end(key)
            self._wait_for_other_streams(hidden.device)
            buffers = self._fill(hidden, rotary, prepared)
            if state.graphs[key] is None:
                try:
                    state.graphs[key] = self._record(lambda: _layers(backbone, first, last, buffers, prepared))
                except Exception as problem:  # e.g. out of memory, or a layer that synchronises with the host
                    self._broken = True
                    self._finish()
                    self._state = _State()
                    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
                    _logger.warning("early_exit: no CUDA graph (%s); layers run one by one (slower)", reason)
                    return None
                self._fill(hidden, rotary, prepared)  # the warm-up run has overwritten the input
                self._drop_old()
            replay = state.graphs[key]
            assert replay is not None
            replay()
            output = buffers.hidden[: len(hidden)].clone()
            if hidden.device.type == "cuda":
                self._stream = torch.cuda.current_stream(hidden.device)
                self._done = self._stream.record_event()
            return output

    def _finish(self) -> None:
        """Wait for replays before their memory is freed."""
        if self._done is not None:
            self._done.synchronize()

    def _wait_for_other_streams(self, device: torch.device) -> None:
        if self._done is not None and device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            if stream != self._stream:
                stream.wait_event(self._done)

    def _fill(self, hidden: torch.Tensor, rotary: Rotary, prepared: Prepared) -> _Buffers:
        """The buffers of a size, with this batch copied into them."""
        key, count = (prepared.size, prepared.tiles), len(hidden)
        buffers = self._state.buffers.get(key)
        if buffers is None:
            pairs = {
                id(cosines): (_rows(cosines, prepared.size), _rows(sines, prepared.size))
                for cosines, sines in rotary.values()
            }
            buffers = self._state.buffers[key] = _Buffers(
                _rows(hidden, prepared.size),
                {kind: pairs[id(cosines)] for kind, (cosines, _) in rotary.items()},
                torch.zeros_like(prepared.plan, device=hidden.device),
            )
        buffers.hidden[:count].copy_(hidden)
        plan_held, rotary_held = buffers.holds
        buffers.holds = (None, None)  # should a copy fail
        if plan_held is not prepared:
            buffers.plan.copy_(to_device(prepared.plan, hidden.device))
        if rotary_held is not rotary:
            copied: set[int] = set()
            for kind, (cosines, sines) in rotary.items():
                if id(cosines) not in copied:
                    copied.add(id(cosines))
                    buffers.rotary[kind][0][:count].copy_(cosines)
                    buffers.rotary[kind][1][:count].copy_(sines)
        buffers.holds = (prepared, rotary)
        return buffers

    def _drop_old(self) -> None:
        state = self._state
        if len(state.graphs) > MOST_GRAPHS:
            self._finish()
        while len(state.graphs) > MOST_GRAPHS:
            state.graphs.popitem(last=False)
        sizes = {key[2:] for key in state.graphs}
        for size in [size for size in state.buffers if size not in sizes]:
            del state.buffers[size]


def _layers(backbone: Decoder, first: int, last: int, buffers: _Buffers, prepared: Prepared) -> None:
    """Run the layers in place on the buffer of hidden states."""
    from reasonrec_fast.kernels.packed_attention import Plan

    tiles, bounds = buffers.plan[: prepared.tiles * 6], buffers.plan[prepared.tiles * 6 :]
    plan = Plan(tiles.view(-1, 6), bounds.view(2, -1))
    output = run_layers(backbone, first, last, buffers.hidden, buffers.rotary, plan, prepared.blocks)
    buffers.hidden.copy_(output)


class _CudaGraphs:
    """Records CUDA graphs with a shared memory pool, since the graphs of a backbone never run concurrently.

    It has its own stream: cuBLAS has a workspace for each stream, and graphs of several backbones may run
    concurrently.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, run: Run) -> Run:
        run()  # compiles kernels, and lets libraries choose theirs
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if self._stream is None or self._stream.device != stream.device:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(stream.device)
        try:
            # Other threads may use CUDA meanwhile, except for recording.
            with (
                _recording,
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                run()
        finally:
            torch.cuda.set_stream(stream)  # a failed capture does not restore it
        return graph.replay


_of_backbones: WeakKeyDictionary[Decoder, LayerGraphs] = WeakKeyDictionary()
_making, _recording = threading.Lock(), threading.Lock()


def layer_graphs(backbone: Decoder) -> LayerGraphs | None:
    """The graphs of a backbone; None if it is not on a GPU or not :func:`usable`, or during a capture."""
    if backbone.device.type != "cuda":
        if _of_backbones:  # it may have been on a GPU, whose memory its graphs still hold
            with _making:
                _of_backbones.pop(backbone, None)
        return None
    if not usable(backbone) or torch.cuda.is_current_stream_capturing():
        return None
    with _making:
        if backbone not in _of_backbones:
            _of_backbones[backbone] = LayerGraphs()
        return _of_backbones[backbone]


def usable(backbone: Decoder) -> bool:
    """Whether the layers may be recorded in the current mode, on any device."""
    if backbone.training or backbone.dtype == torch.float64 or _head_width(backbone) > MOST_WIDTH:
        return False
    if torch.nn.modules.module._has_any_global_hook():
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled(backbone.device.type) or torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return library.triton_kernel("packed_attention", "packed_attention") is not None


def weights_mark(backbone: Decoder) -> tuple[Any, ...] | None:
    """The identity of the layers' modules and of their memory; None if a graph would not compute the same.

    Weights may change in place; settings of modules (an epsilon, a scale) are fixed when they are recorded. None is
    returned for modules of other packages (except merged layers of peft), hooks, an instance's own ``forward`` (set by
    accelerate's hooks and by patches), other kinds of tensors (such as quantised ones) and modules in training mode.
    """
    mark: list[Any] = [torch.backends.cuda.matmul.fp32_precision]  # which the older setting changes, too
    modules = list(backbone.base.layers)
    while modules:  # faster than `Module.modules` by a factor of three
        module = modules.pop()
        parts = module.__dict__
        if parts["training"] or parts["_forward_hooks"] or parts["_forward_pre_hooks"] or "forward" in parts:
            return None
        kind: Any = type(module)
        package = _package_of(kind)
        if package == "peft" and hasattr(kind, "active_adapters"):
            if not hasattr(kind, "merged"):  # one of several modules runs
                mark += [tuple(module.active_adapters), module.disable_adapters]
            elif not module.merged or module.disable_adapters:
                return None
            else:
                mark.append(tuple(module.merged_adapters))
        elif package not in ("torch", "transformers", "peft"):
            return None
        mark += [ref(module), kind]  # the address of a freed module may be reused
        for tensors in (parts["_parameters"], parts["_buffers"]):
            for tensor in tensors.values():
                if tensor is not None:
                    if type(tensor) not in _TENSORS:
                        return None
                    mark += [tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype]
        modules.extend(child for child in parts["_modules"].values() if child is not None)
    return tuple(mark)


_TENSORS = (torch.nn.Parameter, torch.Tensor)


@cache
def _package_of(kind: Any) -> str:
    """The top-level package of a class."""
    return kind.__module__.partition(".")[0]


def _rows(like: torch.Tensor, count: int) -> torch.Tensor:
    return like.new_zeros(count, like.shape[1])


def _head_width(backbone: Decoder) -> int:
    return backbone.base.layers[0].self_attn.head_dim
