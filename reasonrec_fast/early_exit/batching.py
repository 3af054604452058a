"""Token groups in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from reasonrec_fast.lm.layout import TokenGroup, text_groups, within


def num_tokens(group: TokenGroup) -> int:
    """Tokens of a prefix and its suffixes."""
    prefix, suffixes = group
    return len(prefix) + sum(map(len, suffixes))


def pieces_of(groups: Sequence[TokenGroup], max_tokens: int) -> Iterator[TokenGroup]:
    """The groups, those of more than ``max_tokens`` tokens in parts that repeat their prefix (one row at least).

    >>> list(pieces_of([([1, 2], [[3], [4], [5, 6]])], max_tokens=4))
    [([1, 2], [[3], [4]]), ([1, 2], [[5, 6]])]

    Raises:
        ValueError: a group without a suffix.
    """
    for number, (prefix, suffixes) in enumerate(text_groups(groups)):
        if not suffixes:
            raise ValueError(f"groups: expected at least one suffix each; got none in group {number}")
        for part in within(list(map(len, suffixes)), max(max_tokens - len(prefix), 1)):
            yield prefix, suffixes[part.start : part.stop]


def batches_of(groups: Sequence[TokenGroup], max_tokens: int) -> Iterator[tuple[list[TokenGroup], np.ndarray]]:
    """Groups of at most ``max_tokens`` tokens together (one row at least), and which rows they are, int64.

    >>> [(len(batch), rows.tolist()) for batch, rows in batches_of([([1], [[2], [3]]), ([4], [[5]])], max_tokens=4)]
    [(1, [0, 1]), (1, [2])]
    """
    pieces, row = list(pieces_of(groups, max_tokens)), 0
    for part in within(list(map(num_tokens, pieces)), max_tokens):
        batch = [pieces[position] for position in part]
        end = row + sum(len(suffixes) for _, suffixes in batch)
        yield batch, np.arange(row, end)
        row = end
