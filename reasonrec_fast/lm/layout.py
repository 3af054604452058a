"""Layout of a packed batch: shared prefixes, and the suffixes that attend to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from reasonrec_fast.lm.inputs import Embeddings, Text, TextInput, extent, has_segments, text_of

TokenGroup = tuple[TextInput, Sequence[TextInput]]
"""A prefix and its suffixes: token ids, or texts with embeddings among them."""


@dataclass(frozen=True)
class PackedLayout:
    """One flat sequence of ``T`` tokens: group after group, each its prefix and then its suffixes, without padding.

    A row is one suffix; rows are numbered in the order of the sequence. A prefix is *resident* if its tokens are among
    the ``T``, and *cached* if only its keys and values are known. All arrays are on the host.

    Attributes:
        prefix: tokens of each group's prefix, int64 ``[G]``.
        resident: whether the prefix's tokens are among the ``T``, bool ``[G]``.
        suffix: tokens of each row, int64 ``[R]``.
        group: of each row, int64 ``[R]``, ascending.
        axes: where embeddings have positions of their own: those of the tokens of each prefix, and of each row, int64
            ``[A, n]``; None: tokens follow each other.
    """

    prefix: np.ndarray
    resident: np.ndarray
    suffix: np.ndarray
    group: np.ndarray
    axes: tuple[list[np.ndarray], list[np.ndarray]] | None = None

    @classmethod
    def of(cls, groups: Sequence[TokenGroup]) -> PackedLayout:
        """The layout of some groups, all prefixes resident.

        Raises:
            TypeError: a segment that is neither token ids nor embeddings.
            ValueError: no group, a group without a suffix, an empty suffix (a row needs a last token), or positions of
                different numbers of axes.

        >>> layout = PackedLayout.of([([5, 6], [[7], [8, 9]])])
        >>> layout.positions.tolist(), layout.last.tolist()
        ([0, 1, 2, 2, 3], [2, 4])
        """
        groups = text_groups(groups)
        if not groups or not all(suffixes and all(map(len, suffixes)) for _, suffixes in groups):
            raise ValueError("groups: expected at least one, each with suffixes of at least one token")
        return cls(
            np.array([len(prefix) for prefix, _ in groups]),
            np.ones(len(groups), dtype=bool),
            np.array([len(suffix) for _, suffixes in groups for suffix in suffixes]),
            np.repeat(np.arange(len(groups)), [len(suffixes) for _, suffixes in groups]),
            _axes_of(groups),
        )

    @property
    def num_rows(self) -> int:
        return len(self.suffix)

    @property
    def num_tokens(self) -> int:
        return int(self.suffix.sum() + self.prefix[self.resident].sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int((self.prefix[self.group] + self.suffix).max())

    @cached_property
    def row_start(self) -> np.ndarray:
        """Index of each row's first token."""
        # Tokens of prefixes up to and with the row's own, and of the rows before it.
        return np.cumsum(self.prefix * self.resident)[self.group] + np.cumsum(self.suffix) - self.suffix

    @cached_property
    def prefix_start(self) -> np.ndarray:
        """Index of each prefix's first token; undefined where the prefix is cached."""
        return self.row_start[np.searchsorted(self.group, np.arange(len(self.prefix)))] - self.prefix

    @property
    def last(self) -> np.ndarray:
        """Index of each row's last token, int64 ``[R]``."""
        return self.row_start + self.suffix - 1

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of each token in its text, int64 ``[T]`` (``[A, T]`` with :attr:`axes`): a suffix goes on from the
        end of its prefix."""
        if self.axes is not None:
            prefixes, rows = self.axes
            parts, row = [], 0
            for group, count in enumerate(np.bincount(self.group, minlength=len(self.prefix)).tolist()):
                parts += [prefixes[group]] * bool(self.resident[group]) + rows[row : row + count]
                row += count
            return np.concatenate(parts, 1)
        positions = np.empty(self.num_tokens, dtype=np.int64)
        lengths = self.prefix[self.resident]
        positions[ranges(self.prefix_start[self.resident], lengths)] = ranges(np.zeros_like(lengths), lengths)
        positions[ranges(self.row_start, self.suffix)] = ranges(self.prefix[self.group], self.suffix)
        return positions

    @cached_property
    def is_last(self) -> np.ndarray:
        """Whether a token is the last of its row, bool ``[T]``."""
        last = np.zeros(self.num_tokens, dtype=bool)
        last[self.last] = True
        return last

    def keep(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, PackedLayout]:
        """The layout of some rows alone, without the prefixes that none of them reads.

        Args:
            rows: ascending row numbers, at least one.

        Returns:
            the indices of the tokens that are kept, int64 ``[t]``; the groups that are kept; and their layout, in which
            row ``i`` is ``rows[i]``.
        """
        groups, group = np.unique(self.group[rows], return_inverse=True)
        axes = None
        if self.axes is not None:
            axes = [self.axes[0][group] for group in groups], [self.axes[1][row] for row in rows]
        kept = PackedLayout(self.prefix[groups], self.resident[groups], self.suffix[rows], group, axes)
        stays = np.zeros(self.num_tokens, dtype=bool)
        stays[ranges(self.row_start[rows], self.suffix[rows])] = True
        resident = groups[self.resident[groups]]
        stays[ranges(self.prefix_start[resident], self.prefix[resident])] = True
        return np.flatnonzero(stays), groups, kept

    def restore(self, groups: np.ndarray) -> tuple[np.ndarray, PackedLayout]:
        """The layout after the tokens of some cached prefixes were added: these prefixes become resident.

        Returns:
            for every token of the new layout its index in the previous tokens followed by the added ones (in the order
            of ``groups``), int64 ``[t]``.
        """
        resident = self.resident.copy()
        resident[groups] = True
        new = replace(self, resident=resident)
        indices = np.empty(new.num_tokens, dtype=np.int64)
        added = ranges(new.prefix_start[groups], self.prefix[groups])
        indices[added] = self.num_tokens + np.arange(len(added))
        others = np.ones(new.num_tokens, dtype=bool)
        others[added] = False
        indices[others] = np.arange(self.num_tokens)
        return indices, new

    def segments(
        self, tokens: str = "all", *, prefix_keys: np.ndarray | None = None, row_keys: np.ndarray | None = None
    ) -> torch.Tensor:
        """Segments of ``ops.packed_attention`` for some of the tokens.

        Args:
            tokens: ``"all"``, ``"last"`` (of each row) or ``"rest"`` (all others).
            prefix_keys, row_keys: first key of each prefix ``[G]`` and row ``[R]``; by default the indices of their
                tokens.
        """
        prefix_keys = self.prefix_start if prefix_keys is None else prefix_keys
        row_keys = self.row_start if row_keys is None else row_keys
        last = tokens == "last"
        rows = np.empty((self.num_rows, 6), dtype=np.int64)
        rows[:, 1] = {"all": self.suffix, "last": np.ones_like(self.suffix), "rest": self.suffix - 1}[tokens]
        rows[:, 2], rows[:, 3] = prefix_keys[self.group], self.prefix[self.group]
        rows[:, 4], rows[:, 5] = row_keys, self.suffix if last else 1
        rows[rows[:, 3] == 0, 2] = 0
        if not last and self.resident.any():
            own = np.zeros((int(self.resident.sum()), 6), dtype=np.int64)
            own[:, 1], own[:, 4], own[:, 5] = self.prefix[self.resident], prefix_keys[self.resident], 1
            # A group's prefix goes before its rows.
            order = np.argsort(np.concatenate([2 * np.flatnonzero(self.resident), 2 * self.group + 1]), kind="stable")
            rows = np.concatenate([own, rows])[order]
        rows = rows[rows[:, 1] > 0]
        rows[:, 0] = np.cumsum(rows[:, 1]) - rows[:, 1]
        return torch.from_numpy(rows)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The concatenated ranges ``[start, start + length)``.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    lengths = np.asarray(lengths)
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))


def within(sizes: Sequence[int], most: int) -> list[range]:
    """Consecutive parts whose sizes add up to at most ``most``; a larger element is a part of its own.

    >>> within([3, 2, 9, 1], most=5)
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    parts: list[range] = []
    filled = most
    for index, size in enumerate(sizes):
        if filled + size > most:
            parts.append(range(index, index))
            filled = 0
        parts[-1] = range(parts[-1].start, index + 1)
        filled += size
    return parts


def preceding_positions(layout: PackedLayout) -> np.ndarray:
    """Position of the token before each token of the rows (continuations), int64 ``[C]``; -1 if there is none.

    A row's first token follows the last token of its prefix.

    >>> preceding_positions(PackedLayout.of([([5, 6], [[7], [8, 9]]), ([], [[4, 3]])])).tolist()
    [1, 1, 3, -1, 5]
    """
    before = ranges(layout.row_start - 1, layout.suffix)
    first = np.cumsum(layout.suffix) - layout.suffix
    prefix = layout.prefix[layout.group]
    before[first] = np.where(prefix > 0, layout.prefix_start[layout.group] + prefix - 1, -1)
    return before


def text_groups(groups: Sequence[TokenGroup]) -> Sequence[TokenGroup]:
    """Groups whose texts are normalised by :func:`~reasonrec_fast.lm.inputs.text_of`; groups of token ids alone are
    returned as they are."""
    for prefix, suffixes in groups:
        if has_segments(prefix) or any(map(has_segments, suffixes)):
            break
    else:
        return groups
    return [
        (text_of(prefix, "groups"), [text_of(suffix, "groups") for suffix in suffixes]) for prefix, suffixes in groups
    ]


def flat_ids(groups: Sequence[TokenGroup]) -> np.ndarray:
    """Token ids in the order of :meth:`PackedLayout.of`, int64 ``[T]``.

    Raises:
        TypeError: embeddings among them (see :func:`flat_inputs`).
    """
    parts = [part for prefix, suffixes in groups for part in (prefix, *suffixes)]
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def flat_inputs(groups: Sequence[TokenGroup]) -> tuple[np.ndarray, list[tuple[int, Embeddings]]]:
    """Token ids in the order of :meth:`PackedLayout.of`, int64 ``[T]``, with 0 for vectors, and the index at which each
    segment of vectors begins."""
    parts = [part for prefix, suffixes in groups for part in (prefix, *suffixes)]
    if not any(isinstance(part, Text) for part in parts):
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]), []
    ids, vectors, begin = [], [], 0
    for part in parts:
        if isinstance(part, Text):
            vectors += [(begin + offset, segment) for offset, segment in part.embeddings]
            ids.append(part.ids)
        else:
            ids.append(np.asarray(part, dtype=np.int64))
        begin += len(part)
    return np.concatenate(ids), vectors


def _axes_of(groups: Sequence[TokenGroup]) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    texts = [text for prefix, suffixes in groups for text in (prefix, *suffixes) if isinstance(text, Text)]
    counts = {
        len(segment.positions) for text in texts for _, segment in text.embeddings if segment.positions is not None
    }
    if not counts:
        return None
    if len(counts) > 1:
        raise ValueError(f"groups: expected positions of one number of axes; got {sorted(counts)}")
    (count,) = counts
    prefixes, rows = [], []
    for prefix, suffixes in groups:
        prefixes.append(_positions_of(prefix, 0, count))
        behind = extent(prefix)  # type: ignore[arg-type]
        rows += [_positions_of(suffix, behind, count) for suffix in suffixes]
    return prefixes, rows


def _positions_of(text: TextInput, begin: int, axes: int) -> np.ndarray:
    """Positions of a text's tokens from ``begin`` on, ``[A, n]``."""
    parts = [np.zeros((axes, 0), dtype=np.int64)]
    for segment in text.segments if isinstance(text, Text) else [text]:
        if isinstance(segment, Embeddings):
            own = np.arange(len(segment))[None] if segment.positions is None else segment.positions
            parts.append(np.broadcast_to(own + begin, (axes, len(segment))))
            begin += segment.extent
        else:
            parts.append(np.broadcast_to(np.arange(begin, begin + len(segment)), (axes, len(segment))))
            begin += len(segment)
    return np.concatenate(parts, 1)
