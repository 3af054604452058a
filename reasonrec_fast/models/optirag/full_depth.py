"""The peer that early exit is measured against: full depth through plain transformers, every prompt in full."""

from __future__ import annotations

import numpy as np
import torch

from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.model import OptiRAG


@torch.inference_mode()
def full_depth_scores(model: OptiRAG, requests: Requests) -> np.ndarray:
    """Probabilities of a like by the model's last head, float32 ``[N]``.

    The prompts are padded on the left to one length and go through transformers' own forward pass of the decoder
    (its attention, no vocabulary projection), as a team would batch them.
    """
    groups, numbers, _ = requests.batch(requests.slates, model.mean, model.scale)
    prompts = [[*prefix, *suffix] for prefix, suffixes in groups for suffix in suffixes]
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    backbone = model.ranker.backbone
    caught: list[torch.Tensor] = []
    # The head reads the last layer before the final norm, as everywhere in this package.
    hook = backbone.base.layers[-1].register_forward_hook(
        lambda module, inputs, output: caught.append(output[0] if isinstance(output, tuple) else output)
    )
    model.merge()
    try:
        backbone.base(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    finally:
        hook.remove()
    found = model.ranker.heads[-1](caught[0][:, -1], numbers).positive_probability.numpy()
    scores = np.empty_like(found)
    scores[np.concatenate([slate.rows for slate in requests.slates])] = found
    return scores
