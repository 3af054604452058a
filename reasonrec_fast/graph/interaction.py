"""The user–item graph in CSR form, in both directions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from reasonrec_fast.arrays import as_count, as_tensor
from reasonrec_fast.files import write_tensors
from reasonrec_fast.graph.sorting import graph_by_sorting, library_of

try:
    from reasonrec_fast import _host
except ImportError:
    _host = None  # type: ignore[assignment]
    logging.getLogger("reasonrec_fast").warning(
        "graph: the host library is not there (it needs Python's headers); graphs are built by sorting (slower)"
    )


@dataclass(frozen=True)
class InteractionGraph:
    """An immutable bipartite graph of ``U`` users and ``I`` items with ``E`` distinct edges.

    Build it with :meth:`from_edges`. Neighbours are ascending within a row. Indices are int32 if edge and node counts
    fit, else int64. Tensors passed to the constructor must describe the same edges: on a CPU this is checked; on a GPU
    only their dtypes are, since reading values back would synchronise.

    Attributes:
        user_indptr: ``[U + 1]``; user ``u`` has the items ``user_indices[user_indptr[u] : user_indptr[u + 1]]``.
        user_indices: ``[E]``, items.
        item_indptr: ``[I + 1]``; item ``i`` has the users ``item_indices[item_indptr[i] : item_indptr[i + 1]]``.
        item_indices: ``[E]``, users.

    Raises:
        ValueError: the tensors are not both directions of the same distinct edges.

    >>> graph = InteractionGraph.from_edges(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0]))
    >>> graph.num_users, graph.num_items, graph.num_edges
    (2, 3, 2)
    """

    user_indptr: torch.Tensor
    user_indices: torch.Tensor
    item_indptr: torch.Tensor
    item_indices: torch.Tensor

    def __post_init__(self) -> None:
        for name, tensor in self._tensors().items():
            if not isinstance(tensor, torch.Tensor) or tensor.dim() != 1 or tensor.dtype not in _INTEGERS:
                shown = f"{list(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else repr(tensor)
                raise ValueError(f"{name}: expected a vector of int32 or int64; got {shown}")
        tensors = list(self._tensors().values())
        if len({tensor.dtype for tensor in tensors}) > 1 or len({tensor.device for tensor in tensors}) > 1:
            kinds = sorted({f"{tensor.dtype} on {tensor.device}" for tensor in tensors})
            raise ValueError(f"graph: expected four tensors of one type on one device; got {', '.join(kinds)}")
        if self.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return
        _check_rows("user", self.user_indptr, self.user_indices, self.num_items)
        _check_rows("item", self.item_indptr, self.item_indices, self.num_users)
        users, items = _rows(self.user_indptr), _rows(self.item_indptr)
        by_user, by_item = users * self.num_items + self.user_indices, self.item_indices * self.num_items + items
        # Both directions must be the same set of edges in different orders. Comparing the count, the sum and the sum of
        # squares of the edge numbers is linear, where sorting one side is not.
        sums = [(edges.sum(), (edges * edges).sum()) for edges in (by_user, by_item)]
        if by_user.shape != by_item.shape or sums[0] != sums[1]:
            raise ValueError("item_indices: expected the edges of user_indices the other way round; got others")

    @classmethod
    def _of(cls, *tensors: torch.Tensor) -> InteractionGraph:
        """A graph of tensors that are known to be consistent, without the checks of the constructor."""
        graph = object.__new__(cls)
        for name, tensor in zip(cls.__dataclass_fields__, tensors, strict=True):
            object.__setattr__(graph, name, tensor)
        return graph

    @classmethod
    def from_edges(
        cls, users: Any, items: Any, *, num_users: int | None = None, num_items: int | None = None
    ) -> InteractionGraph:
        """Build the graph from one entry per edge; duplicates are merged.

        It is built on the device of the edges: on the host by ``csrc/host`` (linear in the edges), from cupy arrays by
        cupy, from other GPU arrays by torch.

        Args:
            users, items: integer vectors ``[E]`` of the same length: torch, numpy, cupy or anything with DLPack, a
                pandas object (by position), or a sequence of ints.
            num_users, num_items: node counts; by default one more than the largest index.

        Raises:
            ValueError: not vectors of one length on one device, not integers, or an index outside its range (with its
                row).
        """
        through_cupy = library_of(users) == library_of(items) == "cupy"
        users, items = _as_index(users, "users"), _as_index(items, "items")
        _check_pair(users, items)
        num_users = _checked_count(users, num_users, "users")
        num_items = _checked_count(items, num_items, "items")
        if through_cupy:
            arrays = (_to_cupy(users), _to_cupy(items))
            return cls._of(*map(torch.from_dlpack, graph_by_sorting(*arrays, num_users, num_items)))
        if _host is not None and users.device.type == "cpu":
            built = _host.build_graph(users.numpy(), items.numpy(), num_users, num_items, torch.get_num_threads())
            return cls._of(*map(torch.from_numpy, built))
        return cls._of(*graph_by_sorting(users, items, num_users, num_items))

    @property
    def num_users(self) -> int:
        return self.user_indptr.numel() - 1

    @property
    def num_items(self) -> int:
        return self.item_indptr.numel() - 1

    @property
    def num_edges(self) -> int:
        return self.user_indices.numel()

    @property
    def device(self) -> torch.device:
        return self.user_indptr.device

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(users, items)``, int64 ``[E]`` each, ordered by user, then item."""
        return _rows(self.user_indptr), self.user_indices.long()

    def user_degrees(self) -> torch.Tensor:
        """Items of each user, int64 ``[U]``."""
        return self.user_indptr.diff().long()

    def item_degrees(self) -> torch.Tensor:
        """Users of each item, int64 ``[I]``."""
        return self.item_indptr.diff().long()

    def add(self, users: Any, items: Any) -> InteractionGraph:
        """A new graph with more edges; indices beyond the current range add users and items.

        >>> graph = InteractionGraph.from_edges([0], [0]).add([1], [3])
        >>> graph.num_users, graph.num_items
        (2, 4)
        """
        users, items = _as_index(users, "users").to(self.device), _as_index(items, "items").to(self.device)
        _check_pair(users, items)
        own_users, own_items = self.edges()
        return InteractionGraph.from_edges(
            torch.cat([own_users, users]),
            torch.cat([own_items, items]),
            num_users=max(self.num_users, int(users.max()) + 1 if users.numel() else 0),
            num_items=max(self.num_items, int(items.max()) + 1 if items.numel() else 0),
        )

    def to(self, device: torch.device | str) -> InteractionGraph:
        """The graph on another device."""
        return InteractionGraph._of(*(tensor.to(device) for tensor in self._tensors().values()))

    def save(self, path: str | Path) -> None:
        """Write the graph as safetensors; the file is replaced atomically."""
        write_tensors(path, self._tensors())

    @classmethod
    def load(cls, path: str | Path) -> InteractionGraph:
        """Read a graph that :meth:`save` wrote.

        Raises:
            ValueError: the file has other contents, or inconsistent tensors.
        """
        names = cls.__dataclass_fields__
        try:
            with safe_open(path, framework="pt") as stored:
                if set(stored.keys()) != set(names):
                    raise ValueError(f"path: expected the tensors {sorted(names)}; {path} has {sorted(stored.keys())}")
                tensors = [stored.get_tensor(name) for name in names]
        except SafetensorError as error:
            raise ValueError(f"path: expected safetensors; {path} is something else ({error})") from error
        return cls(*tensors)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


_INTEGERS = (torch.int32, torch.int64)


def _as_index(values: Any, name: str) -> torch.Tensor:
    tensor = as_tensor(values, name)
    if tensor.numel() == 0:
        tensor = tensor.to(torch.int64)
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: expected a vector of integers; got {tuple(tensor.shape)} of {tensor.dtype}")
    return tensor.to(torch.int64)


def _to_cupy(index: torch.Tensor) -> Any:
    import cupy

    return cupy.from_dlpack(index)


def _check_pair(users: torch.Tensor, items: torch.Tensor) -> None:
    if users.shape != items.shape:
        raise ValueError(f"items: expected {users.numel()} entries, one for each of users; got {items.numel()}")
    if users.device != items.device:
        raise ValueError(f"items: expected to be on {users.device}, as users are; got {items.device}")


def _checked_count(index: torch.Tensor, count: int | None, name: str) -> int:
    low, high = (int(index.min()), int(index.max())) if index.numel() else (0, -1)
    count = max(high + 1, 0) if count is None else as_count(count, f"num_{name}")
    if count >= 2**63:
        raise ValueError(f"{name}: expected fewer than 2**63; got {count}")
    if low < 0 or high >= count:
        row = int(((index < 0) | (index >= count)).nonzero()[0])
        raise ValueError(f"{name}: expected indices in [0, {count}); got {int(index[row])} in row {row}")
    return count


def _check_rows(name: str, indptr: torch.Tensor, indices: torch.Tensor, others: int) -> None:
    """Check one direction: indptr rises from 0 to the number of indices, and indices are ascending within a row."""
    if not indptr.numel() or int(indptr[0]) != 0 or int(indptr[-1]) != len(indices) or bool((indptr.diff() < 0).any()):
        raise ValueError(f"{name}_indptr: expected to rise from 0 to {len(indices)}; got another")
    wrong = (indices < 0) | (indices >= others)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}_indices: expected indices in [0, {others}); got {int(indices[row])} in row {row}")
    rising = indices.diff() > 0
    starts = indptr[1:-1].long()
    rising[starts[(starts > 0) & (starts < len(indices))] - 1] = True
    if not bool(rising.all()):
        row = int((~rising).nonzero()[0]) + 1
        raise ValueError(f"{name}_indices: expected to rise within a row; got {int(indices[row])} in row {row}")


def _rows(indptr: torch.Tensor) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(indptr.numel() - 1, device=indptr.device), indptr.diff().long())
