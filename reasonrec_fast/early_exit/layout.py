"""Where each token of a packed batch belongs: shared prefixes, and the suffixes that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

TokenGroup = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prefix and its suffixes, as token ids."""


@dataclass(frozen=True)
class GroupLayout:
    """One group: ``start``, then ``prefix`` tokens, then the tokens of its suffixes one after the other.

    Attributes:
        start: place of its first token.
        prefix: tokens of the prefix.
        suffixes: tokens of each suffix.
        padded: for every suffix token its place when the suffixes stand as rows of equal width, int64.
        mask: bool ``[S, prefix + S]`` for the widest suffix of ``S`` tokens: a suffix reads its prefix, and itself up
            to the token that asks. Padding stands at the end of a row, where no token reads it.
    """

    start: int
    prefix: int
    suffixes: tuple[int, ...]
    padded: torch.Tensor
    mask: torch.Tensor

    @property
    def width(self) -> int:
        return max(self.suffixes)

    @property
    def end(self) -> int:
        return self.start + self.prefix + sum(self.suffixes)


@dataclass(frozen=True)
class PackedLayout:
    """One flat sequence of ``T`` tokens: group after group, without padding. A row is one suffix; rows are numbered
    in the order in which they lie.

    Attributes:
        groups: the groups, in order.
        positions: place of each token in its text, int64 ``[T]``: a suffix goes on from the end of its prefix.
        last: place of each row's last token, int64 ``[R]``.
    """

    groups: tuple[GroupLayout, ...]
    positions: torch.Tensor
    last: torch.Tensor

    @classmethod
    def pack(
        cls, groups: Sequence[TokenGroup], device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, PackedLayout]:
        """Token ids ``[T]`` and the layout of some groups.

        Raises:
            ValueError: no group, a group without a suffix, or an empty suffix (a row needs a last token).

        >>> ids, layout = PackedLayout.pack([([5, 6], [[7], [8, 9]])])
        >>> ids.tolist(), layout.positions.tolist(), layout.last.tolist()
        ([5, 6, 7, 8, 9], [0, 1, 2, 2, 3], [2, 4])
        """
        if not groups or not all(suffixes and all(map(len, suffixes)) for _, suffixes in groups):
            raise ValueError("groups: expected at least one, each with suffixes of at least one token")
        ids = [token for prefix, suffixes in groups for part in (prefix, *suffixes) for token in part]
        lengths = [(len(prefix), tuple(map(len, suffixes))) for prefix, suffixes in groups]
        return torch.tensor(ids, device=device), cls.of_lengths(lengths, device)

    @classmethod
    def of_lengths(
        cls, lengths: Sequence[tuple[int, tuple[int, ...]]], device: torch.device | str = "cpu"
    ) -> PackedLayout:
        """The layout of groups given as (prefix length, suffix lengths)."""
        groups: list[GroupLayout] = []
        positions: list[int] = []
        last: list[int] = []
        start = 0
        for prefix, suffixes in lengths:
            width = max(suffixes)
            padded = [row * width + token for row, size in enumerate(suffixes) for token in range(size)]
            mask = torch.ones(width, prefix + width, dtype=torch.bool, device=device).tril(prefix)
            groups.append(GroupLayout(start, prefix, suffixes, torch.tensor(padded, device=device), mask))
            positions += range(prefix)
            for size in suffixes:
                positions += range(prefix, prefix + size)
                last.append(len(positions) - 1)
            start = len(positions)
        return cls(tuple(groups), torch.tensor(positions, device=device), torch.tensor(last, device=device))

    @property
    def num_rows(self) -> int:
        return self.last.numel()

    def keep(self, rows: Sequence[int]) -> tuple[torch.Tensor, PackedLayout]:
        """The layout of some rows alone; prefixes that nobody reads any more leave too.

        Args:
            rows: ascending row numbers, at least one.

        Returns:
            the places of the tokens that stay, int64 ``[t]``, and their layout, in which row ``i`` is ``rows[i]``.
        """
        staying, first_row = set(rows), 0
        places: list[int] = []
        lengths: list[tuple[int, tuple[int, ...]]] = []
        for group in self.groups:
            starts = accumulate(group.suffixes, initial=group.start + group.prefix)
            kept = [
                (start, size)
                for row, (start, size) in enumerate(zip(starts, group.suffixes, strict=False), first_row)
                if row in staying
            ]
            first_row += len(group.suffixes)
            if kept:
                for start, size in [(group.start, group.prefix), *kept]:
                    places += range(start, start + size)
                lengths.append((group.prefix, tuple(size for _, size in kept)))
        device = self.positions.device
        return torch.tensor(places, device=device), PackedLayout.of_lengths(lengths, device)
