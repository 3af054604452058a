"""SASRec (Kang and McAuley 2018, arXiv 1808.09781) with a softmax over the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from reasonrec_fast.models.classical.sequence import SequenceConfig, SequenceRecommender
from reasonrec_fast.models.classical.sequence_blocks import LiGRBlock, SASRecBlock


@dataclass(frozen=True)
class SASRecConfig(SequenceConfig):
    """Hyper-parameters, beside those of :class:`~reasonrec_fast.models.classical.sequence.SequenceConfig`.

    Attributes:
        block: ``"sasrec"`` or ``"ligr"``.
    """

    block: Literal["sasrec", "ligr"] = "sasrec"


class SASRec(SequenceRecommender):
    """A causal transformer over a user's items; the next item is the one whose vector is nearest to its state.

    The paper's loss is ``loss="bce", negatives=1``; a softmax over the catalogue, the default, ranks better (Klenitskiy
    and Vasilev 2023, arXiv 2309.07602).

    Args:
        config: hyper-parameters.
        device: of the model.
    """

    config_type = SASRecConfig
    config: SASRecConfig

    def block(self) -> nn.Module:
        config = self.config
        kind = {"sasrec": SASRecBlock, "ligr": LiGRBlock}[config.block]
        return kind(config.dim, config.heads, config.dropout)
