"""Whole decoder layers in about a third of the launches: the operations between the matrix products are fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reasonrec_fast.lm.decoder import Decoder, Rotary

_NORMS = {
    **dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), False),
    **dict.fromkeys(("Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm"), False),
    **dict.fromkeys(("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"), True),
}
"""Norms of transformers that the kernel computes, and whether they multiply by one plus their weight."""
_GATES = {"SiLUActivation": False, "SiLU": False, "GELUTanh": True, "PytorchGELUTanh": True}
"""Activations that the kernel computes, and whether they are the tanh form of GELU."""


def run_layers(
    backbone: Decoder, first: int, last: int, hidden: torch.Tensor, rotary: Rotary, plan: Any, blocks: Any
) -> torch.Tensor:
    """Output ``[T, D]`` of the layers ``first`` to ``last`` (from 1), without gradients; ``plan`` and ``blocks`` are
    those of ``kernels.packed_attention``. Modules without a fused kernel run as they are."""
    from reasonrec_fast.kernels import packed_attention as attention_kernels  # imports Triton
    from reasonrec_fast.kernels.decoder_layer import rotate

    layers = backbone.base.layers
    normalized = _add_and_norm(hidden, None, layers[first - 1].input_layernorm)[1]
    for index in range(first - 1, last):
        layer = layers[index]
        query = backbone.projected_queries(index, normalized)
        key, value = backbone.projected_keys_values(index, normalized)
        rotate(query, key, *rotary[backbone.kind(index)])
        scores = backbone.scores(index)
        attended = attention_kernels.packed_attention(
            query, key, value, plan, blocks, scores["scale"], scores["softcap"] or 0.0
        )
        output = layer.self_attn.o_proj(attended.flatten(1))
        around = hasattr(layer, "pre_feedforward_layernorm")  # Gemma 2 and 3 also normalise the residual branches
        if around:
            output = _add_and_norm(output, None, layer.post_attention_layernorm)[1]
        hidden, normalized = _add_and_norm(
            output, hidden, layer.pre_feedforward_layernorm if around else layer.post_attention_layernorm
        )
        output = _feed_forward(layer.mlp, normalized)
        if around:
            output = _add_and_norm(output, None, layer.post_feedforward_layernorm)[1]
        if index + 1 < last:
            hidden, normalized = _add_and_norm(output, hidden, layers[index + 1].input_layernorm)
        else:
            hidden = hidden + output
    return hidden


def _add_and_norm(x: torch.Tensor, residual: torch.Tensor | None, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum, and its norm."""
    from reasonrec_fast.kernels.decoder_layer import add_and_norm

    module: Any = norm
    plus_one = _NORMS.get(type(norm).__name__)
    if plus_one is None or module.weight.dtype != x.dtype or not (x.is_contiguous() and module.weight.is_contiguous()):
        summed = x if residual is None else residual + x
        return summed, norm(summed)
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return add_and_norm(x, residual, module.weight, eps, plus_one)


def _feed_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    from reasonrec_fast.kernels.decoder_layer import gated

    activation = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    tanh = _GATES.get(type(activation).__name__)
    if tanh is None:
        return mlp(x)
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(x).chunk(2, -1)
    else:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    return mlp.down_proj(gated(gate, up, tanh))
