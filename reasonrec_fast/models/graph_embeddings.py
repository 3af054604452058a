"""LightGCN's propagation and the loss that it is trained with: what the model and OptiRAG-Rec's retriever share."""

from __future__ import annotations

import torch
from torch.nn import functional

from reasonrec_fast import ops
from reasonrec_fast.graph import InteractionGraph


def propagate(graph: InteractionGraph, embedding: torch.Tensor, layers: int) -> torch.Tensor:
    """Mean of layers 0 to ``layers`` (equation 8 of arXiv 2002.02126), users then items, ``[U + I, D]``.

    Args:
        graph: of ``U`` users and ``I`` items.
        embedding: layer 0, ``[U + I, D]``.
        layers: of propagation; 0 gives ``embedding``.

    >>> graph = InteractionGraph.from_edges([0], [0])
    >>> propagate(graph, torch.tensor([[1.0], [3.0]]), layers=1).tolist()
    [[2.0], [2.0]]
    """
    return ops.aggregate(graph, embedding, layers=layers, combine="mean")


def bpr_loss(users: torch.Tensor, liked: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean of ``-log sigmoid`` of how much more a user's vector likes the liked item than the other one (BPR, arXiv
    1205.2618), 0-d.

    Args:
        users, liked, others: vectors of each triple, ``[N, D]``.

    >>> round(float(bpr_loss(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))), 4)  # log 2
    0.6931
    """
    return functional.softplus((users * (others - liked)).sum(-1)).mean()
