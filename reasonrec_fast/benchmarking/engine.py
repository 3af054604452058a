"""The early-exit engine beside transformers, with and without a prefix cache, on real prompts."""

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
    from reasonrec_fast.early_exit.layout import TokenGroup
    from reasonrec_fast.models.optirag import OptiRAG

BATCH = 32
"""Requests that transformers scores in one call."""
CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""A prefix; the requests are the same in all cases, so that they differ in nothing else."""
TOKENS = 4096
"""Most tokens that ours packs in one batch, but for a group that is larger alone."""


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
    """A case over prompts of ``engine_prompts`` (whose import, transformers' above all, takes seconds)."""
    from reasonrec_fast.benchmarking import engine_prompts

    model, _, _ = engine_prompts.movielens_model()
    work: Work = getattr(engine_prompts, prompts)(**arguments)
    model.peft.to(device)
    model.ranker.to(device)
    work = replace(work, numbers=work.numbers.to(device))
    contenders: dict[str, Run] = {OURS: partial(_ours, model, work, early_exit)}
    contenders |= {name: partial(_PEERS[name], model, work) for name in peers}
    compared = peers or not early_exit
    full = _ours(model, work, early_exit=False) if compared else torch.empty(0)

    def check(contender: str, found: torch.Tensor) -> None:
        """All but early exit itself give the scores of full depth, within what bfloat16 leaves of them."""
        if contender == OURS and early_exit:
            return
        difference = (found - full).abs()
        if difference.mean() > 0.01 or difference.max() > 0.1:
            raise AssertionError(f"{contender}: scores differ from full depth by up to {float(difference.max()):.3f}")

    return Case(
        "engine",
        name,
        model.ranker.backbone.dtype,
        contenders,
        check=check,
        results=4 * len(work.numbers),
        seconds=seconds,
        device=device,
    )


def _ours(model: OptiRAG, work: Work, early_exit: bool) -> torch.Tensor:
    policy, row = model.policy if early_exit else None, 0
    found = []
    for groups in _packed(work.groups):
        end = row + sum(len(suffixes) for _, suffixes in groups)
        found.append(model.ranker.rank(groups, work.numbers[row:end], policy, work.strata[row:end]).probability)
        row = end
    return torch.cat(found)


def _packed(groups: list[TokenGroup]) -> list[list[TokenGroup]]:
    batches: list[list[TokenGroup]] = []
    filled = TOKENS
    for group in groups:
        size = len(group[0]) + sum(map(len, group[1]))
        if filled + size > TOKENS:
            batches.append([])
            filled = 0
        batches[-1].append(group)
        filled += size
    return batches


@torch.inference_mode()
def _transformers(model: OptiRAG, work: Work) -> torch.Tensor:
    """Every prompt in full, padded on the left, last-token logits alone."""
    prompts, found = work.prompts, []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        width = max(map(len, some))
        device = work.numbers.device
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in some], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in some], device=device)
        last = _last_states(
            model,
            input_ids=ids,
            attention_mask=mask if min(map(len, some)) < width else None,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        )
        found.append(_probability(model, last, work, start))
    return torch.cat(found)


@torch.inference_mode()
def _transformers_prefix_cache(model: OptiRAG, work: Work) -> torch.Tensor:
    """A user's prefix once, its cache repeated over the candidates, which are of one length."""
    from transformers import DynamicCache

    base, device, found, start = model.ranker.backbone.base, work.numbers.device, [], 0
    for prefix, suffixes in work.groups:
        cache = DynamicCache(config=base.config)
        base(input_ids=torch.tensor([list(prefix)], device=device), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(suffixes))
        ids = torch.tensor([list(suffix) for suffix in suffixes], device=device)
        positions = torch.arange(len(prefix), len(prefix) + ids.shape[1], device=device).expand(len(ids), -1)
        last = _last_states(model, input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        found.append(_probability(model, last, work, start))
        start += len(suffixes)
    return torch.cat(found)


_PEERS = {"transformers": _transformers, "transformers_prefix_cache": _transformers_prefix_cache}


def _last_states(model: OptiRAG, **inputs: Any) -> torch.Tensor:
    """Output of the last layer for the last tokens, by transformers' own forward; their logits are formed too.

    (Asked with ``logits_to_keep=1`` the causal model slices, and torch then copies the LM head once a row: a quarter of
    the time and 1.7 GB. The peer is spared that.)
    """
    caught: list[torch.Tensor] = []
    base = model.ranker.backbone.base
    hook = base.layers[-1].register_forward_hook(
        lambda module, given, output: caught.append((output[0] if isinstance(output, tuple) else output)[:, -1])
    )
    try:
        found = base(**inputs)
    finally:
        hook.remove()
    model.peft.get_base_model().lm_head(found.last_hidden_state[:, -1])
    return caught[0]


def _probability(model: OptiRAG, last: torch.Tensor, work: Work, start: int) -> torch.Tensor:
    """The model's last head on what transformers found, so that answers can be compared."""
    return model.ranker.heads[-1](last, work.numbers[start : start + len(last)]).positive_probability


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
