"""The early-exit engine against transformers, with and without a prefix cache, on real prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from reasonrec_fast.benchmarking.case import OURS, Case
from reasonrec_fast.benchmarking.measure import Run

if TYPE_CHECKING:
    from reasonrec_fast.benchmarking.engine_prompts import Work
    from reasonrec_fast.models.optirag import OptiRAG

BATCH = 32
"""Requests per call of transformers."""
CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Candidates per prefix. All cases have the same requests, so that they differ only in the grouping."""
TOKENS = 4096
"""Most tokens in one of our batches, except for a single group that is larger."""


def _case(
    name: str,
    prompts: str,
    arguments: dict[str, int | None],
    *,
    early_exit: bool = True,
    peers: tuple[str, ...] = ("transformers",),
    seconds: float = 60.0,
    device: str = "cpu",
) -> Case:
    """A case over prompts of ``engine_prompts``, imported here since it imports transformers, which takes seconds."""
    from reasonrec_fast.benchmarking import engine_prompts

    model, _, _ = engine_prompts.movielens_model()
    work: Work = getattr(engine_prompts, prompts)(**arguments)
    model.to(device)
    work = replace(work, **{name: getattr(work, name).to(device) for name in ("features", "offset", "strata")})
    contenders: dict[str, Run] = {OURS: partial(_ours, model, work, early_exit)}
    contenders |= {name: partial(_PEERS[name], model, work) for name in peers}
    needs_full_depth = peers or not early_exit
    full = _ours(model, work, early_exit=False) if needs_full_depth else torch.empty(0)

    def check(contender: str, scores: torch.Tensor) -> None:
        """All contenders except ours with early exit must give full-depth scores, within bfloat16's accuracy."""
        if contender == OURS and early_exit:
            return
        difference = (scores - full).abs()
        if difference.mean() > 0.01 or difference.max() > 0.1:
            raise AssertionError(f"{contender}: scores differ from full depth by up to {float(difference.max()):.3f}")

    return Case(
        "engine",
        name,
        model.ranker.model.backbone.dtype,
        contenders,
        check=check,
        results=4 * len(work.features),
        seconds=seconds,
        device=device,
    )


def _ours(model: OptiRAG, work: Work, early_exit: bool) -> torch.Tensor:
    from reasonrec_fast.early_exit.batching import batches_of

    policy, scores = model.policy if early_exit else None, []
    for groups, rows in batches_of(work.groups, TOKENS):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        given = work.features[part], policy, work.strata[part]
        scores.append(model.ranker.model.predict(groups, *given, offset=work.offset[part]).probability)
    return torch.cat(scores)


@torch.inference_mode()
def _transformers(model: OptiRAG, work: Work) -> torch.Tensor:
    """Every full prompt, left-padded; only the logits of the last tokens."""
    from reasonrec_fast.models.optirag.full_depth import padded

    prompts, probabilities = work.prompts, []
    for start in range(0, len(prompts), BATCH):
        inputs = padded(prompts[start : start + BATCH], work.features.device)
        probabilities.append(_probability(model, work, start, **inputs))
    return torch.cat(probabilities)


@torch.inference_mode()
def _transformers_prefix_cache(model: OptiRAG, work: Work) -> torch.Tensor:
    """Each user's prefix once, its cache repeated for the candidates, which have equal lengths."""
    from transformers import DynamicCache

    base, device, probabilities, start = model.ranker.model.backbone.base, work.features.device, [], 0
    for prefix, suffixes in work.groups:
        cache = DynamicCache(config=base.config)
        base(input_ids=torch.tensor([list(prefix)], device=device), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(suffixes))
        ids = torch.tensor([list(suffix) for suffix in suffixes], device=device)
        positions = torch.arange(len(prefix), len(prefix) + ids.shape[1], device=device).expand(len(ids), -1)
        inputs = {"input_ids": ids, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        probabilities.append(_probability(model, work, start, **inputs))
        start += len(suffixes)
    return torch.cat(probabilities)


_PEERS = {"transformers": _transformers, "transformers_prefix_cache": _transformers_prefix_cache}


def _probability(model: OptiRAG, work: Work, start: int, **inputs: Any) -> torch.Tensor:
    """Computes the logits of the last tokens, as a user of transformers would, and returns the score of our last head,
    so that results can be compared.

    (With ``logits_to_keep=1`` the causal model slices the hidden states, and torch then copies the LM head for every
    row: a quarter of the time and 1.7 GB. This call spares the peer that.)
    """
    from reasonrec_fast.models.optirag.full_depth import last_states

    last, final_hidden = last_states(model.ranker.model.backbone, **inputs)
    model.peft.get_base_model().lm_head(final_hidden)
    rows = slice(start, start + len(last))
    return model.ranker.model.heads[-1](last, work.features[rows], work.offset[rows]).positive_probability


def _slates(name: str, users: int, candidates: int, *, films: int | None = None, **options: Any) -> Callable[..., Case]:
    sizes = {"users": users, "candidates": candidates, "prefix_tokens": 232, "suffix_tokens": 24, "films": films}
    return partial(_case, name, "slates_of_users", sizes, **options)


CASES: dict[str, Callable[..., Case]] = {
    "engine-32": _slates("engine-32", 4, 32, peers=tuple(_PEERS), seconds=60.0),
    "engine-1": _slates("engine-1", BATCH, 1),
    "engine-1-no-exit": partial(
        _case,
        "engine-1-no-exit",
        "requests_in_arrival_order",
        {"count": 2 * BATCH, "prefix_tokens": 320},
        early_exit=False,
    ),
    "engine-1-no-exit-equal": _slates("engine-1-no-exit-equal", BATCH, 1, early_exit=False),
    **{
        f"engine-candidates-{count}": _slates(
            f"engine-candidates-{count}", 2, count, films=max(CANDIDATES), peers=(), seconds=10.0
        )
        for count in CANDIDATES
    },
}
