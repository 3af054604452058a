"""Inputs of a language model: texts of token ids and of vectors in place of token embeddings."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from operator import index
from typing import Any, overload

import numpy as np
import torch


class Embeddings:
    """Vectors that a model reads in place of token embeddings: an image, an item's vector, a latent thought.

    Caches and groups distinguish contents by ``key`` (and ``positions``), not by ``values``: a caller that gives a key
    must give different keys for different values. :meth:`of` computes the key from the values.

    Args:
        values: input of the first layer, floating point ``[N, D]``, on any device; a decoder reads them in its own
            dtype. They may require gradients.
        key: of the content, at least one byte.
        positions: for models with several position axes (Qwen2-VL, Qwen2.5-VL), int64 ``[A, N]`` of at least 0,
            relative to the position where the vectors begin; None: consecutive, as of tokens.
        extent: with ``positions``, the number of positions that the vectors take up; by default one more than the
            largest position.

    Raises:
        TypeError: values that are no floating-point tensor, or a key that is not bytes.
        ValueError: another shape, no vector, an empty key, values that are not finite (checked on a CPU only), or
            positions or an extent that are negative or do not fit.
    """

    __slots__ = ("extent", "identity", "key", "positions", "values")

    def __init__(
        self,
        values: torch.Tensor,
        key: bytes,
        positions: np.ndarray | torch.Tensor | None = None,
        extent: int | None = None,
    ) -> None:
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
            raise TypeError(f"values: expected a floating-point tensor; got {kind}")
        if values.dim() != 2 or not values.shape[0]:
            raise ValueError(f"values: expected [N, D] of at least one vector; got {list(values.shape)}")
        if values.device.type == "cpu" and not bool(values.detach().isfinite().all()):
            row = int((~values.detach().isfinite()).any(1).nonzero()[0])
            raise ValueError(f"values: expected finite numbers; got others in row {row}")
        if not isinstance(key, bytes):
            raise TypeError(f"key: expected bytes; got {type(key).__name__}")
        if not key:
            raise ValueError("key: expected at least one byte; got none")
        self.values, self.key = values, key
        self.positions = None if positions is None else _checked_positions(positions, len(values))
        if self.positions is None:
            if extent is not None and extent != len(values):
                raise ValueError(f"extent: expected {len(values)}, the vectors, without positions; got {extent}")
            self.extent = len(values)
        else:
            self.extent = int(self.positions.max()) + 1 if extent is None else index(extent)
            if self.extent < 0:
                raise ValueError(f"extent: expected at least 0; got {self.extent}")
        axes = b"" if self.positions is None else self.positions.tobytes()
        self.identity: tuple[Any, ...] = (key, len(values), self.extent, axes)
        """Key, length and positions: equal for equal contents."""

    @classmethod
    def of(
        cls,
        values: torch.Tensor,
        positions: np.ndarray | torch.Tensor | None = None,
        extent: int | None = None,
    ) -> Embeddings:
        """Embeddings with a key computed from the values, which are copied from a GPU once.

        >>> Embeddings.of(torch.ones(2, 3)) == Embeddings.of(torch.ones(2, 3))
        True
        """
        return cls(values, values_key(values), positions, extent)

    def __len__(self) -> int:
        return self.values.shape[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Embeddings) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"Embeddings({list(self.values.shape)}, key={self.key.hex()[:16]!r})"


def values_key(values: torch.Tensor) -> bytes:
    """A key of a tensor's content: its dtype, shape and bytes.

    >>> values_key(torch.zeros(1, 2)) == values_key(torch.zeros(2, 1))
    False
    """
    values = values.detach().contiguous().cpu()
    digest = hashlib.blake2b(f"{values.dtype} {list(values.shape)} ".encode(), digest_size=16)
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


class Text(Sequence[Any]):
    """A text of token ids and :class:`Embeddings`, at least one of the latter; made by :func:`text_of`, immutable.

    It is a sequence, as a list of token ids is: its length is the number of ids and vectors, and slices do not divide a
    segment of vectors. Texts of the same content are equal and have the same hash.

    Attributes:
        segments: tuples of ids and :class:`Embeddings`; adjacent tuples are merged.
    """

    def __init__(self, segments: Sequence[tuple[int, ...] | Embeddings]) -> None:
        self.segments = tuple(segments)
        self._ends = list(accumulate(map(len, self.segments)))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> TextInput: ...
    def __getitem__(self, at: int | slice) -> Any:
        """An element (a token id, or the identity and offset of a vector), or a slice.

        Raises:
            ValueError: a slice with steps, or one that divides vectors.
        """
        if isinstance(at, slice):
            begin, end, step = at.indices(len(self))
            if step != 1:
                raise ValueError(f"slice: expected a step of 1; got {step}")
            return self._part(begin, end)
        at = range(len(self))[at]
        part = bisect_right(self._ends, at)
        segment, offset = self.segments[part], at - (self._ends[part] - len(self.segments[part]))
        return segment[offset] if isinstance(segment, tuple) else (*segment.identity, offset)

    def __iter__(self) -> Iterator[Any]:
        for segment in self.segments:
            if isinstance(segment, tuple):
                yield from segment
            else:
                yield from ((*segment.identity, offset) for offset in range(len(segment)))

    def _part(self, begin: int, end: int) -> TextInput:
        parts: list[tuple[int, ...] | Embeddings] = []
        for segment, stop in zip(self.segments, self._ends, strict=True):
            start = stop - len(segment)
            first, last = max(begin, start), min(end, stop)
            if first >= last:
                continue
            if isinstance(segment, tuple):
                parts.append(segment[first - start : last - start])
            elif (first, last) == (start, stop):
                parts.append(segment)
            else:
                raise ValueError(
                    f"slice: expected one that divides no Embeddings; got [{begin}, {end}) with vectors at "
                    f"[{start}, {stop})"
                )
        return _joined_segments(parts)

    def boundary(self, at: int) -> int:
        """The last index of at most ``at`` at which the text may be divided."""
        for segment, stop in zip(self.segments, self._ends, strict=True):
            start = stop - len(segment)
            if start < at < stop and isinstance(segment, Embeddings):
                return start
        return min(at, len(self))

    @property
    def embeddings(self) -> list[tuple[int, Embeddings]]:
        """The segments of vectors, with their start indices."""
        return [
            (stop - len(segment), segment)
            for segment, stop in zip(self.segments, self._ends, strict=True)
            if isinstance(segment, Embeddings)
        ]

    @cached_property
    def ids(self) -> np.ndarray:
        """Token ids, int64 ``[len]``; 0 for vectors."""
        return np.concatenate(
            [
                np.array(part, dtype=np.int64) if isinstance(part, tuple) else np.zeros(len(part), dtype=np.int64)
                for part in self.segments
            ]
        )

    @cached_property
    def key(self) -> bytes:
        """Of the content; see :func:`content_key`."""
        digest = hashlib.blake2b(digest_size=32)
        for segment in self.segments:
            if isinstance(segment, tuple):
                parts = [b"ids", np.array(segment, dtype=np.int64).tobytes()]
            else:
                key, count, extent, axes = segment.identity
                parts = [b"embeddings", key, np.array([count, extent]).tobytes(), axes]
            for part in parts:  # each with its length, so that different lists of parts have different digests
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        return b"\x01" + digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and self.segments == other.segments

    def __hash__(self) -> int:
        return hash(self.segments)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("text: expected token ids alone; got Embeddings among them")

    def __repr__(self) -> str:
        return f"Text({', '.join(repr(list(s)) if isinstance(s, tuple) else repr(s) for s in self.segments)})"


Segment = Sequence[int] | Embeddings
"""A part of a text."""
TextInput = Sequence[int] | Sequence[Segment] | Text
"""A text: token ids, or segments."""


def text_of(text: TextInput, argument: str = "text") -> list[int] | Text | Sequence[int]:
    """A text in its normal form: token ids as they are given, or a :class:`Text`.

    Segments of ids alone become a list of ids, so that the form does not depend on how a text was divided.

    Args:
        text: token ids (a sequence of whole numbers, an array or a tensor ``[N]``), segments, or a :class:`Text`.
        argument: the name of the text in error messages.

    Raises:
        TypeError: a segment that is neither token ids nor :class:`Embeddings`.

    >>> text_of([1, 2, 3]), text_of([[1, 2], [3]])
    ([1, 2, 3], [1, 2, 3])
    >>> len(text_of([[1, 2], Embeddings(torch.zeros(5, 4), b"an image"), [3]]))
    8
    """
    if not has_segments(text):
        return text  # type: ignore[return-value]
    if isinstance(text, Text):
        return text
    if isinstance(text, Embeddings):
        return Text([text])
    parts: list[tuple[int, ...] | Embeddings] = []
    for number, segment in enumerate(text):
        if isinstance(segment, Text):
            parts += segment.segments
        elif isinstance(segment, Embeddings):
            parts.append(segment)
        else:
            parts.append(_ids_of(segment, number, argument))
    return _joined_segments(parts)


def has_segments(text: Any) -> bool:
    """Whether a text is given in segments; False for token ids."""
    kind = type(text)
    if kind is list or kind is tuple:  # first, as most texts are
        if not text or type(text[0]) is int:
            return False
    elif isinstance(text, Text | Embeddings):
        return True
    elif not isinstance(text, list | tuple) or not text:
        return False
    first = text[0]
    return isinstance(first, Embeddings | Text | list | tuple | range) or getattr(first, "ndim", 0) == 1


def joined(first: TextInput, second: TextInput, argument: str = "text") -> list[int] | Text:
    """The concatenation of two texts.

    >>> joined([1, 2], [[3], [4]])
    [1, 2, 3, 4]
    """
    parts: list[tuple[int, ...] | Embeddings] = []
    for text in (text_of(first, argument), text_of(second, argument)):
        parts += text.segments if isinstance(text, Text) else [_ids_of(text, 0, argument)]
    return _joined_segments(parts)


def content_key(text: Sequence[int] | Text) -> bytes:
    """Bytes that are equal for two texts (as :func:`text_of` returns them) only if their contents are.

    Token ids are their own key, int64 (a multiple of 8 bytes); a text with embeddings has a digest of 33 bytes.

    >>> content_key([1]) == content_key(np.array([1])), content_key([1]) == content_key([1, 0])
    (True, False)
    """
    return text.key if isinstance(text, Text) else np.asarray(text, dtype=np.int64).tobytes()


def common_prefix(first: Sequence[int] | Text, second: Sequence[int] | Text) -> int:
    """Length of the common prefix of two texts (as :func:`text_of` returns them).

    >>> image = Embeddings(torch.zeros(5, 4), b"an image")
    >>> common_prefix([1, 2, 3], [1, 2, 4]), common_prefix(text_of([[1], image, [2]]), text_of([[1], image, [3]]))
    (2, 6)
    """
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


def boundary(text: Sequence[int] | Text, at: int) -> int:
    """The last index of at most ``at`` at which a text may be divided: a segment of vectors is not divided."""
    return text.boundary(at) if isinstance(text, Text) else min(at, len(text))


def extent(text: Sequence[int] | Text) -> int:
    """Position after a text that begins at position 0: its length, unless embeddings have positions of their own."""
    if not isinstance(text, Text):
        return len(text)
    return sum(part.extent if isinstance(part, Embeddings) else len(part) for part in text.segments)


def _joined_segments(parts: Sequence[tuple[int, ...] | Embeddings]) -> list[int] | Text:
    segments: list[tuple[int, ...] | Embeddings] = []
    for part in parts:
        if not len(part):
            continue
        last = segments[-1] if segments else None
        if isinstance(part, tuple) and isinstance(last, tuple):
            segments[-1] = last + part
        else:
            segments.append(part)
    if any(isinstance(segment, Embeddings) for segment in segments):
        return Text(segments)
    first = segments[0] if segments else ()
    return list(first) if isinstance(first, tuple) else []


def _ids_of(segment: Any, number: int, argument: str) -> tuple[int, ...]:
    if isinstance(segment, str | bytes):
        raise TypeError(
            f"{argument}: expected token ids or Embeddings; got {type(segment).__name__} in segment {number}"
        )
    try:
        ids = segment.tolist() if isinstance(segment, np.ndarray | torch.Tensor) else segment
        return tuple(map(index, ids))
    except TypeError:
        raise TypeError(
            f"{argument}: expected token ids (whole numbers) or Embeddings; got {segment!r} in segment {number}"
        ) from None


def _checked_positions(positions: Any, count: int) -> np.ndarray:
    array = positions.cpu().numpy() if isinstance(positions, torch.Tensor) else np.asarray(positions)
    if array.ndim != 2 or array.shape[1] != count or not array.shape[0] or array.dtype.kind not in "iu":
        raise ValueError(f"positions: expected whole numbers [A, {count}]; got {array.dtype} {list(array.shape)}")
    if array.min() < 0:
        raise ValueError(f"positions: expected at least 0; got {int(array.min())}")
    return np.ascontiguousarray(array, dtype=np.int64)
