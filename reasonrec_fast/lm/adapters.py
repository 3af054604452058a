"""Adapters of peft: the wrapped model, a fingerprint of the adapters' state for caches, and merging them once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def with_lora(model: nn.Module, *, rank: int, alpha: int, seed: int) -> Any:
    """A ``PeftModel`` with new LoRA adapters (Hu et al. 2021) on every linear layer of a model on the CPU; they are
    drawn alike for every device it may move to.

    Args:
        model: of transformers; it is changed in place.
        rank, alpha: of the adapters.
        seed: of their weights; the caller's random generator stays as it is.
    """
    from peft import LoraConfig, get_peft_model

    cpu = torch.device("cpu")
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    with fork_rng(cpu), warnings.catch_warnings():
        seed_rng(seed, cpu)
        # peft calls transformers by a name that is deprecated there.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, lora)  # type: ignore[arg-type]


def write_lora(model: nn.Module, file: Path) -> None:
    """Write a model's LoRA adapters, merged or not: they are parameters of their own, which merging leaves."""
    write_tensors(file, {name: value.detach() for name, value in model.named_parameters() if "lora_" in name})


def read_lora(model: nn.Module, file: Path) -> None:
    """Copy what :func:`write_lora` wrote into a model of the same backbone and rank, whose adapters are not merged.

    Raises:
        ValueError: adapters of other names or shapes.
    """
    stored = read_tensors(file)
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
    Readers therefore enter :meth:`merged`, any number at a time; training and saving enter :meth:`unmerged`, which
    waits for the readers and is exclusive. After either, the weights stay as they are.

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
        if old != new:  # else merged adapters stay merged: subtracting them from rounded weights rounds again
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
                self.model.merge_adapter()
                self._is_merged = True
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
        """Inside, the adapters are not merged, as training and saving need it; one thread at a time.

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
                self.model.unmerge_adapter()
                self._is_merged = False
            self._writer = thread
        try:
            yield
        finally:
            with self._changed:
                self._writer = None
                self._changed.notify_all()
