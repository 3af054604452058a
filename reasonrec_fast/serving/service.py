"""A ranker behind a queue: concurrent callers share batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType

from reasonrec_fast.early_exit.ranker import EarlyExitRanker
from reasonrec_fast.early_exit.requests import EncodedRequest, Request, listed
from reasonrec_fast.early_exit.scores import RowScores
from reasonrec_fast.micro_batcher import MicroBatcher

Encoded = list[EncodedRequest]


class RankingService:
    """Batches the calls of any number of threads for one ranker.

    Args:
        ranker: its ``max_tokens`` bounds a batch.
        max_wait_ms: longest wait for a batch to fill, in milliseconds, while the ranker is idle.
        queue_tokens: capacity of the queue in tokens; beyond it calls raise
            :class:`~reasonrec_fast.micro_batcher.QueueFullError`.
        early_exit: False runs every layer.

    Raises:
        ValueError: heads that read features or correct an offset, which no call brings.
    """

    def __init__(
        self, ranker: EarlyExitRanker, *, max_wait_ms: float = 5.0, queue_tokens: int = 1 << 20, early_exit: bool = True
    ) -> None:
        model = ranker.model
        if model.offset or model.heads[0].units is not None:
            raise ValueError("ranker: expected heads that read neither features nor an offset; got some that do")
        self._ranker, self._early_exit = ranker, early_exit
        self._tokenizer_lock = threading.Lock()
        self._batcher: MicroBatcher[Encoded, RowScores] = MicroBatcher(
            self._predict, max_size=ranker.max_tokens, max_wait_ms=max_wait_ms, capacity=queue_tokens
        )

    def submit(self, requests: Sequence[Request]) -> Future[RowScores]:
        """A future of what ``ranker.predict(requests)`` returns.

        Raises:
            QueueFullError: the queue is full; try again later.
            ValueError: no request, or a request that the ranker refuses.
            RuntimeError: closed.
        """
        requests = listed(requests)
        if not requests:
            raise ValueError("requests: expected at least one; got none")
        with self._tokenizer_lock:
            encoded = self._ranker.encode(requests)
        tokens = sum(len(ids) for ids, _ in encoded)
        return self._batcher.submit(encoded, size=tokens)

    def close(self) -> None:
        """Answer the submitted requests, then stop."""
        self._batcher.close()

    def __enter__(self) -> RankingService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _predict(self, calls: list[Encoded]) -> list[RowScores]:
        requests = [request for call in calls for request in call]
        scores = self._ranker.predict_encoded(requests, early_exit=self._early_exit)
        return scores.split([len(call) for call in calls])
