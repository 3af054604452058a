"""Runs the layers of any decoder of transformers on a packed batch, with packed attention in place of their own.

Layers of transformers look up their attention by its name in the configuration (``AttentionInterface``). A layer is
run as a shallow copy, which shares its weights and inner modules and whose configuration names the packed attention;
the model itself, which other threads may be running, is not changed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from reasonrec_fast import ops
from reasonrec_fast.lm.layout import PackedLayout

NAME = "reasonrec_fast_packed"
"""Name of the packed attention in transformers' registry."""

_WITHOUT_EFFECT = {
    "cache_position", "is_causal", "output_attentions", "output_router_logits", "position_embeddings", "position_ids",
    "sliding_window", "use_cache",
}  # fmt: skip
"""Arguments of transformers' attentions that do not change the result: texts are causal, and no longer than a window
 (:attr:`~reasonrec_fast.lm.decoder.Decoder.max_length`)."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]
"""The attention: takes queries ``[T, H, d]``, keys and values ``[T, G, d]`` and the scale, cap and dropout of the
scores (arguments of ``ops.packed_attention``), and returns ``[T, H, d]``."""


class _Call:
    """A run of a layer, in which its attention is to be called once."""

    def __init__(self, attend: Attend) -> None:
        self.attend, self.count = attend, 0


def run_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    positions: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    attend: Attend,
) -> torch.Tensor:
    """Output ``[T, D]`` of a layer.

    Args:
        layer: a decoder layer of transformers whose attention is ``self_attn``.
        hidden: its input, ``[T, D]``.
        positions: of the tokens, int64 ``[T]``.
        rotary: cosines and sines of the tokens.
        attend: the attention.

    Raises:
        TypeError: the layer does not call its attention by transformers' interface exactly once, or with inputs other
            than queries, keys and values.
    """
    call = _Call(attend)
    arguments = {
        "attention_mask": None,
        "position_ids": positions[None],
        "position_embeddings": (rotary[0][None], rotary[1][None]),
        "use_cache": False,
    }
    output = _copy_with_packed_attention(layer, call)(hidden[None], **arguments)
    if call.count != 1:
        raise TypeError(
            f"model: expected layers that call transformers' attention interface once; {type(layer).__name__} did so "
            f"{call.count} times"
        )
    return (output[0] if isinstance(output, tuple) else output)[0]


def check_layers(base: Any, title: str) -> None:
    """Refuse decoders whose layers cannot be run on packed batches, as far as their configuration and modules show.

    Raises:
        TypeError: the reason is named.
    """
    config = base.config
    layers = getattr(base, "layers", None)
    missing = [
        name for name in ("embed_tokens", "norm", "rotary_emb") if not isinstance(getattr(base, name, None), nn.Module)
    ]
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        missing.append("layers")
    if missing:
        raise TypeError(f"{title}, which has no {', '.join(missing)}")
    kinds = set(getattr(config, "layer_types", None) or ())
    strange = sorted(kinds - {"full_attention", "sliding_attention"})
    if strange:
        raise TypeError(f"{title}, some of whose layers are {', '.join(strange)}")
    for name, what in (
        ("alibi", "ALiBi"),
        ("is_encoder_decoder", "an encoder"),
        ("add_cross_attention", "cross-attention"),
    ):
        if getattr(config, name, None):
            raise TypeError(f"{title} with {what}")
    for layer in layers or ():
        attention = getattr(layer, "self_attn", None)
        if attention is None or not hasattr(attention, "config"):
            raise TypeError(
                f"{title}, of whose layers {type(layer).__name__} has no self_attn of transformers' interface"
            )
        if getattr(attention, "is_causal", True) is False:
            raise TypeError(f"{title}, whose attention is not causal")
        if hasattr(attention, "sinks"):
            raise TypeError(f"{title}, whose attention has sinks")
        if "position_embeddings" not in inspect.signature(layer.forward).parameters:
            raise TypeError(f"{title}, whose layers take no position_embeddings")


def _copy_with_packed_attention(layer: nn.Module, call: _Call) -> nn.Module:
    attention: Any = layer.self_attn
    shadow = _outer_copy(attention)
    config = copy.copy(attention.config)
    config._attn_implementation_internal = NAME
    shadow.__dict__["config"] = config
    shadow.__dict__["_packed_call"] = call
    whole = _outer_copy(layer)
    whole.__dict__["_modules"]["self_attn"] = shadow
    return whole


def _outer_copy(module: nn.Module) -> nn.Module:
    """A shallow copy of a module, with the same parameters, buffers and inner modules."""
    new = object.__new__(type(module))
    new.__dict__.update(module.__dict__)
    new.__dict__["_modules"] = dict(module._modules)
    if "forward" in new.__dict__:
        raise TypeError(
            f"model: expected modules that run their own forward; {type(module).__name__} was given another"
        )
    return new


def _packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls an attention: ``[1, H, T, d]``, ``[1, G, T, d]``; returns ``[1, T, H, d]``."""
    call: Any = getattr(module, "_packed_call", None)
    if call is None:
        raise RuntimeError(f"{NAME}: expected a call from a packed batch; got another")
    strange = sorted(name for name, given in more.items() if given is not None and name not in _WITHOUT_EFFECT)
    if attention_mask is not None:
        strange.append("attention_mask")
    if strange:
        raise TypeError(
            f"model: expected an attention of queries, keys and values; {type(module).__name__} reads {strange}"
        )
    call.count += 1
    parts = (x[0].transpose(0, 1) for x in (query, key, value))
    scores = {"scale": scaling, "softcap": softcap, "dropout": dropout}
    return call.attend(*parts, scores)[None], None


AttentionInterface.register(NAME, _packed_attention)


@torch.no_grad()
def check_outputs(decoder: Any) -> None:
    """Refuse a decoder that is more than embeddings, layers and a norm: its own forward is compared with a packed batch
    on two short texts that share a prefix.

    Raises:
        TypeError: they differ.
    """
    base = decoder.base
    modes = [(module, module.training) for module in base.modules()]
    base.eval()
    try:
        ids = [(7 * index + 3) % min(decoder.vocabulary, 89) for index in range(14)]
        group = (ids[:5], [ids[5:9], ids[9:14]])
        packed = base.norm(_packed_hidden(decoder, group))[5:]
        own = torch.cat(
            [
                base(input_ids=torch.tensor([[*group[0], *row]], device=decoder.device), use_cache=False)[0][0, 5:]
                for row in group[1]
            ]
        )
    finally:
        for module, mode in modes:
            module.training = mode
    errors = (packed - own).float().norm(dim=-1) / own.float().norm(dim=-1).clamp_min(1e-12)
    # Rounding may route single tokens to other experts, whereas a missing part changes most tokens.
    if not errors.median() < (1e-3 if decoder.dtype in (torch.float32, torch.float64) else 0.1):
        raise TypeError(
            f"model: expected a decoder of token embeddings, layers and a norm alone; the own forward of "
            f"{type(base).__name__} gives other hidden states (relative difference {float(errors.median()):.2g})"
        )


def _packed_hidden(decoder: Any, group: tuple[list[int], list[list[int]]]) -> torch.Tensor:
    """Output ``[T, D]`` of the last layer for a prefix and its suffixes; the prefix is computed once."""
    layout = PackedLayout.of([group])
    segments, positions = layout.segments(), torch.from_numpy(layout.positions).to(decoder.device)
    hidden = decoder.embed(
        torch.tensor([*group[0], *(token for row in group[1] for token in row)], device=decoder.device)
    )
    table = decoder.rotary(hidden, layout.longest)

    def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scores: dict[str, Any]) -> torch.Tensor:
        return ops.packed_attention(queries, keys, values, segments, **scores)

    for index, layer in enumerate(decoder.base.layers):
        cosines, sines = table[decoder.kind(index)]
        hidden = run_layer(layer, hidden, positions, (cosines[positions], sines[positions]), attend)
    return hidden


class ScaledHead(nn.Module):
    """An LM head whose logits are divided by a number, as Granite's are."""

    def __init__(self, lm_head: Any, divisor: float) -> None:
        super().__init__()
        self.lm_head, self.divisor = lm_head, divisor
        self.training = lm_head.training

    @property
    def weight(self) -> torch.Tensor:
        return self.lm_head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden) / self.divisor


@torch.no_grad()
def check_head(causal: Any, base: Any, lm_head: Any) -> None:
    """Refuse a causal model whose logits are not computed by an RMS norm and a linear LM head (with Gemma's cap).

    Raises:
        TypeError: the difference is named.
    """
    norm, config, device = base.norm, base.config, lm_head.weight.device
    x = torch.linspace(-1, 2, config.hidden_size, device=device, dtype=norm.weight.dtype).sin()[None] + 0.5
    eps = getattr(config, "rms_norm_eps", None)
    kind = type(getattr(norm, "original_module", norm)).__name__  # peft wraps the norms that it saves
    if eps is None or not _close(nn.functional.rms_norm(x, x.shape[-1:], norm.weight, eps), norm(x)):
        raise TypeError(
            f"model: expected a final norm that divides by the root mean square (rms_norm_eps, weight); got "
            f"{type(causal).__name__} with {kind}"
        )
    modes = [(module, module.training) for module in causal.modules()]
    causal.eval()
    try:
        ids = torch.tensor([[(5 * index + 2) % min(config.vocab_size, 83) for index in range(6)]], device=device)
        own = causal(input_ids=ids, use_cache=False).logits[0]
        logits = lm_head(base(input_ids=ids, use_cache=False)[0][0])
    finally:
        for module, mode in modes:
            module.training = mode
    cap = getattr(causal.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if not _close(logits, own):
        raise TypeError(
            f"model: expected logits that lm_head makes of the final norm; the own forward of {type(causal).__name__} "
            "gives others"
        )


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    tolerance = 1e-3 if second.dtype in (torch.float32, torch.float64) else 0.05
    return bool((first - second).float().norm() <= tolerance * second.float().norm())
