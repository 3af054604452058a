"""Adapters of peft: the wrapped model, a fingerprint of the adapters' state for caches, and merging them once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from reasonrec_fast.devices import fork_rng, seed_rng
from reasonrec_fast.files import read_tensors, write_tensors


def unwrapped(model: Any) -> Any:
    """The model of transformers in a ``PeftModel``, with the adapters inside its layers.

    Raises:
        TypeError: adapters outside the layers (virtual tokens, prefixes of keys, other attention), which would be lost.

    >>> unwrapped("as it is")
    'as it is'
    """
    if not hasattr(model, "get_base_model"):
        return model
    for name, config in getattr(model, "peft_config", {}).items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning or kind == "ADAPTION_PROMPT":
            raise TypeError(
                f"model: expected adapters inside the layers, as LoRA's; got {kind} (adapter {name!r}), which adds "
                "to what layers read"
            )
    return model.get_base_model()


def with_lora(model: nn.Module, *, rank: int, alpha: int, seed: int, last_layers: int | None = None) -> Any:
    """A ``PeftModel`` with new LoRA adapters (Hu et al. 2021) on every linear layer of a model on the CPU (of its
    language part, if it reads images too); they are drawn alike for every device it may move to.

    Args:
        model: of transformers; it is changed in place.
        rank, alpha: of the adapters.
        seed: of their weights; the caller's random generator stays as it is.
        last_layers: how many of the model's last layers get adapters; None for all. Those before have no backward pass.

    Raises:
        ValueError: more layers than the model has, or none.
    """
    from peft import LoraConfig, get_peft_model

    cpu = torch.device("cpu")
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_adapted(model, last_layers))
    with fork_rng(cpu), warnings.catch_warnings():
        seed_rng(seed, cpu)
        # peft calls transformers by a name that is deprecated there.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, lora)  # type: ignore[arg-type]


def _adapted(model: Any, last_layers: int | None) -> str | list[str]:
    """Names of the linear layers of a model's language part, or of its last layers."""
    if last_layers is None and not hasattr(model.config, "vision_config"):
        return "all-linear"
    decoder = model.get_decoder()
    parts = [decoder]
    if last_layers is not None:
        count = len(decoder.layers)
        if not 1 <= last_layers <= count:
            raise ValueError(f"last_layers: expected 1 to {count}, the model's layers; got {last_layers}")
        parts = decoder.layers[count - last_layers :]
    inside = {id(module) for part in parts for module in part.modules()}
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and id(part) in inside]


def _beside_the_language(model: Any) -> set[str]:
    """Names of the modules of a model in peft's wrapping that lie outside of its language part."""
    inside = {id(module) for module in unwrapped(model).get_decoder().modules()}
    return {name for name, part in model.named_modules() if id(part) not in inside}


def write_lora(model: nn.Module, file: Path) -> None:
    """Write a model's LoRA adapters, merged or not: they are parameters of their own, which merging leaves."""
    write_tensors(file, {name: value.detach() for name, value in model.named_parameters() if "lora_" in name})


def read_lora(model: nn.Module, file: Path) -> None:
    """Copy what :func:`write_lora` wrote into a model of the same backbone and rank, whose adapters are not merged.

    Adapters of a vision part are left out: :func:`with_lora` once made some, which no prompt was read with.

    Raises:
        ValueError: adapters of other names or shapes.
    """
    stored = read_tensors(file)
    if hasattr(unwrapped(model).config, "vision_config"):
        beside = _beside_the_language(model)
        stored = {name: value for name, value in stored.items() if name.partition(".lora_")[0] not in beside}
    known = {name: value for name, value in model.named_parameters() if "lora_" in name}
    if set(stored) != set(known) or any(stored[name].shape != known[name].shape for name in known):
        raise ValueError(f"{file.parent}: expected adapters of this backbone; got those of another")
    with torch.no_grad():
        for name, value in stored.items():
            known[name].copy_(value)


def adapter_state(model: nn.Module) -> str:
    """Which of peft's adapters are active and merged, and their scales: these change a model's outputs while its
    weights stay the same. Empty for a model without adapters."""
    states = [
        (
            module.active_adapters,
            module.disable_adapters,
            getattr(module, "merged", None),
            getattr(module, "scaling", None),
        )
        for module in model.modules()
        if isinstance(getattr(type(module), "disable_adapters", None), property)  # a model of transformers has a method
    ]
    return str(states) if states else ""


class AdapterMerger:
    """A readers-writer lock that merges a model's adapters into its weights once, for all readers.

    Merging changes weights in place: if two threads merge, or one unmerges while another reads, the weights are wrong.
    Readers therefore enter :meth:`merged`, any number at a time; training and changing adapters enter
    :meth:`unmerged`, which waits for the readers and is exclusive. After either, the weights stay as they are.

    Adding an adapter to a weight and subtracting it again rounds twice: in bfloat16 a quarter of the weights come back
    as others, and answers would depend on how often a model was merged. While adapters are merged, the weights that
    they were added to are therefore kept in host memory, and put back as they were.

    Args:
        model: a ``PeftModel`` whose adapters can be merged (LoRA, DoRA), not merged yet.

    Raises:
        TypeError: a model without adapters.
    """

    def __init__(self, model: Any) -> None:
        if not hasattr(model, "merge_adapter"):
            raise TypeError(f"model: expected a model with peft's adapters; got {type(model).__name__}")
        self.model = model
        self._changed = threading.Condition()
        self._is_merged = False
        self._readers = 0
        self._writer: int | None = None
        self._waiting_writers = 0
        self._thread_state = threading.local()
        self._unmerged_weights: list[_Kept] = []

    @property
    def is_merged(self) -> bool:
        """Whether the adapters are in the weights at this moment."""
        return self._is_merged

    def move(self, device: torch.device, old: torch.dtype, new: torch.dtype) -> None:
        """Move the model to another device, and weights of one type, but for the adapters (float32), to another;
        weights that were rounded stay rounded.

        Args:
            device: where to.
            old, new: types of the weights, which are equal where they stay as they are.
        """
        if old != new:  # else merged adapters stay merged, and the weights that are kept on the host stay there
            with self.unmerged():
                for name, parameter in self.model.named_parameters():
                    if parameter.dtype == old and "lora_" not in name:
                        parameter.data = parameter.data.to(new)
        self.model.to(device)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the adapters are merged into the weights; they stay so afterwards. Any number of threads may be
        inside.

        Raises:
            RuntimeError: the thread is inside :meth:`unmerged`.
        """
        if self._writer == threading.get_ident():
            raise RuntimeError("merged: expected a thread that is not inside unmerged; got one that is")
        depth = getattr(self._thread_state, "depth", 0)
        with self._changed:
            # Waiting writers go first, except before threads that are inside already.
            self._changed.wait_for(lambda: self._writer is None and (depth or not self._waiting_writers))
            if not self._is_merged:
                self._merge()
            self._readers += 1
        self._thread_state.depth = depth + 1
        try:
            yield
        finally:
            self._thread_state.depth = depth
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """Inside, the adapters are not merged, as training needs it; one thread at a time.

        Raises:
            RuntimeError: the thread is inside :meth:`merged` or :meth:`unmerged`, so that it would deadlock.
        """
        thread = threading.get_ident()
        if getattr(self._thread_state, "depth", 0) or self._writer == thread:
            raise RuntimeError("unmerged: expected a thread that is not inside merged or unmerged; got one that is")
        with self._changed:
            self._waiting_writers += 1
            try:
                self._changed.wait_for(lambda: self._writer is None and not self._readers)
            finally:
                self._waiting_writers -= 1
            if self._is_merged:
                self._unmerge()
            self._writer = thread
        try:
            yield
        finally:
            with self._changed:
                self._writer = None
                self._changed.notify_all()

    def _merge(self) -> None:
        self._unmerged_weights = _weights_to_merge_into(self.model)
        try:
            self.model.merge_adapter()
        except BaseException:  # e.g. out of memory behind some of the layers
            self._unmerge()
            raise
        for kept in self._unmerged_weights:
            kept.version = _version(kept.weight)
        self._is_merged = True

    def _unmerge(self) -> None:
        self.model.unmerge_adapter()
        with torch.no_grad():
            for kept in self._unmerged_weights:
                if kept.version in (None, _version(kept.weight)):  # else somebody wrote into it while it was merged
                    kept.weight.data.copy_(kept.values)
        self._unmerged_weights, self._is_merged = [], False


@dataclass
class _Kept:
    """A parameter of a layer as it was before adapters were merged into it.

    Attributes:
        layer, name: which parameter.
        values: on the CPU.
        version: of the merged parameter, by torch's counter of writes; None before it is merged.
    """

    layer: nn.Module
    name: str
    values: torch.Tensor
    version: int | None = None

    @property
    def weight(self) -> torch.Tensor:
        return cast(torch.Tensor, getattr(self.layer, self.name))


def _weights_to_merge_into(model: nn.Module) -> list[_Kept]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m.get_base_layer() for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.merged]
    return [
        _Kept(layer, name, weight.detach().to("cpu", copy=True))
        for layer in layers
        for name, weight in layer.named_parameters(recurse=False)
    ]


def _version(weight: torch.Tensor) -> int:
    return -1 if weight.is_inference() else weight._version
