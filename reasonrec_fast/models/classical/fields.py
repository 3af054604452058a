"""The fields of an event that CTR models read: its user, its item, the item's attributes and the user's history."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reasonrec_fast.data import Catalog, Histories
from reasonrec_fast.devices import on_device


class FieldEmbeddings(nn.Module):
    """One vector a field and event: the mean over its values, zeros where it has none.

    Fields are the user, the item, each attribute of the catalogue and, with ``history``, the items that the user liked
    before. Liked items have vectors of their own. All users without training events share one vector, and so do all
    items without.

    Args:
        sizes: ``users``, ``items``, ``attributes`` (how many), ``values`` (of all attributes together) and
            ``entries`` (values of all items together).
        width: of the vectors.
        history: whether histories are read.
    """

    offsets: torch.Tensor
    values: torch.Tensor
    known: torch.Tensor

    def __init__(self, sizes: dict[str, int], width: int, *, history: bool) -> None:
        super().__init__()
        self.sizes, self.history = sizes, history
        users, items = sizes["users"], sizes["items"]
        # In the table: users, any other user, items, any other item, values of attributes, liked items.
        self.first_item = users + 1
        self.first_value = self.first_item + items + 1
        self.first_liked = self.first_value + sizes["values"]
        self.table = nn.Parameter(torch.zeros(self.first_liked + (items if history else 0), width))
        self.register_buffer("offsets", torch.zeros(sizes["attributes"], items + 1, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(sizes["entries"], dtype=torch.int64))
        self.register_buffer("known", torch.zeros(users + 1 + items + 1, dtype=torch.bool))
        self._host: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @staticmethod
    def sizes_of(catalog: Catalog) -> dict[str, int]:
        """The sizes that a catalogue determines."""
        columns = list(catalog.attributes.values())
        return {
            "items": len(catalog),
            "attributes": len(columns),
            "values": sum(len(distinct(column)) for column in columns),
            "entries": sum(len(entry) for column in columns for entry in column),
        }

    def describe(self, catalog: Catalog, users: np.ndarray, items: np.ndarray) -> None:
        """Set the attributes of items, and which users and items have training events."""
        self._host, first, placed = None, 0, 0
        for row, column in enumerate(catalog.attributes.values()):
            index = {value: number for number, value in enumerate(distinct(column), start=first)}
            ends = placed + np.concatenate([[0], np.cumsum([len(entry) for entry in column], dtype=np.int64)])
            self.offsets[row] = torch.from_numpy(ends)
            self.values[placed : ends[-1]] = torch.tensor([index[v] for entry in column for v in entry])
            first, placed = first + len(index), int(ends[-1])
        self.known[on_device(np.concatenate([users, items + self.first_item]), self.known.device)] = True

    @property
    def fields(self) -> int:
        """The number of fields, ``F``."""
        return 2 + self.sizes["attributes"] + self.history

    @property
    def host(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``offsets``, ``values`` and ``known`` on the host, where indices are computed; copied once from a GPU."""
        if self._host is None:
            self._host = self.offsets.cpu().numpy(), self.values.cpu().numpy(), self.known.cpu().numpy()
        return self._host

    def forward(
        self, users: np.ndarray, items: np.ndarray, liked: Histories, *, hidden: np.ndarray | None = None
    ) -> torch.Tensor:
        """Vectors of events: user, history, item, attributes.

        Args:
            users, items: int64 ``[N]``.
            liked: one row an event.
            hidden: events whose user, and whose item, is treated as one without training events, bool ``[2, N]``.

        Returns:
            ``[N, F, width]``.
        """
        hidden = np.zeros((2, 1), dtype=bool) if hidden is None else hidden
        return self._pooled([*self._user_bags(users, liked, hidden[0]), *self._item_bags(items, hidden[1])])

    def of_users(self, users: np.ndarray, liked: Histories) -> torch.Tensor:
        """The first fields of :meth:`forward`, user and history, ``[B, 1 or 2, width]``."""
        return self._pooled(self._user_bags(users, liked, np.False_))

    def of_items(self, items: np.ndarray) -> torch.Tensor:
        """The last fields of :meth:`forward`, item and attributes, ``[B, 1 + attributes, width]``."""
        return self._pooled(self._item_bags(items, np.False_))

    def _user_bags(self, users: np.ndarray, liked: Histories, hidden: np.ndarray | np.bool_) -> list[Histories]:
        other = self.first_item - 1
        bags = [self._single(np.where(hidden, other, np.minimum(users, other)), other)]
        if self.history:
            bags.append(Histories(liked.indptr, liked.items + self.first_liked))
        return bags

    def _item_bags(self, items: np.ndarray, hidden: np.ndarray | np.bool_) -> list[Histories]:
        other, (offsets, values, _) = self.first_value - 1, self.host
        bags = [self._single(np.where(hidden, other, items + self.first_item), other)]
        for ends in offsets:
            bag = Histories(ends, values).select(items)
            bags.append(Histories(bag.indptr, bag.items + self.first_value))
        return bags

    def _single(self, index: np.ndarray, other: int) -> Histories:
        index = np.where(self.host[2][index], index, other)
        return Histories(np.arange(len(index) + 1), index)

    def _pooled(self, bags: Sequence[Histories]) -> torch.Tensor:
        ends = np.cumsum([0, *(len(bag.items) for bag in bags)])
        offsets = np.concatenate([bag.indptr[:-1] + end for bag, end in zip(bags, ends[:-1], strict=True)])
        index, begins = (
            on_device(part, self.table.device) for part in (np.concatenate([bag.items for bag in bags]), offsets)
        )
        pooled = functional.embedding_bag(index, self.table, begins, mode="mean")
        return pooled.view(len(bags), -1, pooled.shape[1]).transpose(0, 1)


def distinct(column: Sequence[tuple[str, ...]]) -> list[str]:
    """The distinct values of an attribute, sorted."""
    return sorted({value for entry in column for value in entry})
