"""What is known of prefixes that came before: the same user comes back."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reasonrec_fast.lm.adapters import adapter_state
from reasonrec_fast.lm.inputs import TextInput, content_key, text_of


@dataclass
class PrefixState:
    """A prefix of ``P`` tokens after some layers.

    Attributes:
        keys, values: of the attention of layers 1, 2, ..., ``[P, G, d]`` each.
        hidden: input of the last of these layers, ``[P, D]``; from there the prefix can be read on.
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
    """States of prefixes, least recently used out first. Exact: an entry is that of all token ids of a prefix, and of
    the keys and positions of its embeddings.

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
        """The state of a prefix, if it is here."""
        key = content_key(text_of(prefix, "prefix"))
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._entries.move_to_end(key)
            return found

    def put(self, prefix: TextInput, state: PrefixState) -> None:
        """Keep a state, unless a deeper one is here or it is larger than the whole cache."""
        key, size = content_key(text_of(prefix, "prefix")), state.num_bytes
        with self._lock:
            before = self._entries.get(key)
            if size > self.max_bytes or (before is not None and before.depth >= state.depth):
                return
            if before is not None:
                self.num_bytes -= before.num_bytes
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
        """Forget everything if the model's weights are not those of the last call."""
        weights = weights_mark(model)
        if weights != self._weights:
            self.clear()
            self._weights = weights


def weights_mark(model: nn.Module, samples: int = 16) -> bytes:
    """Something that changes when weights do: on which device and where they lie, how often torch wrote to them, and a
    few of their values (some libraries write past torch's count, as peft does when it merges adapters), which are read
    back in one copy; and which of peft's adapters are on, and how strongly."""
    weights = list(model.parameters())
    marks = [(w.data_ptr(), -1 if w.is_inference() else w._version) for w in weights]
    with torch.no_grad():
        few = torch.cat([w.flatten()[:: max(1, w.numel() // samples)].float() for w in weights])
    devices = ",".join(map(str, dict.fromkeys(w.device for w in weights)))
    words = f"{devices} {adapter_state(model)}".encode()
    return words + np.array(marks, dtype=np.int64).tobytes() + few.cpu().numpy().tobytes()
