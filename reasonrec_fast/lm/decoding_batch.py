"""Sequences that grow by a token a step: keys and values of what they share, and of their own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.devices import on_device
from reasonrec_fast.lm.decoder import Call, Decoder, Rotary, call
from reasonrec_fast.lm.inputs import extent
from reasonrec_fast.lm.layout import PackedLayout, TokenGroup, flat_inputs, ranges, text_groups
from reasonrec_fast.lm.output import padded_rows
from reasonrec_fast.lm.products import step_call
from reasonrec_fast.lm.whole_layers import run_layer

_KeysValues = tuple[torch.Tensor, torch.Tensor]
_SLOTS = 32
"""Tokens for which each sequence has room before keys and values are moved: attention on a CPU reads all of the
buffer, so that room for a long output costs as much in its first steps as in its last."""


@dataclass(frozen=True)
class _Rows:
    """Where the keys and values of ``R`` sequences lie in the buffers, int64 ``[R]`` each.

    Attributes:
        prefix_begin, prefix: first key and number of the keys that a sequence shares with others.
        own_begin, own: those of its own; more tokens go behind them.
    """

    prefix_begin: np.ndarray
    prefix: np.ndarray
    own_begin: np.ndarray
    own: np.ndarray

    def take(self, rows: np.ndarray) -> _Rows:
        return _Rows(self.prefix_begin[rows], self.prefix[rows], self.own_begin[rows], self.own[rows])


class DecodingBatch:
    """Sequences behind prompts, each prompt with a prefix that several share.

    Prefixes and prompts are read once, in one packed batch. A sequence then reads its prefix where it lies; its prompt
    is copied into its own keys (where there is no prefix, the sequences of a prompt share the prompt instead). Which
    keys are shared depends on a sequence's own prompt alone, and so do its sums.

    Args:
        decoder: the model.
        groups: prefixes and prompts; a request is a prompt, in the order in which they lie.
        samples: sequences of each request, at least one.
        max_new_tokens: of each request; after as many steps its sequences have left (:meth:`keep`).

    Raises:
        TypeError: a decoder with hooks that would not run.
        ValueError: a group without a prompt, or an empty prompt.

    Attributes:
        hidden: the last layer's output for the last token of each sequence, ``[R, D]``.
    """

    hidden: torch.Tensor
    _keys: list[torch.Tensor]  # of each layer, [K, G, d]
    _values: list[torch.Tensor]
    _rows: _Rows
    _room: int  # tokens for which each sequence has room
    _scratch: int  # the key that padding writes

    def __init__(
        self, decoder: Decoder, groups: Sequence[TokenGroup], samples: Sequence[int], max_new_tokens: Sequence[int]
    ) -> None:
        decoder.check_state()
        self._decoder = decoder
        # Dropout is left out: nothing trains here.
        self._scores: list[dict[str, Any]] = []  # of layers that are taken apart
        if decoder.splits_layers:
            self._scores = [{**decoder.scores(index), "dropout": 0.0} for index in range(decoder.num_layers)]
        groups = text_groups(groups)
        layout = PackedLayout.of(groups)
        request = np.repeat(np.arange(layout.num_rows), samples)
        prefix, suffix = layout.prefix[layout.group], layout.suffix
        alone = prefix == 0
        rows = _Rows(
            np.where(alone, layout.row_start, layout.prefix_start[layout.group]),
            np.where(alone, suffix, prefix),
            layout.row_start,
            np.where(alone, 0, suffix),
        )
        # Embeddings may take another stretch of positions than they are vectors.
        behind = np.array([extent(start) + extent(prompt) for start, prompts in groups for prompt in prompts])  # type: ignore[arg-type]
        # No longer than the longest sequence can be: positions of some kinds change with the length that is asked for.
        self._rotary = self._read_prompts(groups, layout, int((behind + max_new_tokens).max()))
        self._positions = behind[request]
        self.hidden = self.hidden[self._on_device(layout.last[request])]
        self._make_room(rows.take(request))

    def __len__(self) -> int:
        return len(self._positions)

    def step(self, tokens: torch.Tensor) -> None:
        """Read one more token of every sequence, int64 ``[R]``; :attr:`hidden` is then theirs."""
        if not self._room:
            self._make_room(self._rows)
        decoder, rows, count = self._decoder, self._rows, len(self)
        padded = padded_rows(count, tokens.device)
        places = np.full((2, padded), self._scratch)
        places[0, :count], places[1] = rows.own_begin + rows.own, 0
        places[1, :count] = self._positions
        slots, positions = self._on_device(places)
        rotary = _at(self._rotary, positions)
        segments = np.zeros((padded, 6), dtype=np.int64)
        segments[:, 0], segments[:, 1] = np.arange(padded), 1
        segments[:, 4], segments[:, 5] = self._scratch, 1
        segments[:count, 2], segments[:count, 3] = rows.prefix_begin, rows.prefix
        segments[:count, 4], segments[:count, 5] = rows.own_begin, rows.own + 1
        table = torch.from_numpy(segments)
        hidden = decoder.embed(torch.cat([tokens, tokens[:1].expand(padded - count)]))
        step = step_call(hidden)
        for index in range(decoder.num_layers):

            def write(new_keys: torch.Tensor, new_values: torch.Tensor, index: int = index) -> _KeysValues:
                keys, values = self._keys[index], self._values[index]
                return keys.index_copy_(0, slots, new_keys), values.index_copy_(0, slots, new_values)

            hidden = self._layer(index, hidden, positions, rotary, table, write, step)
        self.hidden = hidden[:count]
        self._rows = replace(rows, own=rows.own + 1)
        self._positions = self._positions + 1
        self._room -= 1

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some sequences alone (ascending row numbers, at least one)."""
        self._rows, self._positions = self._rows.take(rows), self._positions[rows]
        self.hidden = self.hidden[self._on_device(rows)]

    def _read_prompts(self, groups: Sequence[TokenGroup], layout: PackedLayout, length: int) -> Rotary:
        """Keys and values of all tokens of prefixes and prompts, and their last hidden states ``[T, D]``."""
        decoder = self._decoder
        missing = padded_rows(layout.num_tokens, decoder.device) - layout.num_tokens
        if missing:  # texts that nobody reads, of a token each: positions may not go beyond the table's
            groups = [*groups, ((), [[0]] * missing)]
            layout = PackedLayout.of(groups)
        ids, vectors = flat_inputs(groups)
        hidden = decoder.embed(self._on_device(ids), vectors)
        table, positions = decoder.rotary(hidden, length), self._on_device(layout.positions)
        rotary = _at(table, positions) if positions.dim() == 1 else decoder.rotary_of(hidden, positions)
        segments = layout.segments()
        self._keys, self._values = [], []

        def keep(keys: torch.Tensor, values: torch.Tensor) -> _KeysValues:
            self._keys.append(keys)
            self._values.append(values)
            return keys, values

        for index in range(decoder.num_layers):
            hidden = self._layer(index, hidden, positions, rotary, segments, keep, call)
        self.hidden = hidden
        return table

    def _layer(
        self,
        index: int,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        rotary: Rotary,
        segments: torch.Tensor,
        stored: Callable[[torch.Tensor, torch.Tensor], _KeysValues],
        call: Call,
    ) -> torch.Tensor:
        """Output of a layer; ``stored`` takes the tokens' keys and values and returns those that ``segments`` mean."""
        decoder = self._decoder
        if not decoder.splits_layers:

            def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scores: Any) -> torch.Tensor:
                scores = {**scores, "dropout": 0.0}
                return ops.packed_attention(queries, *stored(keys, values), segments, **scores)

            turns = rotary[decoder.kind(index)]
            return call(lambda x: run_layer(decoder.base.layers[index], x, positions, turns, attend), hidden)
        normalized = decoder.pre_norm(index, hidden)
        keys, values = stored(*decoder.keys_values(index, normalized, rotary, call))
        queries = decoder.queries(index, normalized, rotary, call)
        attended = ops.packed_attention(queries, keys, values, segments, **self._scores[index])
        return decoder.finish(index, hidden, attended, call)

    def _make_room(self, rows: _Rows) -> None:
        """Move keys and values of these rows alone to buffers with room for more tokens of each."""
        begins, first, of = np.unique(rows.prefix_begin, return_index=True, return_inverse=True)
        shared = rows.prefix[first]
        capacity = rows.own + _SLOTS
        shared_begin = np.cumsum(shared) - shared
        own_begin = int(shared.sum()) + np.cumsum(capacity) - capacity
        self._scratch = int(shared.sum() + capacity.sum())
        source = np.zeros(self._scratch + 1, dtype=np.int64)
        source[: int(shared.sum())] = ranges(begins, shared)
        source[ranges(own_begin, rows.own)] = ranges(rows.own_begin, rows.own)
        places = self._on_device(source)
        for index in range(len(self._keys)):
            self._keys[index] = self._keys[index].index_select(0, places)
            self._values[index] = self._values[index].index_select(0, places)
        self._rows = _Rows(shared_begin[of], rows.prefix, own_begin, rows.own)
        self._room = _SLOTS

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return on_device(array, self._decoder.device)


def _at(table: Rotary, positions: torch.Tensor) -> Rotary:
    """Cosines and sines of some positions; kinds of layers that share theirs go on sharing."""
    taken: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for cosines, sines in table.values():
        if id(cosines) not in taken:
            taken[id(cosines)] = cosines[positions], sines[positions]
    return {kind: taken[id(cosines)] for kind, (cosines, _) in table.items()}
