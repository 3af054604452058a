"""Integrals of the normal distribution that positions and buttons are made of, exact far out in its tails."""

from __future__ import annotations

import math

import torch

_NORMALIZER = 1 / math.sqrt(2 * math.pi)
_NEAR = 0.25
"""Below this difference the closed form of a mean would cancel, and four points of Gauss and Legendre are exact."""
_NODES = (-0.8611363115940526, -0.3399810435848563, 0.3399810435848563, 0.8611363115940526)
_WEIGHTS = (0.3478548451374538, 0.6521451548625461, 0.6521451548625461, 0.3478548451374538)


def normal_cdf(z: torch.Tensor) -> torch.Tensor:
    """Phi, also far out in its lower tail, where ``torch.special.ndtr`` is 0.

    >>> normal_cdf(torch.tensor(-10.0).double()).item() > 0
    True
    """
    return torch.special.erfc(-z * math.sqrt(0.5)) / 2


def interval_mass(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Phi(high) - Phi(low) without cancellation in either tail; shapes broadcast, infinite ends are allowed.

    >>> interval_mass(torch.tensor(10.0).double(), torch.tensor(torch.inf).double()).item() > 0
    True
    """
    flip = low > 0  # both in the upper tail: the same mass lies in the lower one, where Phi is exact
    return normal_cdf(torch.where(flip, -low, high)) - normal_cdf(torch.where(flip, -high, low))


def expected_excess(z: torch.Tensor) -> torch.Tensor:
    """E[max(z + x, 0)] of a standard normal x, z Phi(z) + phi(z): what Phi is the derivative of."""
    return z * normal_cdf(z) + _NORMALIZER * torch.exp(-z.square() / 2)


def mean_probability(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """The mean of Phi along a straight line from ``start`` to ``end``; finite, shapes broadcast.

    Increasing in both ends, and differentiable.

    >>> round(mean_probability(torch.tensor(-1.0), torch.tensor(1.0)).item(), 6)
    0.5
    """
    difference = end - start
    near = difference.abs() < _NEAR
    closed = (expected_excess(end) - expected_excess(start)) / torch.where(near, 1.0, difference)
    middle, half = (start + end) / 2, torch.where(near, difference, 0.0) / 2
    summed = sum(weight / 2 * normal_cdf(middle + node * half) for node, weight in zip(_NODES, _WEIGHTS, strict=True))
    return torch.where(near, summed, closed)  # type: ignore[arg-type]
