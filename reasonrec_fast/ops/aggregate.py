"""GCN propagation over a user–item graph: LightGCN's layers and their weighted sum in one operator."""

from __future__ import annotations

from typing import Literal, overload

import torch

from reasonrec_fast.graph import InteractionGraph
from reasonrec_fast.ops import library

library.pass_through(InteractionGraph)

Combine = Literal["last", "mean", "sum"] | torch.Tensor
Pair = tuple[torch.Tensor, torch.Tensor]


@overload
def aggregate(
    graph: InteractionGraph,
    x: torch.Tensor,
    *,
    layers: int = ...,
    combine: Combine = ...,
    dropout: float = ...,
    seed: int | torch.Tensor | None = ...,
) -> torch.Tensor: ...
@overload
def aggregate(
    graph: InteractionGraph,
    x: Pair,
    *,
    layers: int = ...,
    combine: Combine = ...,
    dropout: float = ...,
    seed: int | torch.Tensor | None = ...,
) -> Pair: ...


@library.takes_arrays
def aggregate(graph, x, *, layers=1, combine="last", dropout=0.0, seed=None):
    r"""Propagate embeddings over the graph and combine the layers (LightGCN, arXiv 2002.02126, equations 3 and 7).

    With the symmetrically normalised adjacency :math:`S = D^{-1/2} A D^{-1/2}` of the bipartite graph the result is
    :math:`\sum_{l=0}^{L} w_l S^l x`. Nodes without edges propagate zero.

    Args:
        graph: ``U`` users and ``I`` items.
        x: embeddings ``[U + I, D]``, users first, or a pair ``([U, D], [I, D])``, which comes back as a pair.
        layers: ``L``, at least 0.
        combine: ``"last"``, ``"mean"`` or ``"sum"`` (both include layer 0), or weights ``[L + 1]``, differentiable. A
            layer of weight 0 (``"last"`` has them) is skipped: NaN or infinity in it reaches neither the result nor
            the gradient of ``x``. The gradient of such a weight is still the true derivative.
        dropout: share of edges dropped, in [0, 1). The mask of an edge is a hash of (seed, user, item), hence the
            same in both directions and in all layers; kept edges are scaled by ``1 / (1 - dropout)``. Degrees are
            those of the whole graph.
        seed: int or 0-d int64 tensor; required where ``dropout > 0``.

    Returns:
        The combined embeddings, in the shape and dtype of ``x``; sums are in float32 (float64 for float64). The same
        input gives the same bits for any number of threads, and on every run on a GPU.

    Raises:
        ValueError: an argument does not fit the graph (argument, expected, got).

    >>> graph = InteractionGraph.from_edges([0, 0, 1], [0, 1, 1])
    >>> aggregate(graph, torch.eye(4), layers=1)[0]
    tensor([0.0000, 0.0000, 0.7071, 0.5000])
    """
    if not isinstance(graph, InteractionGraph):
        raise ValueError(f"graph: expected an InteractionGraph; got {type(graph).__name__}")
    if isinstance(x, tuple):
        if len(x) != 2:
            raise ValueError(f"x: expected an array or a pair of them; got {len(x)}")
        users, items = x
        library.check_tensor(users, "x")
        library.check_tensor(items, "x")
        if users.dim() != 2 or items.dim() != 2 or users.shape[1] != items.shape[1] or users.dtype != items.dtype:
            raise ValueError(
                f"x: expected [U, D] and [I, D] of one type; got {list(users.shape)} of {users.dtype} and "
                f"{list(items.shape)} of {items.dtype}"
            )
        if users.shape[0] != graph.num_users or items.shape[0] != graph.num_items:
            raise ValueError(
                f"x: expected {graph.num_users} user rows and {graph.num_items} item rows; "
                f"got {users.shape[0]} and {items.shape[0]}"
            )
        joined = aggregate(graph, torch.cat([users, items]), layers=layers, combine=combine, dropout=dropout, seed=seed)
        return joined[: graph.num_users], joined[graph.num_users :]
    library.check_tensor(x, "x")
    nodes = graph.num_users + graph.num_items
    if x.dim() != 2 or x.shape[0] != nodes or not x.is_floating_point():
        raise ValueError(f"x: expected floating point [{nodes}, D]; got {tuple(x.shape)} of {x.dtype}")
    if type(layers) is not int or layers < 0:
        library.check_count(layers, "layers")
    if not isinstance(dropout, (int, float)) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: expected a share in [0, 1); got {dropout}")
    if dropout > 0.0 and seed is None:
        raise ValueError("seed: expected an int or a 0-d int64 tensor where dropout > 0; got None")
    if seed is not None:
        _check_seed(seed)
    keep = library.may_keep(x.device)
    weights = _layer_weights(combine, layers, x, keep)
    if seed is None:  # no dropout: the operator does not read it
        seed_tensor = library.constant((0,), torch.int64, x.device, keep)
    else:
        seed_tensor = library.scalar(seed, torch.int64, x.device)
    operator = torch.ops.reasonrec_fast.aggregate
    return library.call(operator, keep, *_csr(graph), x, weights, float(dropout), seed_tensor)


def _check_seed(seed: int | torch.Tensor) -> None:
    if isinstance(seed, torch.Tensor):
        if seed.numel() != 1 or not library.is_integer(seed):
            raise ValueError(f"seed: expected an int or a 0-d int64 tensor; got {list(seed.shape)} of {seed.dtype}")
    elif isinstance(seed, bool) or not isinstance(seed, int | torch.SymInt) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an int of 64 bits; got {seed!r}")


def _csr(graph: InteractionGraph) -> tuple[torch.Tensor, ...]:
    return graph.user_indptr, graph.user_indices, graph.item_indptr, graph.item_indices


def _layer_weights(combine: Combine, layers: int, x: torch.Tensor, keep: bool) -> torch.Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if isinstance(combine, torch.Tensor):
        if combine.shape != (layers + 1,):
            raise ValueError(f"combine: expected weights [{layers + 1}]; got {list(combine.shape)}")
        return combine.to(dtype=dtype, device=x.device)
    if combine == "last":
        return library.constant((*[0.0] * layers, 1.0), dtype, x.device, keep)
    if combine in ("mean", "sum"):
        return library.constant((1 / (layers + 1) if combine == "mean" else 1.0,) * (layers + 1), dtype, x.device, keep)
    raise ValueError(f"combine: expected 'last', 'mean', 'sum' or a tensor; got {combine!r}")


def aggregate_reference(
    user_indptr: torch.Tensor,
    user_indices: torch.Tensor,
    item_indptr: torch.Tensor,
    item_indices: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    dropout: float,
    seed: torch.Tensor,
) -> torch.Tensor:
    """The operator in plain torch; exact in float64."""
    num_users, dtype = user_indptr.numel() - 1, weights.dtype
    degrees = torch.cat([user_indptr.diff(), item_indptr.diff()])
    users = torch.repeat_interleave(
        torch.arange(num_users, device=x.device), user_indptr.diff().long(), output_size=user_indices.numel()
    )  # without output_size a GPU would synchronise to read it
    items = user_indices.long() + num_users
    values = (degrees[users].to(dtype) * degrees[items].to(dtype)).rsqrt()
    if dropout > 0.0:
        kept = edge_hash(seed, users, items - num_users) >= int(dropout * 2**32)
        values = values * kept / (1.0 - dropout)
    layer = x.to(dtype)
    total = _share(weights[0], layer)
    for weight in weights[1:]:
        following = torch.zeros_like(layer)
        following.index_add_(0, users, values[:, None] * layer[items])
        following.index_add_(0, items, values[:, None] * layer[users])
        layer = following
        total = total + _share(weight, layer)
    return total.to(x.dtype)


def _share(weight: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """A layer's term of the weighted sum; 0 where its weight is 0, even for values that are not finite."""
    return torch.where(weight == 0, 0.0, weight * layer)


_MASK = 0xFFFFFFFF


def edge_hash(seed: torch.Tensor, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """A 32-bit hash of each edge, int64 ``[E]``: two rounds of the murmur3 finaliser over seed, user and item."""
    state = (seed ^ (seed >> 32)) & _MASK
    for value in (users, items):
        state = state ^ (value & _MASK) ^ ((value >> 32) & _MASK)
        state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _MASK
        state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _MASK
        state = state ^ (state >> 16)
    return state


def _setup_context(ctx, inputs, output):
    *csr, x, weights, dropout, seed = inputs
    ctx.save_for_backward(*csr, x if ctx.needs_input_grad[5] else None, weights, seed)
    ctx.dropout = dropout


def _backward(ctx, gradient):
    """S and its dropout mask are symmetric, so the gradient of x is the same operator applied to the gradient."""
    *csr, x, weights, seed = ctx.saved_tensors
    operator = torch.ops.reasonrec_fast.aggregate
    grad_x = grad_weights = None
    if ctx.needs_input_grad[4]:
        grad_x = operator(*csr, gradient, weights, ctx.dropout, seed)
    if ctx.needs_input_grad[5]:
        one_layer = torch.arange(2, dtype=weights.dtype, device=weights.device)
        layer, products = x, []
        for index in range(weights.numel()):
            if index:
                layer = operator(*csr, layer, one_layer, ctx.dropout, seed)
            products.append((gradient.to(weights.dtype) * layer.to(weights.dtype)).sum())
        grad_weights = torch.stack(products)
    return None, None, None, None, grad_x, grad_weights, None, None


torch.library.register_autograd("reasonrec_fast::aggregate", _backward, setup_context=_setup_context)
torch.library.register_fake(
    "reasonrec_fast::aggregate", lambda *args: torch.empty_like(args[4], memory_format=torch.contiguous_format)
)
library.implement_on_gpu("aggregate", aggregate_reference, reference_dtypes=(torch.float64,))


def _vmap(info, in_dims, *arguments):
    """The batch is folded into the embedding columns."""
    if in_dims[4] is None or any(dim is not None for index, dim in enumerate(in_dims) if index != 4):
        raise ValueError("aggregate: vmap expects batches of x alone")
    x = arguments[4].movedim(in_dims[4], 1)
    results = torch.ops.reasonrec_fast.aggregate(*arguments[:4], x.flatten(1), *arguments[5:])
    return results.view(x.shape), 1


torch.library.register_vmap("reasonrec_fast::aggregate", _vmap)
