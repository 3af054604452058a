"""BSARec (Shin et al. 2024, arXiv 2312.10325): attention beside a frequency filter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from reasonrec_fast.models.classical.sequence import SequenceConfig, SequenceRecommender
from reasonrec_fast.models.classical.sequence_blocks import BSABlock
from reasonrec_fast.settings import Count, Share


@dataclass(frozen=True)
class BSARecConfig(SequenceConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.sequence.SequenceConfig`.

    Attributes:
        alpha: share of the frequency filter beside attention; the paper's for Amazon beauty, as ``cutoff``.
        cutoff: the paper's c; the ``cutoff // 2 + 1`` lowest frequencies are low.
    """

    alpha: Share = 0.7
    cutoff: Count = 5


class BSARec(SequenceRecommender):
    """SASRec whose attention only corrects a filter over the history, which re-weights its high frequencies.

    It differs from the paper in what :class:`~reasonrec_fast.models.classical.sequence.SequenceRecommender` shares with
    SASRec: every position of a history is trained at once, through a causal filter
    (:class:`~reasonrec_fast.models.classical.sequence_blocks.FrequencyFilter`), norms come first, and the default loss
    is over cosines (``loss="softmax"`` is the paper's).

    Args:
        config: hyper-parameters.
        device: of the model.

    >>> from reasonrec_fast.data import Interactions
    >>> data = Interactions.from_columns(["a", "a", "b"], ["x", "y", "y"], [1, 1, 1], [1, 2, 3])
    >>> model = BSARec(BSARecConfig(dim=4, epochs=2, max_length=3)).fit(data)
    >>> model.recommend(["b"], 2).items.tolist()
    [['x', None]]
    """

    config_type = BSARecConfig
    config: BSARecConfig

    def block(self) -> nn.Module:
        config = self.config
        return BSABlock(
            config.dim, config.heads, config.dropout, alpha=config.alpha, length=config.max_length, cutoff=config.cutoff
        )
