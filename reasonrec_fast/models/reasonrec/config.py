"""The settings of a ReasonRec model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from reasonrec_fast.lm.loading import DEFAULT_MODEL
from reasonrec_fast.lm.vision import DEFAULT_ENCODER
from reasonrec_fast.models.classical.stack_config import StackConfig
from reasonrec_fast.models.optirag.config import OptiRAGConfig
from reasonrec_fast.settings import (
    Bound,
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
OWN_ENCODER = "backbone"
"""The name of the picture encoder that is the vision tower of the agent's backbone."""
Part = TypeVar("Part", StackConfig, "AgentConfig", "TitleAgentConfig", "ChainConfig", OptiRAGConfig)


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
        picture_encoder: of :func:`~reasonrec_fast.lm.vision.load_image_encoder`; or ``"backbone"``, the vision tower of
            a backbone that has one (SmolVLM, Qwen2.5-VL), whose vectors are averaged to ``soft_tokens`` and read as
            they are.
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
        reasoning_weight: of the loss of chains of thought (R-VIT) that the language model learns to write beside, out
            of the training part; 0 for none.
        reasoning_samples, reasoning_batch: such chains in all, at most, and in a step.
        reasoning_wordings: as :class:`ChainConfig`'s ``wordings``, for these chains.
        timed: as in :class:`ChainConfig`, for these chains.
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
    reasoning_weight: NotNegative = 0.0
    reasoning_samples: Count = 500
    reasoning_batch: Count = 2
    reasoning_wordings: Count | None = None
    timed: bool | None = None
    horizon: Horizon = "quantile"
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if not 2 <= self.train_candidates <= self.candidates:
            raise ValueError(
                f"train_candidates: expected 2 to {self.candidates}, the candidates; got {self.train_candidates}"
            )


@dataclass(frozen=True)
class TitleAgentConfig:
    """Settings of an agent that compares how likely a language model finds the candidates' titles.

    Attributes:
        backbone: language model: a name, a folder or a GGUF file. All of its layers are used.
        candidates: of the stack's best, whose titles are read.
        history: latest items of a user whose titles come before.
        title_tokens: most tokens of an item's title.
        users: of the training part, drawn, whose histories the model is fine-tuned on; those with one like are not.
        adapted_layers: how many of the last layers get adapters; those before have no backward pass.
        lora_rank, lora_alpha: of the adapters on every linear layer of these.
        learning_rate: of AdamW.
        batch_users: users of a step of fine-tuning.
        penalty: on the squares of the weights of standardised likelihoods.
        horizon: how the evidence horizon is defined (:func:`~reasonrec_fast.training.curriculum.evidence_horizons`).
        seed: of everything random.
    """

    backbone: str = DEFAULT_MODEL
    candidates: Count = 20
    history: Count = 5
    title_tokens: Count = 14
    users: Count = 4000
    adapted_layers: Count = 14
    lora_rank: Count = 16
    lora_alpha: Count = 32
    learning_rate: NotNegative = 6e-4
    batch_users: Count = 32
    penalty: NotNegative = 1.0
    horizon: Horizon = "quantile"
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class ChainConfig:
    """Settings of the writer of chains of thought.

    Attributes:
        backbone: language model: a name, a folder or a GGUF file. All of its layers are used.
        system: what the conversation's system message says. None, or a tokenizer without a chat template: the question
            is plain text.
        samples: most samples that a :class:`~reasonrec_fast.models.reasonrec.ReasonRec` makes of its training part.
        candidates: that a question names, of the stack's best.
        history: latest liked items that a question names.
        direct: share of the samples that describe users by their tastes alone, as in direct recommendation.
        ctr: share of the samples that ask whether an item was liked; none where there are no dislikes.
        timed: whether moments of different users can be compared. None: they can where they are times of day; a counter
            must be said to be one order of all events (True), or positions within each user's own (False, files of
            sequences).
        wordings: of the ten of each task, that samples and questions are written in: the first so many; None for all.
        prompt_tokens: most tokens of a question, and no more than the backbone reads before a chain; a longer history
            loses its oldest items.
        lora_rank, lora_alpha: of the adapters on every linear layer.
        learning_rate: of AdamW.
        epochs: passes over the samples.
        batch: samples of a step.
        batch_tokens: most tokens that go through the model at once, which bounds memory.
        curriculum: the order in which samples are drawn; None for a random order.
        max_tokens: most tokens of a chain; one that has not ended by then is cut.
        temperature: of sampling, at least 1e-6; 0 takes the most likely token.
        chains: of a query, where the caller names no number.
        seed: of everything random in the training.
    """

    backbone: str = DEFAULT_MODEL
    system: str | None = (
        "You choose what to recommend. Say what the user prefers, what speaks for it, and compare the candidates. End "
        "with: Answer: the candidate. Confidence: very low, low, medium, high or very high."
    )
    samples: Count = 2000
    candidates: Annotated[int, Bound("of at least 2", lambda value: value >= 2)] = 5
    history: Count = 6
    direct: Share = 0.2
    ctr: Share = 0.2
    timed: bool | None = None
    wordings: Count | None = None
    prompt_tokens: Count = 768
    lora_rank: Count = 8
    lora_alpha: Count = 16
    learning_rate: NotNegative = 2e-4
    epochs: Count = 1
    batch: Count = 8
    batch_tokens: Count = 4096
    curriculum: Curriculum | None = field(default_factory=Curriculum)
    max_tokens: Count = 192
    temperature: Annotated[float, Bound("that is 0 or at least 1e-6", lambda value: value == 0 or value >= 1e-6)] = 0.7
    chains: Count = 1
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.direct + self.ctr > 1:
            raise ValueError(f"direct, ctr: expected shares of at most 1 together; got {self.direct} and {self.ctr}")


@dataclass(frozen=True)
class ReasonRecConfig:
    """Settings of a model and of its training.

    Attributes:
        stack: of the classical models and the boosted trees on them.
        agent: of the language model; None leaves the stack to answer all queries.
        titles: of an agent that compares likelihoods of titles. Where it is given, it stands in place of ``agent``,
            which is None then.
        ctr: of the model that answers :meth:`~reasonrec_fast.models.reasonrec.ReasonRec.predict_ctr`; None for none.
        chain: of the writer behind :meth:`~reasonrec_fast.models.reasonrec.ReasonRec.think`; None for none.
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
    titles: TitleAgentConfig | None = None
    ctr: OptiRAGConfig | None = None
    chain: ChainConfig | None = None
    policy: Policy = "gain"
    budget: Share = 0.65
    k: Count = 5
    agent_share: ShareBelowOne = 0.6
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.titles is not None:
            object.__setattr__(self, "agent", None)
        if self.reader is not None and self.reader.candidates <= self.k:
            name = "agent" if self.titles is None else "titles"
            raise ValueError(f"{name}.candidates: expected more than k = {self.k}; got {self.reader.candidates}")

    @property
    def reader(self) -> AgentConfig | TitleAgentConfig | None:
        """The settings of the agent, whatever its kind."""
        return self.agent if self.titles is None else self.titles

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
