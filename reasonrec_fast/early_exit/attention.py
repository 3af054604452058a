"""Attention over a packed batch, as an attention function of transformers."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional
from transformers import AttentionInterface

from reasonrec_fast.early_exit.layout import GroupLayout, PackedLayout

NAME = "reasonrec_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: PackedLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """A prefix attends to itself, causally; each suffix to its prefix and, causally, to itself.

    Args:
        query, key, value: ``[1, H, T, d]``; ``key`` and ``value`` may have fewer heads, of which ``H`` is a multiple.
        layout: of the ``T`` tokens.
        scaling, dropout: as transformers passes them.
        softcap: Gemma 2's logit cap; scores are then formed in full.

    Returns:
        ``[1, T, H, d]`` and no attention weights.
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    outputs = []
    attend = partial(_attend, dropout=dropout, scaling=scaling, softcap=softcap)
    for group in layout.groups:
        middle = group.start + group.prefix
        before, after = slice(group.start, middle), slice(middle, group.end)
        if group.prefix:
            prefix_mask = torch.ones(group.prefix, group.prefix, dtype=torch.bool, device=query.device).tril()
            out = attend(query[:, :, before], key[:, :, before], value[:, :, before], prefix_mask)
            outputs.append(out[0].transpose(0, 1))
        rows = len(group.suffixes)

        def as_rows(x: torch.Tensor, after: slice = after, group: GroupLayout = group, rows: int = rows):
            tokens = x[0, :, after].transpose(0, 1)
            padded = tokens.new_zeros(rows * group.width, *tokens.shape[1:]).index_copy(0, group.padded, tokens)
            return padded.view(rows, group.width, *tokens.shape[1:]).transpose(1, 2)

        keys = torch.cat([key[:, :, before].expand(rows, -1, -1, -1), as_rows(key)], 2)
        values = torch.cat([value[:, :, before].expand(rows, -1, -1, -1), as_rows(value)], 2)
        out = attend(as_rows(query), keys, values, group.mask)
        outputs.append(_Collect.apply(out.transpose(1, 2).flatten(0, 1), group.padded))
    return torch.cat(outputs)[None], None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is None and query.is_cuda:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    # On a CPU the two products written out are faster at these sizes (two to four times, backward above all).
    scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return functional.dropout(weights, dropout) @ value


class _Collect(torch.autograd.Function):
    """``x[places]`` for distinct places, whose gradient is a copy: autograd would add row by row."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.rows = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        zeros = gradient.new_zeros(ctx.rows, *gradient.shape[1:])
        return zeros.index_copy(0, places, gradient), None


AttentionInterface.register(NAME, packed_attention)
