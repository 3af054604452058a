"""The identifiers of a model's users and items, and their indices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.extensions import ExtensionArray

from reasonrec_fast.data import DataError
from reasonrec_fast.data.columns import Source, as_column, texts


class Identifiers:
    """Identifiers by index, and the index of each.

    Args:
        ids: of each user or item, in the order of their indices.
        what: ``"users"`` or ``"items"``, for errors.

    >>> Identifiers(["u-7", "u-9"], "users").find(["u-9", "u-7"]).tolist()
    [1, 0]
    """

    def __init__(self, ids: Sequence[str], what: str) -> None:
        self.ids, self._what = ids, what

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each identifier."""
        return {name: position for position, name in enumerate(self.ids)}

    def find(self, names: Any) -> np.ndarray:
        """Indices of identifiers, int64 ``[N]``.

        Raises:
            DataError: an unknown identifier (with its row), or a model that was saved without identifiers.
        """
        queries = texts(as_column(names, self._what), Source(), self._what).to_pylist()
        if not self.ids and queries:
            raise DataError(
                f"{self._what}: expected indices, as the model keeps no identifiers; got {queries[0]!r} in row 0"
            )
        indices = [self.index.get(name, -1) for name in queries]
        if -1 in indices:
            row = indices.index(-1)
            raise DataError(
                f"{self._what}: expected identifiers that the model knows; got {queries[row]!r} in row {row}"
            )
        return np.array(indices, dtype=np.int64)

    def named(self, index: np.ndarray) -> np.ndarray:
        """Identifiers of indices of any shape; None for -1."""
        return self._names[index]

    @cached_property
    def _names(self) -> np.ndarray:
        return np.array([*self.ids, None], dtype=object)


def is_text(values: Any) -> bool:
    """Whether users or items are given as identifiers (text) rather than as indices.

    >>> is_text(["a"]), is_text(np.array([1])), is_text(pd.Series(["a"])), is_text(())
    (True, False, True, False)
    """
    if isinstance(values, str):
        raise DataError(f"users, items: expected several, in a list; got {values!r}")
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return bool(len(values)) and not pa.types.is_integer(values.type)
    if isinstance(values, np.ndarray | pd.Series | pd.Index | ExtensionArray) and not _holds_objects(values):
        return False
    if isinstance(values, list | tuple | np.ndarray | pd.Series | pd.Index | ExtensionArray):
        return any(isinstance(value, str) for value in values)
    return False


def _holds_objects(values: Any) -> bool:
    return not (isinstance(values.dtype, np.dtype) and values.dtype.kind in "iufb") and getattr(values, "ndim", 1) == 1
