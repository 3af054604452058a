"""The early-exit engine with random weights of SmolLM2-135M's shape on stored prompts, against transformers.

For machines without the weights and the data set; ``engine.py`` has the real model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from reasonrec_fast.benchmarking.case import OURS, Case
from reasonrec_fast.benchmarking.measure import Run
from reasonrec_fast.benchmarking.stored import StoredWork, random_ranker, spread_policy, stored_work
from reasonrec_fast.early_exit.engine import EarlyExitModel
from reasonrec_fast.early_exit.policy import ExitPolicy

BATCH = 32
"""Texts per call of transformers."""


def ours(model: EarlyExitModel, work: StoredWork, policy: ExitPolicy | None = None) -> torch.Tensor:
    """Probabilities ``[R]``."""
    return model.predict(work.groups, work.features, policy).probability


@torch.inference_mode()
def transformers(model: EarlyExitModel, work: StoredWork) -> torch.Tensor:
    """Every full prompt, left-padded, through transformers' own forward (with its ``sdpa`` attention)."""
    from reasonrec_fast.models.optirag.full_depth import last_states, padded

    probabilities, texts, device = [], work.texts, model.backbone.device
    for start in range(0, len(texts), BATCH):
        last, _ = last_states(model.backbone, **padded(texts[start : start + BATCH], device))
        probabilities.append(_probability(model, last, work.features[start : start + BATCH]))
    return torch.cat(probabilities)


@torch.inference_mode()
def transformers_prefix_cache(model: EarlyExitModel, work: StoredWork) -> torch.Tensor:
    """Each user's prefix once, its ``DynamicCache`` repeated for the candidates, which have equal lengths."""
    from transformers import DynamicCache

    from reasonrec_fast.models.optirag.full_depth import last_states

    base, device, probabilities, start = model.backbone.base, model.backbone.device, [], 0
    for prefix, suffixes in work.groups:
        cache = DynamicCache(config=base.config)
        base(input_ids=torch.tensor([list(prefix)], device=device), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(suffixes))
        ids = torch.tensor([list(suffix) for suffix in suffixes], device=device)
        positions = torch.arange(len(prefix), len(prefix) + ids.shape[1], device=device).expand(len(ids), -1)
        last, _ = last_states(
            model.backbone, input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        )
        probabilities.append(_probability(model, last, work.features[start : start + len(ids)]))
        start += len(ids)
    return torch.cat(probabilities)


def _probability(model: EarlyExitModel, last: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return model.heads[-1](last, features.to(last.device)).positive_probability


def _case(name: str, prompts: str, groups: int, exits: bool = False, device: str = "cpu", tiny: bool = False) -> Case:
    """Full depth against transformers; with ``exits`` only ours, checked against the scores at each row's exit."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = random_ranker(device, dtype, tiny=tiny)
    work = stored_work(prompts, groups=groups, tiny=tiny)
    policy = spread_policy(model, work) if exits else None
    contenders: dict[str, Run] = {OURS: partial(ours, model, work, policy)}
    if not exits:
        contenders["transformers"] = partial(transformers, model, work)
        contenders["transformers_prefix_cache"] = partial(transformers_prefix_cache, model, work)
    expected = at_exits(model, work, policy) if exits else ours(model, work)

    def check(contender: str, scores: torch.Tensor) -> None:
        """Equal within bfloat16's accuracy."""
        difference = (scores - expected).abs()
        if not (difference.mean() <= 0.02 and difference.max() <= 0.2):
            raise AssertionError(f"{contender}: scores are off by up to {float(difference.max()):.3f}")

    return Case(
        "engine_stored", name, dtype, contenders, check=check, results=4 * work.rows, seconds=20.0, device=device
    )


@torch.inference_mode()
def at_exits(model: EarlyExitModel, work: StoredWork, policy: ExitPolicy | None) -> torch.Tensor:
    """Probabilities at the exits that :meth:`EarlyExitModel.predict` chooses, from a pass without exits."""
    depth = model.predict(work.groups, work.features, policy).depth
    probabilities = torch.stack([s.positive_probability for s in model.all_exits(work.groups, work.features)])
    exits = torch.tensor(model.exits, device=depth.device)
    return probabilities.gather(0, torch.searchsorted(exits, depth)[None])[0]


CASES: dict[str, Callable[..., Case]] = {
    "engine-stored-1000": partial(_case, "engine-stored-1000", "slates", 1),
    "engine-stored-4096": partial(_case, "engine-stored-4096", "slates", 4),
    "engine-stored-1000-exits": partial(_case, "engine-stored-1000-exits", "slates", 1, True),
    "engine-stored-4096-exits": partial(_case, "engine-stored-4096-exits", "slates", 4, True),
}
