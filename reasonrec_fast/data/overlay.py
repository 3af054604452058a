"""A sequence that overrides a few entries of a long one, which is shared instead of copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar, overload

Entry = TypeVar("Entry")


class Overlaid(Sequence[Entry], Generic[Entry]):
    """A view of a sequence with some entries replaced and, optionally, more entries at its end.

    Args:
        base: the underlying sequence.
        changes: index to entry; must have all indices from the end of ``base`` up to the new length.

    >>> list(Overlaid(["a", "b"], {1: "B", 2: "c"})), len(Overlaid(["a"], {}))
    (['a', 'B', 'c'], 1)
    """

    def __init__(self, base: Sequence[Entry], changes: Mapping[int, Entry]) -> None:
        self.base, self.changes = base, changes
        self._length = max(len(base), max(changes, default=-1) + 1)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._length))]
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:  # the base would count a negative one from its own end
            raise IndexError(f"index: expected one in [{-self._length}, {self._length}); got {index}")
        return self.changes[position] if position in self.changes else self.base[position]

    def __iter__(self) -> Iterator[Entry]:
        return (self[position] for position in range(self._length))
