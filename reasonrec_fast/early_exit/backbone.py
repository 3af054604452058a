"""A decoder-only transformer, layer by layer over a packed batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reasonrec_fast.early_exit import attention
from reasonrec_fast.early_exit.layout import PackedLayout


class Backbone(nn.Module):
    """Embeddings, layers, final norm and rotary part of any Hugging Face decoder whose layers take keyword arguments
    through to the attention interface: Llama, Qwen2 and 3, Mistral, Gemma, Phi 3 and their like.

    Args:
        model: a causal model or its base model; its attention is switched to the packed form in place. LoRA layers
            put there by peft stay and train.

    Raises:
        TypeError: the model is not built that way.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        base: Any = getattr(model, "model", model)
        missing = [name for name in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(base, name)]
        if missing:
            raise TypeError(
                f"model: expected a decoder with embed_tokens, layers, norm and rotary_emb; "
                f"{type(model).__name__} has no {', '.join(missing)}"
            )
        self.base = base
        self._own_attention = base.config._attn_implementation
        self.use_packed_attention()

    def use_packed_attention(self) -> None:
        """Attend by packed layouts (the form that this class needs)."""
        self.base.set_attn_implementation(attention.NAME)

    def use_own_attention(self) -> None:
        """Attend as transformers does by itself, so that the plain model can be called."""
        self.base.set_attn_implementation(self._own_attention)

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
    def max_length(self) -> int:
        """Longest text (prefix and suffix) that every layer reads whole."""
        config = self.base.config
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        slides = window is not None and (kinds is None or "sliding_attention" in kinds)
        return min(config.max_position_embeddings, window) if slides else config.max_position_embeddings

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Input of the first layer, ``[1, T, D]``."""
        hidden = self.base.embed_tokens(ids[None])
        # Gemma scales inside its embedding; earlier releases of transformers did so outside for Gemma 1 and 2.
        if self.base.config.model_type in ("gemma", "gemma2") and not hasattr(self.base.embed_tokens, "embed_scale"):
            hidden = hidden * torch.tensor(self.hidden_size**0.5, dtype=hidden.dtype)
        return hidden

    def rotary(self, hidden: torch.Tensor, layout: PackedLayout) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Cosines and sines at the layout's positions, by kind of layer (most models have one kind)."""
        positions, rotary = layout.positions[None], self.base.rotary_emb
        kinds = sorted(set(getattr(self.base.config, "layer_types", None) or ()))
        if hasattr(rotary, "layer_types"):
            return {kind: rotary(hidden, positions, kind) for kind in kinds}
        return dict.fromkeys([*kinds, ""], rotary(hidden, positions))

    def layer(
        self,
        index: int,
        hidden: torch.Tensor,
        layout: PackedLayout,
        rotary: dict[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Layer ``index`` (from 0) on ``[1, T, D]``."""
        kinds = getattr(self.base.config, "layer_types", None)
        output = self.base.layers[index](
            hidden,
            attention_mask=None,
            position_ids=layout.positions[None],
            position_embeddings=rotary[kinds[index] if kinds else ""],
            layout=layout,
        )
        return output[0] if isinstance(output, tuple) else output
