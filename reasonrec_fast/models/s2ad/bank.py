"""References with known scores: kept, and drawn for a query, alike in content and apart in quality."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from reasonrec_fast.arrays import as_count, as_numbers
from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.percentiles import ONE_SCALE
from reasonrec_fast.files import read_json, read_tensors, write_json, write_tensors
from reasonrec_fast.models.s2ad.drawing import draw_rows, hash_of
from reasonrec_fast.pretrained import load_folder, save_folder

Choice = Literal["content", "coverage", "random"]
CHOICES: tuple[Choice, ...] = ("content", "coverage", "random")
_FORMAT = 1
_TENSORS, _TEXTS = "bank.safetensors", "bank.json"


class References(NamedTuple):
    """References of ``B`` queries, ``R`` draws, ``K`` at most each, ascending by percentile.

    Attributes:
        rows: in the bank, int64 ``[B, R, K]``; -1 at the end where there are fewer.
        percentiles: float64 ``[B, R, K]``; ``+inf`` where there are fewer.
        scales: of each draw, ``R`` a query.
    """

    rows: np.ndarray
    percentiles: np.ndarray
    scales: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """Images with the percentiles of their scores; never changed, :meth:`add` and :meth:`remove` give another bank.

    Rows are in the order of ``keys``, digests of the images' contents: a bank is the same however it was filled.

    Attributes:
        names: of the images, such as their paths relative to a folder, ``N``.
        keys: digests of the contents (``RGBImage.key.hex()``), ``N`` different ones, ascending.
        vectors: of the contents, of unit length, float32 ``[N, D]``.
        percentiles: of the scores within their scales, in (0, 1), float64 ``[N]``.
        scales: whose scale each score is on, ``N``.

    >>> bank = ReferenceBank.of(["a", "b", "c"], ["03", "01", "02"], torch.eye(3), [0.1, 0.5, 0.9])
    >>> bank.names
    ('b', 'c', 'a')
    >>> found = bank.references(torch.tensor([[1.0, 0, 0]]), ["04"], k=3, draws=1, share=1.0)
    >>> [bank.names[row] for row in found.rows[0, 0]], found.percentiles[0, 0].tolist()
    (['a', 'b', 'c'], [0.1, 0.5, 0.9])
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    vectors: torch.Tensor
    percentiles: np.ndarray
    scales: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        keys: Sequence[str],
        vectors: torch.Tensor | np.ndarray,
        percentiles: Any,
        scales: Sequence[str] | None = None,
    ) -> ReferenceBank:
        """A bank of images; the arguments are its attributes in any order of rows, vectors of any length above 0.

        Raises:
            DataError: columns of different lengths, a vector that is 0 or not finite, a percentile outside (0, 1), or a
                key twice (each with its row).
        """
        vectors = torch.as_tensor(vectors)
        percentiles = as_numbers(percentiles, "percentiles", error=DataError)
        scales = (ONE_SCALE,) * len(names) if scales is None else tuple(scales)
        if vectors.dim() != 2:
            raise DataError(f"vectors: expected [N, D]; got {list(vectors.shape)}")
        columns = {"keys": keys, "vectors": vectors, "percentiles": percentiles, "scales": scales}
        for name, column in columns.items():
            if len(column) != len(names):
                raise DataError(f"{name}: expected {len(names)} rows, as names; got {len(column)}")
        for row in np.flatnonzero((percentiles <= 0) | (percentiles >= 1))[:1]:
            raise DataError(f"percentiles: expected numbers in (0, 1); got {percentiles[row]} in row {row}")
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            if first.setdefault(key, row) != row:
                raise DataError(f"keys: expected each image once; got {key!r} in rows {first[key]} and {row}")
        vectors = _unit(vectors, "vectors")
        return cls(tuple(names), tuple(keys), vectors, percentiles, scales).take(
            np.argsort(np.array(keys, dtype=object))
        )

    def add(
        self,
        names: Sequence[str],
        keys: Sequence[str],
        vectors: torch.Tensor | np.ndarray,
        percentiles: Any,
        scales: Sequence[str] | None = None,
    ) -> ReferenceBank:
        """A bank with more images; the arguments and errors are those of :meth:`of`.

        Raises:
            DataError: also vectors of another width, or an image that is there already.
        """
        more = ReferenceBank.of(names, keys, vectors, percentiles, scales)
        if len(self) and more.vectors.shape[1] != self.vectors.shape[1]:
            raise DataError(f"vectors: expected width {self.vectors.shape[1]}; got {more.vectors.shape[1]}")
        known = set(self.keys)
        for row, key in enumerate(keys):
            if key in known:
                raise DataError(f"keys: expected images that are not in the bank; got {key!r} in row {row}")
        if not len(self):
            return more
        # Vectors that have unit length keep their bits: dividing again would change the last ones.
        both = ReferenceBank(
            self.names + more.names,
            self.keys + more.keys,
            torch.cat([self.vectors, more.vectors]),
            np.concatenate([self.percentiles, more.percentiles]),
            self.scales + more.scales,
        )
        return both.take(np.argsort(np.array(both.keys, dtype=object)))

    def remove(self, keys: Collection[str]) -> ReferenceBank:
        """A bank without some images.

        Raises:
            DataError: a key that is not there.
        """
        gone, known = set(keys), set(self.keys)
        for key in keys:
            if key not in known:
                raise DataError(f"keys: expected images of the bank; got {key!r}")
        return self.take(np.array([row for row, key in enumerate(self.keys) if key not in gone], dtype=np.int64))

    def take(self, rows: np.ndarray) -> ReferenceBank:
        """Some of the rows, in the order that they are given in."""
        return ReferenceBank(
            tuple(self.names[row] for row in rows),
            tuple(self.keys[row] for row in rows),
            self.vectors[rows],
            self.percentiles[rows],
            tuple(self.scales[row] for row in rows),
        )

    def references(
        self,
        queries: torch.Tensor,
        keys: Sequence[str],
        *,
        k: int = 5,
        draws: int = 3,
        seed: int = 0,
        scales: Sequence[str | None] | None = None,
        exclude: Sequence[Collection[str]] | None = None,
        share: float = 0.5,
        choice: Choice = "content",
    ) -> References:
        """References for each query: (0, 1) is cut into ``k`` bins of percentiles, and each bin gives one at most.

        A draw is of one scale, and sees a random share of every bin. Of that share it takes the image nearest in
        content (``ops.topk``), or by ``choice``. What a query gets depends on the bank, its own vector, key and scale,
        the number of the draw and the seed, never on the other queries. A bin without an image that may be drawn gives
        none.

        Args:
            queries: vectors of their contents, ``[B, D]``, of any length above 0.
            keys: digests of their contents, ``B``: an image is never its own reference.
            k: references of a draw at most.
            draws: draws of each query.
            seed: of the draws.
            scales: of each query, None where it is not known: each draw then takes any of the bank's, by the seed.
            exclude: further keys that a query may not get, such as other versions of its photograph, ``B``.
            share: of the images of a bin that a draw sees, in (0, 1]; one at least. At 1 all draws of a scale are
                alike.
            choice: ``"content"``; ``"coverage"``, the image nearest to the bin's middle; ``"random"``, any. The last
                two are ablations.

        Raises:
            DataError: a query without any reference, or of a scale that the bank does not have (with its row).
            ValueError: another argument that does not fit.

        """
        k, draws = as_count(k, "k", 1), as_count(draws, "draws", 1)
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a number in (0, 1]; got {share}")
        if choice not in CHOICES:
            raise ValueError(f"choice: expected one of {CHOICES}; got {choice!r}")
        if not len(self):
            raise DataError("bank: expected one reference at least; got none")
        if queries.dim() != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"queries: expected [B, {self.vectors.shape[1]}]; got {list(queries.shape)}")
        for name, column in (("keys", keys), ("scales", scales), ("exclude", exclude)):
            if column is not None and len(column) != len(queries):
                raise ValueError(f"{name}: expected {len(queries)}, one a query; got {len(column)}")
        known = tuple(sorted(set(self.scales)))
        drawn: list[tuple[str, ...]] = []
        for row, key in enumerate(keys):
            scale = None if scales is None else scales[row]
            if scale is not None and scale not in known:
                raise DataError(f"scales: expected {', '.join(map(repr, known))} or None; got {scale!r} in row {row}")
            any_of = (known[hash_of("scale", seed, key, draw) % len(known)] for draw in range(draws))
            drawn.append(tuple(any_of) if scale is None else (scale,) * draws)
        hidden = [{key, *(() if exclude is None else exclude[row])} for row, key in enumerate(keys)]
        rows = draw_rows(self, _unit(queries, "queries"), keys, drawn, hidden, k, seed, share, choice)
        for row in np.flatnonzero((rows < 0).all(-1).any(-1))[:1]:
            raise DataError(
                f"bank: expected a reference for each query, other than itself and what is excluded; got none of scale"
                f" {drawn[row][0]!r} in row {row}"
            )
        percentiles = np.where(rows >= 0, self.percentiles[rows], np.inf)
        # Equal percentiles are in the order of the keys, as rows are; absent ones come last.
        order = np.lexsort((rows, percentiles), axis=-1)
        ordered = np.take_along_axis(rows, order, -1), np.take_along_axis(percentiles, order, -1)
        return References(*ordered, tuple(drawn))

    def save(self, folder: str | Path) -> None:
        """Write tensors (safetensors) and texts (JSON); a bank that is there already is replaced as a whole.

        Raises:
            OSError: nothing can be written there.
        """

        def write(temporary: Path) -> Mapping[str, Any]:
            tensors = {"vectors": self.vectors, "percentiles": torch.from_numpy(self.percentiles)}
            write_tensors(temporary / _TENSORS, tensors)
            write_json(temporary / _TEXTS, {"names": self.names, "keys": self.keys, "scales": self.scales})
            return {}

        save_folder(folder, type(self).__name__, _FORMAT, (_TENSORS, _TEXTS), write)

    @classmethod
    def load(cls, folder: str | Path) -> ReferenceBank:
        """Read what :meth:`save` wrote, to the bit.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the folder holds something else.
        """

        def read(folder: Path, settings: dict[str, Any]) -> ReferenceBank:
            tensors, texts = read_tensors(folder / _TENSORS), read_json(folder / _TEXTS)
            columns = {name: tuple(texts[name]) for name in ("names", "keys", "scales")}
            return cls(vectors=tensors["vectors"], percentiles=tensors["percentiles"].numpy(), **columns)

        return load_folder(folder, cls.__name__, _FORMAT, read, what="reference bank")


def _unit(vectors: torch.Tensor, name: str) -> torch.Tensor:
    """Vectors of unit length, float32, each computed alone."""
    lengths = vectors.double().square().sum(-1).sqrt()
    wrong = ~(lengths > 0) | ~lengths.isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(f"{name}: expected finite vectors that are not 0; got others in row {row}")
    return (vectors.double() / lengths[:, None]).float()
