"""What ReasonRec answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Answers(NamedTuple):
    """Recommendations to ``B`` users, and who gave them.

    Attributes:
        scores: float32 ``[B, k]``, descending; ``-inf`` where there are no more.
        items: int64 ``[B, k]``, -1 for no more; where users were given by identifiers, objects: identifiers, and None.
        answered_by: :data:`~reasonrec_fast.models.reasonrec.routing.DESTINATIONS` by number, int64 ``[B]``.
        confidence: that the user's next item is among the ``config.k`` best, as the stack ranks them, ``[B]``.
        horizon: evidence horizon of each user; near 1 is cold, ``[B]``.
        gain: what the router expected of the agent, ``[B]``; 0 without an agent.
        left_out: tools that gave no answer, and why.
    """

    scores: np.ndarray
    items: np.ndarray
    answered_by: np.ndarray
    confidence: np.ndarray
    horizon: np.ndarray
    gain: np.ndarray
    left_out: dict[str, str]


def ndcg(logits: np.ndarray, target: int, k: int) -> float:
    """NDCG at ``k`` of candidates with logits ``[C]`` of which one is relevant; their order decides between equal
    logits."""
    rank = int((logits > logits[target]).sum() + (logits[:target] == logits[target]).sum()) + 1
    return float(1 / np.log2(rank + 1)) if rank <= k else 0.0


def descending(logits: np.ndarray) -> np.ndarray:
    """As float32 in which no two of a row are equal, so that an order which stands is not taken for a tie."""
    scores = logits.astype(np.float32)
    for rank in range(1, int(np.isfinite(scores).sum(1).max(initial=0))):
        below = np.nextafter(scores[:, rank - 1], np.float32(-np.inf))
        scores[:, rank] = np.minimum(scores[:, rank], below)
    return scores
