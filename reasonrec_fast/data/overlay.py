"""A long sequence with a few entries of its own: the long one is shared, not copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar, overload

Entry = TypeVar("Entry")


class Overlaid(Sequence[Entry], Generic[Entry]):
    """A sequence in which some entries are others, and which may go on after its end.

    Args:
        base: the sequence.
        changes: index to entry; all from the end of ``base`` up to the new length must be there.

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
            return [self[place] for place in range(*index.indices(self._length))]
        place = index + self._length if index < 0 else index
        return self.changes[place] if place in self.changes else self.base[place]

    def __iter__(self) -> Iterator[Entry]:
        return (self[place] for place in range(self._length))
