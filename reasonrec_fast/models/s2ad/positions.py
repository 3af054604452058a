"""Stage 1, Dynamic Soft Positioning: the place of an image among references, as a target and read out.

All in percentiles of one scale. ``K`` references ``r_1 <= ... <= r_K`` make ``K + 1`` slots: slot 0 is below all of
them, slot ``K`` above. Where a row has fewer references, the absent ones are ``+inf`` at the end, and their slots are
empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from reasonrec_fast.models.s2ad.gaussian import interval_mass, mean_probability
from reasonrec_fast.settings import NotNegative, Positive, check_settings

_TINY = 1e-300
"""The smallest probability that is read; its probit is -37."""


@dataclass(frozen=True)
class PositionConfig:
    """How soft a position is.

    Attributes:
        kind: ``"dynamic"``: sigma² is the square of the raters' standard error plus ``gap`` times the square of the
            local gap between references; ``"static"``: sigma is ``sigma`` everywhere; ``"hard"``: 0, all mass in one
            slot. The last two are ablations.
        gap: share of the squared gap in sigma². At 0.25 sigma is half of the gap.
        floor: the least sigma of a dynamic position, in percentiles.
        sigma: of a static position, in percentiles.
    """

    kind: Literal["dynamic", "static", "hard"] = "dynamic"
    gap: NotNegative = 0.25
    floor: Positive = 0.02
    sigma: Positive = 0.1

    def __post_init__(self) -> None:
        check_settings(self)


def local_gap(queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """The distance between references where the query is, float64 ``[...]``.

    At a reference it is half of the distance between its neighbours, at 0 and at 1 the distance to the next reference;
    in between it is linear, so that sigma does not jump where a query passes a reference.

    Args:
        queries: percentiles ``[...]``.
        references: ``[..., K]``.

    >>> local_gap(torch.tensor([0.5, 0.0]), torch.tensor([[0.25, 0.5, 0.75]] * 2)).tolist()
    [0.25, 0.25]
    """
    queries, references = _checked(queries, references)
    nodes = _nodes(references)
    widths = nodes.diff(dim=-1)
    left, right = torch.cat([widths[..., :1], widths], -1), torch.cat([widths, widths[..., -1:]], -1)
    gaps = torch.where(nodes <= 0, right, torch.where(nodes >= 1, left, (left + right) / 2))
    slot = (references <= queries[..., None]).sum(-1, keepdim=True)
    start, width = nodes.gather(-1, slot), widths.gather(-1, slot)
    share = ((queries[..., None] - start) / width.clamp_min(_TINY)).clamp(0, 1)
    return torch.lerp(gaps.gather(-1, slot), gaps.gather(-1, slot + 1), share).squeeze(-1)


def position_sigma(
    queries: torch.Tensor,
    references: torch.Tensor,
    deviations: torch.Tensor | None = None,
    config: PositionConfig | None = None,
) -> torch.Tensor:
    """Sigma of each position in percentiles, float64 ``[...]``; 0 for hard ones.

    Args:
        queries, references: of :func:`local_gap`.
        deviations: standard errors of the queries' percentiles (:meth:`Percentiles.deviations`), ``[...]``; NaN, or
            None for all, where they are not known: they add nothing.
        config: by default dynamic.

    >>> position_sigma(torch.tensor([0.5]), torch.tensor([[0.25, 0.5, 0.75]]), torch.tensor([0.3])).item()  # of 0.5 gap
    0.325...
    """
    config = config or PositionConfig()
    gap = local_gap(queries, references)
    if config.kind != "dynamic":
        return torch.full_like(gap, config.sigma if config.kind == "static" else 0.0)
    known = torch.zeros_like(gap) if deviations is None else deviations.to(gap).nan_to_num(0.0)
    return (known.square() + config.gap * gap.square()).sqrt().clamp_min(config.floor)


def soft_positions(
    queries: torch.Tensor, references: torch.Tensor, sigma: torch.Tensor | float, *, order: torch.Tensor | None = None
) -> torch.Tensor:
    """Target distribution over slots, Phi((r_{j+1} - q) / sigma) - Phi((r_j - q) / sigma), float64 ``[..., K + 1]``.

    ``r_0`` is -inf and ``r_{K+1}`` +inf: the open slots have all of the tails. Where sigma is 0 the mass is in the slot
    of the query, or by halves on both sides of the references that it equals, the limit of small sigma.

    Args:
        queries: percentiles in [0, 1], ``[...]``.
        references: ascending, in [0, 1] or ``+inf`` where absent, ``[..., K]``.
        sigma: at least 0, ``[...]`` or a number.
        order: how slots are presented (:func:`presented`); by default as they are.

    Raises:
        ValueError: a query, a reference or a sigma that is none (with its row), or references that do not ascend.

    >>> soft_positions(torch.tensor([0.5]), torch.tensor([[0.4, 0.6]]), 0.1).round(decimals=4).tolist()
    [[0.1587, 0.6827, 0.1587]]
    """
    queries, references = _checked(queries, references)
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=queries.device).expand(queries.shape)
    wrong = ~(sigma >= 0)
    if wrong.any():
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(f"sigma: expected at least 0; got {sigma.flatten()[row].item()} in row {row}")
    differences = references - queries[..., None]
    safe = torch.where(sigma > 0, sigma, 1.0)[..., None]
    limit = torch.where(differences == 0, 0.0, differences.sign() * torch.inf)
    edges = torch.where(sigma[..., None] > 0, differences / safe, limit)
    infinite = torch.full_like(edges[..., :1], torch.inf)
    edges = torch.cat([-infinite, edges, infinite], -1)
    targets = interval_mass(edges[..., :-1], edges[..., 1:])
    return targets if order is None else presented(targets, order)


def presented(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """What is shown at each place: place ``s`` has slot (or reference) ``order[..., s]`` of ``values [..., N]``.

    Raises:
        ValueError: an order that is no permutation (with its row).

    >>> presented(torch.tensor([[0.1, 0.9]]), torch.tensor([[1, 0]])).tolist()
    [[0.8999999761581421, 0.10000000149011612]]
    """
    return values.gather(-1, _permutation(order, values))


def restored(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`presented`: slot ``order[..., s]`` has what was at place ``s``.

    >>> order = torch.tensor([2, 0, 1])
    >>> restored(presented(torch.tensor([5, 6, 7]), order), order).tolist()
    [5, 6, 7]
    """
    return values.gather(-1, _permutation(order, values).argsort(-1))


def read_positions(
    probabilities: torch.Tensor, references: torch.Tensor, *, order: torch.Tensor | None = None, end: float = 2.0
) -> torch.Tensor:
    """The percentile that slot probabilities say, in (0, 1), float64 ``[...]``; differentiable.

    The expectation of the position, the integral over [0, 1] of P(query better than x). At a reference that is the mass
    above it; between neighbours its probit is linear, which is exact for Gaussian positions whose sigma is a 37th of
    the gap or more (below, float64 holds only the slot, whose middle is read); in the open slots the probit goes on to
    the scale's ends at ``end`` over the slot. The result is strictly increasing wherever mass moves to a higher slot,
    and nothing is scaled by the smallest and the largest of a query: it saturates only where float64 does. Masses below
    1e-300 are read as 1e-300.

    Args:
        probabilities: of slots, ``[..., K + 1]``, from float32 or float64; rows are divided by their sums.
        references: of :func:`soft_positions`.
        order: how the slots were presented (:func:`presented`).
        end: sigmas from the outermost references to the ends; 2 where sigma is half of a gap (``gap`` of 0.25).

    Raises:
        ValueError: references that are none, or probabilities of another shape, below 0 or not finite (with their row).

    >>> references = torch.tensor([[0.2, 0.4, 0.6, 0.8]]).double()
    >>> targets = soft_positions(torch.tensor([0.43]).double(), references, 0.01)
    >>> round(read_positions(targets, references).item(), 6)
    0.43
    """
    probabilities = probabilities.double()
    if order is not None:
        probabilities = restored(probabilities, order)
    references = _checked_references(references)
    if probabilities.shape != (*references.shape[:-1], references.shape[-1] + 1):
        raise ValueError(
            f"probabilities: expected one a slot of {list(references.shape)}; got {list(probabilities.shape)}"
        )
    wrong = ~(probabilities >= 0) | probabilities.isinf()
    if wrong.any():
        row = int(wrong.flatten(0, -2).any(-1).nonzero()[0])
        raise ValueError(f"probabilities: expected at least 0; got others in row {row}")
    present = references.isfinite()
    below = probabilities.cumsum(-1)[..., :-1]
    above = probabilities.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    total = (below + above).clamp_min(_TINY)
    below, above = (below / total).clamp_min(_TINY), (above / total).clamp_min(_TINY)
    # Of the two tails the smaller one is exact.
    upper = above > below
    tail = torch.special.ndtri(torch.where(upper, below, above))
    probit = torch.where(present, torch.where(upper, -tail, tail), 0.0)
    # From node to node: a slot that ends at 1 goes on by ``end``; absent references have no width.
    start = torch.cat([probit[..., :1] + end, probit], -1)
    following = torch.cat([present, torch.zeros_like(present[..., :1])], -1)
    after = torch.cat([probit, probit[..., -1:]], -1)
    means = mean_probability(start, torch.where(following, after, start - end))
    return (means * _nodes(references).diff(dim=-1)).sum(-1).clamp(_TINY, 1 - 2**-53)


def average_draws(positions: torch.Tensor) -> torch.Tensor:
    """The mean over draws of ``[..., R]``, without those that are NaN; NaN where all are.

    >>> average_draws(torch.tensor([[0.25, 0.75, torch.nan]])).tolist()
    [0.5]
    """
    return positions.nanmean(-1)


def _nodes(references: torch.Tensor) -> torch.Tensor:
    """0, the references with absent ones at 1, and 1: ``[..., K + 2]``."""
    ends = torch.zeros_like(references[..., :1])
    return torch.cat([ends, references.clamp_max(1.0), ends + 1], -1)


def _permutation(order: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    expected = torch.arange(values.shape[-1], device=order.device)
    wrong = order.shape[-1:] != values.shape[-1:] or (order.sort(-1).values != expected).any()
    if wrong:
        raise ValueError(f"order: expected permutations of {values.shape[-1]}; got {order.tolist()}")
    return order.expand(values.shape)


def _checked_references(references: torch.Tensor) -> torch.Tensor:
    references = references.double()
    if references.dim() < 1 or not references.shape[-1]:
        raise ValueError(f"references: expected one at least; got {list(references.shape)}")
    inside = ((references >= 0) & (references <= 1)) | (references == torch.inf)
    wrong = ~inside | torch.cat([~references[..., :1].isfinite(), references[..., 1:] < references[..., :-1]], -1)
    if wrong.any():
        row = int(wrong.flatten(0, -2).any(-1).nonzero()[0]) if references.dim() > 1 else 0
        values = references.reshape(-1, references.shape[-1])[row].tolist()
        raise ValueError(f"references: expected ascending percentiles, +inf where absent; got {values} in row {row}")
    return references


def _checked(queries: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    queries, references = queries.double(), _checked_references(references)
    if queries.shape != references.shape[:-1]:
        raise ValueError(f"queries: expected {list(references.shape[:-1])}, as references; got {list(queries.shape)}")
    wrong = ~((queries >= 0) & (queries <= 1))
    if wrong.any():
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(f"queries: expected percentiles in [0, 1]; got {queries.flatten()[row].item()} in row {row}")
    return queries, references
