"""Causal transformer blocks of the sequential models."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads: expected a divisor of dim {dim}; got {heads}")
        self.heads, self.dropout = heads, dropout
        self.joint = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, D]`` to the same."""
        query, key, value = self.joint(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SASRecBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and beside a residual path.

    The norm comes first (Kang and McAuley 2018, section 3.2), as in every transformer since.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.attention = CausalAttention(dim, heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, D]`` to the same."""
        x = x + self.dropout(self.attention(self.norms[0](x)))
        return x + self.dropout(self.feed_forward(self.norms[1](x)))


class LiGRBlock(nn.Module):
    """A block whose two parts are gated by their own input: ``x + sigmoid(x W) * f(norm(x))`` (LiGR, arXiv 2502.03417;
    used with a SwiGLU feed-forward part by eSASRec, arXiv 2508.06450)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.gates = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim)])
        self.attention = CausalAttention(dim, heads, dropout)
        self.up = nn.Linear(dim, 8 * dim)
        self.down = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, D]`` to the same."""
        x = x + self.dropout(torch.sigmoid(self.gates[0](x)) * self.attention(self.norms[0](x)))
        gate, value = self.up(self.norms[1](x)).chunk(2, -1)
        changed = self.down(self.dropout(functional.silu(gate) * value))
        return x + self.dropout(torch.sigmoid(self.gates[1](x)) * changed)
