"""Policy-gradient losses over given tokens, without the logits: GRPO, DAPO and Dr. GRPO."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from reasonrec_fast.ops import library
from reasonrec_fast.ops.token_logprobs import token_logprobs

Kind = Literal["grpo", "dapo", "dr_grpo"]
KINDS = ("grpo", "dapo", "dr_grpo")
PADDING = -100
"""Marks a position without a token."""
_NO_TOKEN = -(2**63)
MAX_LOG_RATIO = 20.0
"""Upper bound of log-ratios of probabilities, so that their exponential stays finite."""


class PolicyStatistics(NamedTuple):
    """Statistics of a policy loss, without gradients. Means are over the tokens that count.

    Attributes:
        logprobs: of the tokens under the current policy, ``[T]``.
        ratio_mean, ratio_max: of current to old probability, bounded as in the loss, 0-d.
        clipped_share: of tokens whose clipped objective is the smaller one, 0-d.
        kl: to the reference, 0-d; 0 without one.
        entropy: in nats, 0-d.
    """

    logprobs: torch.Tensor
    ratio_mean: torch.Tensor
    ratio_max: torch.Tensor
    clipped_share: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor


@library.takes_arrays
def policy_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    tokens: torch.Tensor,
    advantages: torch.Tensor,
    old_logprobs: torch.Tensor,
    *,
    sequence_ids: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    reference_logprobs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.0,
    kind: Kind = "grpo",
    normalizer: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, PolicyStatistics]:
    r"""Clipped policy loss of flat tokens.

    A token's loss is :math:`-\min(r A, \mathrm{clip}(r, 1 - c_0, 1 + c_1) A) + \beta\,k` with the ratio :math:`r` of
    current to old probability and :math:`k = e^{d} - d - 1`, :math:`d` the reference's log-probability minus the
    policy's (DeepSeekMath, arXiv 2402.03300, equations 3 and 4). Both :math:`\log r` and :math:`d` are clamped to at
    most 20 (a ratio of 4.85e8), with gradient 0 beyond. Masked tokens are ignored: their advantages, old and reference
    log-probabilities may be NaN or infinite.

    Args:
        hidden: ``[T, D]``.
        weight: of the LM head, ``[V, D]``.
        tokens: int64 ``[T]``; :data:`PADDING` for no token, which the mask must exclude.
        advantages: ``[T]``, or ``[S]`` with ``sequence_ids`` (if ``S == T``, they are per token).
        old_logprobs: under the policy that sampled, ``[T]``.
        sequence_ids: sequence of each token, int64 ``[T]`` in ``[0, S)`` (``[0, T)`` with advantages per token);
            without them all tokens are one sequence. On a GPU, where a check would read values back, an id out of range
            makes the loss NaN.
        mask: tokens that count, bool ``[T]`` (integers: those that are not 0); all by default.
        reference_logprobs: ``[T]``; required where ``beta > 0``.
        bias: ``[V]``.
        temperature: divides the logits; above 0.
        clip: how far the ratio may fall below 1 and rise above it, at least 0; DAPO uses two values (arXiv 2503.14476).
        beta: weight of the divergence from the reference.
        kind: ``"grpo"``, mean over each sequence's tokens, then over the sequences that have any; ``"dapo"``, mean over
            tokens; ``"dr_grpo"``, sum divided by ``normalizer`` (arXiv 2503.20783).
        normalizer: only for ``"dr_grpo"``; above 0.

    Returns:
        The loss (0-d, differentiable in ``hidden``, ``weight`` and ``bias``; 0 where no token counts) and
        :class:`PolicyStatistics`. ``logprobs`` have the same bits for any number of threads; the loss uses torch's own
        sum, whose order may depend on the number of threads.

    Raises:
        ValueError: an argument does not fit (argument, expected, got); a number out of range, such as a temperature
            of 0; on a CPU, a sequence id out of range (with its row).

    >>> hidden, weight = torch.zeros(2, 3), torch.ones(4, 3)
    >>> old = torch.full((2,), 0.25).log()
    >>> loss, statistics = policy_loss(hidden, weight, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), old)
    >>> round(float(loss), 4), float(statistics.ratio_mean)
    (-1.5, 1.0)
    """
    rows = hidden.shape[0]
    _check_numbers(clip, beta, normalizer)
    _check(rows, tokens, advantages, old_logprobs, sequence_ids, mask, reference_logprobs, beta, kind, normalizer)
    # Padding has no log-probability: with a mask it is ignored here, and without one token_logprobs refuses it.
    ignored = _NO_TOKEN if mask is None else PADDING
    token_statistics = token_logprobs(hidden, weight, tokens, bias=bias, temperature=temperature, ignore_index=ignored)
    dtype = token_statistics.logprobs.dtype
    counted = mask if mask is None or mask.dtype is torch.bool else mask != 0
    counts = torch.ones(rows, dtype=dtype, device=hidden.device) if counted is None else counted.to(dtype)
    advantage = advantages.to(dtype)
    if sequence_ids is not None:
        sequence_ids, inside = _in_range(sequence_ids.long(), len(advantages))
        if advantages.shape != tokens.shape:
            advantage = advantage[sequence_ids]
        if inside is not None:
            advantage = torch.where(inside, advantage, torch.nan)
    # 0 rather than a product with the mask: 0 * NaN would be NaN.
    advantage = _of_counted(counted, advantage)
    ratio = _bounded_gap(counted, token_statistics.logprobs, old_logprobs.to(dtype)).exp()
    free, bound = ratio * advantage, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantage
    losses = -torch.minimum(free, bound)
    divergence = torch.zeros_like(ratio)
    if reference_logprobs is not None:
        gap = _bounded_gap(counted, reference_logprobs.to(dtype), token_statistics.logprobs)
        divergence = gap.exp() - gap - 1
        losses = losses + beta * divergence
    loss = (losses * _token_weights(counts, sequence_ids, len(advantages), kind, normalizer)).sum()
    with torch.no_grad():
        total = counts.sum().clamp_min(1)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return _of_counted(counted, values).sum() / total

        largest = _of_counted(counted, ratio)
        statistics = PolicyStatistics(
            token_statistics.logprobs.detach(),
            mean(ratio),
            largest.amax() if rows else largest.sum(),
            mean((bound < free).to(dtype)),
            mean(divergence),
            mean(token_statistics.entropy),
        )
    return loss, statistics


def _of_counted(counted: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    """The values, 0 for masked tokens; without a mask unchanged."""
    return values if counted is None else torch.where(counted, values, 0.0)


def _bounded_gap(counted: torch.Tensor | None, minuend: torch.Tensor, subtrahend: torch.Tensor) -> torch.Tensor:
    """Log-ratio of probabilities, at most :data:`MAX_LOG_RATIO`, 0 for masked tokens.

    There is no lower bound: the exponential of a large negative number is 0, which is finite.
    """
    return _of_counted(counted, minuend - subtrahend).clamp(max=MAX_LOG_RATIO)


def _in_range(sequence_ids: torch.Tensor, sequences: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The sequence ids checked on a CPU; on a GPU those out of range set to 0, and a mask of those in range."""
    if sequence_ids.device.type != "cpu":
        inside = (sequence_ids >= 0) & (sequence_ids < sequences)
        return torch.where(inside, sequence_ids, 0), inside
    if sequence_ids.numel() and library.may_keep(sequence_ids.device):
        low, high = (int(value) for value in torch.aminmax(sequence_ids))
        if low < 0 or high >= sequences:
            row = int(((sequence_ids < 0) | (sequence_ids >= sequences)).nonzero()[0])
            raise ValueError(
                f"sequence_ids: expected sequences in [0, {sequences}); got {int(sequence_ids[row])} in row {row}"
            )
    return sequence_ids, None


def _token_weights(
    counts: torch.Tensor,
    sequence_ids: torch.Tensor | None,
    sequences: int,
    kind: Kind,
    normalizer: float | torch.Tensor | None,
) -> torch.Tensor:
    """The factor of each token's loss in the sum."""
    if kind == "dr_grpo":
        assert normalizer is not None  # checked before
        return counts / library.scalar(normalizer, counts.dtype, counts.device).reshape(())
    if kind == "dapo" or sequence_ids is None:
        return counts / counts.sum().clamp_min(1)
    lengths = sequence_ids.new_zeros(sequences).index_add(0, sequence_ids, counts.long())
    return counts / (lengths[sequence_ids].clamp_min(1) * (lengths > 0).sum().clamp_min(1))


def _check_numbers(clip, beta, normalizer) -> None:
    if not isinstance(clip, tuple) or len(clip) != 2 or not all(map(_is_bound, clip)):
        raise ValueError(f"clip: expected two numbers of at least 0; got {clip}")
    if not isinstance(beta, int | float) or not _is_bound(beta):
        raise ValueError(f"beta: expected a number of at least 0; got {beta!r}")
    if isinstance(normalizer, torch.Tensor):
        if normalizer.numel() != 1:
            raise ValueError(f"normalizer: expected a number or a 0-d tensor; got {list(normalizer.shape)}")
        if normalizer.device.type != "cpu" or not library.may_keep(normalizer.device):
            return  # reading the value would synchronise, or is impossible under a compiler
    if normalizer is not None and (not _is_bound(normalizer) or normalizer == 0):
        raise ValueError(f"normalizer: expected a positive number; got {normalizer}")


def _is_bound(value) -> bool:
    try:
        return bool(0 <= value < math.inf)
    except (TypeError, RuntimeError):
        return False


def _check(
    rows, tokens, advantages, old_logprobs, sequence_ids, mask, reference_logprobs, beta, kind, normalizer
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}; got {kind!r}")
    if (kind == "dr_grpo") != (normalizer is not None):
        raise ValueError(f"normalizer: expected one for 'dr_grpo' and none otherwise; got {normalizer} for {kind!r}")
    if beta != 0 and reference_logprobs is None:
        raise ValueError(f"reference_logprobs: expected [{rows}] where beta is not 0; got None")
    vectors = {
        "tokens": tokens,
        "old_logprobs": old_logprobs,
        "sequence_ids": sequence_ids,
        "mask": mask,
        "reference_logprobs": reference_logprobs,
    }
    for name, whole in (("tokens", tokens), ("sequence_ids", sequence_ids)):
        if whole is not None and whole.dtype is not torch.int64 and not library.is_integer(whole) and rows:
            raise ValueError(f"{name}: expected integers; got {whole.dtype}")
    if mask is not None and (mask.is_floating_point() or mask.is_complex()):
        raise ValueError(f"mask: expected torch.bool; got {mask.dtype}")
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (rows,):
            raise ValueError(f"{name}: expected [{rows}]; got {list(vector.shape)}")
    if advantages.dim() != 1 or (sequence_ids is None and advantages.shape[0] != rows):
        raise ValueError(f"advantages: expected [{rows}], or [S] with sequence_ids; got {list(advantages.shape)}")


@library.takes_arrays
def group_advantages(rewards: torch.Tensor, groups: torch.Tensor, *, kind: Kind = "grpo") -> torch.Tensor:
    """Advantage of each sample over its group: GRPO's outcome supervision (arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: ``[S]``.
        groups: group of each sample, integers ``[S]``, any.
        kind: ``"grpo"`` and ``"dapo"`` divide by the group's sample deviation + 1e-4, ``"dr_grpo"`` does not.

    Returns:
        ``[S]``, centred in each group, float32 (float64 for float64 rewards); exactly 0 for a sample alone in its group
        and for a group of equal rewards. A reward that is not finite makes its own group NaN, and no other.

    Raises:
        ValueError: shapes or types that do not fit (argument, expected, got).

    >>> group_advantages(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 7, 2]), kind="dr_grpo").tolist()
    [-1.0, 1.0, 0.0]
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}; got {kind!r}")
    if rewards.dim() != 1 or groups.shape != rewards.shape:
        raise ValueError(f"rewards, groups: expected [S] both; got {list(rewards.shape)} and {list(groups.shape)}")
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    if rewards.is_complex():
        raise ValueError(f"rewards: expected numbers; got {rewards.dtype}")
    if len(rewards) == 0:
        return rewards.to(dtype)
    if not library.is_integer(groups):
        raise ValueError(f"groups: expected integers; got {groups.dtype}")
    ordered, order = torch.sort(groups, stable=True)
    values = rewards.index_select(0, order).double()  # the squares of large float32 rewards would overflow
    segment = torch.cat([order.new_zeros(1), ordered[1:] != ordered[:-1]]).cumsum(0)
    lengths = torch.zeros_like(order).index_add_(
        0, segment, torch.ones_like(order)
    )  # padded with zeros: no data-dependent shape
    if rewards.dtype in (torch.float64, torch.int64):
        # Subtract the group's first reward: equal rewards become exactly 0, where their mean may be rounded.
        first = (lengths.cumsum(0) - lengths).index_select(0, segment)
        values = values - values.index_select(0, first)

    def reduced(of: torch.Tensor, how: str) -> torch.Tensor:
        """A reduction over each group; deterministic."""
        return torch.segment_reduce(of, how, lengths=lengths, unsafe=True)

    values = values - reduced(values, "mean").index_select(0, segment)
    if kind != "dr_grpo":
        deviation = (reduced(values.square(), "sum") / (lengths - 1).clamp_min(1)).sqrt() + 1e-4
        values = values / deviation.index_select(0, segment)
    return torch.empty_like(values, dtype=dtype).index_copy_(0, order, values.to(dtype))
