"""Which references a draw takes: hashes that stand for chance, and retrieval in bins of percentiles."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import torch

from reasonrec_fast import ops

_CANDIDATES = 4
"""Nearest images whose similarities are computed once more, in float64."""


class _Bank(Protocol):
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def scales(self) -> tuple[str, ...]: ...
    @property
    def vectors(self) -> torch.Tensor: ...
    @property
    def percentiles(self) -> np.ndarray: ...


def hash_of(*parts: str | int) -> int:
    """64 bits that stand for chance: the same for the same parts, on every machine.

    >>> hash_of("scale", 0, "a") == hash_of("scale", 0, "a") != hash_of("scale", 1, "a")
    True
    """
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def mixed(values: np.ndarray) -> np.ndarray:
    """Bits of uint64 mixed so that neighbours have nothing in common (SplitMix64, Steele et al. 2014).

    >>> len(set(mixed(np.arange(1000, dtype=np.uint64)) >> np.uint64(48))) > 900
    True
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draw_rows(
    bank: _Bank,
    queries: torch.Tensor,
    keys: Sequence[str],
    scales: Sequence[Sequence[str]],
    hidden: Sequence[Collection[str]],
    k: int,
    seed: int,
    share: float,
    choice: str,
) -> np.ndarray:
    """Rows of the bank for each query, draw and bin, int64 ``[B, R, K]``; -1 where a bin gives none.

    Args:
        bank: of references.
        queries: unit vectors ``[B, D]``, float32.
        keys: of the queries.
        scales: of each query's draws, ``R`` each.
        hidden: keys that a query may not get.
        k, seed, share, choice: of :meth:`ReferenceBank.references`.
    """
    draws = len(scales[0]) if len(scales) else 0
    rows = np.full((len(keys), draws, k), -1, dtype=np.int64)
    row_of = {key: row for row, key in enumerate(bank.keys)}
    shut = [sorted(row_of[key] for key in set(each) if key in row_of) for each in hidden]
    hashes = np.array([hash_of("reference", key) for key in bank.keys], dtype=np.uint64)
    bins = np.minimum((bank.percentiles * k).astype(np.int64), k - 1)
    bank_scales = np.array(bank.scales, dtype=object)
    for scale in sorted({name for names in scales for name in names}):
        pairs = [(q, draw) for q, names in enumerate(scales) for draw, name in enumerate(names) if name == scale]
        seeds = [hash_of("draw", seed, keys[q], draw) for q, draw in pairs]
        for number in range(k):
            members = np.flatnonzero((bank_scales == scale) & (bins == number))
            if not len(members):
                continue
            taken = _seen(members, hashes[members], seeds, [shut[q] for q, _ in pairs], share)
            if choice == "content":
                chosen = _nearest(bank.vectors[members], queries[[q for q, _ in pairs]], taken)
            else:
                middle = np.abs(bank.percentiles[members] - (number + 0.5) / k)
                chosen = [_first(middle if choice == "coverage" else ranks, ranks) for ranks in taken]
            for (q, draw), member in zip(pairs, chosen, strict=True):
                rows[q, draw, number] = -1 if member < 0 else members[member]
    return rows


def _seen(
    members: np.ndarray, hashes: np.ndarray, seeds: Sequence[int], shut: Sequence[list[int]], share: float
) -> list[np.ndarray]:
    """For each query and draw the random ranks of the members that it sees, float64 ``[M]``; +inf for the others."""
    result = []
    for number, rows in zip(seeds, shut, strict=True):
        ranks = (mixed(hashes ^ np.uint64(number)) >> np.uint64(11)).astype(np.float64)
        ranks[np.isin(members, rows)] = np.inf
        allowed = int(np.isfinite(ranks).sum())
        count = int(np.ceil(share * allowed))
        if count < allowed:
            ranks[np.argsort(ranks, kind="stable")[count:]] = np.inf
        result.append(ranks)
    return result


def _nearest(vectors: torch.Tensor, queries: torch.Tensor, taken: list[np.ndarray]) -> list[int]:
    """Of the members that each query sees the nearest one; -1 where it sees none."""
    unseen = [np.flatnonzero(np.isinf(ranks)) for ranks in taken]
    indptr = torch.from_numpy(np.cumsum([0, *map(len, unseen)]))
    indices = torch.from_numpy(np.concatenate(unseen))
    found = ops.topk(queries, vectors, min(_CANDIDATES, len(vectors)), exclude=(indptr, indices)).indices
    # The last bits of a product depend on the number of rows, these sums do not.
    exact = (queries.double()[:, None] * vectors.double()[found.clamp_min(0)]).sum(-1)
    exact = exact.masked_fill(found < 0, -torch.inf)
    best = torch.where(exact == exact.max(-1, keepdim=True).values, found, len(vectors)).min(-1).values
    return best.tolist()


def _first(values: np.ndarray, ranks: np.ndarray) -> int:
    """The member with the least value among those that are seen, ties by rank; -1 where none is."""
    if np.isinf(ranks).all():
        return -1
    return int(np.lexsort((ranks, np.where(np.isinf(ranks), np.inf, values)))[0])
