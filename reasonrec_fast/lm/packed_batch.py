"""Execution of a packed batch, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.devices import on_device
from reasonrec_fast.lm.decoder import Decoder, Rotary
from reasonrec_fast.lm.inputs import TextInput
from reasonrec_fast.lm.layer_graphs import LayerGraphs, Prepared
from reasonrec_fast.lm.layout import PackedLayout, TokenGroup, flat_inputs, text_groups
from reasonrec_fast.lm.prefix_cache import PrefixCache, PrefixState
from reasonrec_fast.lm.whole_layers import run_layer


class PackedBatch:
    """Token groups between two layers.

    A layer is either run whole (:meth:`layer`), or in two steps at an exit: :meth:`peek_last` computes the output of
    every row's last token, which is all that a head reads, and :meth:`finish_layer` computes the other tokens of the
    rows that are kept. :meth:`advance` and :meth:`keep` do so for all layers up to an exit; with CUDA graphs they run
    the exit's layer whole, since a launch costs more than the computation for rows that leave.

    Args:
        backbone: the model.
        groups: prefixes and suffixes.
        cache: its prefixes are not computed again; the states of new prefixes are stored there.
        graphs: of the layers; not used with a cache, which stores the keys and values of every layer.

    Raises:
        TypeError: a segment that is neither token ids nor embeddings, or a backbone with hooks that would not run.
        ValueError: a group without a suffix, an empty suffix, a text that is too long, embeddings of another width, or
            with positions that the backbone does not have.
    """

    def __init__(
        self,
        backbone: Decoder,
        groups: Sequence[TokenGroup],
        cache: PrefixCache | None = None,
        graphs: LayerGraphs | None = None,
    ) -> None:
        backbone.check_state()
        self.backbone, self._cache = backbone, cache
        self._graphs = graphs if graphs is not None and cache is None and _can_record(backbone, graphs) else None
        self._prepared: Prepared | None = None  # of the layout, for graphs
        self._done = 0  # layers
        groups = text_groups(groups)
        layout = PackedLayout.of(groups)
        backbone.check_length(layout.longest, "groups")
        self._prefixes: list[TextInput] = [prefix for prefix, _ in groups]
        self._cached: list[PrefixState | None] = [None] * len(groups)
        if cache is not None:
            cache.follow(backbone)
            self._cached = [cache.get(prefix) if len(prefix) else None for prefix in self._prefixes]
        cached = [state is not None for state in self._cached]
        self.layout = replace(layout, resident=~np.array(cached))
        # The states to store; that of a cached prefix is extended from the layer where it ends.
        self._states = [
            PrefixState(list(k.keys), list(k.values), k.hidden) if k else PrefixState([], []) for k in self._cached
        ]
        ids, vectors = flat_inputs(
            [((), rows) if known else (prefix, rows) for known, (prefix, rows) in zip(cached, groups, strict=True)]
        )
        self.hidden = backbone.embed(self._on_device(ids), vectors)
        self._rotary_table = backbone.rotary(self.hidden, layout.longest)
        self._rotary = self._rotary_at(self.layout.positions)
        self._segments: torch.Tensor | None = None  # of whole layers, while the layout is the same

    def advance(self, depth: int) -> torch.Tensor:
        """Output ``[R, D]`` of layer ``depth`` for the last token of every row; runs all layers before it."""
        begin, self._done = self._done + 1, depth
        if self._graphs is None:
            for layer in range(begin, depth):
                self.layer(layer)
            return self.peek_last(depth)
        if self._segments is None:
            self._segments = self.layout.segments()
        if self._prepared is None:
            self._prepared = self._graphs.prepare(self.backbone, self._segments, self.layout.num_tokens)
        output = self._graphs.run(self.backbone, begin, depth, self.hidden, self._rotary, self._prepared)
        if output is None:
            for layer in range(begin, depth + 1):
                self.layer(layer)
        else:
            self.hidden = output
        return self.hidden[self._on_device(self.layout.last)]

    def keep(self, rows: np.ndarray) -> None:
        """After :meth:`advance`: continue with some of the rows (ascending row numbers, at least one)."""
        if self._graphs is None:
            self.finish_layer(self._done, rows)
        elif len(rows) < self.layout.num_rows:
            indices, _, self.layout = self.layout.keep(rows)
            self.hidden = self.hidden[self._on_device(indices)]
            self._rotary = self._rotary_at(self.layout.positions)
            self._segments = self._prepared = None

    def layer(self, depth: int) -> None:
        """Run layer ``depth`` (from 1) for all tokens."""
        self._restore(depth)
        backbone, index = self.backbone, depth - 1
        if not backbone.splits_layers:
            self.hidden = self._whole_layer(index)
            return
        normalized = backbone.pre_norm(index, self.hidden)
        keys, values, prefix_keys = self._keys_values(index, normalized)
        queries = backbone.queries(index, normalized, self._rotary)
        if self._segments is None:
            self._segments = self.layout.segments(prefix_keys=prefix_keys)
        attended = ops.packed_attention(queries, keys, values, self._segments, **backbone.scores(index))
        self.hidden = backbone.finish(index, self.hidden, attended)

    def peek_last(self, depth: int) -> torch.Tensor:
        """Output ``[R, D]`` of layer ``depth`` for the last token of every row; the batch itself is not advanced."""
        if not self.backbone.splits_layers:
            if depth < self.backbone.num_layers:
                self._restore(depth)
            self._whole_output = self._whole_layer(depth - 1, resumable=True)
            return self._whole_output[self._on_device(self.layout.last)]
        backbone, index, layout = self.backbone, depth - 1, self.layout
        normalized = backbone.pre_norm(index, self.hidden)
        keys, values, prefix_keys = self._keys_values(index, normalized, resumable=True)
        last = self._on_device(layout.last)
        queries = backbone.queries(index, normalized[last], self._rotary_at(layout.positions[..., layout.last]))
        segments = layout.segments("last", prefix_keys=prefix_keys)
        attended = ops.packed_attention(queries, keys, values, segments, **backbone.scores(index))
        output = backbone.finish(index, self.hidden[last], attended)
        self._peeked = keys, values, prefix_keys, output
        return output

    def finish_layer(self, depth: int, rows: np.ndarray) -> None:
        """After :meth:`peek_last`: complete the layer for some rows. The others leave, as do unused prefixes.

        Args:
            depth: as in :meth:`peek_last`.
            rows: ascending row numbers, at least one.
        """
        if not self.backbone.splits_layers:
            self.hidden = self._whole_output
            if len(rows) < self.layout.num_rows:
                indices, groups, layout = self.layout.keep(rows)
                self._leave(groups)
                self.layout, self.hidden = layout, self.hidden[self._on_device(indices)]
                self._rotary, self._segments = self._rotary_at(layout.positions), None
            return
        keys, values, prefix_keys, output = self._peeked
        row_keys = self.layout.row_start[rows]
        if len(rows) < self.layout.num_rows:
            indices, groups, layout = self.layout.keep(rows)
            self._leave(groups)
            self.layout, self.hidden, prefix_keys = layout, self.hidden[self._on_device(indices)], prefix_keys[groups]
            output = output[self._on_device(rows)]
        self._restore(depth)
        backbone, index, layout = self.backbone, depth - 1, self.layout
        rest, last = self._on_device(np.flatnonzero(~layout.is_last)), self._on_device(layout.last)
        new = torch.empty_like(self.hidden).index_copy_(0, last, output)
        if len(rest):
            hidden = self.hidden[rest]
            normalized = backbone.pre_norm(index, hidden)
            queries = backbone.queries(index, normalized, self._rotary_at(layout.positions[..., ~layout.is_last]))
            segments = layout.segments("rest", prefix_keys=prefix_keys, row_keys=row_keys)
            attended = ops.packed_attention(queries, keys, values, segments, **backbone.scores(index))
            new.index_copy_(0, rest, backbone.finish(index, hidden, attended))
        self.hidden, self._rotary, self._segments = new, self._rotary_at(layout.positions), None

    def end(self) -> None:
        """All rows have left: store the states of their prefixes."""
        self._keep_groups(range(len(self._cached)))

    def _keys_values(
        self, index: int, normalized: torch.Tensor, *, resumable: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Keys and values of the tokens, followed by those of cached prefixes; and the first key of each prefix.

        Args:
            resumable: whether a prefix's state may end here and be resumed later.
        """
        keys, values = self.backbone.keys_values(index, normalized, self._rotary)
        return self._with_prefixes(index, keys, values, resumable=resumable)

    def _with_prefixes(
        self, index: int, keys: torch.Tensor, values: torch.Tensor, *, resumable: bool
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """See :meth:`_keys_values`; those of resident prefixes are added to their states."""
        layout, prefix_keys = self.layout, self.layout.prefix_start
        if self._cache is not None:
            for group in np.flatnonzero(layout.resident & (layout.prefix > 0)):
                at = slice(int(prefix_keys[group]), int(prefix_keys[group] + layout.prefix[group]))
                state = self._states[group]
                if state.depth == index:
                    state.keys.append(keys[at].clone())
                    state.values.append(values[at].clone())
                if resumable:
                    state.hidden = self.hidden[at].clone()
        cached = np.flatnonzero(~layout.resident)
        if len(cached):
            prefix_keys = prefix_keys.copy()
            prefix_keys[cached] = layout.num_tokens + np.cumsum(layout.prefix[cached]) - layout.prefix[cached]
            states = [self._cached[group] for group in cached]
            keys = torch.cat([keys, *(state.keys[index] for state in states if state)])
            values = torch.cat([values, *(state.values[index] for state in states if state)])
        return keys, values, prefix_keys

    def _whole_layer(self, index: int, *, resumable: bool = False) -> torch.Tensor:
        """Output ``[T, D]`` of a layer that is run as one module."""

        def attend(
            queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scores: dict[str, Any]
        ) -> torch.Tensor:
            keys, values, prefix_keys = self._with_prefixes(index, keys, values, resumable=resumable)
            if self._segments is None:
                self._segments = self.layout.segments(prefix_keys=prefix_keys)
            return ops.packed_attention(queries, keys, values, self._segments, **scores)

        backbone = self.backbone
        positions, rotary = self._on_device(self.layout.positions), self._rotary[backbone.kind(index)]
        return run_layer(backbone.base.layers[index], self.hidden, positions, rotary, attend)

    def _leave(self, groups: np.ndarray) -> None:
        """Keep some groups alone; the prefix states of the others are stored."""
        self._keep_groups(set(range(len(self._cached))) - set(groups.tolist()))
        self._cached, self._states, self._prefixes = (
            [part[group] for group in groups] for part in (self._cached, self._states, self._prefixes)
        )

    def _restore(self, depth: int) -> None:
        """Make the cached prefixes resident whose states end at layer ``depth``."""
        states = {group: state for group, state in enumerate(self._cached) if state and state.depth == depth}
        groups = [group for group in states if not self.layout.resident[group]]
        if groups:
            indices, self.layout = self.layout.restore(np.array(groups))
            known = [states[group].hidden for group in groups]
            self.hidden = torch.cat([self.hidden, *(hidden for hidden in known if hidden is not None)])
            self.hidden = self.hidden[self._on_device(indices)]
            self._rotary, self._segments = self._rotary_at(self.layout.positions), None

    def _keep_groups(self, groups: Sequence[int] | set[int]) -> None:
        if self._cache is not None:
            for group in groups:
                if self.layout.resident[group] and self._states[group].depth:
                    self._cache.put(self._prefixes[group], self._states[group])

    def _rotary_at(self, positions: np.ndarray) -> Rotary:
        if positions.ndim == 2:
            return self.backbone.rotary_of(self.hidden, self._on_device(positions))
        rows = self._on_device(positions)
        turned: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for cosines, sines in self._rotary_table.values():
            turned.setdefault(id(cosines), (cosines[rows], sines[rows]))
        return {kind: turned[id(cosines)] for kind, (cosines, _) in self._rotary_table.items()}

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return on_device(array, self.backbone.device)


def _can_record(backbone: Decoder, graphs: LayerGraphs) -> bool:
    return backbone.splits_layers and graphs.follow(backbone)
