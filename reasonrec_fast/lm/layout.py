"""Where each token of a packed batch lies: shared prefixes, and the suffixes that read them."""

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

    A row is one suffix; rows are numbered in the order in which they lie. A prefix may be *away*: its tokens are not
    among the ``T``, because its keys and values are known from elsewhere. Everything here lies on the host.

    Attributes:
        prefix: tokens of each group's prefix, int64 ``[G]``.
        here: whether the prefix is among the tokens, bool ``[G]``.
        suffix: tokens of each row, int64 ``[R]``.
        group: of each row, int64 ``[R]``, ascending.
        axes: where embeddings have positions of their own: those of the tokens of each prefix, and of each row, int64
            ``[A, n]``; None: tokens follow each other.
    """

    prefix: np.ndarray
    here: np.ndarray
    suffix: np.ndarray
    group: np.ndarray
    axes: tuple[list[np.ndarray], list[np.ndarray]] | None = None

    @classmethod
    def of(cls, groups: Sequence[TokenGroup]) -> PackedLayout:
        """The layout of some groups, all prefixes here.

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
        return int(self.suffix.sum() + self.prefix[self.here].sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int((self.prefix[self.group] + self.suffix).max())

    @cached_property
    def row_start(self) -> np.ndarray:
        """Place of each row's first token."""
        # Tokens of prefixes up to and with the row's own, and of the rows before it.
        return np.cumsum(self.prefix * self.here)[self.group] + np.cumsum(self.suffix) - self.suffix

    @cached_property
    def prefix_start(self) -> np.ndarray:
        """Place of each prefix's first token; of no meaning where it is away."""
        return self.row_start[np.searchsorted(self.group, np.arange(len(self.prefix)))] - self.prefix

    @property
    def last(self) -> np.ndarray:
        """Place of each row's last token, int64 ``[R]``."""
        return self.row_start + self.suffix - 1

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of each token in its text, int64 ``[T]`` (``[A, T]`` with :attr:`axes`): a suffix goes on from the
        end of its prefix."""
        if self.axes is not None:
            prefixes, rows = self.axes
            parts, row = [], 0
            for group, count in enumerate(np.bincount(self.group, minlength=len(self.prefix)).tolist()):
                parts += [prefixes[group]] * bool(self.here[group]) + rows[row : row + count]
                row += count
            return np.concatenate(parts, 1)
        placed = np.empty(self.num_tokens, dtype=np.int64)
        lengths = self.prefix[self.here]
        placed[ranges(self.prefix_start[self.here], lengths)] = ranges(np.zeros_like(lengths), lengths)
        placed[ranges(self.row_start, self.suffix)] = ranges(self.prefix[self.group], self.suffix)
        return placed

    @cached_property
    def is_last(self) -> np.ndarray:
        """Whether a token is the last of its row, bool ``[T]``."""
        found = np.zeros(self.num_tokens, dtype=bool)
        found[self.last] = True
        return found

    def keep(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, PackedLayout]:
        """The layout of some rows alone; prefixes that nobody reads any more leave too.

        Args:
            rows: ascending row numbers, at least one.

        Returns:
            the places of the tokens that stay, int64 ``[t]``; the groups that stay; and their layout, in which row
            ``i`` is ``rows[i]``.
        """
        groups, group = np.unique(self.group[rows], return_inverse=True)
        axes = None
        if self.axes is not None:
            axes = [self.axes[0][group] for group in groups], [self.axes[1][row] for row in rows]
        kept = PackedLayout(self.prefix[groups], self.here[groups], self.suffix[rows], group, axes)
        stays = np.zeros(self.num_tokens, dtype=bool)
        stays[ranges(self.row_start[rows], self.suffix[rows])] = True
        here = groups[self.here[groups]]
        stays[ranges(self.prefix_start[here], self.prefix[here])] = True
        return np.flatnonzero(stays), groups, kept

    def bring(self, groups: np.ndarray) -> tuple[np.ndarray, PackedLayout]:
        """The layout with the prefixes of some groups here that were away.

        Returns:
            for every token of the new layout its place among the tokens so far with the new ones (in the order of
            ``groups``) behind them, int64 ``[t]``.
        """
        here = self.here.copy()
        here[groups] = True
        new = replace(self, here=here)
        places = np.empty(new.num_tokens, dtype=np.int64)
        brought = ranges(new.prefix_start[groups], self.prefix[groups])
        places[brought] = self.num_tokens + np.arange(len(brought))
        others = np.ones(new.num_tokens, dtype=bool)
        others[brought] = False
        places[others] = np.arange(self.num_tokens)
        return places, new

    def segments(
        self, tokens: str = "all", *, prefix_keys: np.ndarray | None = None, row_keys: np.ndarray | None = None
    ) -> torch.Tensor:
        """What ``ops.packed_attention`` computes for some of the tokens.

        Args:
            tokens: ``"all"``, ``"last"`` (of each row) or ``"rest"`` (all others).
            prefix_keys, row_keys: first key of each prefix ``[G]`` and row ``[R]``; by default where their tokens lie.
        """
        prefix_keys = self.prefix_start if prefix_keys is None else prefix_keys
        row_keys = self.row_start if row_keys is None else row_keys
        last = tokens == "last"
        rows = np.empty((self.num_rows, 6), dtype=np.int64)
        rows[:, 1] = {"all": self.suffix, "last": np.ones_like(self.suffix), "rest": self.suffix - 1}[tokens]
        rows[:, 2], rows[:, 3] = prefix_keys[self.group], self.prefix[self.group]
        rows[:, 4], rows[:, 5] = row_keys, self.suffix if last else 1
        rows[rows[:, 3] == 0, 2] = 0
        if not last and self.here.any():
            own = np.zeros((int(self.here.sum()), 6), dtype=np.int64)
            own[:, 1], own[:, 4], own[:, 5] = self.prefix[self.here], prefix_keys[self.here], 1
            # A group's prefix goes before its rows.
            order = np.argsort(np.concatenate([2 * np.flatnonzero(self.here), 2 * self.group + 1]), kind="stable")
            rows = np.concatenate([own, rows])[order]
        rows = rows[rows[:, 1] > 0]
        rows[:, 0] = np.cumsum(rows[:, 1]) - rows[:, 1]
        return torch.from_numpy(rows)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``[start, start + length)`` of each, one after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    lengths = np.asarray(lengths)
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))


def within(sizes: Sequence[int], most: int) -> list[range]:
    """Neighbours together, as many as their sizes allow; one that is larger alone stands alone.

    >>> within([3, 2, 9, 1], most=5)
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    parts: list[range] = []
    filled = most
    for place, size in enumerate(sizes):
        if filled + size > most:
            parts.append(range(place, place))
            filled = 0
        parts[-1] = range(parts[-1].start, place + 1)
        filled += size
    return parts


def preceding_positions(layout: PackedLayout) -> np.ndarray:
    """Position of the token before each token of the rows (continuations), int64 ``[C]``; -1 where there is none.

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
    """Groups whose texts have the one form of :func:`~reasonrec_fast.lm.inputs.text_of`; those of ids alone are
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
    """Token ids in the order of :meth:`PackedLayout.of`, int64 ``[T]``, with 0 in the place of vectors, and where each
    segment of vectors begins."""
    parts = [part for prefix, suffixes in groups for part in (prefix, *suffixes)]
    if not any(isinstance(part, Text) for part in parts):
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]), []
    ids, vectors, begin = [], [], 0
    for part in parts:
        if isinstance(part, Text):
            vectors += [(begin + place, segment) for place, segment in part.embeddings]
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
