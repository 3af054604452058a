"""Real MovieLens prompts for the engine's benchmarks, and their model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from reasonrec_fast.data import Interactions, Split, load_movielens_small, split_by_time
from reasonrec_fast.lm.layout import TokenGroup
from reasonrec_fast.models.optirag import OptiRAG
from reasonrec_fast.models.optirag.dataset import RequestBuilder, Requests
from reasonrec_fast.models.optirag.packaged import MOVIELENS
from reasonrec_fast.models.optirag.prompt import Slate


@dataclass(frozen=True)
class Work:
    """The input of one run: ``R`` requests.

    Attributes:
        groups: token ids, one group per user.
        features: standardised dense features, float32 ``[R, F]``.
        offset: logits of depth 0, float32 ``[R]``; all of these requests run the language model.
        strata: each request's row of the policy's thresholds, int64 ``[R]``.
    """

    groups: list[TokenGroup]
    features: torch.Tensor
    offset: torch.Tensor
    strata: torch.Tensor

    @property
    def prompts(self) -> list[list[int]]:
        """The full prompt of every request."""
        return [[*prefix, *suffix] for prefix, suffixes in self.groups for suffix in suffixes]


@cache
def movielens_model() -> tuple[OptiRAG, Interactions, Split]:
    """The demo's model with merged adapters; trains its retriever, which takes seconds."""
    data = load_movielens_small()
    split = split_by_time(data)
    model = OptiRAG.from_pretrained(MOVIELENS, device="cpu")
    model.refit_retriever(data, split.train)
    with model.adapters.merged():
        pass  # they stay in the weights
    return model, data, split


def slates_of_users(
    users: int, candidates: int, prefix_tokens: int, suffix_tokens: int, films: int | None = None
) -> Work:
    """The first ``films`` test films (by default ``candidates``) of random users who have that many, with
    ``candidates`` per prefix. Prefixes and suffixes get exactly the given lengths: they are truncated, or padded with
    newlines where they meet.

    Raises:
        ValueError: fewer users have that many test films.
    """
    model, data, split = movielens_model()
    test_users, counts = np.unique(data.users[split.test], return_counts=True)
    min_films = films or candidates
    eligible = test_users[counts >= min_films]
    if len(eligible) < users:
        raise ValueError(f"users: expected at most {len(eligible)} with {min_films} test films; got {users}")
    chosen = np.random.default_rng(0).permutation(eligible)[:users]
    rows = np.concatenate([split.test[data.users[split.test] == user][:min_films] for user in chosen])
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
    """One request per user, at a random moment of their history, in time order. Lengths follow from the histories, up
    to ``prefix_tokens``."""
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
