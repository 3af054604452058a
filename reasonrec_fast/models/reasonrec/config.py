"""The settings of a ReasonRec model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from reasonrec_fast.lm.loading import DEFAULT_MODEL
from reasonrec_fast.lm.vision import DEFAULT_ENCODER
from reasonrec_fast.models.classical.stack import StackConfig
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.settings import (
    Count,
    NotNegative,
    Positive,
    Share,
    ShareBelowOne,
    Whole,
    check_settings,
    settings_from,
)
from reasonrec_fast.training.curriculum import Curriculum, Horizon

Policy = Literal["gain", "risk", "budget", "always", "consult", "never"]
Task = Literal["sequential", "direct"]
Part = TypeVar("Part", StackConfig, "AgentConfig", OptiRAGConfig)


@dataclass(frozen=True)
class AgentConfig:
    """Settings of the agent: a language model that corrects the stack's order of its best candidates.

    Attributes:
        backbone: language model: a name, a folder or a GGUF file.
        layers: how many of its layers are kept; None for all.
        candidates: of the stack's best, which the agent reads; no other item is ever among them.
        history: latest items of a user that the prompt names.
        title_tokens: most tokens of an item's title.
        attributes: most attribute values of a candidate.
        evidence: whether candidates are described by what other users liked, beside title and attributes.
        pictures: folder with a picture ``<identifier>.jpg`` of items (also png, webp, gif, bmp), which the agent reads
            beside their titles; None for none. It is read when the model is fitted: features are kept with the model.
        picture_encoder: of :func:`~reasonrec_fast.lm.vision.load_image_encoder`.
        item_vectors: whether it reads the vectors of items' texts, of the stack's first tool that has them.
        soft_tokens: of a picture, and of a vector.
        thoughts: learned vectors at the end of a candidate's text (pause tokens).
        consulted: share of the training users whose prompts hold the tools' ranks too, as when tools are consulted.
        direct: share of the training users who are described by their tastes alone, as in direct recommendation.
        train_candidates: candidates of a user in a step of training: the target and others drawn from the best.
        lora_rank, lora_alpha: of the adapters on every linear layer.
        learning_rate, head_learning_rate, depth_decay: of adapters and head
            (:class:`~reasonrec_fast.training.exits.ExitTraining`).
        epochs: how often a user is drawn on average.
        batch_users: users of a step.
        curriculum: the order in which users are drawn; None draws them in a random order.
        horizon: how the evidence horizon is defined (:func:`~reasonrec_fast.training.curriculum.evidence_horizons`).
        seed: of everything random.
    """

    backbone: str = DEFAULT_MODEL
    layers: Count | None = 10
    candidates: Count = 20
    history: Count = 6
    title_tokens: Count = 18
    attributes: Whole = 3
    evidence: bool = True
    pictures: str | None = None
    picture_encoder: str = DEFAULT_ENCODER
    item_vectors: bool = False
    soft_tokens: Count = 1
    thoughts: Whole = 0
    consulted: Share = 0.3
    direct: Share = 0.2
    train_candidates: Count = 8
    lora_rank: Count = 8
    lora_alpha: Count = 16
    learning_rate: NotNegative = 2e-4
    head_learning_rate: NotNegative = 1e-3
    depth_decay: Positive = 0.98
    epochs: Positive = 1.0
    batch_users: Count = 8
    curriculum: Curriculum | None = field(default_factory=Curriculum)
    horizon: Horizon = "quantile"
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if not 2 <= self.train_candidates <= self.candidates:
            raise ValueError(
                f"train_candidates: expected 2 to {self.candidates}, the candidates; got {self.train_candidates}"
            )


@dataclass(frozen=True)
class ReasonRecConfig:
    """Settings of a model and of its training.

    Attributes:
        stack: of the classical models and the boosted trees on them.
        agent: of the language model; None leaves the stack to answer all queries.
        ctr: of the model that answers :meth:`~reasonrec_fast.models.reasonrec.ReasonRec.predict_ctr`; None for none.
        policy: who answers a query by default: ``"gain"`` asks the agent where a gain is predicted, ``"risk"`` decides
            by the paper's risk levels, ``"budget"`` sends a share of the queries, the unsure first, ``"always"`` and
            ``"consult"`` ask it for all (``"consult"`` with the tools' ranks in its prompt), ``"never"`` for none.
        budget: share of the queries that may be sent to the agent under ``"budget"``, and at most under ``"gain"``.
        k: items of an answer that count as a hit for the confidence.
        agent_share: share of the validation users that the agent learns from; the others choose how far it is trusted,
            and calibrate confidence and routing.
        seed: of the division of the users; it is added to the seeds of stack, agent and model of clicks.
    """

    stack: StackConfig = field(default_factory=StackConfig)
    agent: AgentConfig | None = field(default_factory=AgentConfig)
    ctr: OptiRAGConfig | None = None
    policy: Policy = "gain"
    budget: Share = 0.65
    k: Count = 5
    agent_share: ShareBelowOne = 0.6
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.agent is not None and self.agent.candidates <= self.k:
            raise ValueError(f"agent.candidates: expected more than k = {self.k}; got {self.agent.candidates}")

    def seeded(self, part: Part) -> Part:
        """The settings of a part with the seed added to its own."""
        return replace(part, seed=part.seed + self.seed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], place: str = "configuration") -> ReasonRecConfig:
        """The configuration that :meth:`to_dict` wrote.

        Raises:
            ValueError: an unknown key, or a value out of its range.

        >>> ReasonRecConfig.from_dict({"agent": {"layers": 6}}).agent.layers
        6
        """
        return settings_from(cls, values, place)
