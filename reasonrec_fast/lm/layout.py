"""Where each token of a packed batch lies: shared prefixes, and the suffixes that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

TokenGroup = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prefix and its suffixes, as token ids."""


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
    """

    prefix: np.ndarray
    here: np.ndarray
    suffix: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, groups: Sequence[TokenGroup]) -> PackedLayout:
        """The layout of some groups, all prefixes here.

        Raises:
            ValueError: no group, a group without a suffix, or an empty suffix (a row needs a last token).

        >>> layout = PackedLayout.of([([5, 6], [[7], [8, 9]])])
        >>> layout.positions.tolist(), layout.last.tolist()
        ([0, 1, 2, 2, 3], [2, 4])
        """
        if not groups or not all(suffixes and all(map(len, suffixes)) for _, suffixes in groups):
            raise ValueError("groups: expected at least one, each with suffixes of at least one token")
        return cls(
            np.array([len(prefix) for prefix, _ in groups]),
            np.ones(len(groups), dtype=bool),
            np.array([len(suffix) for _, suffixes in groups for suffix in suffixes]),
            np.repeat(np.arange(len(groups)), [len(suffixes) for _, suffixes in groups]),
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
        """Place of each token in its text, int64 ``[T]``: a suffix goes on from the end of its prefix."""
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
        kept = PackedLayout(self.prefix[groups], self.here[groups], self.suffix[rows], group)
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


def flat_ids(groups: Sequence[TokenGroup]) -> np.ndarray:
    """Token ids in the order of :meth:`PackedLayout.of`, int64 ``[T]``."""
    parts = [part for prefix, suffixes in groups for part in (prefix, *suffixes)]
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
