"""Real MovieLens prompts for the engine's benchmarks, and the model that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from reasonrec_fast.data import Interactions, Split, load_movielens_small, split_by_time
from reasonrec_fast.experiments.demo import PRETRAINED
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.dataset import RequestBuilder, Requests
from reasonrec_fast.models.optirag.prompt import Slate


@dataclass(frozen=True)
class Work:
    """What one run scores: ``R`` requests.

    Attributes:
        groups: token ids, a group a user.
        numbers: standardised, float32 ``[R, F]``.
        offset: logits of depth 0, float32 ``[R]``; all of these requests go on from there.
        strata: row of the policy's thresholds, int64 ``[R]``.
    """

    groups: list[TokenGroup]
    numbers: torch.Tensor
    offset: torch.Tensor
    strata: torch.Tensor

    @property
    def prompts(self) -> list[list[int]]:
        """Every request in full."""
        return [[*prefix, *suffix] for prefix, suffixes in self.groups for suffix in suffixes]


@cache
def movielens_model() -> tuple[OptiRAG, Interactions, Split]:
    """The demo's model with its retriever trained (seconds), adapters merged."""
    data = load_movielens_small()
    split = split_by_time(data)
    model = OptiRAG.from_pretrained(PRETRAINED / "movielens", device="cpu")
    model.refit_retriever(data, split.train)
    model.merge()
    return model, data, split


def slates_of_users(
    users: int, candidates: int, prefix_tokens: int, suffix_tokens: int, films: int | None = None
) -> Work:
    """The first ``films`` test films (as many as candidates by default) of users who have that many, so many candidates
    a prefix, brought to exactly these lengths (cut, or filled up with newlines where prefix and suffix meet).

    Raises:
        ValueError: there are not so many users.
    """
    model, data, split = movielens_model()
    owners, counts = np.unique(data.users[split.test], return_counts=True)
    least = films or candidates
    able = owners[counts >= least]
    if len(able) < users:
        raise ValueError(f"users: expected at most {len(able)} with {least} test films; got {users}")
    chosen = np.random.default_rng(0).permutation(able)[:users]
    rows = np.concatenate([split.test[data.users[split.test] == user][:least] for user in chosen])
    requests = _requests(rows, slate_size=candidates, prefix_tokens=prefix_tokens, suffix_tokens=suffix_tokens)
    newline = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    slates = [
        replace(
            slate,
            prefix=slate.prefix + newline * (prefix_tokens - len(slate.prefix)),
            suffixes=[newline * (suffix_tokens - len(suffix)) + suffix for suffix in slate.suffixes],
        )
        for slate in requests.slates
    ]
    return _work(requests, slates)


def requests_in_arrival_order(count: int, prefix_tokens: int) -> Work:
    """One request a user, at a random moment of their history, in the order in which they came; lengths as the
    histories give them, up to ``prefix_tokens``."""
    _, data, _ = movielens_model()
    generator = np.random.default_rng(0)
    by_user = np.split(np.lexsort((data.timestamps, data.users)), np.cumsum(np.bincount(data.users))[:-1])
    rows = np.array([generator.choice(events) for events in by_user if len(events)])
    rows = generator.permutation(rows)[:count]
    rows = rows[np.argsort(data.timestamps[rows], kind="stable")]
    requests = _requests(rows, slate_size=1, prefix_tokens=prefix_tokens, suffix_tokens=24)
    return _work(requests, sorted(requests.slates, key=lambda slate: int(slate.rows[0])))


def _requests(rows: np.ndarray, *, slate_size: int, prefix_tokens: int, suffix_tokens: int) -> Requests:
    model, data, split = movielens_model()
    assert model.knowledge is not None
    config = replace(model.config, slate_size=slate_size, prefix_tokens=prefix_tokens, suffix_tokens=suffix_tokens)
    builder = RequestBuilder(
        data, split.train, model.knowledge.retriever, model.tokenizer, config, booster=model.booster
    )
    return builder.requests(rows)


def _work(requests: Requests, slates: Sequence[Slate]) -> Work:
    model, _, _ = movielens_model()
    groups, inputs, _ = requests.batch(slates, model.mean, model.scale)
    assert inputs.features is not None and inputs.offset is not None and inputs.strata is not None
    return Work(groups, inputs.features, inputs.offset, inputs.strata)
