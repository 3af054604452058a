"""What a stack knows of items besides its tools' scores: popularity, position in histories, attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pandas.util import hash_array
from scipy.sparse import csr_array, csr_matrix

from reasonrec_fast.data import Catalog, Histories
from reasonrec_fast.files import read_tensors, write_tensors
from reasonrec_fast.models.classical.stack_transitions import Transitions


@dataclass(frozen=True)
class ItemFacts:
    """Facts of ``I`` items. None of them depends on the numbers or identifiers of items.

    Attributes:
        counts: events among the histories that the tools were fitted on, float32 ``[I]``.
        positions: mean relative position of these events in their histories, 0 for the first and 1 for the last,
            float32 ``[I]``; NaN for an item without events.
        attributes: tf-idf of each attribute, rows of length 1, ``[I, A]``; ``A`` is 0 without attributes.
        idf: of each attribute, float32 ``[A]``.
        ties: numbers that decide between items of equal scores and features (:func:`tie_breakers`), int64 ``[I]``.
        transitions: which items came after which in these histories.
    """

    counts: np.ndarray
    positions: np.ndarray
    attributes: csr_matrix
    idf: np.ndarray
    ties: np.ndarray
    transitions: Transitions

    @classmethod
    def of(cls, histories: Histories, catalog: Catalog) -> ItemFacts:
        """From the histories that the tools are fitted on, and the catalogue."""
        transitions = Transitions.of(histories, len(catalog))
        return cls(*_events(histories, len(catalog)), *_attributes(catalog), tie_breakers(catalog.ids), transitions)

    def with_events(self, histories: Histories) -> ItemFacts:
        """The same attributes with the events of other histories."""
        transitions = Transitions.of(histories, len(self.counts))
        return ItemFacts(*_events(histories, len(self.counts)), self.attributes, self.idf, self.ties, transitions)

    @cached_property
    def attribute_transitions(self) -> tuple[csr_array, np.ndarray, np.ndarray]:
        """Of adjacent events: how much of which attribute came after which, ``[A, A]``, and how much of each attribute
        there was before and after, ``[A]`` both, by the items' tf-idf."""
        matrix, following = csr_array(self.attributes).astype(np.float64), self.transitions.following
        pairs = (matrix.T @ (following @ matrix)).tocsr()
        return pairs, matrix.T @ following.sum(1), matrix.T @ following.sum(0)


def _events(histories: Histories, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.repeat(histories.lengths, histories.lengths)
    positions = (np.arange(len(histories.items)) - np.repeat(histories.indptr[:-1], histories.lengths) + 0.5) / lengths
    counts = np.bincount(histories.items, minlength=num_items)
    sums = np.bincount(histories.items, positions, minlength=num_items)
    with np.errstate(invalid="ignore"):
        return counts.astype(np.float32), (sums / counts).astype(np.float32)


def _attributes(catalog: Catalog) -> tuple[csr_matrix, np.ndarray]:
    values = [
        sorted({(name, value) for name, column in catalog.attributes.items() for value in column[item]})
        for item in range(len(catalog))
    ]
    columns = {value: column for column, value in enumerate(sorted({value for row in values for value in row}))}
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in values], dtype=np.int64)])
    indices = np.array([columns[value] for row in values for value in row], dtype=np.int64)
    frequency = np.bincount(indices, minlength=len(columns))
    idf = np.log((1 + len(values)) / (1 + frequency)).astype(np.float32)
    weights = idf[indices]
    rows = np.repeat(np.arange(len(values)), np.diff(indptr))
    norms = np.sqrt(np.bincount(rows, weights.astype(np.float64) ** 2, minlength=len(values)))
    weights = (weights / np.maximum(norms[rows], 1e-12)).astype(np.float32)
    return csr_matrix((weights, indices, indptr), shape=(len(values), len(columns))), idf


def tie_breakers(ids: Sequence[str]) -> np.ndarray:
    """A number for each item that decides between equal scores, int64 ``[I]``: a hash of its identifier, so that it
    neither depends on the items' order nor tells anything about it."""
    return hash_array(np.array(ids, dtype=object)).view(np.int64)


def write_facts(file: Path, facts: ItemFacts) -> None:
    """Write facts as safetensors."""
    matrix = facts.attributes
    arrays = {
        "counts": facts.counts, "positions": facts.positions, "idf": facts.idf, "ties": facts.ties,
        "attributes.data": matrix.data, "attributes.indices": matrix.indices.astype(np.int64),
        "attributes.indptr": matrix.indptr.astype(np.int64),
    }  # fmt: skip
    for name in ("following", "later"):
        pairs = getattr(facts.transitions, name)
        arrays |= {f"{name}.{part}": getattr(pairs, part) for part in ("data", "indices", "indptr")}
    write_tensors(file, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def read_facts(file: Path) -> ItemFacts:
    """Read what :func:`write_facts` wrote.

    Raises:
        ValueError: a file of an earlier version, which has no transitions.
    """
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(file).items()}
    if "later.indptr" not in arrays:
        raise ValueError(f"{file}: expected counts of transitions; it was written by an earlier version: fit again")
    num_items = len(arrays["counts"])

    def parts(name: str) -> tuple[np.ndarray, ...]:
        return tuple(arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr"))

    attributes = csr_matrix(parts("attributes"), shape=(num_items, len(arrays["idf"])))
    pairs = (csr_array(parts(name), shape=(num_items, num_items)) for name in ("following", "later"))
    return ItemFacts(
        arrays["counts"], arrays["positions"], attributes, arrays["idf"], arrays["ties"], Transitions(*pairs)
    )
