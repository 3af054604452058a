"""A decoder-only transformer of transformers, taken apart: what a layer does, token by token, on a packed batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from reasonrec_fast.devices import on_device
from reasonrec_fast.lm import whole_layers
from reasonrec_fast.lm.adapters import unwrapped
from reasonrec_fast.lm.inputs import Embeddings

FAMILIES = (
    "gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3",
)  # fmt: skip
"""``model_type`` of the models that :class:`Decoder` takes apart."""

VISION_LANGUAGE = {
    "idefics3": "text_model",
    "llava": "language_model",
    "qwen2_5_vl": "language_model",
    "qwen2_vl": "language_model",
    "smolvlm": "text_model",
}
"""``model_type`` of image-text-to-text models, and where their text model lies in them: an image's vectors are read as
tokens are, each seeing what is before it."""
_TEXT_PARTS = ("llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3")
"""Families of text models that are read in the same way inside a vision-language model as on their own."""
_POSITION_AXES = {"qwen2_5_vl_text": 3, "qwen2_vl_text": 3}

Rotary = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Cosines and sines ``[T, r]`` by kind of layer."""

Call = Callable[[Any, torch.Tensor], torch.Tensor]
"""How a projection or a feed-forward part reads its input (:func:`call`, or
:func:`~reasonrec_fast.lm.products.step_call`)."""


def call(module: Any, x: torch.Tensor) -> torch.Tensor:
    """``module(x)``."""
    return module(x)


def is_plain_linear(module: Any) -> bool:
    """Whether a module is its weight and bias alone: no adapter, no hook, no other ``forward`` (accelerate)."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or nn.modules.module._has_any_global_hook())


def recorder(hook: Callable[..., None]) -> Callable[..., None]:
    """Mark a hook that changes nothing: :func:`has_hooks` does not count it."""
    hook.records_only = True  # type: ignore[attr-defined]
    return hook


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks around its ``forward`` that may change what it computes: neither :func:`recorder` nor
    transformers' own, which record what its callers ask for."""
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return not all(
        getattr(hook, "records_only", False)
        or str(getattr(hook, "__module__", "")).startswith("transformers.utils.output_capturing")
        for hook in hooks
    )


@dataclass(frozen=True)
class CausalParts:
    """What answers are read from, under the names that a causal text model of transformers has.

    Attributes:
        model: the text model, with ``norm``.
        lm_head: linear, with adapters or not.
        config: of the text model.
    """

    model: Any
    lm_head: Any
    config: Any


def causal_parts(model: Any) -> CausalParts:
    """Text model and LM head of a causal or an image-text-to-text model, in peft's wrapping or not.

    Raises:
        TypeError: a model without an LM head, adapters beside its layers, or logits that are more than an LM head makes
            of an RMS norm.
    """
    causal = unwrapped(model)
    if not hasattr(causal, "lm_head"):
        raise TypeError(f"model: expected a causal model with lm_head; got {type(causal).__name__}")
    base, lm_head = text_model(causal), causal.lm_head
    family = getattr(getattr(base, "config", None), "model_type", None)
    if family not in FAMILIES:
        Decoder(causal)  # names what is in the way of this family, if anything is
        if getattr(causal.config, "logits_scaling", None):
            lm_head = whole_layers.ScaledHead(lm_head, causal.config.logits_scaling)
        whole_layers.check_head(causal, base, lm_head)
    return CausalParts(base, lm_head, base.config)


def text_model(model: Any) -> Any:
    """The decoder's own module: embeddings, layers and final norm of a causal, an image-text-to-text or a base model.

    Raises:
        TypeError: adapters beside the layers.
    """
    model = unwrapped(model)
    base = getattr(model, "model", model)
    inside = VISION_LANGUAGE.get(getattr(getattr(base, "config", None), "model_type", None) or "")
    return getattr(base, inside) if inside else base


class Decoder(nn.Module):
    """Embeddings, layers and rotary part of a Hugging Face decoder of one of :data:`FAMILIES`.

    Nothing of the model is changed: its own ``forward`` stays what it was. Other decoders of transformers, mixtures of
    experts among them, run through their own layers with our attention
    (:mod:`~reasonrec_fast.lm.whole_layers`), if what they compute is that of their own ``forward``, which is tried when
    they are given.

    Attributes:
        splits_layers: whether layers are taken apart, so that they can be finished for some tokens before others.

    Args:
        model: a causal model, an image-text-to-text model (of :data:`VISION_LANGUAGE`) or the base model of one, in
            peft's wrapping or not; LoRA layers stay and train.

    Raises:
        TypeError: a model that cannot be scored exactly; why is named.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        whole, base = unwrapped(model), text_model(model)
        family = getattr(getattr(base, "config", None), "model_type", None)
        inside = base is not whole and base is not getattr(whole, "model", None)
        families = _TEXT_PARTS if inside else FAMILIES
        self.splits_layers = family in families
        if not self.splits_layers:
            title = f"model: expected a decoder of one of {', '.join(families)}" + (
                "" if inside else ", or one whose layers run with another attention"
            )
            title += f"; got {type(whole).__name__}" + (f" of model_type {family!r}" if family else "")
            if inside or not family:
                raise TypeError(title)
            whole_layers.check_layers(base, title)
        if getattr(base.config, "use_bidirectional_attention", None):
            raise TypeError(
                "model: expected a decoder whose tokens see what is before them; got bidirectional attention"
            )
        self.base = base
        if not self.splits_layers:
            whole_layers.check_outputs(self)

    def check_state(self) -> None:
        """Refuse hooks, and a ``forward`` of an instance's own, on modules that are taken apart: they would not run.

        Raises:
            TypeError: the module is named. Hooks that record what transformers is asked for change nothing.
            ValueError: autocast in another dtype than the model's, which queries and keys would not have in common.
        """
        kind = self.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != self.dtype:
            raise ValueError(
                f"model: expected no autocast around it, or one in its own {self.dtype}; got "
                f"{torch.get_autocast_dtype(kind)}"
            )
        modules: list[tuple[str, Any]] = [("the text model", self.base)]
        if self.splits_layers:
            for number, layer in enumerate(self.base.layers):
                modules += [(f"layers.{number}", layer), (f"layers.{number}.self_attn", layer.self_attn)]
        for name, module in modules:
            if has_hooks(module):
                raise TypeError(
                    f"model: expected no hooks on modules that are not called as a whole; got one on {name}"
                )
            if module is not self.base and "forward" in vars(module):
                raise TypeError(f"model: expected layers that run their own forward; {name} was given another")

    def keep_layers(self, count: int) -> None:
        """Drop every layer after the first ``count``.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= count <= self.num_layers:
            raise ValueError(f"layers: expected a number in [1, {self.num_layers}]; got {count}")
        del self.base.layers[count:]
        self.base.config.num_hidden_layers = count
        if getattr(self.base.config, "layer_types", None):
            self.base.config.layer_types = self.base.config.layer_types[:count]

    @property
    def num_layers(self) -> int:
        return len(self.base.layers)

    @property
    def hidden_size(self) -> int:
        return self.base.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.base.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.embed_tokens.weight.dtype

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""
        return self.base.embed_tokens.weight.shape[0]

    @property
    def max_length(self) -> int:
        """Longest text (prefix and suffix) that every layer reads whole, and that leaves others of its batch alone."""
        config = self.base.config
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        slides = window is not None and (kinds is None or "sliding_attention" in kinds)
        most = min(config.max_position_embeddings, window) if slides else config.max_position_embeddings
        return min(most, self._longest_of_one_kind() or most)

    def check_length(self, tokens: int, argument: str) -> None:
        """Refuse texts that are too long for :attr:`max_length`.

        Raises:
            ValueError: ``tokens``, of the longest, are more.
        """
        if tokens <= self.max_length:
            return
        reason = ""
        if self.max_length == self._longest_of_one_kind():
            # One long text would turn all of its batch, and keys that a cache holds were turned as short texts are.
            kind = self.base.rotary_emb.rope_type
            reason = f" (beyond it this backbone turns the short texts of a batch otherwise too: rope_type {kind!r})"
        raise ValueError(f"{argument}: expected at most {self.max_length} tokens a text{reason}; got {tokens}")

    @property
    def position_axes(self) -> int:
        """Axes that a position has: 3 where images turn by time, row and column, else 1."""
        return _POSITION_AXES.get(self.base.config.model_type, 1)

    def check_embeddings(self, segment: Embeddings, argument: str) -> None:
        """Refuse vectors that are not this model's.

        Raises:
            ValueError: another width than :attr:`hidden_size`, or positions with other axes than :attr:`position_axes`.
        """
        if segment.values.shape[1] != self.hidden_size:
            raise ValueError(
                f"{argument}: expected embeddings of width {self.hidden_size}, as the model's; got "
                f"{segment.values.shape[1]} ({segment!r})"
            )
        if segment.positions is not None and (self.position_axes == 1 or len(segment.positions) != self.position_axes):
            wanted = "without positions" if self.position_axes == 1 else f"with {self.position_axes} axes of positions"
            raise ValueError(
                f"{argument}: expected embeddings {wanted}, as those of {self.base.config.model_type}; got "
                f"{len(segment.positions)} axes ({segment!r})"
            )

    def embed(self, ids: torch.Tensor, vectors: Sequence[tuple[int, Embeddings]] = ()) -> torch.Tensor:
        """Input of the first layer, ``[T, D]``.

        Args:
            ids: int64 ``[T]``; those in the place of vectors are not read.
            vectors: put in from the places given on, in the dtype and on the device of the others.

        Raises:
            ValueError: vectors of another width, or positions with other axes than :attr:`position_axes`.
        """
        hidden = self.base.embed_tokens(ids)
        # Gemma scales inside its embedding; earlier releases of transformers did so outside for Gemma 1 and 2.
        if self.base.config.model_type in ("gemma", "gemma2") and not hasattr(self.base.embed_tokens, "embed_scale"):
            # Rounded as transformers does; made on the device, where a copy would wait for it.
            hidden = hidden * torch.full((), self.hidden_size**0.5, dtype=hidden.dtype, device=hidden.device)
        if not self.splits_layers and hasattr(self.base, "embedding_multiplier"):  # Granite
            hidden = hidden * self.base.embedding_multiplier
        if not vectors:
            return hidden
        for _, segment in vectors:
            self.check_embeddings(segment, "groups")
        places = np.concatenate([np.arange(begin, begin + len(segment)) for begin, segment in vectors])
        values = [segment.values.to(hidden.device, hidden.dtype, non_blocking=True) for _, segment in vectors]
        return hidden.index_copy(0, on_device(places, hidden.device), torch.cat(values))

    def rotary_of(self, hidden: torch.Tensor, positions: torch.Tensor) -> Rotary:
        """Cosines and sines of positions with several axes, int64 ``[A, T]``, in the dtype of ``hidden``.

        Each part of a head's columns turns by one of the axes, as the model's ``mrope_section`` says (Qwen2-VL, arXiv
        2409.12191, section 2.1).
        """
        rotary = self.base.rotary_emb
        cosines, sines = rotary(hidden, positions[:, None])
        if cosines.dim() == 4:  # earlier releases of transformers chose the axes in each layer
            sections = self.base.config.rope_parameters["mrope_section"] * 2
            cosines, sines = (
                torch.cat([part[axis % 3] for axis, part in enumerate(x.split(sections, -1))], -1)
                for x in (cosines, sines)
            )
        turns = cosines[0], sines[0]
        return dict.fromkeys([*sorted(set(getattr(self.base.config, "layer_types", None) or ())), ""], turns)

    def rotary(self, hidden: torch.Tensor, length: int) -> Rotary:
        """Cosines and sines of the positions ``[0, length)``, in the dtype of ``hidden``."""
        positions, rotary = torch.arange(length, device=hidden.device)[None], self.base.rotary_emb
        if self.position_axes > 1:
            return self.rotary_of(hidden, positions.expand(self.position_axes, -1))
        kinds = sorted(set(getattr(self.base.config, "layer_types", None) or ()))
        if hasattr(rotary, "layer_types"):
            tables = {kind: rotary(hidden, positions, kind) for kind in kinds}
        else:
            tables = dict.fromkeys([*kinds, ""], rotary(hidden, positions))
        return {kind: (cosines[0], sines[0]) for kind, (cosines, sines) in tables.items()}

    def pre_norm(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """What the attention of layer ``index`` (from 0) reads, ``[T, D]``.

        Raises:
            TypeError: layers of this family are not taken apart (:attr:`splits_layers`).
        """
        if not self.splits_layers:
            raise TypeError(
                f"model: expected a decoder of one of {', '.join(FAMILIES)}, whose layers are taken apart; got "
                f"{type(self.base).__name__}"
            )
        return self.base.layers[index].input_layernorm(hidden)

    def _longest_of_one_kind(self) -> int | None:
        """Tokens up to which positions mean the same in every batch; None where they always do."""
        if getattr(self.base.rotary_emb, "rope_type", "default") not in ("longrope", "dynamic"):
            return None
        config = self.base.config
        known = (getattr(config, "rope_parameters", None) or {}).get("original_max_position_embeddings")
        length = known or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        return int(length)

    def queries(self, index: int, normalized: torch.Tensor, rotary: Rotary, call: Call = call) -> torch.Tensor:
        """``[T, H, d]``, turned by position; ``rotary`` holds those of the ``T`` tokens."""
        return apply_rotary(self.projected_queries(index, normalized, call), *rotary[self.kind(index)])

    def projected_queries(self, index: int, normalized: torch.Tensor, call: Call = call) -> torch.Tensor:
        """``[T, H, d]``, not turned yet."""
        attention = self.base.layers[index].self_attn
        if hasattr(attention, "qkv_proj"):
            query = _part(attention.qkv_proj, normalized, slice(0, self._query_width(attention)))
        else:
            query = call(attention.q_proj, normalized)
        query = query.unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, "q_norm"):
            query = attention.q_norm(query)
        return query

    def keys_values(
        self, index: int, normalized: torch.Tensor, rotary: Rotary, call: Call = call
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys, turned by position, and values, ``[T, G, d]`` each."""
        key, value = self.projected_keys_values(index, normalized, call)
        return apply_rotary(key, *rotary[self.kind(index)]), value

    def projected_keys_values(
        self, index: int, normalized: torch.Tensor, call: Call = call
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys, not turned yet, and values, ``[T, G, d]`` each."""
        attention = self.base.layers[index].self_attn
        if hasattr(attention, "qkv_proj"):
            both = _part(attention.qkv_proj, normalized, slice(self._query_width(attention), None))
            key, value = both.chunk(2, -1)
        else:
            key, value = call(attention.k_proj, normalized), call(attention.v_proj, normalized)
        key, value = (x.unflatten(-1, (-1, attention.head_dim)) for x in (key, value))
        if hasattr(attention, "k_norm"):
            key = attention.k_norm(key)
        return key, value

    def scores(self, index: int) -> dict[str, Any]:
        """How the layer's attention scales, caps and drops its scores: arguments of ``ops.packed_attention``."""
        attention = self.base.layers[index].self_attn
        # Gemma 3 has the setting, and its attention does not read it.
        caps = self.base.config.model_type == "gemma2"
        return {
            "scale": attention.scaling,
            "softcap": attention.attn_logit_softcapping if caps else None,
            "dropout": attention.attention_dropout if self.training else 0.0,
        }

    def finish(self, index: int, hidden: torch.Tensor, attended: torch.Tensor, call: Call = call) -> torch.Tensor:
        """The layer's output ``[T, D]`` from its input and what its attention gave, ``[T, H, d]``."""
        layer = self.base.layers[index]
        projected = call(layer.self_attn.o_proj, attended.flatten(1))
        if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma 2 and 3 norm what is added, too
            hidden = hidden + layer.post_attention_layernorm(projected)
            return hidden + layer.post_feedforward_layernorm(call(layer.mlp, layer.pre_feedforward_layernorm(hidden)))
        hidden = hidden + projected
        return hidden + call(layer.mlp, layer.post_attention_layernorm(hidden))

    def kind(self, index: int) -> str:
        """Kind of a layer, as rotary parts are told apart."""
        kinds = getattr(self.base.config, "layer_types", None)
        return kinds[index] if kinds else ""

    def _query_width(self, attention: Any) -> int:
        return self.base.config.num_attention_heads * attention.head_dim


def _part(projection: Any, x: torch.Tensor, columns: slice) -> torch.Tensor:
    """Some output columns of a joint projection; LoRA around it needs all of them."""
    if not is_plain_linear(projection):
        return projection(x)[..., columns]
    bias = None if projection.bias is None else projection.bias[columns]
    return nn.functional.linear(x, projection.weight[columns], bias)


def apply_rotary(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary positions (RoFormer, arXiv 2104.09864) for halves that turn together; columns past ``r`` stay."""
    width = cosines.shape[-1]
    first, second = x[..., : width // 2], x[..., width // 2 : width]
    turned = x[..., :width] * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None]
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)
