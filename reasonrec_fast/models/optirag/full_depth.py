"""The peer that early exit is measured against: full depth through plain transformers, every prompt in full."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reasonrec_fast.devices import to_device
from reasonrec_fast.lm.decoder import Decoder, recorder
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.model import OptiRAG


@torch.inference_mode()
def full_depth_scores(model: OptiRAG, requests: Requests) -> np.ndarray:
    """Probabilities of a like by the model's last head, float32 ``[N]``.

    The prompts are padded on the left to one length and go through transformers' own forward pass of the decoder
    (its attention, no vocabulary projection), as a team would batch them.
    """
    groups, inputs, _ = requests.batch(requests.slates, model.mean, model.scale)
    prompts = [[*prefix, *suffix] for prefix, suffixes in groups for suffix in suffixes]
    engine = model.ranker.model
    with model.adapters.merged():
        last, _ = last_states(engine.backbone, **padded(prompts, engine.backbone.device))
    assert inputs.features is not None
    head_inputs = inputs.features.to(last.device), to_device(inputs.offset, last.device)
    probability = engine.heads[-1](last, *head_inputs).positive_probability.cpu().numpy()
    scores = np.empty_like(probability)
    scores[np.concatenate([slate.rows for slate in requests.slates])] = probability
    return scores


def padded(prompts: list[list[int]], device: torch.device) -> dict[str, Any]:
    """Inputs of transformers' decoder: prompts side by side, shorter ones behind padding."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return {
        "input_ids": ids,
        "attention_mask": mask if min(map(len, prompts)) < width else None,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "use_cache": False,
    }


def last_states(backbone: Decoder, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the last tokens after the last layer, before the final norm (which the heads read, as everywhere
    in this package) and after it, ``[B, D]`` each."""
    caught: list[torch.Tensor] = []

    @recorder
    def catch(module: Any, arguments: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    hook = backbone.base.layers[-1].register_forward_hook(catch)
    try:
        output = backbone.base(**inputs)
    finally:
        hook.remove()
    return caught[0][:, -1], output.last_hidden_state[:, -1]
