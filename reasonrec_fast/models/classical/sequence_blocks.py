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
        x = x + self.dropout(self.mixed(self.norms[0](x)))
        return x + self.dropout(self.feed_forward(self.norms[1](x)))

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        """What a token reads of those before it and of itself, ``[B, T, D]`` to the same."""
        return self.attention(x)


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


class BSABlock(SASRecBlock):
    """A block whose attention is mixed with a frequency filter: ``alpha * filter(x) + (1 - alpha) * attention(x)``
    (BSARec, arXiv 2312.10325, equations 9 to 13).

    Args:
        dim, heads, dropout: as in :class:`SASRecBlock`.
        alpha: share of the filter.
        length: of the sequences that are filtered, the most tokens.
        cutoff: the paper's c; the ``cutoff // 2 + 1`` lowest frequencies of the sequence are low.
    """

    def __init__(self, dim: int, heads: int, dropout: float, *, alpha: float, length: int, cutoff: int) -> None:
        super().__init__(dim, heads, dropout)
        self.alpha, self.filter = alpha, FrequencyFilter(dim, length, cutoff)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return self.alpha * self.filter(x) + (1 - self.alpha) * self.attention(x)


class FrequencyFilter(nn.Module):
    """``low(x) + beta ** 2 * (x - low(x))``: ``low`` keeps the lowest frequencies, and ``beta`` is learned for each
    component.

    The paper takes the Fourier transform of a whole sequence, padded at the left to its full length, and reads the last
    token alone. Here every token is read, so each is filtered as if it were the last, by what the transform does to the
    last token: a convolution over the tokens before it, of which none is later.

    Args:
        dim: width.
        length: of the padded sequence.
        cutoff: as in :class:`BSABlock`.

    >>> x = torch.randn(1, 5, 2)
    >>> low = torch.fft.irfft(torch.fft.rfft(x, dim=1)[:, :2], n=5, dim=1)
    >>> torch.allclose(FrequencyFilter(2, 5, 2).low(x)[:, -1], low[:, -1], atol=1e-6)
    True
    """

    weights: torch.Tensor

    def __init__(self, dim: int, length: int, cutoff: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.randn(dim))
        impulse = torch.zeros(length, dtype=torch.float64)
        impulse[0] = 1
        kept = torch.fft.rfft(impulse)
        kept[cutoff // 2 + 1 :] = 0
        response = torch.fft.irfft(kept, n=length)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        weights = torch.where(distance >= 0, response[distance.clamp(min=0)], 0.0)
        self.register_buffer("weights", weights.float(), persistent=False)

    def low(self, x: torch.Tensor) -> torch.Tensor:
        """The low frequencies of each token's own prefix, ``[B, T, D]`` to the same."""
        size = x.shape[1]
        return self.weights[:size, :size] @ x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, D]`` to the same."""
        low = self.low(x)
        return low + self.beta.square() * (x - low)
