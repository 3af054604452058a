"""Cache of the keys and values of prefixes, for users whose requests come again."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reasonrec_fast.lm.adapters import adapter_state
from reasonrec_fast.lm.decoder import has_hooks
from reasonrec_fast.lm.inputs import TextInput, content_key, text_of

_calls = itertools.count()


@dataclass
class PrefixState:
    """A prefix of ``P`` tokens after some layers.

    Attributes:
        keys, values: of the attention of layers 1, 2, ..., ``[P, G, d]`` each.
        hidden: input of the last of these layers, ``[P, D]``, from which the prefix can be resumed.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    hidden: torch.Tensor | None = None

    @property
    def depth(self) -> int:
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        tensors = [*self.keys, *self.values, *([] if self.hidden is None else [self.hidden])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PrefixCache:
    """States of prefixes; the least recently used are evicted first. Prefixes are equal only if all their token ids and
    the keys and positions of their embeddings are.

    Any number of threads may use it.

    Args:
        max_bytes: of keys, values and hidden states together.

    Raises:
        ValueError: ``max_bytes`` is not positive.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes: expected at least 1; got {max_bytes}")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = self.misses = 0
        self._entries: OrderedDict[bytes, PrefixState] = OrderedDict()
        self._weights: bytes | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, prefix: TextInput) -> PrefixState | None:
        """The state of a prefix, if it is cached."""
        key = content_key(text_of(prefix, "prefix"))
        with self._lock:
            state = self._entries.get(key)
            if state is None:
                self.misses += 1
            else:
                self.hits += 1
                self._entries.move_to_end(key)
            return state

    def put(self, prefix: TextInput, state: PrefixState) -> None:
        """Store a state, unless a deeper one is cached or it is larger than the whole cache."""
        key, size = content_key(text_of(prefix, "prefix")), state.num_bytes
        with self._lock:
            previous = self._entries.get(key)
            if size > self.max_bytes or (previous is not None and previous.depth >= state.depth):
                return
            if previous is not None:
                self.num_bytes -= previous.num_bytes
            self._entries[key] = state
            self._entries.move_to_end(key)
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1].num_bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def follow(self, model: nn.Module) -> None:
        """Forget everything if the model's weights or modules are not those of the last call. Settings of modules, such
        as an epsilon, are not looked at: :meth:`clear` where they change."""
        weights = weights_mark(model)
        if weights != self._weights:
            self.clear()
            self._weights = weights


def weights_mark(model: nn.Module, samples: int = 16) -> bytes:
    """A fingerprint that changes when weights or buffers do: of their devices and addresses, of torch's version
    counters, and of a few of their values (some libraries write without raising the counter, as peft does when it
    merges adapters), which are read back in one copy; of the active adapters of peft and their scales; and of the
    modules. It is another at every call while a module has hooks or a ``forward`` of its own: what these do may change
    unseen."""
    weights = [*model.parameters(), *model.buffers()]
    marks = [(w.data_ptr(), -1 if w.is_inference() else w._version) for w in weights]
    with torch.no_grad():
        few = torch.cat([w.flatten()[:: max(1, w.numel() // samples)].float() for w in weights])
    devices = ",".join(map(str, dict.fromkeys(w.device for w in weights)))
    modules = list(model.modules())
    strange = any(has_hooks(module) or "forward" in vars(module) for module in modules)
    words = f"{devices} {adapter_state(model)} {next(_calls) if strange else ''}".encode()
    marks += [(id(module), 0) for module in modules]
    return words + np.array(marks, dtype=np.int64).tobytes() + few.cpu().numpy().tobytes()
