"""Scoring of slates, in batches that concurrent callers share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from reasonrec_fast.early_exit.engine import Ranked
from reasonrec_fast.lm.layout import within
from reasonrec_fast.micro_batcher import SharedBatcher, host_library_is_there
from reasonrec_fast.models.optirag.dataset import Requests
from reasonrec_fast.models.optirag.prompt import Slate

if TYPE_CHECKING:
    from reasonrec_fast.models.optirag.model import OptiRAG

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class _Asked:
    """A slate of some requests. Attributes: ``early_exit``, whether rows may leave before the last layer."""

    requests: Requests
    slate: Slate
    early_exit: bool


class SlateScorer:
    """Ranks slates of any number of callers; batches hold about :data:`BATCH_TOKENS` tokens.

    Args:
        model: whose ranker, policy and scaling are used, as they are when a batch begins.
    """

    def __init__(self, model: OptiRAG) -> None:
        self._model = model
        self._batcher: SharedBatcher[_Asked, Ranked] = SharedBatcher(
            self._rank, max_size=BATCH_TOKENS, max_wait_ms=0.0, capacity=1 << 62
        )

    def score(self, requests: Requests, *, early_exit: bool) -> Iterator[tuple[Slate, Ranked]]:
        """Every slate, in order, with its scores."""
        if not host_library_is_there():
            for slates in batched(requests.slates):
                yield from zip(
                    slates, self._rank([_Asked(requests, slate, early_exit) for slate in slates]), strict=True
                )
            return
        futures: list[Future[Ranked]] = []
        with self._batcher.use() as batcher:
            try:
                asked = [_Asked(requests, slate, early_exit) for slate in requests.slates]
                futures = batcher.submit_all(asked, [slate.num_tokens for slate in requests.slates])
                for slate, future in zip(requests.slates, futures, strict=True):
                    yield slate, future.result()
            finally:  # a caller who gives up leaves no work behind
                for future in futures:
                    future.cancel()

    def _rank(self, batch: list[_Asked]) -> list[Ranked]:
        found: dict[int, Ranked] = {}
        for early_exit in (True, False):
            places = [place for place, asked in enumerate(batch) if asked.early_exit == early_exit]
            if places:
                ranked = self._rank_alike([batch[place] for place in places], early_exit)
                found.update(zip(places, ranked, strict=True))
        return [found[place] for place in range(len(batch))]

    def _rank_alike(self, batch: list[_Asked], early_exit: bool) -> list[Ranked]:
        model = self._model
        parts = [asked.requests.batch([asked.slate], model.mean, model.scale) for asked in batch]
        cold = np.concatenate([asked.requests.cold[asked.slate.rows] for asked in batch])
        ranked = model.ranker.rank(
            [group for groups, _, _ in parts for group in groups],
            torch.cat([numbers for _, numbers, _ in parts]),
            model.policy if early_exit else None,
            torch.from_numpy(cold.astype(np.int64)),
        ).cpu()  # in one piece: callers read slate by slate
        sizes = [len(asked.slate.rows) for asked in batch]
        pairs = zip(ranked.probability.split(sizes), ranked.depth.split(sizes), strict=True)
        return [Ranked(probability, depth) for probability, depth in pairs]


def batched(slates: list[Slate]) -> list[list[Slate]]:
    """Slates in batches of about :data:`BATCH_TOKENS` tokens."""
    sizes = [slate.num_tokens for slate in slates]
    return [[slates[place] for place in part] for part in within(sizes, BATCH_TOKENS)]
