"""Prediction heads after several layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import nn

from reasonrec_fast import ops
from reasonrec_fast.devices import on_device
from reasonrec_fast.lm.decoder import has_hooks, is_plain_linear
from reasonrec_fast.ops.exit_confidence import Measure

_UNITS = 256  # unit vectors that an LM head reads at a time


MAX_ANSWERS = 64
"""Of a head: an ensemble's probabilities are averaged without logits in memory up to here."""


def default_measure(num_answers: int) -> Measure:
    """The confidence that is read where none is named: the ratio that OptiRAG-Rec's heads are sure by, for two answers
    alone; the margin of the two likeliest of more.

    >>> default_measure(2), default_measure(5)
    ('ratio', 'margin')
    """
    return "ratio" if num_answers == 2 else "margin"


class ExitHead(nn.Module):
    """An ensemble of ``K`` linear heads over ``L`` answers (or levels) on a normalised hidden state and, beside it,
    some features.

    The hidden state is RMS-normalised with a learned gain. The features (already standardised) enter as they are and
    through one small hidden layer, so that their effect need not be linear.

    With an offset a head corrects logits that are there already (those of depth 0): ``a * offset + b + residual(hidden,
    features)``, where ``a`` starts at 1 and all else at 0, so that an untrained head answers what the offset says. Of
    two answers one logit comes, that of the second; of more answers one each.
    ``scale`` shrinks all that was learnt towards that start; calibration sets it.

    Args:
        hidden_size: width ``D`` of the backbone.
        num_features: width ``F`` of the features; 0 for none.
        ensemble_size: ``K``; 1 with an offset, as heads that start at zero stay alike.
        units: width of the features' hidden layer.
        num_answers: ``L``, at most :data:`MAX_ANSWERS`. The last one is the positive answer.
        offset: whether the head corrects logits.

    Raises:
        ValueError: an ensemble with an offset, or a number of answers outside 2 to 64.
    """

    temperature: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        hidden_size: int,
        num_features: int = 0,
        ensemble_size: int = 2,
        units: int = 32,
        *,
        num_answers: int = 2,
        offset: bool = False,
    ) -> None:
        super().__init__()
        if not 2 <= num_answers <= MAX_ANSWERS:
            raise ValueError(f"num_answers: expected 2 to {MAX_ANSWERS}; got {num_answers}")
        if offset and ensemble_size != 1:
            raise ValueError(f"ensemble_size: expected 1 with an offset; got {ensemble_size}")
        self.norm = nn.RMSNorm(hidden_size, eps=1e-5)
        self.units = nn.Linear(num_features, units) if num_features else None
        width = hidden_size + (num_features + units if num_features else 0)
        weight = torch.randn(ensemble_size, num_answers, width) * width**-0.5 * 0.1
        if offset:  # its columns are the last
            weight = torch.cat([torch.zeros_like(weight), _offset_columns(num_answers)[None]], -1)
            self.register_buffer("scale", torch.ones(()))
        self.num_answers, self.offset = num_answers, offset
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(ensemble_size, num_answers))
        self.register_buffer("temperature", torch.ones(()))
        self.softcap: float | None = None

    @torch.no_grad()
    def start_from(self, causal: Any, tokens: Sequence[Sequence[int]]) -> None:
        """Answer as a causal model's final norm and LM head do for one token an answer, or for the mean of several.

        Args:
            causal: a model of transformers with ``model.norm`` and ``lm_head``.
            tokens: ids of each of the ``L`` answers.
        """
        lm_head = causal.lm_head
        self.norm.eps = causal.config.rms_norm_eps
        self.norm.weight.copy_(_gain_of(causal.model.norm, causal.config))
        lengths = [len(ids) for ids in tokens]
        parts = (part.split(lengths) for part in _rows_of(lm_head, [token for ids in tokens for token in ids]))
        weight, bias = (torch.stack([rows.mean(0) for rows in part]) for part in parts)
        self.weight.copy_(weight.expand_as(self.weight))
        self.bias.copy_(bias.expand_as(self.bias))
        self.softcap = getattr(causal.config, "final_logit_softcapping", None)

    def inputs(
        self, hidden: torch.Tensor, features: torch.Tensor | None, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the linear heads read: float32 ``[B, D']``."""
        parts = [self.norm(hidden.float())]
        if self.units is not None:
            if features is None or features.shape != (len(hidden), self.units.in_features):
                shape = None if features is None else list(features.shape)
                raise ValueError(f"features: expected [{len(hidden)}, {self.units.in_features}]; got {shape}")
            parts += [features, nn.functional.gelu(self.units(features))]
        shape = [len(hidden)] if self.num_answers == 2 else [len(hidden), self.num_answers]
        if self.offset != (offset is not None) or (offset is not None and list(offset.shape) != shape):
            wanted = shape if self.offset else "None, as the heads stand on their own"
            raise ValueError(f"offset: expected {wanted}; got {None if offset is None else list(offset.shape)}")
        if offset is not None:
            parts.append(offset.float().reshape(len(hidden), 1 if self.num_answers == 2 else self.num_answers))
        return torch.cat(parts, -1)

    def _operands(
        self, hidden: torch.Tensor, features: torch.Tensor | None, offset: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Inputs ``[B, D']``, weights ``[K, L, D']`` and biases ``[K, L]`` of the linear heads."""
        inputs = self.inputs(hidden, features, offset)
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if self.offset:
            start = torch.zeros_like(weight)  # made where the weights are: a copy from the host would be waited for
            if self.num_answers == 2:
                start[:, 1, -1] = 1.0
            else:
                start[..., -self.num_answers :].diagonal(dim1=-2, dim2=-1).fill_(1.0)
            weight, bias = torch.lerp(start, weight, self.scale), self.bias * self.scale
        if self.softcap is not None:  # Gemma 2 caps its logits: they are formed here, and taken as they are
            logits = nn.functional.linear(inputs, weight[0], self.bias[0])
            inputs, bias = self.softcap * torch.tanh(logits / self.softcap), None
            weight = torch.eye(self.num_answers, dtype=logits.dtype, device=logits.device)[None]
        return inputs, weight, bias

    def distribution(
        self, hidden: torch.Tensor, features: torch.Tensor | None = None, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Probabilities of all answers, float32 ``[B, L]``, averaged over the ensemble; differentiable. The arguments
        are those of :meth:`forward`."""
        with torch.autocast(hidden.device.type, enabled=False):
            inputs, weight, bias = self._operands(hidden, features, offset)
            logits = torch.einsum("bd,kld->bkl", inputs, weight)
            logits = logits if bias is None else logits + bias
            return (logits / self.temperature).softmax(-1).mean(1)

    def forward(
        self,
        hidden: torch.Tensor,
        features: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        *,
        measure: Measure | None = None,
        threshold: float | torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
    ) -> ops.ExitStatistics:
        """Statistics of the rows ``hidden [B, D]`` with ``features [B, F]`` and ``offset [B]`` (``[B, L]`` for more
        than two answers); the last answer is the positive one. Always in float32.

        Args:
            hidden, features, offset: the rows.
            measure, threshold, previous, targets: of :func:`~reasonrec_fast.ops.exit_confidence`; by default the
                measure is :func:`default_measure`.

        Raises:
            ValueError: features or an offset that are missing, not wanted, or of another shape.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            inputs, weight, bias = self._operands(hidden, features, offset)
            return ops.exit_confidence(
                inputs,
                weight,
                bias=bias,
                temperature=self.temperature,
                measure=measure or default_measure(self.num_answers),
                positive=self.num_answers - 1,
                threshold=threshold,
                previous=previous,
                targets=targets,
            )

    def log_odds(
        self, hidden: torch.Tensor, features: torch.Tensor | None = None, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log-odds of the second of two answers by each member of the ensemble, float32 ``[B, K]``; differentiable.

        They are differences of logits: of a probability that float32 rounds to 0 or 1 they cannot be had any more. The
        arguments are those of :meth:`forward`.

        Raises:
            ValueError: more than two answers, or what :meth:`forward` refuses.
        """
        if self.num_answers != 2:
            raise ValueError(f"model: expected heads of two answers; got {self.num_answers}")
        with torch.autocast(hidden.device.type, enabled=False):
            inputs, weight, bias = self._operands(hidden, features, offset)
            answers = torch.arange(2, device=inputs.device).repeat_interleave(len(inputs))
            # The operator's sums, whose bits do not depend on the other rows.
            logprobs = ops.exit_confidence(
                inputs.repeat(2, 1), weight, bias=bias, temperature=self.temperature, targets=answers
            ).target_logprob
            return logprobs[len(inputs) :] - logprobs[: len(inputs)]


def _offset_columns(num_answers: int) -> torch.Tensor:
    """How logits of depth 0 count for each answer at first: one for the second of two, else one each."""
    return torch.tensor([[0.0], [1.0]]) if num_answers == 2 else torch.eye(num_answers)


def _gain_of(norm: Any, config: Any) -> torch.Tensor:
    """What a final RMS norm multiplies each column by, ``[D]`` in float32."""
    if "weight" in norm._parameters and "forward" not in vars(norm) and not has_hooks(norm):
        # Gemma's norm multiplies by one plus its weight.
        return norm.weight.float() + config.model_type.startswith("gemma")
    ones = torch.ones(1, config.hidden_size, dtype=norm.weight.dtype, device=norm.weight.device)
    return norm(ones)[0].float() * (1 + config.rms_norm_eps) ** 0.5  # adapters and hooks are in it


def _rows_of(lm_head: Any, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``[n, D]`` and biases ``[n]`` by which an LM head answers some tokens, in float32."""
    weight = lm_head.weight
    places = on_device(np.asarray(tokens, dtype=np.int64), weight.device)
    if is_plain_linear(lm_head):
        rows = weight[places].float()
        return rows, torch.zeros_like(rows[:, 0]) if lm_head.bias is None else lm_head.bias[places].float()
    # Adapters, hooks, weights of another form: what it makes of the unit vectors, some at a time.
    training = lm_head.training
    lm_head.eval()
    try:
        width = weight.shape[1]
        units = torch.eye(width, dtype=weight.dtype, device=weight.device).split(_UNITS)
        bias = lm_head(torch.zeros(1, width, dtype=weight.dtype, device=weight.device))[0, places].float()
        return torch.cat([lm_head(some)[:, places].float() for some in units]).T - bias[:, None], bias
    finally:
        lm_head.train(training)


def exit_layers(num_layers: int, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """Layers (counted from 1) after which heads sit; the last layer always has one.

    Raises:
        TypeError: ``wanted`` is no list.
        ValueError: a layer that the model does not have.

    >>> exit_layers(30)
    (6, 10, 15, 20, 25, 30)
    """
    if wanted is None:
        wanted = [max(1, round(num_layers * share)) for share in (0.2, 1 / 3, 0.5, 2 / 3, 5 / 6)]
    elif isinstance(wanted, str | bytes) or not isinstance(wanted, Iterable):
        raise TypeError(f"exits: expected a list of layers; got {wanted!r}")
    for layer in wanted:
        if isinstance(layer, bool) or not hasattr(layer, "__index__") or not 1 <= index(layer) <= num_layers:
            raise ValueError(f"exits: expected layers in [1, {num_layers}]; got {layer!r}")
    return tuple(sorted({*map(index, wanted), num_layers}))
