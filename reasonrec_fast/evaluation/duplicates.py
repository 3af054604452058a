"""Pairs of alike vectors: images of a test part that training has nearly seen, and the nearest pairs of one set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reasonrec_fast.arrays import as_count, as_numbers


class AlikePairs(NamedTuple):
    """Pairs of rows, the most alike first.

    Attributes:
        first, second: rows, int64 ``[P]``.
        similarity: cosine, float64 ``[P]``.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    def lines(self, first_names: Sequence[str], second_names: Sequence[str]) -> list[str]:
        """A line a pair: similarity and both names, separated by tabs.

        >>> AlikePairs(np.array([1]), np.array([0]), np.array([0.98765])).lines(["a", "b"], ["c"])
        ['0.9877\\tb\\tc']
        """
        rows = zip(self.first.tolist(), self.second.tolist(), self.similarity.tolist(), strict=True)
        return [f"{similarity:.4f}\t{first_names[one]}\t{second_names[other]}" for one, other, similarity in rows]


def near_duplicates(first: np.ndarray, second: np.ndarray, threshold: float = 0.98, *, block: int = 1024) -> AlikePairs:
    """Pairs of a row of ``first`` and one of ``second`` whose cosine is at least ``threshold``.

    How alike near duplicates are depends on the features: look at the pairs before a threshold is settled.

    Args:
        first, second: features of two parts, ``[N, D]`` and ``[M, D]``.
        threshold: in (-1, 1].
        block: rows of each part that are compared at a time: memory is ``block ** 2`` numbers and the pairs.

    Raises:
        ValueError: features that are no finite matrices of one width, a row of zeros (with its number), or a threshold
            or block out of range.

    >>> near_duplicates(np.eye(3), np.array([[0.0, 2.0, 0.1], [1.0, 1.0, 1.0]])).first.tolist()
    [1]
    """
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold: expected a cosine in (-1, 1]; got {threshold!r}")
    block = as_count(block, "block", least=1)
    one, other = _directions(first, "first"), _directions(second, "second")
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"second: expected {one.shape[1]} features as in first; got {other.shape[1]}")
    found = []
    for row in range(0, len(one), block):
        for column in range(0, len(other), block):
            cosines = _cosines(one[row : row + block], other[column : column + block])
            rows, columns = np.nonzero(cosines >= threshold)
            found.append((rows + row, columns + column, cosines[rows, columns]))
    return _sorted(found)


def nearest_pairs(features: np.ndarray, count: int, *, block: int = 1024) -> AlikePairs:
    """The pairs of different rows with the largest cosines, each pair once with the lower row first.

    Args:
        features: ``[N, D]``.
        count: of pairs. Pairs that tie with the last are all among them, so that no order of rows decides; all pairs
            where there are fewer.
        block: rows that are compared with all at a time.

    Raises:
        ValueError: as :func:`near_duplicates`, or a count below 1.

    >>> nearest_pairs(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]), 1).second.tolist()
    [2]
    """
    count, block = as_count(count, "count", least=1), as_count(block, "block", least=1)
    directions = _directions(features, "features")
    best = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    for row in range(0, len(directions), block):
        cosines = _cosines(directions[row : row + block], directions)
        cosines[np.arange(len(directions)) <= np.arange(row, row + len(cosines))[:, None]] = -np.inf
        least = -1.1  # of a cosine, with rounding
        if cosines.size > count:
            least = max(least, np.partition(cosines, -count, axis=None)[-count])
        rows, columns = np.nonzero(cosines >= least)
        joined = (
            np.concatenate([best[0], rows + row]),
            np.concatenate([best[1], columns]),
            np.concatenate([best[2], cosines[rows, columns]]),
        )
        if len(joined[2]) > count:
            last = np.partition(joined[2], -count)[-count]
            joined = tuple(values[joined[2] >= last] for values in joined)  # type: ignore[assignment]
        best = joined
    return _sorted([best])


def _directions(features: np.ndarray, name: str) -> np.ndarray:
    values = as_numbers(features, name, dims=2)
    lengths = np.sqrt((values**2).sum(1))
    for row in np.flatnonzero(~(lengths > 0))[:1]:
        raise ValueError(f"{name}: expected vectors that have a direction; got zeros in row {row}")
    return values / lengths[:, None]


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.round(one @ other.T, 12)  # without the last bits, which depend on the block, ties are ties


def _sorted(found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> AlikePairs:
    if not found:
        return AlikePairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    first, second, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((second, first, -similarity))
    return AlikePairs(first[order].astype(np.int64), second[order].astype(np.int64), similarity[order])
