"""aggregate against sparse products of torch, scipy and numba."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from reasonrec_fast import ops
from reasonrec_fast.benchmarking.case import OURS, Bound, Case, Work, installed
from reasonrec_fast.benchmarking.measure import Run, copy_bandwidth
from reasonrec_fast.graph import InteractionGraph

DIM = 64
GOWALLA = (29_858, 40_981, 810_128)
TINY = (60, 80, 500)
MEAN_DEGREE, EXPONENT = 27, 2.1


def power_law_graph(users: int, items: int, edges: int, seed: int = 0) -> InteractionGraph:
    """A bipartite graph whose users' and items' expected degrees follow a power law."""
    generator = np.random.default_rng(seed)

    def ends(count: int, size: int) -> np.ndarray:
        weight = (np.arange(count) + 10.0) ** (-1 / (EXPONENT - 1))
        return generator.permutation(count)[generator.choice(count, size, p=weight / weight.sum())]

    pairs = np.empty(0, dtype=np.int64)
    while len(pairs) < edges:
        size = int(1.2 * (edges - len(pairs))) + 1000
        pairs = np.unique(np.concatenate([pairs, ends(users, size) * items + ends(items, size)]))
    pairs = np.sort(generator.permutation(pairs)[:edges])
    return InteractionGraph.from_edges(pairs // items, pairs % items, num_users=users, num_items=items)


@dataclass(frozen=True)
class _Gowalla:
    """Three layers and their mean, on a graph of the size of Gowalla."""

    graph: InteractionGraph
    x: torch.Tensor
    coo: torch.Tensor
    csr: torch.Tensor

    @classmethod
    @cache
    def make(cls, device: str, tiny: bool) -> _Gowalla:
        graph = power_law_graph(*(TINY if tiny else GOWALLA)).to(device)
        return cls(graph, _embeddings(graph), *_matrices(graph))

    def floor(self, bytes_an_element: int) -> float:
        """Seconds if each layer reads a row per edge and direction and writes one per node, at a copy's bandwidth."""
        rows = 2 * self.graph.num_edges + len(self.x)
        return 3 * rows * DIM * bytes_an_element / copy_bandwidth(self.x.device.type)

    def case(self, name: str, dtype: torch.dtype, contenders: dict[str, Run], floor: float, tolerance: float) -> Case:
        exact = _layers(self.coo.double(), self.x.double(), 3)

        def check(name: str, result: Any) -> None:
            torch.testing.assert_close(torch.as_tensor(result).double(), exact, atol=tolerance, rtol=tolerance)

        results = self.x.numel() * dtype.itemsize
        return Case("aggregate", name, dtype, contenders, floor, check, results, device=self.x.device.type)


def _three_layers(graph: InteractionGraph, x: torch.Tensor) -> torch.Tensor:
    return ops.aggregate(graph, x, layers=3, combine="mean")


def _fp32(device: str = "cpu", tiny: bool = False) -> Case:
    gowalla = _Gowalla.make(device, tiny)
    x, coo, csr = gowalla.x, gowalla.coo, gowalla.csr
    contenders: dict[str, Run] = {
        OURS: Bound(_three_layers, (gowalla.graph, x)),
        "torch_coo": Bound(partial(_layers, layers=3), (coo, x)),
        "torch_csr": Bound(partial(_layers, layers=3), (csr, x)),
        **_pyg(coo, x, 3),
        **_other_peers(csr, x, 3),
    }
    return gowalla.case("aggregate-gowalla-fp32", torch.float32, contenders, gowalla.floor(4), 1e-4)


def _bf16(device: str = "cpu", tiny: bool = False) -> Case:
    gowalla = _Gowalla.make(device, tiny)
    contenders: dict[str, Run] = {
        OURS: Bound(_three_layers, (gowalla.graph, gowalla.x.bfloat16())),
        "torch_csr": Bound(partial(_layers, layers=3), (gowalla.csr, gowalla.x)),
    }
    return gowalla.case("aggregate-gowalla-bf16", torch.bfloat16, contenders, gowalla.floor(2), 2e-2)


def _training(device: str = "cpu", tiny: bool = False) -> Case:
    """The gradient of the embeddings; S is symmetric, so it is the propagation of the upstream gradient."""
    gowalla = _Gowalla.make(device, tiny)
    x = torch.randn_like(gowalla.x).requires_grad_()

    def gradient(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda graph, x, upstream: torch.autograd.grad(forward(graph, x), x, upstream)[0]

    contenders: dict[str, Run] = {
        OURS: Bound(gradient(_three_layers), (gowalla.graph, x, gowalla.x)),
        "torch_coo": Bound(gradient(partial(_layers, layers=3)), (gowalla.coo, x, gowalla.x)),
    }
    case = gowalla.case("aggregate-gowalla-fp32-train", torch.float32, contenders, 2 * gowalla.floor(4), 1e-4)
    return replace(case, read_back=frozenset({"torch_coo"}))  # its gradient synchronises with the host


def _embeddings(graph: InteractionGraph) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(graph.num_users + graph.num_items, DIM, generator=generator).to(graph.device)


def _one_layer(name: str, graph: InteractionGraph, bandwidth: float) -> Case:
    x = _embeddings(graph)
    coo, csr = _matrices(graph)
    exact = torch.sparse.mm(csr, x)
    contenders: dict[str, Run] = {
        OURS: Bound(ops.aggregate, (graph, x)),
        "torch_coo": Bound(torch.sparse.mm, (coo, x)),
        "torch_csr": Bound(torch.sparse.mm, (csr, x)),
    }
    floor = (2 * graph.num_edges + len(x)) * DIM * 4 / bandwidth
    return Case(
        "aggregate",
        name,
        torch.float32,
        contenders,
        floor,
        lambda name, result: torch.testing.assert_close(result, exact, atol=1e-4, rtol=1e-4),
        x.numel() * 4,
        device=x.device.type,
    )


def _layers(matrix: torch.Tensor, x: torch.Tensor, layers: int) -> torch.Tensor:
    total = layer = x
    for _ in range(layers):
        layer = torch.sparse.mm(matrix, layer)
        total = total + layer
    return total / (layers + 1)


def _matrices(graph: InteractionGraph) -> tuple[torch.Tensor, torch.Tensor]:
    """The normalised adjacency as coalesced COO, and as CSR with 32-bit indices."""
    users, items = graph.edges()
    items = items.long() + graph.num_users
    degrees = torch.cat([graph.user_degrees(), graph.item_degrees()]).double()
    values = (degrees[users] * degrees[items]).rsqrt().float()
    nodes = graph.num_users + graph.num_items
    ends = torch.stack([torch.cat([users.long(), items]), torch.cat([items, users.long()])])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        coo = torch.sparse_coo_tensor(ends, values.repeat(2), (nodes, nodes)).coalesce()
        wide = coo.to_sparse_csr()
        csr = torch.sparse_csr_tensor(wide.crow_indices().int(), wide.col_indices().int(), wide.values(), wide.shape)
    return coo, csr


def _pyg(coo: torch.Tensor, x: torch.Tensor, layers: int) -> dict[str, Run]:
    """LightGCN's layer in PyG, with precomputed edge weights."""
    if not installed("torch_geometric"):
        return {}
    from torch_geometric.nn import LGConv

    layer, (ends, starts), weights = LGConv(normalize=False), coo.indices(), coo.values()
    edges = torch.stack([starts, ends])

    @torch.no_grad()
    def run(x: torch.Tensor, edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        total = embeddings = x
        for _ in range(layers):
            embeddings = layer(embeddings, edges, weights)
            total = total + embeddings
        return total / (layers + 1)

    return {"pyg": Bound(run, (x, edges, weights))}


def _other_peers(csr: torch.Tensor, x: torch.Tensor, layers: int) -> dict[str, Run]:
    peers: dict[str, Run] = {}
    if x.device.type != "cpu":
        return peers
    parts = tuple(part.numpy() for part in (csr.values(), csr.col_indices(), csr.crow_indices()))
    if installed("scipy"):
        import scipy.sparse

        matrix, dense = scipy.sparse.csr_matrix(parts, shape=csr.shape), x.numpy()

        def in_scipy() -> np.ndarray:
            total = layer = dense
            for _ in range(layers):
                layer = matrix @ layer
                total = total + layer
            return total / (layers + 1)

        peers["scipy"] = in_scipy
    if installed("numba"):
        peers["numba"] = _in_numba(parts, x.numpy(), layers)
    return peers


def _in_numba(parts: tuple[np.ndarray, ...], dense: np.ndarray, layers: int) -> Run:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def product(values, indices, indptr, x):
        out = np.zeros_like(x)
        for row in numba.prange(len(indptr) - 1):
            for edge in range(indptr[row], indptr[row + 1]):
                for column in range(x.shape[1]):
                    out[row, column] += values[edge] * x[indices[edge], column]
        return out

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))

    def run() -> np.ndarray:
        total = layer = dense
        for _ in range(layers):
            layer = product(*parts, layer)
            total = total + layer
        return total / (layers + 1)

    return run


def _edges(name: str) -> int:
    return int(float(name.removeprefix("aggregate-")))


def _of_size(name: str, device: str = "cpu", tiny: bool = False) -> Case:
    edges = _edges(name)
    side = edges // MEAN_DEGREE
    if tiny:
        edges, side = 500, 60
    return _one_layer(name, power_law_graph(side, side, edges).to(device), copy_bandwidth(device))


def _work(nodes: int, edges: int, layers: int, element: int) -> Work:
    """Reads and writes the embeddings and reads both directions of the graph once, which suffices if the embeddings fit
    into the L2 cache. (The floor of a case, in contrast, reads a row from memory for every edge.)"""
    return Work(2 * nodes * DIM * element + 4 * (2 * edges + nodes), layers * 2 * edges * DIM)


_ONE_LAYER = tuple(f"aggregate-{edges}" for edges in ("1e5", "3e5", "1e6", "3e6", "1e7"))
CASES: dict[str, Callable[..., Case]] = {
    "aggregate-gowalla-fp32": _fp32,
    "aggregate-gowalla-bf16": _bf16,
    "aggregate-gowalla-fp32-train": _training,
    **{name: partial(_of_size, name) for name in _ONE_LAYER},
}
_USERS, _ITEMS, _EDGES = GOWALLA
WORK = {
    "aggregate-gowalla-fp32": _work(_USERS + _ITEMS, _EDGES, 3, 4),
    "aggregate-gowalla-bf16": _work(_USERS + _ITEMS, _EDGES, 3, 2),
    "aggregate-gowalla-fp32-train": _work(_USERS + _ITEMS, _EDGES, 6, 4),
    **{name: _work(2 * (_edges(name) // MEAN_DEGREE), _edges(name), 1, 4) for name in _ONE_LAYER},
}
