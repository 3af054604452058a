"""The settings of an OptiRAG-Rec model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reasonrec_fast.lm.loading import DEFAULT_MODEL
from reasonrec_fast.models.optirag.evidence_source import AtLeastTwo, EvidenceConfig
from reasonrec_fast.ops.exit_confidence import Measure
from reasonrec_fast.settings import (
    Count,
    NotNegative,
    Positive,
    Share,
    ShareBelowOne,
    Whole,
    settings_from,
)
from reasonrec_fast.training.exits import Mode


@dataclass(frozen=True)
class OptiRAGConfig(EvidenceConfig):
    """Settings of a model and of its training, beside those of the evidence
    (:class:`~reasonrec_fast.models.optirag.evidence_source.EvidenceConfig`).

    Attributes:
        backbone: language model: a name, a folder or a GGUF file.
        template: wording of the prompts: ``"auto"`` is made for the attributes that the items have
            (:func:`~reasonrec_fast.models.optirag.template.make_template`); ``"films"``, ``"items"`` or a JSON file,
            each with the name of another wording behind a colon (``"films:brief"``).
        prefix_tokens, suffix_tokens, slate_size: token budgets, and candidates that share a prefix. A suffix has by
            default 24 tokens, and 40 where the template has attributes of the target.
        layers: how many of the backbone's layers are kept; None for all.
        read_dense_features: whether the heads read the dense features of the evidence beside the hidden state.
        boosted: whether the exits stand on boosted trees that read the evidence: the trees' logit is that of depth 0,
            and the heads correct it. Heads without dense features stand on their own.
        exits: layers with heads; None spreads six over the depth.
        ensemble_size: ensemble size of each head; 1 where the heads correct boosted trees, as they all start at zero.
        lora_rank, lora_alpha: of the adapters on every linear layer.
        samples: training requests drawn (without replacement, again from the start when all were seen); None: as many
            as there are.
        batch_slates: slates a step.
        learning_rate, head_learning_rate: peaks of the schedule, for the adapters of the last layer and the heads.
        depth_decay: factor on the adapters' rate for each layer below the last (the depth-aware schedule); 1: off.
        exit_training: ``"joint"``, ``"heads"`` (the adapters stay as they are) or ``"distil"`` (exits learn from the
            last one); see :class:`reasonrec_fast.training.exits.ExitTraining`.
        layer_dropout: share of steps that skip the last layer but one, falling to 0 at the first layer.
        warm_start_steps: steps in which the heads first learn from the dense features alone.
        cold_share: share of training requests whose item is shown as unrated.
        pairwise_weight: weight of the loss that ranks a user's liked items above the others of the slate.
        measure, trend: how confidence is measured, and whether a request exits only where it has not fallen since
            the exit before.
        calibration_requests: validation requests (of whole users) that thresholds come from; with boosted trees, or
            ``max_disagreement``, as many others scale the heads and train depth 0.
        max_auc_loss, max_gauc_loss: what early exit may cost on validation.
        max_disagreement: instead of them two promises, one for rated items and one for items shown as unrated. With
            90 % probability over calibration sets both hold: early exit answers at most this share of a user's requests
            of either kind otherwise than full depth (mean over users; Learn then Test). For validation sets that are
            too small for the losses above to carry over.
    """

    backbone: str = DEFAULT_MODEL
    template: str = "auto"
    prefix_tokens: Count = 232
    suffix_tokens: Count | None = None
    slate_size: Count = 32
    layers: Count | None = None
    read_dense_features: bool = True
    boosted: bool = True
    exits: tuple[Count, ...] | None = None
    ensemble_size: Count = 1
    lora_rank: Count = 8
    lora_alpha: Count = 16
    samples: Count | None = None
    batch_slates: Count = 10
    learning_rate: NotNegative = 2e-4
    head_learning_rate: NotNegative = 1e-3
    depth_decay: Positive = 0.98
    exit_training: Mode = "joint"
    layer_dropout: ShareBelowOne = 0.0
    warm_start_steps: Whole = 600
    cold_share: Share = 0.35
    pairwise_weight: NotNegative = 0.5
    measure: Measure = "ratio"
    trend: bool = False
    calibration_requests: AtLeastTwo = 5_000
    max_auc_loss: NotNegative = 0.002
    max_gauc_loss: NotNegative = 0.005
    max_disagreement: Share | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stands_on_trees and self.ensemble_size > 1:
            raise ValueError(
                f"ensemble_size: expected 1 with boosted=True, where all heads of an ensemble would be the same; got "
                f"{self.ensemble_size}"
            )

    @property
    def stands_on_trees(self) -> bool:
        """Whether the exits begin at depth 0, with boosted trees."""
        return self.boosted and self.read_dense_features

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], place: str = "configuration") -> OptiRAGConfig:
        """The configuration that :meth:`to_dict` wrote.

        Args:
            values: fields by name.
            place: their source, for errors.

        Raises:
            ValueError: an unknown key, or a value out of its range.

        >>> OptiRAGConfig.from_dict({"samples": 10}).samples
        10
        >>> OptiRAGConfig.from_dict({"samples": 0}, "config.json")
        Traceback (most recent call last):
        ValueError: config.json: samples: expected a whole number of at least 1 or none; got 0
        """
        return settings_from(cls, values, place)
