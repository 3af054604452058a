"""A packed batch on its way through the layers of a backbone."""

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

    A layer is either taken whole (:meth:`layer`), or in two steps where rows may leave: :meth:`look` finishes it for
    the last token of every row alone, which is all that a head reads, and :meth:`go_on` for the other tokens of the
    rows that stay. :meth:`advance` and :meth:`stay` do so for all layers up to an exit; with CUDA graphs they take the
    layer of the exit whole, since a launch costs more than what it computes for rows that leave.

    Args:
        backbone: the model.
        groups: prefixes and suffixes.
        cache: prefixes found in it are not read again; what is learnt of others goes there.
        graphs: of the layers; not with a cache, which keeps what lies between them.

    Raises:
        TypeError: a segment that is neither token ids nor embeddings.
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
        self.backbone, self._cache = backbone, cache
        self._graphs = graphs if graphs is not None and cache is None and _can_record(backbone, graphs) else None
        self._prepared: Prepared | None = None  # of the layout, for graphs
        self._done = 0  # layers
        groups = text_groups(groups)
        layout = PackedLayout.of(groups)
        backbone.check_length(layout.longest, "groups")
        self._prefixes: list[TextInput] = [prefix for prefix, _ in groups]
        self._known: list[PrefixState | None] = [None] * len(groups)
        if cache is not None:
            cache.follow(backbone)
            self._known = [cache.get(prefix) if len(prefix) else None for prefix in self._prefixes]
        away = [known is not None for known in self._known]
        self.layout = replace(layout, here=~np.array(away))
        # What is learnt on the way; a prefix that was away is learnt on from where it stopped.
        self._learnt = [
            PrefixState(list(k.keys), list(k.values), k.hidden) if k else PrefixState([], []) for k in self._known
        ]
        ids, vectors = flat_inputs(
            [((), rows) if gone else (prefix, rows) for gone, (prefix, rows) in zip(away, groups, strict=True)]
        )
        self.hidden = backbone.embed(self._on_device(ids), vectors)
        self._rotary_table = backbone.rotary(self.hidden, layout.longest)
        self._rotary = self._rotary_at(self.layout.positions)
        self._segments: torch.Tensor | None = None  # of whole layers, while the layout is the same

    def advance(self, depth: int) -> torch.Tensor:
        """Output ``[R, D]`` of layer ``depth`` for the last token of every row; all layers before it are taken."""
        begin, self._done = self._done + 1, depth
        if self._graphs is None:
            for layer in range(begin, depth):
                self.layer(layer)
            return self.look(depth)
        if self._segments is None:
            self._segments = self.layout.segments()
        if self._prepared is None:
            self._prepared = self._graphs.prepare(self.backbone, self._segments, self.layout.num_tokens)
        found = self._graphs.run(self.backbone, begin, depth, self.hidden, self._rotary, self._prepared)
        if found is None:
            for layer in range(begin, depth + 1):
                self.layer(layer)
        else:
            self.hidden = found
        return self.hidden[self._on_device(self.layout.last)]

    def stay(self, rows: np.ndarray) -> None:
        """After :meth:`advance`: go on with some rows alone (ascending row numbers, at least one)."""
        if self._graphs is None:
            self.go_on(self._done, rows)
        elif len(rows) < self.layout.num_rows:
            places, _, self.layout = self.layout.keep(rows)
            self.hidden = self.hidden[self._on_device(places)]
            self._rotary = self._rotary_at(self.layout.positions)
            self._segments = self._prepared = None

    def layer(self, depth: int) -> None:
        """Take layer ``depth`` (from 1) whole."""
        self._bring(depth)
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

    def look(self, depth: int) -> torch.Tensor:
        """Output ``[R, D]`` of layer ``depth`` for the last token of every row; the batch itself stays before it."""
        if not self.backbone.splits_layers:
            if depth < self.backbone.num_layers:
                self._bring(depth)
            self._whole_output = self._whole_layer(depth - 1, read_on=True)
            return self._whole_output[self._on_device(self.layout.last)]
        backbone, index, layout = self.backbone, depth - 1, self.layout
        normalized = backbone.pre_norm(index, self.hidden)
        keys, values, prefix_keys = self._keys_values(index, normalized, read_on=True)
        last = self._on_device(layout.last)
        queries = backbone.queries(index, normalized[last], self._rotary_at(layout.positions[..., layout.last]))
        segments = layout.segments("last", prefix_keys=prefix_keys)
        attended = ops.packed_attention(queries, keys, values, segments, **backbone.scores(index))
        found = backbone.finish(index, self.hidden[last], attended)
        self._looked = keys, values, prefix_keys, found
        return found

    def go_on(self, depth: int, rows: np.ndarray) -> None:
        """Finish the layer that was looked at for some rows; the others leave, and prefixes with the last of theirs.

        Args:
            depth: as in :meth:`look`.
            rows: ascending row numbers, at least one.
        """
        if not self.backbone.splits_layers:
            self.hidden = self._whole_output
            if len(rows) < self.layout.num_rows:
                places, groups, layout = self.layout.keep(rows)
                self._leave(groups)
                self.layout, self.hidden = layout, self.hidden[self._on_device(places)]
                self._rotary, self._segments = self._rotary_at(layout.positions), None
            return
        keys, values, prefix_keys, found = self._looked
        row_keys = self.layout.row_start[rows]
        if len(rows) < self.layout.num_rows:
            places, groups, layout = self.layout.keep(rows)
            self._leave(groups)
            self.layout, self.hidden, prefix_keys = layout, self.hidden[self._on_device(places)], prefix_keys[groups]
            found = found[self._on_device(rows)]
        self._bring(depth)
        backbone, index, layout = self.backbone, depth - 1, self.layout
        rest, last = self._on_device(np.flatnonzero(~layout.is_last)), self._on_device(layout.last)
        new = torch.empty_like(self.hidden).index_copy_(0, last, found)
        if len(rest):
            hidden = self.hidden[rest]
            normalized = backbone.pre_norm(index, hidden)
            queries = backbone.queries(index, normalized, self._rotary_at(layout.positions[..., ~layout.is_last]))
            segments = layout.segments("rest", prefix_keys=prefix_keys, row_keys=row_keys)
            attended = ops.packed_attention(queries, keys, values, segments, **backbone.scores(index))
            new.index_copy_(0, rest, backbone.finish(index, hidden, attended))
        self.hidden, self._rotary, self._segments = new, self._rotary_at(layout.positions), None

    def end(self) -> None:
        """All rows have left: keep what was learnt."""
        self._keep_groups(range(len(self._known)))

    def _keys_values(
        self, index: int, normalized: torch.Tensor, *, read_on: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Keys and values of the tokens and, behind them, of prefixes that are away; first key of each prefix.

        Args:
            read_on: whether prefixes can later be read on from here.
        """
        keys, values = self.backbone.keys_values(index, normalized, self._rotary)
        return self._with_prefixes(index, keys, values, read_on=read_on)

    def _with_prefixes(
        self, index: int, keys: torch.Tensor, values: torch.Tensor, *, read_on: bool
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """See :meth:`_keys_values`; those of the prefixes among the tokens are learnt."""
        layout, prefix_keys = self.layout, self.layout.prefix_start
        if self._cache is not None:
            for group in np.flatnonzero(layout.here & (layout.prefix > 0)):
                at = slice(int(prefix_keys[group]), int(prefix_keys[group] + layout.prefix[group]))
                learnt = self._learnt[group]
                if learnt.depth == index:
                    learnt.keys.append(keys[at].clone())
                    learnt.values.append(values[at].clone())
                if read_on:
                    learnt.hidden = self.hidden[at].clone()
        away = np.flatnonzero(~layout.here)
        if len(away):
            prefix_keys = prefix_keys.copy()
            prefix_keys[away] = layout.num_tokens + np.cumsum(layout.prefix[away]) - layout.prefix[away]
            known = [self._known[group] for group in away]
            keys = torch.cat([keys, *(state.keys[index] for state in known if state)])
            values = torch.cat([values, *(state.values[index] for state in known if state)])
        return keys, values, prefix_keys

    def _whole_layer(self, index: int, *, read_on: bool = False) -> torch.Tensor:
        """Output ``[T, D]`` of a layer that is not taken apart."""

        def attend(
            queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scores: dict[str, Any]
        ) -> torch.Tensor:
            keys, values, prefix_keys = self._with_prefixes(index, keys, values, read_on=read_on)
            if self._segments is None:
                self._segments = self.layout.segments(prefix_keys=prefix_keys)
            return ops.packed_attention(queries, keys, values, self._segments, **scores)

        backbone = self.backbone
        positions, rotary = self._on_device(self.layout.positions), self._rotary[backbone.kind(index)]
        return run_layer(backbone.base.layers[index], self.hidden, positions, rotary, attend)

    def _leave(self, groups: np.ndarray) -> None:
        """Some groups stay; what was learnt of the others is kept."""
        self._keep_groups(set(range(len(self._known))) - set(groups.tolist()))
        self._known, self._learnt, self._prefixes = (
            [part[group] for group in groups] for part in (self._known, self._learnt, self._prefixes)
        )

    def _bring(self, depth: int) -> None:
        """Bring prefixes here of which nothing is known after layer ``depth``."""
        states = {group: state for group, state in enumerate(self._known) if state and state.depth == depth}
        groups = [group for group in states if not self.layout.here[group]]
        if groups:
            places, self.layout = self.layout.bring(np.array(groups))
            known = [states[group].hidden for group in groups]
            self.hidden = torch.cat([self.hidden, *(hidden for hidden in known if hidden is not None)])
            self.hidden = self.hidden[self._on_device(places)]
            self._rotary, self._segments = self._rotary_at(self.layout.positions), None

    def _keep_groups(self, groups: Sequence[int] | set[int]) -> None:
        if self._cache is not None:
            for group in groups:
                if self.layout.here[group] and self._learnt[group].depth:
                    self._cache.put(self._prefixes[group], self._learnt[group])

    def _rotary_at(self, positions: np.ndarray) -> Rotary:
        if positions.ndim == 2:
            return self.backbone.rotary_of(self.hidden, self._on_device(positions))
        places = self._on_device(positions)
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for cosines, sines in self._rotary_table.values():
            found.setdefault(id(cosines), (cosines[places], sines[places]))
        return {kind: found[id(cosines)] for kind, (cosines, _) in self._rotary_table.items()}

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return on_device(array, self.backbone.device)


def _can_record(backbone: Decoder, graphs: LayerGraphs) -> bool:
    return backbone.splits_layers and graphs.follow(backbone)
