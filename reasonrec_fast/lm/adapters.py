"""Adapters of peft: the model inside them, what of them a cache must know, and merging them once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def unwrapped(model: Any) -> Any:
    """The model of transformers inside peft's wrapping, whose adapters lie inside its layers.

    Raises:
        TypeError: adapters beside the layers (virtual tokens, prefixes of keys, other attention), which would be lost.

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


def adapter_state(model: nn.Module) -> str:
    """Which of peft's adapters are on, merged or not, and how strongly: what changes a model's answers while its
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
    """Adds a model's adapters to its weights while somebody reads them, once, whoever asks.

    Merging changes weights in place: two threads that both merge leave wrong ones, and so does unmerging under one
    that is reading. Readers therefore enter :meth:`merged`, any number at a time; whoever trains or saves enters
    :meth:`unmerged`, which waits for them, alone. Between the two the weights stay as they were left.

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
        self._of_thread = threading.local()

    @property
    def is_merged(self) -> bool:
        """Whether the adapters are in the weights at this moment."""
        return self._is_merged

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The adapters are in the weights inside, and stay there; threads may be inside together.

        Raises:
            RuntimeError: the thread is inside :meth:`unmerged`.
        """
        if self._writer == threading.get_ident():
            raise RuntimeError("merged: expected a thread that is not inside unmerged; got one that is")
        depth = getattr(self._of_thread, "depth", 0)
        with self._changed:
            # Who waits alone goes first, but for threads that are inside already.
            self._changed.wait_for(lambda: self._writer is None and (depth or not self._waiting_writers))
            if not self._is_merged:
                self.model.merge_adapter()
                self._is_merged = True
            self._readers += 1
        self._of_thread.depth = depth + 1
        try:
            yield
        finally:
            self._of_thread.depth = depth
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """The adapters are apart from the weights inside, as training and saving want them; one thread at a time.

        Raises:
            RuntimeError: the thread is inside :meth:`merged` or :meth:`unmerged`, and would wait for itself.
        """
        thread = threading.get_ident()
        if getattr(self._of_thread, "depth", 0) or self._writer == thread:
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
